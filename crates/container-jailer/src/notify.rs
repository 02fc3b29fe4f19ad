//! Lets the starter answer two calls of the program that a read-only file does
//! not allow: `openat` for reading and writing, and `fallocate`. A hypervisor
//! whose RAM is a private mapping of such a file makes both. For function
//! alone: the filter takes nothing away, and who answers can only execute a call
//! or skip it.

use std::os::fd::{AsFd, BorrowedFd, RawFd};

use nix::errno::Errno as NixErrno;
use rustix::io::Errno;

use crate::error::{Error, Step};
use crate::{descriptors, listener, seccomp};

/// Installs the filter and sends its listener over the socket. Sends none
/// where the kernel has no listeners, or this process lives under another
/// one's.
pub fn install(socket: RawFd) -> Result<(), Error> {
    let listener = match listener::install(&mut seccomp::notifying()) {
        Ok(listener) => listener,
        Err(NixErrno::EINVAL | NixErrno::ENOSYS | NixErrno::EBUSY) => return Ok(()),
        Err(errno) => {
            let errno = Errno::from_raw_os_error(errno as i32);
            return Err(Error::system(Step::Seccomp, "listener", errno));
        }
    };
    // SAFETY: checked to be open when the arguments were applied, and closed
    // by nobody before the exec.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    descriptors::send(&[listener.as_fd()], socket)
        .map_err(|errno| Error::system(Step::Seccomp, "send the listener", errno))
}
