//! A client that takes a program's output.
//!
//! Each has a queue and a task that writes it out, so that one client's pace is not another's.
//! While the program runs a full queue holds it back ([`Sink::room`]), as a pipe would. Once the
//! program has ended ([`Sink::release`]) nothing is held back any more: what is left, at most the
//! streams' windows, waits in the queue until the client has read it or has gone.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::descriptor::Descriptor;

/// Queued bytes above which the program waits.
const HIGH: usize = 64 << 10;
/// Queued bytes at which a client that no longer holds the program back is given up: far more
/// than an honest guest has in flight.
const LIMIT: usize = 2 << 20;

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<u8>,
    /// Gone once the client is.
    descriptor: Option<Arc<Descriptor>>,
    /// Nothing more will be queued.
    finished: bool,
    /// The client is gone or has got everything.
    done: bool,
    released: bool,
    last_progress: Option<Instant>,
}

/// The helper's side of one client's output.
#[derive(Debug)]
pub struct Sink {
    state: Mutex<State>,
    /// For the writing task: there is something to do.
    work: Notify,
    /// For everyone else: something was written, or the client is gone.
    progress: Notify,
}

impl Sink {
    /// Starts to serve a client.
    pub fn spawn(descriptor: Arc<Descriptor>) -> Arc<Sink> {
        let state = State { descriptor: Some(descriptor.clone()), ..State::default() };
        let sink = Arc::new(Sink {
            state: Mutex::new(state),
            work: Notify::new(),
            progress: Notify::new(),
        });
        tokio::spawn(write_out(sink.clone(), descriptor));
        sink
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Queues bytes; a client that is gone takes none.
    pub fn push(&self, bytes: &[u8]) {
        let mut state = self.state();
        if state.done {
            return;
        }
        if state.released && state.queue.len() + bytes.len() > LIMIT {
            drop(state);
            return self.give_up();
        }
        state.queue.extend(bytes);
        self.work.notify_one();
    }

    /// Waits until the queue has room.
    pub async fn room(&self) {
        self.until(|state| state.done || state.released || state.queue.len() < HIGH).await;
    }

    /// Waits until the client has everything, is gone, or has taken nothing for `stall`.
    pub async fn drained(&self, stall: Duration) -> bool {
        let began = Instant::now();
        loop {
            let deadline = {
                let state = self.state();
                if state.done {
                    return true;
                }
                state.last_progress.unwrap_or(began).max(began) + stall
            };
            let step = self.until(|state| {
                state.done || state.last_progress.is_some_and(|t| t + stall > deadline)
            });
            if tokio::time::timeout_at(deadline, step).await.is_err() {
                return false;
            }
        }
    }

    /// Nothing more comes: the descriptor is closed behind what is queued.
    pub fn finish(&self) {
        self.state().finished = true;
        self.work.notify_one();
    }

    /// The program is not held back for this client any more.
    pub fn release(&self) {
        self.state().released = true;
        self.progress.notify_waiters();
    }

    /// The client is gone, or is to be treated so.
    pub fn give_up(&self) {
        let mut state = self.state();
        state.done = true;
        state.queue = VecDeque::new();
        state.descriptor = None;
        drop(state);
        self.work.notify_one();
        self.progress.notify_waiters();
    }

    /// Whether the client is gone or has everything.
    pub fn is_done(&self) -> bool {
        self.state().done
    }

    /// Takes what the client has not read, and its descriptor, for someone else to deliver.
    pub fn take_rest(&self) -> Option<Rest> {
        let (descriptor, queue) = {
            let mut state = self.state();
            (state.descriptor.take()?, std::mem::take(&mut state.queue))
        };
        self.give_up();
        let fd = descriptor.duplicate().ok()?;
        (!queue.is_empty()).then_some(Rest { fd, bytes: queue.into() })
    }

    async fn until(&self, check: impl Fn(&State) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.progress.notified());
            changed.as_mut().enable();
            if check(&self.state()) {
                return;
            }
            changed.await;
        }
    }

    /// Writes some of the queue.
    fn write_some(&self, fd: &OwnedFd) -> io::Result<()> {
        let mut state = self.state();
        let (bytes, _) = state.queue.as_slices();
        if bytes.is_empty() {
            return Ok(());
        }
        let n = nix::unistd::write(fd, bytes)?;
        state.queue.drain(..n);
        state.last_progress = Some(Instant::now());
        drop(state);
        self.progress.notify_waiters();
        Ok(())
    }
}

/// Output that a client has not read when the helper leaves.
#[derive(Debug)]
pub struct Rest {
    /// The client.
    pub fd: OwnedFd,
    /// What it is to get.
    pub bytes: Vec<u8>,
}

async fn write_out(sink: Arc<Sink>, descriptor: Arc<Descriptor>) {
    loop {
        let (empty, finished) = {
            let state = sink.state();
            if state.done {
                return;
            }
            (state.queue.is_empty(), state.finished)
        };
        if empty && finished {
            // Closed before anyone is told: the client's end of file comes first.
            sink.state().descriptor = None;
            drop(descriptor);
            return sink.give_up();
        }
        if empty {
            sink.work.notified().await;
            continue;
        }
        let written = tokio::select! {
            written = descriptor.write_with(|fd| sink.write_some(fd)) => written,
            () = sink.until(|state| state.done) => return,
        };
        if let Err(error) = written {
            tracing::debug!(%error, "a client takes no more output");
            return sink.give_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    const SHORT: Duration = Duration::from_millis(50);

    fn sink() -> (Arc<Sink>, std::fs::File) {
        let (read, write): (OwnedFd, OwnedFd) = nix::unistd::pipe().unwrap();
        (Sink::spawn(Arc::new(Descriptor::new(write).unwrap())), read.into())
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_slow_client_gets_everything() {
        let (sink, mut client) = sink();
        sink.push(&[7; 100_000]);
        assert!(tokio::time::timeout(SHORT, sink.room()).await.is_ok(), "the pipe takes 64 KiB");
        sink.push(&[8; 300_000]);
        assert!(tokio::time::timeout(SHORT, sink.room()).await.is_err(), "held back");
        sink.release();
        sink.room().await;
        sink.finish();
        assert!(!sink.drained(SHORT).await, "a client that takes nothing stalls");
        let reader = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            client.read_to_end(&mut all).unwrap();
            all.len()
        });
        assert!(sink.drained(Duration::from_secs(10)).await);
        assert_eq!(reader.await.unwrap(), 400_000);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_left_can_be_taken() {
        let (sink, mut client) = sink();
        sink.push(&[7; 100_000]);
        tokio::time::sleep(SHORT).await;
        let rest = sink.take_rest().unwrap();
        assert!(sink.is_done());
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            client.read_to_end(&mut all).unwrap();
            all.len()
        });
        // The sink's own task closes its copy of the descriptor.
        tokio::time::sleep(SHORT).await;
        crate::process::deliver(vec![rest]);
        assert_eq!(reader.join().unwrap(), 100_000);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_client_that_goes_is_dropped() {
        let (sink, client) = sink();
        sink.push(&[7; 300_000]);
        tokio::time::sleep(SHORT).await;
        drop(client);
        assert!(sink.drained(Duration::from_secs(10)).await);
        sink.push(b"more");
        sink.room().await;
    }
}
