//! Sockets of a container: those that PID 1 listens on for its programs, and connections to those
//! that its programs listen on.

use super::{Container, child, fork_into};
use crate::failure::{Context, Failure};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, bind, listen, recvmsg, sendmsg, socket, socketpair,
};
use nix::unistd::alarm;
use std::ffi::{CString, OsStr};
use std::fs::{self, File, Permissions};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use vminitd_protocol::GUEST_REQUEST_LIMIT;
use vminitd_protocol::message::ErrorCode::{Exhausted, Internal, Mount};
use vminitd_protocol::message::ListenSocket;

/// Where PID 1 makes its sockets, by their numbers.
const DIRECTORY: &str = "/run/sockets";

fn place(number: usize) -> String {
    format!("{DIRECTORY}/{number}")
}

/// Makes the sockets that a container is to find, listening.
pub fn create(sockets: &[ListenSocket]) -> Result<Vec<OwnedFd>, Failure> {
    if sockets.is_empty() {
        return Ok(Vec::new());
    }
    fs::create_dir_all(DIRECTORY).context(Internal, || format!("create {DIRECTORY}"))?;
    let one = |number| {
        let path = place(number);
        // A former container's.
        let _ = fs::remove_file(&path);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let made = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        bind(made.as_raw_fd(), &UnixAddr::new(Path::new(&path))?)?;
        listen(&made, Backlog::new(64)?)?;
        Ok(made)
    };
    let all: nix::Result<Vec<OwnedFd>> = (0..sockets.len()).map(one).collect();
    let all = all.context(Exhausted, || "make the container's sockets")?;
    for number in 0..sockets.len() {
        // Whatever user a program runs as: nobody else is in this VM.
        fs::set_permissions(place(number), Permissions::from_mode(0o666))
            .context(Internal, || "open a socket to the container's users")?;
    }
    Ok(all)
}

/// PID 1's sockets as mounts, before the root is changed.
pub fn pick_up(sockets: &[ListenSocket]) -> Result<Vec<OwnedFd>, Failure> {
    let one = |number| {
        let path = CString::new(place(number)).expect("no NUL in a number");
        sys::open_tree(&path).context(Mount, || "pick a socket up")
    };
    (0..sockets.len()).map(one).collect()
}

/// Puts one of them where the container looks for it.
pub fn lay(tree: OwnedFd, wanted: &ListenSocket) -> Result<(), Failure> {
    let path = Path::new(OsStr::from_bytes(&wanted.path));
    let what = || format!("put a socket at {}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).context(Mount, what)?;
    }
    if fs::symlink_metadata(path).is_err() {
        File::options().create(true).append(true).open(path).context(Mount, what)?;
    }
    let target = CString::new(wanted.path.clone())
        .map_err(|_| Failure::invalid("a NUL byte in a socket's path"))?;
    sys::move_mount(tree, &target).context(Mount, what)
}

/// Sets out to connect to a socket in a container: a child does, since a path there may lead to
/// where everything stands still. It answers on the descriptor ([`connected`]), or ends.
pub fn connect(container: &Container, path: &[u8]) -> Result<OwnedFd, Failure> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
        .context(Exhausted, || "create a socket")?;
    match fork_into(container)? {
        sys::Forked::Child => {
            drop(ours);
            child::run_connect(container, path, &theirs)
        }
        sys::Forked::Parent { .. } => {
            fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).internal("change a socket")?;
            Ok(ours)
        }
    }
}

/// The child's part of [`connect`].
pub fn connect_inside(container: &Container, path: &[u8], answer: &OwnedFd) -> Result<(), Errno> {
    alarm::set(GUEST_REQUEST_LIMIT.as_secs() as u32 - 5);
    sys::close_all_but(answer, &container.pidfd)?;
    let outcome = setns(&container.pidfd, CloneFlags::CLONE_NEWNS).and_then(|()| {
        let made = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let address = UnixAddr::new(Path::new(OsStr::from_bytes(path)))?;
        nix::sys::socket::connect(made.as_raw_fd(), &address)?;
        fcntl(&made, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(made)
    });
    let (errno, fds) = match &outcome {
        Ok(made) => (0, vec![made.as_raw_fd()]),
        Err(errno) => (*errno as i32, Vec::new()),
    };
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    let bytes = errno.to_le_bytes();
    sendmsg::<()>(answer.as_raw_fd(), &[IoSlice::new(&bytes)], rights, MsgFlags::MSG_NOSIGNAL, None)
        .map(drop)
}

/// The answer of [`connect`]; `None`: not yet.
pub fn connected(answer: &OwnedFd) -> Option<Result<OwnedFd, Errno>> {
    let mut bytes = [0; 4];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = match recvmsg::<()>(answer.as_raw_fd(), &mut parts, Some(&mut space), flags) {
        Ok(message) => message,
        Err(Errno::EAGAIN | Errno::EINTR) => return None,
        Err(errno) => return Some(Err(errno)),
    };
    let length = message.bytes;
    let socket = message.cmsgs().ok().and_then(|mut all| {
        all.find_map(|item| match item {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        })
    });
    // SAFETY: the kernel has just made this descriptor for us.
    let socket = socket.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    Some(match (length, i32::from_le_bytes(bytes), socket) {
        (4, 0, Some(socket)) => Ok(socket),
        (4, errno, _) if errno != 0 => Err(Errno::from_raw(errno)),
        // It was ended, or took too long.
        _ => Err(Errno::ETIMEDOUT),
    })
}
