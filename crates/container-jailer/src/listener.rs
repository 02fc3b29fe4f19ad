//! Installing a seccomp filter whose calls somebody else answers (seccomp_unotify(2)).

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc::{self, sock_filter, sock_fprog};

/// Installs a filter for this thread and its children; its listener. Needs no-new-privileges.
pub fn install(program: &mut [sock_filter]) -> Result<OwnedFd, Errno> {
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
    let listener = Errno::result(listener)?;
    // SAFETY: the call just returned this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(listener as RawFd) })
}
