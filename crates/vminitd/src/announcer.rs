//! Raises events for what the host has changed in the files that it serves.
//!
//! ```text
//! PID 1 ── request ──► announcer, a process of its own
//!                        opens the directory, then tells the server which event comes (the root's
//!                        time is its token), then "makes", "removes", "moves", "touches" the file
//! ```
//! The kernel raises an event where it believes that something was changed; the file server only
//! says so. Its announcer is known by its user, and by the process number 0 that everybody outside
//! of the container's PID namespace has in its requests. A server that is stuck holds up this
//! process, not PID 1. Paths are walked without following any link, so that no link of a container
//! leads out of the file system.

use crate::failure::{Context, Failure};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2, renameat};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};
use prost::Message;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use vminitd_protocol::message::ErrorCode::{Exhausted, Internal, Mount};
use vminitd_protocol::message::{FileEvent, FileEventKind, RaiseFileEvents};
use vminitd_protocol::{
    FILE_EVENT_ELSEWHERE, FILE_EVENT_USER, MAX_FILE_EVENT_BYTES, MAX_FILE_EVENTS,
};

/// Where the file system is mounted for a moment.
const STAGE: &str = "/run/announcer";
/// Longest request in bytes: its paths and tag, and less than this for each event.
const MAX_LEN: usize = MAX_FILE_EVENT_BYTES + 256 + 64 * MAX_FILE_EVENTS;
/// DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER: a stranger's file is "changed" as its owner does.
const CAPABILITIES: u64 = 1 << 1 | 1 << 2 | 1 << 3;
/// From `linux/securebits.h`: another user for files keeps capabilities.
const SECBIT_NO_SETUID_FIXUP: u64 = 1 << 2;

/// The process, as PID 1 has it. It ends when this is dropped.
#[derive(Debug)]
pub struct Announcer(OwnedFd);

impl Announcer {
    /// Starts it for the file system with a tag, which the container has mounted.
    pub fn start(tag: &str) -> Result<Self, Failure> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .context(Exhausted, || "create a socket")?;
        match sys::fork(0, None).context(Exhausted, || "create a process")? {
            sys::Forked::Parent { .. } => Ok(Announcer(ours)),
            sys::Forked::Child => {
                drop(ours);
                if let Err(failure) = run(tag, &theirs) {
                    eprintln!("vminitd: no events of shared files: {failure}");
                }
                // SAFETY: ends this process without running what PID 1 registered for exit.
                unsafe { libc::_exit(1) }
            }
        }
    }

    /// Passes a request on without waiting.
    ///
    /// # Errors
    /// `Exhausted` while it is behind, `Internal` when it is gone.
    pub fn raise(&self, request: &RaiseFileEvents) -> Result<(), Failure> {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        match send(self.0.as_raw_fd(), &request.encode_to_vec(), flags) {
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR) => {
                Err(Failure::new(Exhausted, "the announcer is behind"))
            }
            sent => sent.map(drop).context(Internal, || "reach the announcer"),
        }
    }
}

fn run(tag: &str, socket: &OwnedFd) -> Result<(), Failure> {
    sys::close_all_but(socket, socket).internal("close descriptors")?;
    let root = mount_root(tag)?;
    become_announcer()?;
    let mut bytes = vec![0; MAX_LEN];
    loop {
        match recv(socket.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            // PID 1 has no use for it any more.
            Ok(0) => return Ok(()),
            received => {
                let len = received.internal("receive a request")?;
                let request = RaiseFileEvents::decode(&bytes[..len]);
                for event in request.map(|request| request.events).unwrap_or_default() {
                    // What has changed once more has an event of its own.
                    let _ = raise(&root, &event);
                }
            }
        }
    }
}

/// The root of the file system, in a mount that nobody else finds.
fn mount_root(tag: &str) -> Result<OwnedFd, Failure> {
    fs::create_dir_all(STAGE).context(Mount, || "make a place for shares")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(tag), STAGE, Some("virtiofs"), flags, None::<&str>)
        .context(Mount, || "mount the file system of the shares")?;
    // Its listing is nobody's: the server doesn't open it.
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(STAGE, flags, Mode::empty()).context(Mount, || "open the shares");
    umount2(STAGE, MntFlags::MNT_DETACH).context(Mount, || "hide the shares")?;
    root
}

/// Takes the user that the server knows, and keeps what it takes to reach all files.
fn become_announcer() -> Result<(), Failure> {
    sys::prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP).internal("keep capabilities")?;
    // SAFETY: by value; it answers the former user, so asking again tells whether it worked.
    let user = unsafe {
        libc::setfsuid(FILE_EVENT_USER);
        libc::setfsuid(FILE_EVENT_USER)
    };
    if user as u32 != FILE_EVENT_USER {
        return Err(Failure::new(Internal, "the announcer's user can't be taken"));
    }
    sys::capset(CAPABILITIES, CAPABILITIES, 0).internal("drop capabilities")
}

/// A name in an open directory.
struct Name<'a> {
    directory: OwnedFd,
    name: &'a Path,
}

impl<'a> Name<'a> {
    /// Opens the directory that a path is in.
    fn find(root: &OwnedFd, path: &'a [u8]) -> nix::Result<Self> {
        let cut = path.iter().rposition(|byte| *byte == b'/');
        let (parent, name) = match cut {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b"."[..], path),
        };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let directory = openat2(root, OsStr::from_bytes(parent), how)?;
        Ok(Name { directory, name: Path::new(OsStr::from_bytes(name)) })
    }

    /// Sets times, which the server takes for the event that it sent.
    fn times(&self, accessed: &TimeSpec, token: &TimeSpec) -> nix::Result<()> {
        let flags = UtimensatFlags::NoFollowSymlink;
        utimensat(&self.directory, self.name, accessed, token, flags)
    }

    fn make(&self, file_type: u32) -> nix::Result<()> {
        let mode = Mode::from_bits_truncate(0o600);
        match file_type & libc::S_IFMT {
            libc::S_IFDIR => mkdirat(&self.directory, self.name, mode),
            libc::S_IFLNK => symlinkat(".", &self.directory, self.name),
            libc::S_IFIFO => mknodat(&self.directory, self.name, SFlag::S_IFIFO, mode, 0),
            libc::S_IFSOCK => mknodat(&self.directory, self.name, SFlag::S_IFSOCK, mode, 0),
            _ => mknodat(&self.directory, self.name, SFlag::S_IFREG, mode, 0),
        }
    }

    fn remove(&self, file_type: u32) -> nix::Result<()> {
        let directory = file_type & libc::S_IFMT == libc::S_IFDIR;
        let flag = if directory { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        unlinkat(&self.directory, self.name, flag)
    }

    fn rename(&self, to: &Name<'_>) -> nix::Result<()> {
        renameat(&self.directory, self.name, &to.directory, to.name)
    }

    /// As a writer that writes nothing.
    fn open_and_close(&self) -> nix::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        openat(&self.directory, self.name, flags, Mode::empty()).map(drop)
    }
}

fn raise(root: &OwnedFd, event: &FileEvent) -> nix::Result<()> {
    let file = Name::find(root, &event.path)?;
    let other = match event.kind() {
        FileEventKind::Moved => Some(Name::find(root, &event.to)?),
        FileEventKind::MovedIn | FileEventKind::MovedOut => {
            Some(Name::find(root, FILE_EVENT_ELSEWHERE.as_bytes())?)
        }
        _ => None,
    };
    let token = TimeSpec::new(i64::try_from(event.token).map_err(|_| Errno::EINVAL)?, 0);
    utimensat(root, ".", &TimeSpec::UTIME_OMIT, &token, UtimensatFlags::FollowSymlink)?;
    match (event.kind(), other) {
        (FileEventKind::Moved | FileEventKind::MovedOut, Some(to)) => return file.rename(&to),
        (FileEventKind::MovedIn, Some(from)) => return from.rename(&file),
        (FileEventKind::Deleted, _) => return file.remove(event.file_type),
        (FileEventKind::Created, _) => file.make(event.file_type)?,
        _ => {}
    }
    if event.attributes {
        file.times(&token, &token)?;
    }
    if event.modified {
        file.times(&TimeSpec::UTIME_OMIT, &token)?;
    }
    if event.closed && event.file_type & libc::S_IFMT == libc::S_IFREG {
        file.open_and_close()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_without_following_links() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink("a", directory.path().join("link")).unwrap();
        let root = open(directory.path(), OFlag::O_RDONLY, Mode::empty()).unwrap();
        Name::find(&root, b"a/b/file").unwrap().make(libc::S_IFREG).unwrap();
        assert!(directory.path().join("a/b/file").is_file());
        assert_eq!(Name::find(&root, b"a").unwrap().name, Path::new("a"));
        for path in [&b"link/b"[..], b"../x/y", b"a/../../x/y", b"/etc/passwd", b"a/none/x"] {
            assert!(Name::find(&root, path).is_err(), "{path:?}");
        }
        let file = Name::find(&root, b"a/b/file").unwrap();
        file.rename(&Name::find(&root, b"a/moved").unwrap()).unwrap();
        Name::find(&root, b"a/moved").unwrap().remove(libc::S_IFREG).unwrap();
        Name::find(&root, b"a/b").unwrap().remove(libc::S_IFDIR).unwrap();
        assert_eq!(fs::read_dir(directory.path().join("a")).unwrap().count(), 0);
    }

    #[test]
    fn the_largest_request_fits() {
        let event = FileEvent {
            token: u64::MAX,
            kind: FileEventKind::Moved as i32,
            modified: true,
            closed: true,
            attributes: true,
            file_type: u32::MAX,
            path: vec![b'a'; MAX_FILE_EVENT_BYTES / MAX_FILE_EVENTS],
            to: Vec::new(),
        };
        let events = vec![event; MAX_FILE_EVENTS];
        let request = RaiseFileEvents { tag: "container".into(), events };
        assert!(request.encoded_len() <= MAX_LEN);
    }
}
