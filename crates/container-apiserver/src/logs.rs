//! `logs`: the program's output, or the guest's console, written to the caller's descriptors.
//!
//! Writing may block as long as the reader likes, so it happens on a thread of its own, which
//! looks up whenever the descriptor is not ready: the caller may have gone.

mod console;
mod output;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use container_api::paths::container_files as names;
use container_api::types::Status;
use container_api::{ApiError, ErrorCode, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::container::{Container, Live};
use crate::engine::Engine;

/// How often a followed log is looked at, and a stuck reader's caller.
const PERIOD: Duration = Duration::from_millis(50);
/// Bytes that a pipe which is ready takes without blocking (`PIPE_BUF`).
const CHUNK: usize = 4096;
/// The thread copies; it needs no deep stack.
const STACK: usize = 256 << 10;

/// What to write, and how far.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Go on until the container ends; for one that was never started, until its first end.
    pub follow: bool,
    /// Only the last lines.
    pub tail: Option<u64>,
    /// The guest's console in place of the program's output.
    pub boot: bool,
}

/// What the writing thread is told while it works.
#[derive(Debug, Default)]
struct Signals {
    /// Nobody waits for it any more.
    cancelled: AtomicBool,
    /// The container has ended: what the log holds now is all.
    ended: AtomicBool,
}

/// Cancels the thread when the call is dropped.
struct CancelOnDrop(Arc<Signals>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }
}

impl Engine {
    /// Writes a container's log to the two descriptors; dropping the future ends it.
    pub async fn logs(
        &self,
        container: &Container,
        wanted: Wanted,
        fds: Vec<OwnedFd>,
    ) -> Result<()> {
        let Ok([out, err]) = <[OwnedFd; 2]>::try_from(fds) else {
            return Err(ApiError::invalid("logs need two descriptors"));
        };
        let signals = Arc::new(Signals::default());
        let _cancel = CancelOnDrop(signals.clone());
        let over = |live: &Live| live.removed || live.life.status == Status::Stopped;
        signals.ended.store(!wanted.follow || over(&container.live()), Ordering::Release);
        let directory = self.directory(container);
        let work = signals.clone();
        let (done, finished) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name("logs".into()).stack_size(STACK).spawn(move || {
            let mut out = Sink::new(out, &work);
            let mut err = Sink::new(err, &work);
            let copied = match wanted.boot {
                true => console::copy(&directory.join(names::BOOT_LOG), wanted.tail, &mut out),
                false => {
                    output::copy(&directory.join(names::OUTPUT), wanted.tail, &mut out, &mut err)
                }
            };
            let _ = done.send(copied);
        })?;
        let ended = async {
            container.until(over).await;
            signals.ended.store(true, Ordering::Release);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            copied = finished => match copied {
                Ok(Err(e)) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                Ok(copied) => Ok(copied?),
                Err(_) => Err(ApiError::new(ErrorCode::Internal, "the log's writer has failed")),
            },
            () = ended => unreachable!("it pends"),
        }
    }
}

/// A descriptor of the caller's.
struct Sink<'s> {
    file: File,
    signals: &'s Signals,
}

impl<'s> Sink<'s> {
    fn new(fd: OwnedFd, signals: &'s Signals) -> Sink<'s> {
        Sink { file: fd.into(), signals }
    }

    /// Writes everything, or fails with `BrokenPipe` when nobody reads or waits any more.
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.ready(PollFlags::POLLOUT)?;
            match self.file.write(&bytes[..bytes.len().min(CHUNK)]) {
                Ok(n) => bytes = &bytes[n..],
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Nothing to write just now: waits a moment. `false` when there never will be.
    fn idle(&mut self) -> io::Result<bool> {
        if self.signals.ended.load(Ordering::Acquire) {
            return Ok(false);
        }
        self.look(PollFlags::empty())?;
        Ok(true)
    }

    fn ready(&self, wanted: PollFlags) -> io::Result<()> {
        while !self.look(wanted)? {}
        Ok(())
    }

    /// Waits one period for the descriptor; an error when its reader or the caller has gone.
    fn look(&self, wanted: PollFlags) -> io::Result<bool> {
        if self.signals.cancelled.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut polled = [PollFd::new(self.file.as_fd(), wanted)];
        let timeout = PollTimeout::try_from(PERIOD).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, timeout) {
            Err(nix::Error::EINTR) | Ok(0) => return Ok(false),
            Err(e) => return Err(e.into()),
            Ok(_) => {}
        }
        let got = polled[0].revents().unwrap_or(PollFlags::empty());
        if got.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(got.intersects(wanted))
    }
}

#[cfg(test)]
mod tests;
