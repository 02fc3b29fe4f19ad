//! A jailed process: its end, and the bounded end of what it wrote.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::OnceCell;

use super::error::{Error, Phase, shown};

/// What of a process's output is kept, in bytes.
const KEPT_OUTPUT: usize = 4096;

/// How a VM ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmExit {
    /// Exit code of the process, if it exited.
    pub code: Option<i32>,
    /// Signal that killed it, if one did.
    pub signal: Option<i32>,
    /// QMP's reason for the end of the guest (`guest-shutdown`, `guest-reset`,
    /// `guest-panic`, `host-qmp-quit`, ...), if it told one.
    pub reason: Option<String>,
    /// The end of what the process wrote, escaped; usually empty.
    pub stderr: String,
}

impl std::fmt::Display for VmExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}")?,
            (None, Some(signal)) => write!(f, "signal {signal}")?,
            (None, None) => f.write_str("unknown status")?,
        }
        if let Some(reason) = &self.reason {
            write!(f, ", {reason}")?;
        }
        if !self.stderr.is_empty() {
            write!(f, ": {}", self.stderr)?;
        }
        Ok(())
    }
}

/// A child process, killed when dropped.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
    output: Output,
    exit: OnceCell<VmExit>,
}

impl Child {
    /// Takes over the child `pid` of this process.
    pub fn adopt(pid: i32, output: Output) -> Result<Child, Error> {
        // SAFETY: takes a pid and flags, returns a new descriptor.
        let fd = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0) };
        let failed = Error::io(Phase::Spawn, format!("taking hold of process {pid}"));
        if fd < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        // SAFETY: the call just returned this descriptor.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        // SAFETY: an `OwnedFd` keeps its number, and stays open in the `AsyncFd`.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
        Ok(Child {
            pid,
            pidfd: pidfd.map_err(|error| failed(error.into()))?,
            output,
            exit: OnceCell::new(),
        })
    }

    /// Its pid in this process's namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// SIGKILL. A process that has ended is no error.
    pub fn kill(&self) {
        // SAFETY: signals by pidfd, so never another process.
        unsafe {
            nix::libc::syscall(
                nix::libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                nix::libc::SIGKILL,
                std::ptr::null::<nix::libc::siginfo_t>(),
                0,
            )
        };
    }

    /// Waits for its end and reaps it. May be called again and concurrently.
    pub async fn wait(&self) -> VmExit {
        self.exit
            .get_or_init(|| async {
                let mut exit = self.reap().await;
                exit.stderr = self.output.settled().await;
                exit
            })
            .await
            .clone()
    }

    async fn reap(&self) -> VmExit {
        loop {
            // An error of epoll itself has no better answer than to ask again.
            let Ok(mut guard) = self.pidfd.readable().await else {
                return VmExit::default();
            };
            match reap_now(self.pidfd.get_ref()) {
                Some(exit) => return exit,
                None => guard.clear_ready(),
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exit.get().is_none() {
            self.kill();
            // Usually too early; the zombie then goes with this process.
            reap_now(self.pidfd.get_ref());
        }
    }
}

fn reap_now(pidfd: &OwnedFd) -> Option<VmExit> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    match waitid(Id::PIDFd(pidfd.as_fd()), flags) {
        Ok(WaitStatus::Exited(_, code)) => Some(VmExit { code: Some(code), ..VmExit::default() }),
        Ok(WaitStatus::Signaled(_, signal, _)) => {
            Some(VmExit { signal: Some(signal as i32), ..VmExit::default() })
        }
        Err(Errno::ECHILD) => Some(VmExit::default()),
        _ => None,
    }
}

/// The end of what a process wrote to its standard output and error.
#[derive(Debug, Clone)]
pub struct Output {
    kept: Arc<Mutex<VecDeque<u8>>>,
    ended: Arc<tokio::sync::Semaphore>,
}

impl Output {
    /// Reads in the background until end of file.
    pub fn collect(from: OwnedFd) -> Result<Output, Error> {
        let from = pipe::Receiver::from_owned_fd(from)
            .map_err(Error::io(Phase::Spawn, "reading the output pipe"))?;
        let output =
            Output { kept: Arc::default(), ended: Arc::new(tokio::sync::Semaphore::new(0)) };
        let Output { kept, ended } = output.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 1024];
            while from.readable().await.is_ok() {
                match from.try_read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => keep_end(&kept, &buffer[..count]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => break,
                }
            }
            ended.close();
        });
        Ok(output)
    }

    /// What was written, after the writer has ended (a descendant that still
    /// holds the pipe is not waited for).
    pub async fn settled(&self) -> String {
        let _ = tokio::time::timeout(Duration::from_millis(200), self.ended.acquire()).await;
        let kept = self.kept.lock().unwrap_or_else(|poison| poison.into_inner());
        let bytes: Vec<u8> = kept.iter().copied().collect();
        shown(&String::from_utf8_lossy(&bytes), KEPT_OUTPUT)
    }
}

fn keep_end(kept: &Mutex<VecDeque<u8>>, more: &[u8]) {
    let mut kept = kept.lock().unwrap_or_else(|poison| poison.into_inner());
    kept.extend(more);
    let excess = kept.len().saturating_sub(KEPT_OUTPUT);
    kept.drain(..excess);
}
