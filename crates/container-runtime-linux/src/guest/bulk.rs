//! Streams over the bulk port.
//!
//! One multiplexer behind a lock that nobody holds while waiting, and two tasks: one feeds it what
//! the port brings, the other sends what it has queued. While the port is busy what streams write
//! gathers in the queue, so that the port sees large writes.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use vminitd_protocol::MAX_BULK_CHUNK;
use vminitd_protocol::mux::{Direction, Mux, MuxError, Side};

/// Read from the port at once: one data frame and its header fit.
const READ_BUFFER: usize = MAX_BULK_CHUNK + 4096;

/// Who waits for a stream.
#[derive(Debug, Default)]
struct Wake {
    readable: Notify,
    writable: Notify,
}

#[derive(Debug)]
struct Inner {
    mux: Mux,
    wakes: BTreeMap<u32, Arc<Wake>>,
    last_stream: u32,
    lost: bool,
}

/// What [`Bulk::fill`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// The stream takes nothing now.
    NoRoom,
    /// The source has ended.
    Ended,
    /// So many bytes went.
    Bytes(usize),
}

/// All streams.
#[derive(Debug)]
pub struct Bulk {
    inner: Mutex<Inner>,
    /// Something is queued for the port.
    queued: Notify,
}

impl Bulk {
    /// Starts the tasks that drive `stream`, behind its handshake; `rest` is what came behind that.
    pub fn spawn(stream: UnixStream, rest: Vec<u8>) -> Arc<Bulk> {
        let inner = Inner {
            mux: Mux::new(Side::Host),
            wakes: BTreeMap::new(),
            last_stream: 0,
            lost: false,
        };
        let bulk = Arc::new(Bulk { inner: Mutex::new(inner), queued: Notify::new() });
        let (read, write) = stream.into_split();
        tokio::spawn(drive(bulk.clone(), read, write, rest));
        bulk
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// Opens a stream under a new number.
    ///
    /// # Errors
    /// [`MuxError::TooMany`].
    pub fn open(&self, direction: Direction) -> Result<u32, MuxError> {
        let mut inner = self.inner();
        let stream = inner.last_stream + 1;
        inner.mux.open(stream, direction)?;
        inner.last_stream = stream;
        inner.wakes.insert(stream, Arc::default());
        Ok(stream)
    }

    /// Gives a stream up, both ways.
    pub fn close(&self, stream: u32) {
        let mut inner = self.inner();
        if inner.mux.send_closed(stream) && inner.mux.receive_ended(stream) {
            inner.mux.close(stream);
        } else {
            inner.mux.reset(stream);
        }
        if let Some(wake) = inner.wakes.remove(&stream) {
            wake.readable.notify_one();
            wake.writable.notify_waiters();
        }
        self.queued.notify_one();
    }

    /// Puts the next bytes of a stream into `buffer`, at most a frame's worth; leaves it empty when
    /// the stream has ended. One task a stream reads.
    pub async fn read(&self, stream: u32, buffer: &mut Vec<u8>) {
        buffer.clear();
        loop {
            let wake = {
                let mut inner = self.inner();
                let bytes = inner.mux.readable(stream);
                if !bytes.is_empty() {
                    buffer.extend_from_slice(&bytes[..bytes.len().min(MAX_BULK_CHUNK)]);
                    inner.mux.consume(stream, buffer.len());
                    if inner.mux.queued() > 0 {
                        self.queued.notify_one();
                    }
                    return;
                }
                if inner.lost || inner.mux.receive_ended(stream) {
                    return;
                }
                let Some(wake) = inner.wakes.get(&stream) else { return };
                wake.clone()
            };
            wake.readable.notified().await;
        }
    }

    /// Waits until a stream takes bytes; false when it never will again.
    pub async fn writable(&self, stream: u32) -> bool {
        self.until(stream, |mux| match mux.send_closed(stream) {
            true => Some(false),
            false => (mux.send_capacity(stream) > 0).then_some(true),
        })
        .await
    }

    /// Waits until a stream takes no more bytes for ever.
    pub async fn write_closed(&self, stream: u32) {
        self.until(stream, |mux| mux.send_closed(stream).then_some(false)).await;
    }

    /// Waits for `check` to give an answer; false when the stream or the port is gone.
    async fn until(&self, stream: u32, check: impl Fn(&Mux) -> Option<bool>) -> bool {
        let Some(wake) = self.inner().wakes.get(&stream).cloned() else { return false };
        loop {
            // Several may wait, so all are woken, and each enlists before it looks.
            let mut woken = std::pin::pin!(wake.writable.notified());
            woken.as_mut().enable();
            {
                let inner = self.inner();
                if inner.lost {
                    return false;
                }
                if let Some(answer) = check(&inner.mux) {
                    return answer;
                }
            }
            woken.await;
        }
    }

    /// Lets `read` put bytes into the stream's queue.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn fill(
        &self,
        stream: u32,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<Filled> {
        let mut inner = self.inner();
        let mut called = false;
        let n = inner.mux.fill(stream, MAX_BULK_CHUNK, |room| {
            called = true;
            read(room)
        })?;
        if n > 0 {
            self.queued.notify_one();
        }
        Ok(match (called, n) {
            (false, _) => Filled::NoRoom,
            (true, 0) => Filled::Ended,
            (true, n) => Filled::Bytes(n),
        })
    }

    /// Ends our direction of a stream.
    pub fn finish(&self, stream: u32) {
        self.inner().mux.finish(stream);
        self.queued.notify_one();
    }
}

impl Inner {
    fn wake(&self) {
        for (stream, wake) in &self.wakes {
            let (mux, stream) = (&self.mux, *stream);
            if self.lost || !mux.readable(stream).is_empty() || mux.receive_ended(stream) {
                wake.readable.notify_one();
            }
            if self.lost || mux.send_capacity(stream) > 0 || mux.send_closed(stream) {
                wake.writable.notify_waiters();
            }
        }
    }
}

async fn drive(bulk: Arc<Bulk>, read: OwnedReadHalf, write: OwnedWriteHalf, rest: Vec<u8>) {
    // What the guest has sent is read to its end, even when nothing can be sent any more.
    let receive = receive(&bulk, read, rest);
    let transmit = async {
        let reason = transmit(&bulk, write).await;
        tracing::debug!(reason, "the bulk port takes no more");
        std::future::pending::<String>().await
    };
    let reason = tokio::select! {
        reason = receive => reason,
        reason = transmit => reason,
    };
    tracing::debug!(reason, "the bulk port is closed");
    let mut inner = bulk.inner();
    inner.lost = true;
    inner.wake();
}

async fn receive(bulk: &Bulk, port: OwnedReadHalf, rest: Vec<u8>) -> String {
    let mut buffer = rest;
    let mut len = buffer.len();
    buffer.resize(READ_BUFFER.max(len), 0);
    loop {
        if len > 0 {
            let mut inner = bulk.inner();
            if let Err(error) = inner.mux.receive(&buffer[..len]) {
                return error.to_string();
            }
            inner.wake();
            if inner.mux.queued() > 0 {
                bulk.queued.notify_one();
            }
        }
        if let Err(error) = port.readable().await {
            return error.to_string();
        }
        len = match port.try_read(&mut buffer) {
            Ok(0) => return "it was closed".into(),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(e) => return e.to_string(),
        };
    }
}

async fn transmit(bulk: &Bulk, port: OwnedWriteHalf) -> String {
    loop {
        if bulk.inner().mux.queued() == 0 {
            bulk.queued.notified().await;
            continue;
        }
        if let Err(error) = port.writable().await {
            return error.to_string();
        }
        let mut inner = bulk.inner();
        match port.try_write(inner.mux.transmit()) {
            Ok(n) => {
                inner.mux.transmitted(n);
                inner.wake();
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return e.to_string(),
        }
    }
}
