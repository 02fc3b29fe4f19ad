//! Progress and cancellation of one operation, shared between its threads and its caller.

use std::future::Future;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use container_api::images::Progress;
use container_api::varlink::Responder;
use tokio::time::Instant;

use crate::error::{Error, Result};

/// Shortest time between two reports.
const INTERVAL: Duration = Duration::from_millis(100);
/// Longest time without one, even when nothing has changed.
const HEARTBEAT: Duration = Duration::from_secs(3);

/// Counters of one operation.
#[derive(Debug)]
pub struct Meter {
    phase: Mutex<&'static str>,
    done: AtomicU64,
    total: AtomicU64,
    items: AtomicU64,
    total_items: AtomicU64,
    cancelled: tokio::sync::watch::Sender<bool>,
}

impl Meter {
    /// A meter of an operation that begins with `phase`.
    pub fn new(phase: &'static str) -> Meter {
        Meter {
            phase: Mutex::new(phase),
            done: AtomicU64::default(),
            total: AtomicU64::default(),
            items: AtomicU64::default(),
            total_items: AtomicU64::default(),
            cancelled: tokio::sync::watch::Sender::new(false),
        }
    }

    /// Begins a phase; `total` bytes and `items`, 0 when not known.
    pub fn begin(&self, phase: &'static str, total: u64, items: u64) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        self.done.store(0, Relaxed);
        self.items.store(0, Relaxed);
        self.total.store(total, Relaxed);
        self.total_items.store(items, Relaxed);
    }

    /// Counts bytes.
    pub fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
    }

    /// Takes counted bytes back: they have to come again.
    pub fn retreat(&self, bytes: u64) {
        let less = |done: u64| Some(done.saturating_sub(bytes));
        let _ = self.done.fetch_update(Relaxed, Relaxed, less);
    }

    /// Counts a finished item.
    pub fn item(&self) {
        self.items.fetch_add(1, Relaxed);
    }

    /// Asks the operation's threads to end.
    pub fn cancel(&self) {
        self.cancelled.send_replace(true);
    }

    /// Fails when the operation should end.
    pub fn check(&self) -> Result<()> {
        if *self.cancelled.borrow() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Waits until the operation should end.
    pub async fn cancelled(&self) {
        // The sender is a field of ours and can't be gone.
        let _ = self.cancelled.subscribe().wait_for(|cancelled| *cancelled).await;
    }

    fn snapshot(&self) -> Progress {
        let known = |n: u64| (n > 0).then_some(n);
        Progress {
            description: self.phase.lock().unwrap_or_else(PoisonError::into_inner).to_string(),
            done: self.done.load(Relaxed),
            total: known(self.total.load(Relaxed)),
            items: self.items.load(Relaxed),
            total_items: known(self.total_items.load(Relaxed)),
        }
    }

    /// Runs `work` to its end, reporting to the caller; when the caller goes, the work is asked to
    /// end and still awaited, so that it cleans up.
    pub async fn report<T>(&self, responder: &Responder, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut hung_up = std::pin::pin!(responder.hung_up());
        let mut ticks = tokio::time::interval_at(Instant::now() + INTERVAL, INTERVAL);
        let (mut last, mut reported) = (None, Instant::now());
        let mut gone = false;
        loop {
            tokio::select! {
                result = &mut work => return result,
                () = &mut hung_up, if !gone => gone = true,
                _ = ticks.tick(), if !gone => {
                    let now = Some(self.snapshot());
                    if now != last || reported.elapsed() > HEARTBEAT {
                        if let Some(progress) = &now {
                            // A caller that has gone shows as hung up.
                            gone = responder.progress(progress).await.is_err();
                        }
                        (last, reported) = (now, Instant::now());
                    }
                }
            }
            if gone {
                self.cancel();
            }
        }
    }
}
