//! A QMP client: one JSON object a line, answers matched by id, descriptors
//! over SCM_RIGHTS. QEMU may be hostile: lines and queues are bounded.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::error::{Error, Phase, shown};

/// The longest line accepted, in bytes. The longest answer asked for
/// (`query-machines`) has about 30 KiB.
const MAX_LINE: usize = 1 << 20;

/// A QMP command and the type of its answer.
pub trait Command: Serialize {
    /// Its name on the wire.
    const NAME: &'static str;
    /// What `return` holds.
    type Answer: DeserializeOwned;
}

#[derive(Serialize)]
struct Request<'a, C> {
    execute: &'static str,
    arguments: &'a C,
    id: u64,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "return", borrow)]
    answer: Option<&'a RawValue>,
    error: Option<Failure>,
    id: Option<u64>,
    event: Option<String>,
    data: Option<Value>,
}

#[derive(Deserialize)]
struct Failure {
    desc: String,
}

type Answer = Result<Box<RawValue>, String>;

#[derive(Default)]
struct State {
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    shutdown_reason: Option<String>,
    closed: bool,
}

/// A connection to one QEMU.
pub struct Qmp {
    stream: Arc<UnixStream>,
    state: Arc<Mutex<State>>,
    migrated: watch::Receiver<Option<bool>>,
    writing: tokio::sync::Mutex<()>,
    next_id: AtomicU64,
    reader: JoinHandle<()>,
}

impl std::fmt::Debug for Qmp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qmp").finish_non_exhaustive()
    }
}

impl Qmp {
    /// A client of a QEMU that may not have begun yet: what is sent waits for
    /// it. The first command must be [`Capabilities`].
    ///
    /// [`Capabilities`]: super::qmp_commands::Capabilities
    pub fn new(stream: UnixStream) -> Qmp {
        let stream = Arc::new(stream);
        let state = Arc::new(Mutex::new(State::default()));
        let (ended, migrated) = watch::channel(None);
        let reader = tokio::spawn(read_lines(stream.clone(), state.clone(), ended));
        Qmp {
            stream,
            state,
            migrated,
            writing: tokio::sync::Mutex::new(()),
            next_id: AtomicU64::new(1),
            reader,
        }
    }

    /// One command and its answer.
    pub async fn execute<C: Command>(
        &self,
        command: &C,
        limit: Duration,
    ) -> Result<C::Answer, Error> {
        self.execute_with(command, None, limit).await
    }

    /// As [`Qmp::execute`], with a descriptor beside the command.
    pub async fn execute_with<C: Command>(
        &self,
        command: &C,
        fd: Option<BorrowedFd<'_>>,
        limit: Duration,
    ) -> Result<C::Answer, Error> {
        let exchange = async { self.send(command, fd).await?.answer().await };
        tokio::time::timeout(limit, exchange).await.unwrap_or_else(|_| {
            Err(Error::TimedOut { phase: Phase::Running, operation: C::NAME.into(), limit })
        })
    }

    /// Sends a command; the answer is waited for later. QEMU executes commands
    /// in the order in which they were sent.
    pub async fn send<C: Command>(
        &self,
        command: &C,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Sent<C>, Error> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let request = Request { execute: C::NAME, arguments: command, id };
        let mut bytes = serde_json::to_vec(&request)
            .map_err(|error| Error::Protocol { command: C::NAME, reason: error.to_string() })?;
        bytes.push(b'\n');
        let (answered, answer) = oneshot::channel();
        {
            let mut state = lock(&self.state);
            if state.closed {
                return Err(closed(C::NAME));
            }
            // Those that nobody waits for any more.
            state.waiting.retain(|_, waiting| !waiting.is_closed());
            state.waiting.insert(id, answered);
        }
        self.write(&bytes, fd)
            .await
            .map_err(Error::io(Phase::Running, format!("sending {} to QEMU", C::NAME)))?;
        Ok(Sent { answer, command: PhantomData })
    }

    /// Waits for the end of the migration that runs, and whether it succeeded.
    /// QEMU tells it when the capability `events` is on.
    pub async fn migrated(&self) -> Result<bool, Error> {
        let mut migrated = self.migrated.clone();
        let ended = migrated.wait_for(Option::is_some).await.map_err(|_| closed("migrate"))?;
        Ok(*ended == Some(true))
    }

    /// The reason of the last SHUTDOWN event.
    pub fn shutdown_reason(&self) -> Option<String> {
        lock(&self.state).shutdown_reason.clone()
    }

    /// Writes a whole command; a descriptor goes with its first bytes.
    async fn write(&self, mut bytes: &[u8], mut fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let _writing = self.writing.lock().await;
        while !bytes.is_empty() {
            self.stream.writable().await?;
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                let fds: Vec<_> = fd.iter().map(|fd| fd.as_raw_fd()).collect();
                let rights = [ControlMessage::ScmRights(&fds)];
                let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
                let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
                let socket = self.stream.as_raw_fd();
                sendmsg::<()>(socket, &[IoSlice::new(bytes)], rights, flags, None)
                    .map_err(io::Error::from)
            });
            match sent {
                Ok(count) => {
                    fd = None;
                    bytes = &bytes[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A command on its way.
pub struct Sent<C> {
    answer: oneshot::Receiver<Answer>,
    command: PhantomData<C>,
}

impl<C: Command> Sent<C> {
    /// Waits for the answer.
    pub async fn answer(self) -> Result<C::Answer, Error> {
        let raw = self.answer.await.map_err(|_| closed(C::NAME))?.map_err(|description| {
            Error::Refused { command: C::NAME, description: shown(&description, 1024) }
        })?;
        serde_json::from_str(raw.get())
            .map_err(|error| Error::Protocol { command: C::NAME, reason: error.to_string() })
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn closed(command: &'static str) -> Error {
    Error::Io {
        phase: Phase::Running,
        operation: format!("waiting for QEMU's answer to {command}"),
        source: io::ErrorKind::ConnectionReset.into(),
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// Reads until the connection ends or makes no sense, then fails all waiters.
async fn read_lines(
    stream: Arc<UnixStream>,
    state: Arc<Mutex<State>>,
    migrated: watch::Sender<Option<bool>>,
) {
    let mut buffer = Vec::new();
    let mut chunk = [0; 4096];
    'connection: while stream.readable().await.is_ok() {
        match stream.try_read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => buffer.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => break,
        }
        let mut start = 0;
        while let Some(length) = buffer[start..].iter().position(|byte| *byte == b'\n') {
            if dispatch(&buffer[start..start + length], &state, &migrated).is_none() {
                break 'connection;
            }
            start += length + 1;
        }
        buffer.drain(..start);
        if buffer.len() > MAX_LINE {
            break;
        }
        if buffer.is_empty() {
            buffer.shrink_to(4096);
        }
    }
    let mut state = lock(&state);
    state.closed = true;
    state.waiting.clear();
}

/// Hands one line to whom it concerns; `None` if it is not QMP.
fn dispatch(
    line: &[u8],
    state: &Mutex<State>,
    migrated: &watch::Sender<Option<bool>>,
) -> Option<()> {
    if line.trim_ascii().is_empty() {
        return Some(());
    }
    let line: Line = serde_json::from_slice(line).ok()?;
    let mut state = lock(state);
    match line.event.as_deref() {
        Some("SHUTDOWN") => {
            let reason = line.data.as_ref().and_then(|data| data["reason"].as_str());
            state.shutdown_reason = Some(shown(reason.unwrap_or("unknown"), 64));
        }
        Some("MIGRATION") => {
            let status = line.data.as_ref().and_then(|data| data["status"].as_str());
            let ended = match status {
                Some("completed") => Some(true),
                Some("failed" | "cancelled") => Some(false),
                _ => None,
            };
            migrated.send_replace(ended);
        }
        _ => {}
    }
    let waiting = line.id.and_then(|id| state.waiting.remove(&id));
    if let Some(waiting) = waiting {
        let answer = match (line.answer, line.error) {
            (Some(answer), _) => Ok(answer.to_owned()),
            (None, Some(failure)) => Err(failure.desc),
            (None, None) => return None,
        };
        let _ = waiting.send(answer);
    }
    Some(())
}
