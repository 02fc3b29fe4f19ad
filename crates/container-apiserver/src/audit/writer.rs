//! The thread that writes: the records of all who wait go to disk at once.

use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use container_api::audit::Event;
use container_api::{ApiError, ErrorCode, Result};
use tokio::sync::oneshot;

use super::anchor::Anchors;
use super::{Trail, gone};

/// The longest that a record which nobody waits for stays off the disk.
const LAZY: Duration = Duration::from_secs(1);
/// Most records of one write.
const BATCH: usize = 256;

/// A record, and who waits until it is on disk.
struct Message {
    event: Event,
    done: Option<oneshot::Sender<Result<u64>>>,
}

/// The way to the thread.
#[derive(Debug)]
pub struct Writer {
    sender: Mutex<Option<Sender<Message>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub fn start(trail: Trail, anchors: Anchors) -> Result<Writer> {
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || run(trail, anchors, &receiver))?;
        Ok(Writer { sender: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)) })
    }

    /// Writes a record; its number once it is on disk.
    ///
    /// # Errors
    /// When it is not.
    pub async fn record(&self, event: Event, deadline: Duration) -> Result<u64> {
        let (done, wait) = oneshot::channel();
        self.send(Message { event, done: Some(done) })?;
        match tokio::time::timeout(deadline, wait).await {
            Ok(outcome) => outcome.map_err(|_| gone())?,
            Err(_) => {
                let message = format!("the disk takes more than {} s", deadline.as_secs());
                Err(ApiError::new(ErrorCode::Timeout, message))
            }
        }
    }

    /// Writes a record soon.
    pub fn note(&self, event: Event) {
        if let Err(error) = self.send(Message { event, done: None }) {
            tracing::error!(%error, "not recorded");
        }
    }

    fn send(&self, message: Message) -> Result<()> {
        let sender = self.sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sender.as_ref().ok_or_else(gone)?.send(message).map_err(|_| gone())
    }

    /// Ends the thread once all is written.
    pub fn end(&self) {
        let take = |error: std::sync::PoisonError<_>| error.into_inner();
        drop(self.sender.lock().unwrap_or_else(take).take());
        let thread = self.thread.lock().unwrap_or_else(|e| e.into_inner()).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the audit trail's writer panicked");
        }
    }
}

fn run(mut trail: Trail, mut anchors: Anchors, receiver: &Receiver<Message>) {
    // Since when something is written that may not be on disk.
    let mut dirty: Option<Instant> = None;
    loop {
        let wait = match dirty {
            Some(since) => LAZY.saturating_sub(since.elapsed()),
            None => anchors.next(trail.head()),
        };
        match receiver.recv_timeout(wait) {
            Ok(first) => {
                let mut batch = vec![first];
                batch.extend(receiver.try_iter().take(BATCH - 1));
                let on_disk = write(&mut trail, batch);
                dirty = if on_disk { None } else { dirty.or_else(|| Some(Instant::now())) };
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let anchor = anchors.next(trail.head()).is_zero();
        if anchor || dirty.is_some_and(|since| since.elapsed() >= LAZY) {
            sync(&trail);
            dirty = None;
        }
        if anchor {
            anchors.drop(trail.head());
        }
    }
    sync(&trail);
    anchors.drop(trail.head());
}

fn sync(trail: &Trail) {
    if let Err(error) = trail.sync() {
        tracing::error!(%error, "writing the audit trail to disk");
    }
}

/// Writes records; whether they are on disk.
fn write(trail: &mut Trail, batch: Vec<Message>) -> bool {
    let (events, waiting): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|message| (message.event, message.done)).unzip();
    let wanted = waiting.iter().any(Option::is_some);
    let written = trail.append(events).and_then(|first| match wanted {
        true => trail.sync().map(|()| first),
        false => Ok(first),
    });
    if let Err(error) = &written {
        tracing::error!(%error, records = waiting.len(), "writing the audit trail");
    }
    let on_disk = wanted && written.is_ok();
    for (index, done) in waiting.into_iter().enumerate() {
        let Some(done) = done else { continue };
        let answer = match &written {
            Ok(first) => Ok(first + index as u64),
            Err(error) => {
                Err(ApiError::from(std::io::Error::from(error.kind())).context(error.to_string()))
            }
        };
        let _ = done.send(answer);
    }
    on_disk
}

#[cfg(test)]
mod tests {
    use super::super::trail::Bounds;
    use super::*;
    use container_api::audit;

    #[test]
    fn many_at_once_are_all_there_in_order_and_anchored() {
        let folder = tempfile::tempdir().unwrap();
        let anchor = folder.path().join("anchor");
        let trail = Trail::open(&folder.path().join("audit"), Bounds { file: 4096, files: 1000 });
        let writer = Writer::start(trail.unwrap(), Anchors::to(anchor.clone())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let numbers = runtime.block_on(async {
            let event = || Event::Ended {};
            let all: Vec<_> = (0..100).map(|_| writer.record(event(), LAZY * 60)).collect();
            let mut numbers = Vec::new();
            for one in all {
                writer.note(event());
                numbers.push(one.await.unwrap());
            }
            numbers
        });
        writer.end();
        assert!(numbers.is_sorted());
        let heads = audit::anchored(&anchor).unwrap();
        let verified = audit::verify(&folder.path().join("audit"), &heads).unwrap();
        assert_eq!((verified.head.sequence, heads.last()), (201, Some(&verified.head)));
        runtime.block_on(writer.record(Event::Ended {}, LAZY)).unwrap_err();
    }
}
