//! Unix sockets named by a directory and a short name.
//!
//! A socket's address ends at 107 bytes, and `$XDG_RUNTIME_DIR` may be missing or removed while
//! containers run. So our sockets lie in the app root, beside the state that they serve, and are
//! addressed as `/proc/self/fd/<directory>/<name>`: short whatever the directory's path is.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, getsockopt, socket,
    sockopt::{PeerCredentials, PeerPidfd},
};
use nix::sys::stat::Mode;

use crate::audit::Requester;

/// How long [`connect`] waits for room in a listener's queue.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Who is at the other end, as the kernel saw it when the connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process id, in our pid namespace.
    pub pid: i32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

fn open_directory(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(directory, flags, Mode::empty()).map_err(io::Error::from)
}

fn short_path(directory: &OwnedFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

/// Listens on `name` in `directory`, readable and writable by the owner alone. A stale socket of
/// that name is replaced: the caller holds the lock that says nobody else serves it.
pub fn bind(directory: &Path, name: &str) -> io::Result<UnixListener> {
    let fd = open_directory(directory)?;
    let path = short_path(&fd, name);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects to `name` in `directory`, and waits a while when too many do so at once.
pub fn connect(directory: &Path, name: &str) -> io::Result<UnixStream> {
    let end = Instant::now() + CONNECT_DEADLINE;
    loop {
        match try_connect(directory, name) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

/// [`connect`] that never waits: `WouldBlock` when the listener's queue is full, as it is when its
/// process does not accept any more.
pub fn try_connect(directory: &Path, name: &str) -> io::Result<UnixStream> {
    let fd = open_directory(directory)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let address = UnixAddr::new(&short_path(&fd, name))?;
    nix::sys::socket::connect(socket.as_raw_fd(), &address)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// The kernel's word on who is at the other end of `socket`.
pub fn peer(socket: &impl AsFd) -> io::Result<Peer> {
    let c = getsockopt(socket, PeerCredentials)?;
    Ok(Peer { pid: c.pid(), uid: c.uid(), gid: c.gid() })
}

/// The peer with its program. The path is read from `/proc` by the peer's number; a pidfd of the
/// peer (Linux 6.5) tells afterwards that the number was its own all the while.
pub fn requester(socket: &impl AsFd, peer: Peer) -> Requester {
    let pidfd = getsockopt(socket, PeerPidfd).ok();
    let path = std::fs::read_link(format!("/proc/{}/exe", peer.pid)).ok();
    let verified = pidfd.is_some_and(|pidfd| {
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        // Readable once it has ended.
        path.is_some() && poll(&mut fds, PollTimeout::ZERO) == Ok(0)
    });
    let shown = path.map(|path| crate::escape::escape(&path.to_string_lossy()).into_owned());
    Requester { uid: peer.uid, gid: peer.gid, pid: peer.pid, executable: shown, verified }
}

/// Whether a peer may speak to a service of ours: the service's own user, and root.
pub fn is_owner(peer: Peer) -> bool {
    peer.uid == 0 || peer.uid == nix::unistd::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_beyond_the_address_limit_works() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(200)).join("e".repeat(200));
        std::fs::create_dir_all(&deep).unwrap();
        let listener = bind(&deep, "s.sock").unwrap();
        listener.set_nonblocking(false).unwrap();
        let client = connect(&deep, "s.sock").unwrap();
        let (server, _) = listener.accept().unwrap();
        let me = peer(&server).unwrap();
        assert_eq!(me, peer(&client).unwrap());
        assert!(is_owner(me));
        let requester = requester(&server, me);
        let program = std::env::current_exe().unwrap();
        assert_eq!(requester.executable.as_deref(), program.to_str());
        drop(listener);
        bind(&deep, "s.sock").expect("a stale socket is replaced");
    }
}
