//! Delivery to clients that are slower than their container's end.
//!
//! `container run IMAGE cat FILE | less` ends while `less` has shown one page. The helper must go,
//! so that the container can be started again or removed; a process of its own stays with the
//! client's pipe and what it has not read (at most a few streams' windows), until all of it is read
//! or the client is gone.

use std::os::fd::AsFd;
use std::process::exit;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{ForkResult, close, dup2_stdin, fork, setsid};

use super::sink::Rest;

/// Leaves a process behind that delivers, if there is something to deliver. Called when this
/// process has nothing else to do.
///
/// # Errors
/// When no process can be made.
pub fn leave_behind(rests: Vec<Rest>) -> anyhow::Result<()> {
    if rests.is_empty() {
        return Ok(());
    }
    tracing::info!(clients = rests.len(), "the last output is left to a process of its own");
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => Ok(()),
        ForkResult::Child => {
            let _ = setsid();
            close_others(&rests);
            deliver(rests);
            exit(0);
        }
    }
}

/// Closes all descriptors but those of the clients: whoever waits for this process's other pipes
/// and sockets to be closed must not wait for it.
fn close_others(rests: &[Rest]) {
    use std::os::fd::AsRawFd;
    if let Ok(null) = std::fs::File::open("/dev/null") {
        let _ = dup2_stdin(&null);
    }
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<i32> =
        open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in open {
        if fd > 0 && rests.iter().all(|rest| rest.fd.as_raw_fd() != fd) {
            let _ = close(fd);
        }
    }
}

/// Writes until everything is read or everyone is gone. Blocks.
pub fn deliver(mut rests: Vec<Rest>) {
    while !rests.is_empty() {
        let mut ready: Vec<PollFd<'_>> =
            rests.iter().map(|rest| PollFd::new(rest.fd.as_fd(), PollFlags::POLLOUT)).collect();
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        let ready: Vec<bool> = ready.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        let mut ready = ready.into_iter();
        rests.retain_mut(|rest| !ready.next().unwrap_or(false) || write_some(rest));
    }
}

/// False when there is nothing more to do for this client.
fn write_some(rest: &mut Rest) -> bool {
    match nix::unistd::write(&rest.fd, &rest.bytes) {
        Ok(n) => {
            rest.bytes.drain(..n);
            !rest.bytes.is_empty()
        }
        Err(Errno::EAGAIN | Errno::EINTR) => true,
        Err(_) => false,
    }
}
