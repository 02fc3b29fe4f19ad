//! Lets the starter answer two calls of the program that a read-only file does
//! not allow: `openat` for reading and writing, and `fallocate`. A hypervisor
//! whose RAM is a private mapping of such a file makes both. For function
//! alone: the filter takes nothing away, and who answers can only execute a call
//! or skip it.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc::{self, sock_fprog};
use rustix::io::Errno;

use crate::descriptors;
use crate::error::{Error, Step};
use crate::process::last_errno;
use crate::seccomp;

/// Installs the filter and sends its listener over the socket. Sends none
/// where the kernel has no listeners, or this process lives under another
/// one's.
pub fn install(socket: RawFd) -> Result<(), Error> {
    let mut program = seccomp::notifying();
    let filter = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies `len` instructions from `filter`.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const filter,
        )
    };
    if listener < 0 {
        return match last_errno() {
            Errno::INVAL | Errno::NOSYS | Errno::BUSY => Ok(()),
            errno => Err(Error::system(Step::Seccomp, "listener", errno)),
        };
    }
    // SAFETY: the call just returned this descriptor.
    let listener = unsafe { OwnedFd::from_raw_fd(listener as RawFd) };
    // SAFETY: checked to be open when the arguments were applied, and closed
    // by nobody before the exec.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    descriptors::send(&[listener.as_fd()], socket)
        .map_err(|errno| Error::system(Step::Seccomp, "send the listener", errno))
}
