//! Blobs from a registry, gone on with where a cut connection left them.

use std::sync::Arc;

use bytes::Bytes;
use container_api::ErrorCode;
use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Response, StatusCode};
use tokio::sync::{OwnedMutexGuard, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::session::{Failure, STALL, Session, TRIES, back_off};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::meter::Meter;
use crate::store::Lease;

/// Bytes that a try has to bring to count as progress: after it the tries are counted anew.
const PROGRESS: u64 = 64 << 10;
/// Tries of one blob, whatever progress they make.
const MAX_TRIES: u32 = 200;
/// Chunks between network and disk.
const QUEUE: usize = 16;

/// Orders to the thread that writes a blob.
enum Order {
    Append(Bytes),
    Restart,
    /// Verify it; answered only when the writer begins anew.
    Commit(oneshot::Sender<()>),
}

/// The thread that writes a blob: disks may be slow, and the network's thread must not wait.
struct Writer {
    orders: mpsc::Sender<Order>,
    thread: JoinHandle<Result<()>>,
    /// Bytes that it has or will have written.
    len: u64,
}

impl Writer {
    /// Starts the thread; `guard` says that nobody else writes this blob, until the thread ends.
    async fn start(
        digest: Digest,
        what: String,
        lease: &Arc<Lease>,
        guard: OwnedMutexGuard<()>,
    ) -> Result<Writer> {
        let (orders, mut inbox) = mpsc::channel(QUEUE);
        let (ready, started) = oneshot::channel();
        let lease = lease.clone();
        let thread = tokio::task::spawn_blocking(move || {
            let _guard = guard;
            let mut partial = lease.partial(digest)?;
            // Bytes of an earlier pull, perhaps from another registry: not verified yet.
            let mut inherited = !partial.is_empty();
            // Nobody listens when the pull has ended meanwhile.
            let _ = ready.send(partial.len());
            while let Some(order) = inbox.blocking_recv() {
                match order {
                    Order::Append(bytes) => partial.append(&bytes)?,
                    Order::Restart => partial.restart()?,
                    Order::Commit(again) if inherited && !partial.fits() => {
                        inherited = false;
                        partial.restart()?;
                        let _ = again.send(());
                    }
                    Order::Commit(_) => return partial.commit(&what),
                }
            }
            Err(Error::Cancelled)
        });
        match started.await {
            Ok(len) => Ok(Writer { orders, thread, len }),
            Err(_) => Err(failure_of(thread).await),
        }
    }

    /// Gives an order. When the thread has ended, its failure is found by [`Writer::failure`].
    async fn order(&mut self, order: Order) -> std::result::Result<(), ()> {
        match &order {
            Order::Append(bytes) => self.len += bytes.len() as u64,
            Order::Restart => self.len = 0,
            Order::Commit(_) => {}
        }
        self.orders.send(order).await.map_err(drop)
    }

    /// Makes it a blob. The writer comes back, empty, when the bytes of an earlier pull were
    /// not this blob's: they prove nothing about this registry.
    async fn commit(mut self) -> Result<Option<Writer>> {
        let (again, answer) = oneshot::channel();
        // When the thread has ended, its own failure is what the join brings.
        let _ = self.order(Order::Commit(again)).await;
        if answer.await.is_ok() {
            self.len = 0;
            return Ok(Some(self));
        }
        join(self.thread).await.map(|()| None)
    }
}

async fn join(thread: JoinHandle<Result<()>>) -> Result<()> {
    thread.await.map_err(|e| Error::Internal(format!("writing a blob: {e}")))?
}

async fn failure_of(thread: JoinHandle<Result<()>>) -> Error {
    match join(thread).await {
        Err(error) => error,
        Ok(()) => Error::Internal("a blob's writer ended early".into()),
    }
}

/// Why a try ended.
enum Ended {
    /// The network's failure.
    Network(Failure),
    /// The writer has ended: its own failure tells.
    Writer,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Ended {
        Ended::Network(failure)
    }
}

impl Session {
    /// Fetches a blob into the store.
    pub(super) async fn blob(
        &self,
        digest: Digest,
        size: u64,
        guard: OwnedMutexGuard<()>,
        lease: &Arc<Lease>,
        meter: &Arc<Meter>,
    ) -> Result<()> {
        let what = format!("{}/{}", self.registry, self.repository);
        let mut writer = Writer::start(digest, what, lease, guard).await?;
        let mut counted = writer.len;
        meter.advance(counted);
        let (mut tried, mut tries) = (1, 1);
        loop {
            if writer.len == size {
                match writer.commit().await? {
                    None => return Ok(()),
                    Some(empty) => writer = empty,
                }
                meter.retreat(std::mem::take(&mut counted));
            }
            let before = writer.len;
            let result = self.fetch_some(digest, size, &mut writer, &mut counted, meter).await;
            let failure = match result {
                Ok(()) => continue,
                Err(Ended::Writer) => return Err(failure_of(writer.thread).await),
                Err(Ended::Network(failure)) => failure,
            };
            if writer.len >= before.saturating_add(PROGRESS) {
                tried = 1;
            }
            if !failure.transient || tried >= TRIES || tries >= MAX_TRIES {
                return Err(*failure.error);
            }
            tracing::warn!(error = %failure.error, %digest, at = writer.len, "download interrupted");
            tokio::time::sleep(failure.pause.unwrap_or(back_off(tried))).await;
            tried += 1;
            tries += 1;
        }
    }

    /// One request; everything from where the writer is to the end, or to a failure.
    async fn fetch_some(
        &self,
        digest: Digest,
        size: u64,
        writer: &mut Writer,
        counted: &mut u64,
        meter: &Meter,
    ) -> std::result::Result<(), Ended> {
        let operation = "fetching a layer";
        if writer.len > size {
            restart(writer, counted, meter).await?;
        }
        let mut headers = HeaderMap::new();
        if writer.len > 0 {
            let range = HeaderValue::try_from(format!("bytes={}-", writer.len));
            headers
                .insert(RANGE, range.map_err(|e| Failure::from(Error::Internal(e.to_string())))?);
        }
        let also = [StatusCode::RANGE_NOT_SATISFIABLE];
        let response = self.get(operation, &format!("blobs/{digest}"), headers, &also).await?;
        if !continues(&response, writer.len) {
            restart(writer, counted, meter).await?;
            if response.status() != StatusCode::OK {
                // A range that the registry can't serve: ask anew, for all of it.
                let problem = "the registry does not go on where it stopped";
                let error = self.error(operation, problem, ErrorCode::Disconnected);
                return Err(Failure { error: error.into(), transient: true, pause: None }.into());
            }
        }
        self.receive(response, size, writer, counted, meter).await
    }

    async fn receive(
        &self,
        mut response: Response,
        size: u64,
        writer: &mut Writer,
        counted: &mut u64,
        meter: &Meter,
    ) -> std::result::Result<(), Ended> {
        let operation = "fetching a layer";
        loop {
            let chunk = match tokio::time::timeout(STALL, response.chunk()).await {
                Err(_) => return Err(self.stalled(operation).into()),
                Ok(Err(error)) => return Err(self.transport(operation, error).into()),
                Ok(Ok(chunk)) => chunk,
            };
            let Some(chunk) = chunk else { break };
            let len = chunk.len() as u64;
            if writer.len.saturating_add(len) > size {
                let error =
                    self.error(operation, "more bytes than announced", ErrorCode::InvalidData);
                return Err(Failure::from(error).into());
            }
            writer.order(Order::Append(chunk)).await.map_err(|()| Ended::Writer)?;
            meter.advance(len);
            *counted += len;
        }
        if writer.len == size {
            return Ok(());
        }
        let problem = format!("cut after {} of {size} bytes", writer.len);
        let error = self.error(operation, problem, ErrorCode::Disconnected);
        Err(Failure { error: error.into(), transient: true, pause: None }.into())
    }
}

async fn restart(
    writer: &mut Writer,
    counted: &mut u64,
    meter: &Meter,
) -> std::result::Result<(), Ended> {
    meter.retreat(std::mem::take(counted));
    writer.order(Order::Restart).await.map_err(|()| Ended::Writer)
}

/// Whether the answer's body begins at byte `at`.
fn continues(response: &Response, at: u64) -> bool {
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let range = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
            range.is_some_and(|r| r.starts_with(&format!("bytes {at}-")))
        }
        status => at == 0 && status == StatusCode::OK,
    }
}
