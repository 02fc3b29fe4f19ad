//! Processes that outlive us: how one is recognised again, and how its end is noticed.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process, told apart from a later one with the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Process id.
    pub pid: i32,
    /// When it started, in clock ticks since the host's boot (`/proc/PID/stat`, field 22).
    pub start_ticks: u64,
}

impl Identity {
    /// The process that has this id now.
    pub fn of(pid: i32) -> io::Result<Identity> {
        Ok(Identity { pid, start_ticks: Stat::of(pid)?.start_ticks })
    }
}

/// What `/proc/PID/stat` says of a process.
#[derive(Clone, Debug)]
pub struct Stat {
    /// The name, of at most 15 bytes.
    pub name: String,
    /// The parent's id.
    pub parent: i32,
    /// When it started, in clock ticks since the host's boot.
    pub start_ticks: u64,
}

impl Stat {
    /// Reads it; `NotFound` also for a process that has ended and is not reaped yet.
    pub fn of(pid: i32) -> io::Result<Stat> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may hold anything; after it the state is field 3.
        let (before, fields) = stat.rsplit_once(')').unwrap_or_default();
        let field = |number: usize| fields.split_ascii_whitespace().nth(number - 3);
        if let Some("Z" | "X") = field(3) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let parse = || {
            Some(Stat {
                name: before.split_once('(')?.1.to_owned(),
                parent: field(4)?.parse().ok()?,
                start_ticks: field(22)?.parse().ok()?,
            })
        };
        let malformed =
            || io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat is malformed");
        parse().ok_or_else(malformed)
    }
}

/// This boot of the host (`/proc/sys/kernel/random/boot_id`): process ids of another mean nothing.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// A hold on a process: signals reach it or nobody.
#[derive(Debug)]
pub struct Handle {
    identity: Identity,
    pidfd: AsyncFd<OwnedFd>,
}

impl Handle {
    /// Takes hold of a process that may have ended since `identity` was taken: `None` then.
    pub fn open(identity: Identity) -> io::Result<Option<Handle>> {
        let Some(pid) = Pid::from_raw(identity.pid) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            // SAFETY: an `OwnedFd` names the same open descriptor until `AsyncFd` drops it.
            Ok(fd) => unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        // With the descriptor held, the id can't be given away any more: compare now.
        match Stat::of(identity.pid) {
            Ok(stat) if stat.start_ticks == identity.start_ticks => {
                Ok(Some(Handle { identity, pidfd }))
            }
            Ok(_) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Who it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Resolves when the process has ended.
    pub async fn ended(&self) {
        let _ = self.pidfd.readable().await;
    }

    /// Whether the process has ended.
    pub fn has_ended(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// `SIGKILL`; nothing when it has ended.
    pub fn kill(&self) {
        if let Err(error) = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(pid = self.identity.pid, %error, "a process could not be killed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[tokio::test]
    async fn a_process_is_recognised_until_it_ends() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let identity = Identity::of(child.id() as i32).unwrap();
        let handle = Handle::open(identity).unwrap().unwrap();
        assert!(!handle.has_ended());
        let later = Identity { start_ticks: identity.start_ticks + 1, ..identity };
        assert!(Handle::open(later).unwrap().is_none());
        handle.kill();
        handle.ended().await;
        assert!(handle.has_ended());
        assert!(Handle::open(identity).unwrap().is_none(), "not reaped, but gone");
        child.wait().unwrap();
        handle.kill();
        assert!(Handle::open(identity).unwrap().is_none());
        assert!(!boot_id().is_empty());
    }
}
