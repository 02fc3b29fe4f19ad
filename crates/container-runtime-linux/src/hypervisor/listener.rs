//! What QEMU asks of RAM that it may only read.
//!
//! A template's RAM is a file on a read-only mount that each clone maps
//! privately. Two calls of QEMU's fail on such a file, and are answered here:
//!
//! - it opens the file for reading and writing, although a private mapping needs
//!   reading alone. Its answer is the read-only descriptor that it has already.
//! - to free pages it first punches a hole into the file behind them, and only
//!   then drops its own copies, which is all that is wanted. The answer is
//!   success, without anything being done.
//!
//! On every other file (devices, disks) both are executed. What a call names may
//! change between the question and the answer; that is of no harm, the mount is
//! read-only whatever is answered. Nor is a process that has taken the place of
//! the caller: the kernel takes an answer only while the caller waits for it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::{Error, Phase};

/// The thread's stack, in bytes; it holds a path and two small structures.
const STACK: usize = 64 << 10;

/// A file, whichever descriptor it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// The file at a path.
    pub fn of_path(path: impl AsRef<Path>) -> io::Result<FileId> {
        let meta = std::fs::metadata(path)?;
        Ok(FileId { device: meta.dev(), inode: meta.ino() })
    }
}

/// A template's RAM in a jail.
#[derive(Debug, Clone, Copy)]
pub struct Ram {
    /// The file.
    pub file: FileId,
    /// The number of its read-only descriptor.
    pub number: RawFd,
}

impl Ram {
    /// What a call returns in place of being executed.
    fn answer(&self, call: &libc::seccomp_notif) -> Option<i64> {
        let is_ram = |number: u64| {
            let path = format!("/proc/{}/fd/{number}", call.pid);
            FileId::of_path(path).is_ok_and(|file| file == self.file)
        };
        let [first, path, ..] = call.data.args;
        match i64::from(call.data.nr) {
            libc::SYS_fallocate if is_ram(first) => Some(0),
            libc::SYS_openat if self.is_named(call.pid, path) && is_ram(self.number as u64) => {
                Some(self.number.into())
            }
            _ => None,
        }
    }

    /// Whether the path at this address of the process is that of the descriptor.
    fn is_named(&self, pid: u32, address: u64) -> bool {
        let path = format!("/proc/self/fd/{}\0", self.number);
        let mut found = vec![0; path.len()];
        let memory = File::open(format!("/proc/{pid}/mem"));
        memory.and_then(|memory| memory.read_exact_at(&mut found, address)).is_ok()
            && found == path.as_bytes()
    }
}

/// Answers the listener's calls in a thread of its own, until the last process
/// that can make them has ended.
pub fn answer(listener: OwnedFd, ram: Ram) -> Result<(), Error> {
    std::thread::Builder::new()
        .name("listener".into())
        .stack_size(STACK)
        .spawn(move || {
            if let Err(error) = answer_all(&listener, ram) {
                tracing::warn!(%error, "the guest's free memory is no longer returned");
            }
        })
        .map(drop)
        .map_err(Error::io(Phase::Spawn, "starting a thread"))
}

fn answer_all(listener: &OwnedFd, ram: Ram) -> io::Result<()> {
    loop {
        let mut polled = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
            Ok(_) => {}
        }
        if !polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN)) {
            return Ok(());
        }
        if let Some(call) = receive(listener)? {
            respond(listener, call.id, ram.answer(&call))?;
        }
    }
}

/// A call that waits for its answer, unless its caller was interrupted.
fn receive(listener: &OwnedFd) -> io::Result<Option<libc::seccomp_notif>> {
    // SAFETY: it holds numbers alone, and the kernel wants them all 0.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one structure of that size.
    let result =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
    gone_is_none(result, call)
}

/// Says what the call returns, or that it is to be executed.
fn respond(listener: &OwnedFd, id: u64, value: Option<i64>) -> io::Result<()> {
    let (val, flags) = match value {
        Some(value) => (value, 0),
        None => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
    };
    let mut answer = libc::seccomp_notif_resp { id, val, error: 0, flags };
    // SAFETY: the kernel reads one structure of that size.
    let result = unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer)
    };
    gone_is_none(result, ()).map(drop)
}

fn gone_is_none<T>(result: libc::c_int, value: T) -> io::Result<Option<T>> {
    if result == 0 {
        return Ok(Some(value));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::EINTR) => Ok(None),
        _ => Err(error),
    }
}
