//! The socket: our own, or the one that a service manager opened for us.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use container_api::paths::AppRoot;
use container_api::{ApiError, Result, apiserver};

/// How many descriptors the service manager passed (`sd_listen_fds(3)`); they begin at 3.
pub fn passed() -> usize {
    let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
    match number("LISTEN_PID") {
        Some(pid) if pid == std::process::id() as usize => number("LISTEN_FDS").unwrap_or(0).min(1),
        _ => 0,
    }
}

/// The listening socket. `passed` is [`passed`]'s answer. Call once.
pub fn listener(root: &AppRoot, passed: usize) -> Result<UnixListener> {
    if passed == 0 {
        return container_api::socket::bind(root.path(), apiserver::SOCKET)
            .map_err(|e| ApiError::from(e).context(root.path().join(apiserver::SOCKET).display()));
    }
    // SAFETY: the service manager opened descriptor 3 for us, and this function alone takes it.
    let listener = UnixListener::from(unsafe { OwnedFd::from_raw_fd(3) });
    let check = || -> io::Result<()> {
        listener.local_addr()?;
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC)?;
        listener.set_nonblocking(true)
    };
    check().map_err(|e| ApiError::from(e).context("the descriptor of socket activation"))?;
    Ok(listener)
}
