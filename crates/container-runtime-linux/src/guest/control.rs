//! Calls and events over the agent port.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use vminitd_protocol::frame::{self, Decoder};
use vminitd_protocol::message::{
    Call, GuestBody, GuestMessage, Happening, OutOfMemory, ProcessExited, Reply, Request,
    SocketConnected,
};

use super::GuestError;

/// Events that may wait for the helper; beyond it the guest waits.
const EVENTS: usize = 64;
/// Calls that may wait for the port; beyond it callers wait.
const CALLS: usize = 64;
const READ_BUFFER: usize = 8 << 10;

/// What the guest tells unasked.
#[derive(Debug)]
pub enum GuestEvent {
    /// A process ended.
    Exited(ProcessExited),
    /// The kernel killed a process for want of memory.
    OutOfMemory(OutOfMemory),
    /// A program connected to a socket on which the guest listens.
    SocketConnected(SocketConnected),
    /// The channel can't be used any more; the last event.
    Lost(String),
}

#[derive(Debug, Default)]
struct Pending {
    last_id: u64,
    calls: BTreeMap<u64, oneshot::Sender<Reply>>,
    lost: Option<String>,
}

/// The caller's side of the agent port.
#[derive(Debug)]
pub struct Control {
    pending: Mutex<Pending>,
    out: mpsc::Sender<Vec<u8>>,
}

impl Control {
    /// Starts the tasks that drive `stream`, behind its handshake; `rest` is what came behind that.
    pub fn spawn(stream: UnixStream, rest: Vec<u8>) -> (Arc<Control>, mpsc::Receiver<GuestEvent>) {
        let (out, frames) = mpsc::channel(CALLS);
        let (events, receiver) = mpsc::channel(EVENTS);
        let control = Arc::new(Control { pending: Mutex::default(), out });
        let (read, write) = stream.into_split();
        tokio::spawn(send(write, frames));
        tokio::spawn(receive(control.clone(), read, rest, events));
        (control, receiver)
    }

    /// Asks the guest and waits for its answer, at most `limit`.
    ///
    /// # Errors
    /// [`GuestError`]; after `Silent` the guest may still carry the call out.
    pub async fn call(&self, call: Call, limit: Duration) -> Result<Reply, GuestError> {
        let name = name(&call);
        let (id, answer) = self.enlist()?;
        let frame = frame::encode(&Request { id, call: Some(call) }).inspect_err(|_| {
            self.pending().calls.remove(&id);
        })?;
        let exchange = async {
            // A failed send means that the port is lost; the answer's channel says why.
            let _ = self.out.send(frame).await;
            answer.await
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(Ok(Reply::Error(error))) => Err(GuestError::Refused(error)),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => {
                let lost = self.pending().lost.clone();
                Err(GuestError::Lost(lost.unwrap_or_else(|| "it was closed".into())))
            }
            Err(_) => {
                self.pending().calls.remove(&id);
                Err(GuestError::Silent { call: name, limit })
            }
        }
    }

    /// [`Control::call`] for a call that is answered by "done".
    ///
    /// # Errors
    /// As [`Control::call`].
    pub async fn command(&self, call: Call, limit: Duration) -> Result<(), GuestError> {
        let name = name(&call);
        match self.call(call, limit).await? {
            Reply::Done(_) | Reply::Started(_) => Ok(()),
            _ => Err(GuestError::Nonsense { call: name }),
        }
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().expect("no holder panics")
    }

    fn enlist(&self) -> Result<(u64, oneshot::Receiver<Reply>), GuestError> {
        let (sender, answer) = oneshot::channel();
        let mut pending = self.pending();
        if let Some(reason) = &pending.lost {
            return Err(GuestError::Lost(reason.clone()));
        }
        pending.last_id += 1;
        let id = pending.last_id;
        pending.calls.insert(id, sender);
        Ok((id, answer))
    }

    fn lose(&self, reason: String) {
        let mut pending = self.pending();
        pending.lost = Some(reason);
        pending.calls.clear();
    }
}

async fn send(mut port: OwnedWriteHalf, mut frames: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        if let Err(error) = port.write_all(&frame).await {
            tracing::debug!(%error, "the agent port takes no more");
            return;
        }
    }
}

async fn receive(
    control: Arc<Control>,
    port: OwnedReadHalf,
    rest: Vec<u8>,
    events: mpsc::Sender<GuestEvent>,
) {
    let reason = follow(&control, port, rest, &events).await;
    control.lose(reason.clone());
    let _ = events.send(GuestEvent::Lost(reason)).await;
}

/// Reads until the port is lost; returns why.
async fn follow(
    control: &Control,
    port: OwnedReadHalf,
    rest: Vec<u8>,
    events: &mpsc::Sender<GuestEvent>,
) -> String {
    let mut decoder = Decoder::new();
    decoder.feed(&rest);
    drop(rest);
    let mut buffer = vec![0; READ_BUFFER];
    loop {
        loop {
            let body = match decoder.next_frame() {
                Ok(Some(bytes)) => match GuestMessage::decode(bytes) {
                    Ok(message) => message.body,
                    Err(error) => return format!("malformed message: {error}"),
                },
                Ok(None) => break,
                Err(error) => return error.to_string(),
            };
            if let Some(event) = take(control, body)
                && events.send(event).await.is_err()
            {
                return "nobody listens".into();
            }
        }
        if let Err(error) = port.readable().await {
            return error.to_string();
        }
        match port.try_read(&mut buffer) {
            Ok(0) => return "it was closed".into(),
            Ok(n) => decoder.feed(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return e.to_string(),
        }
    }
}

/// Hands an answer to its caller; returns an event. Answers that nobody waits for any more and
/// messages of a newer schema are passed over.
fn take(control: &Control, body: Option<GuestBody>) -> Option<GuestEvent> {
    match body? {
        GuestBody::Response(response) => {
            let caller = control.pending().calls.remove(&response.id)?;
            // Without a reply the caller's channel closes, which it reads as a lost one.
            let _ = caller.send(response.reply?);
            None
        }
        GuestBody::Event(event) => Some(match event.happening? {
            Happening::ProcessExited(exited) => GuestEvent::Exited(exited),
            Happening::OutOfMemory(oom) => GuestEvent::OutOfMemory(oom),
            Happening::SocketConnected(connected) => GuestEvent::SocketConnected(connected),
        }),
    }
}

fn name(call: &Call) -> &'static str {
    match call {
        Call::Ping(_) => "ping",
        Call::Setup(_) => "set up",
        Call::MountRoot(_) => "mount the root",
        Call::StartContainer(_) => "start",
        Call::Exec(_) => "exec",
        Call::Signal(_) => "signal",
        Call::Resize(_) => "resize",
        Call::Stats(_) => "stats",
        Call::Sync(_) => "sync",
        Call::BootLog(_) => "boot log",
        Call::UnmountRoot(_) => "unmount the root",
        Call::Shutdown(_) => "shut down",
        Call::LoadDrivers(_) => "load drivers",
        Call::Update(_) => "update",
        Call::Processes(_) => "processes",
        Call::ConfigureNetwork(_) => "set up the network",
        Call::ConnectSocket(_) => "connect to a socket",
        Call::AcceptSocket(_) => "accept a connection",
        Call::Archive(_) => "copy files",
        Call::RaiseFileEvents(_) => "raise file events",
    }
}
