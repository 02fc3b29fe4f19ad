//! Varlink's wire format with descriptors.
//!
//! A message is one JSON object and a NUL byte. A call is
//! `{"method":"dev.container.Apiserver.List","parameters":{…},"more":true}`; each answer is
//! `{"parameters":{"reply":…},"continues":true}` or
//! `{"error":"dev.container.NotFound","parameters":{"message":"…"}}`
//! (<https://varlink.org/Method-Call>). With `more`, any number of answers that `continue` (called
//! progress here) come before the last. A message that carries descriptors says how many in
//! `"fds"`; they travel as `SCM_RIGHTS` with its bytes and are matched in order.
//!
//! A connection makes one call at a time; whoever wants two opens two. Closing a connection
//! cancels its call: the server sees [`Responder::hung_up`].

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::socket::{Peer, peer};
use crate::{ApiError, ErrorCode, Result};

/// Longest message in bytes. Ten thousand long environment variables fit.
pub const MAX_MESSAGE: usize = 32 << 20;
/// Most descriptors with one message (the kernel's limit is 253).
pub const MAX_FDS: usize = 16;

const ERROR_PREFIX: &str = "dev.container.";

#[derive(Debug, Default, Serialize, Deserialize)]
struct Envelope {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    parameters: Value,
    #[serde(default, skip_serializing_if = "is_false")]
    more: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    continues: bool,
    #[serde(default, skip_serializing_if = "is_zero")]
    fds: usize,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &usize) -> bool {
    *value == 0
}

/// One end of a connection: messages in, messages out.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    peer: Peer,
    input: Vec<u8>,
    scanned: usize,
    fds: VecDeque<OwnedFd>,
}

impl Connection {
    /// Wraps a connected stream. Must be called within a tokio runtime.
    pub fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Connection> {
        stream.set_nonblocking(true)?;
        let peer = peer(&stream)?;
        let stream = UnixStream::from_std(stream)?;
        Ok(Connection { stream, peer, input: Vec::new(), scanned: 0, fds: VecDeque::new() })
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    async fn send(&self, envelope: &Envelope, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut bytes = serde_json::to_vec(envelope)
            .map_err(|e| ApiError::internal(format!("encoding a message: {e}")))?;
        bytes.push(0);
        if bytes.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
            let message = format!("a message of {} bytes is too large", bytes.len());
            return Err(ApiError::new(ErrorCode::InvalidArgument, message));
        }
        let mut raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let mut sent = 0;
        while sent < bytes.len() {
            let n = self
                .stream
                .async_io(Interest::WRITABLE, || send_some(&self.stream, &bytes[sent..], &raw))
                .await?;
            raw.clear();
            sent += n;
        }
        Ok(())
    }

    /// The next message, or `None` when the other side has closed between messages.
    async fn receive(&mut self) -> Result<Option<(Envelope, Vec<OwnedFd>)>> {
        loop {
            if let Some(end) = self.input[self.scanned..].iter().position(|b| *b == 0) {
                let end = self.scanned + end;
                let envelope: Envelope =
                    serde_json::from_slice(&self.input[..end]).map_err(|e| {
                        ApiError::new(ErrorCode::InvalidData, format!("malformed message: {e}"))
                    })?;
                self.input.drain(..=end);
                self.scanned = 0;
                if envelope.fds > self.fds.len() {
                    return Err(ApiError::new(
                        ErrorCode::InvalidData,
                        "a message lacks its descriptors",
                    ));
                }
                let fds = self.fds.drain(..envelope.fds).collect();
                return Ok(Some((envelope, fds)));
            }
            self.scanned = self.input.len();
            if self.input.len() > MAX_MESSAGE || self.fds.len() > MAX_FDS {
                return Err(ApiError::new(ErrorCode::InvalidData, "a message is too large"));
            }
            let (stream, input, queue) = (&self.stream, &mut self.input, &mut self.fds);
            let n =
                stream.async_io(Interest::READABLE, || receive_some(stream, input, queue)).await?;
            if n == 0 {
                return match self.input.is_empty() {
                    true => Ok(None),
                    false => Err(ApiError::new(
                        ErrorCode::Disconnected,
                        "the connection ended within a message",
                    )),
                };
            }
        }
    }

    /// Waits until the other side has closed the connection, or has said something out of turn.
    async fn hung_up(stream: &UnixStream) {
        let mut byte = [0u8; 1];
        loop {
            if stream.readable().await.is_err() {
                return;
            }
            let peek = stream.try_io(Interest::READABLE, || {
                let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
                nix::sys::socket::recv(stream.as_raw_fd(), &mut byte, flags)
                    .map_err(io::Error::from)
            });
            match peek {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                _ => return,
            }
        }
    }
}

fn send_some(stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)
        .map_err(io::Error::from)
}

fn receive_some(
    stream: &UnixStream,
    input: &mut Vec<u8>,
    queue: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut buffer = [0u8; 16 << 10];
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let n = {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
        for item in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = item {
                // SAFETY: the kernel has just installed these descriptors for us and for no one else.
                queue.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        message.bytes
    };
    input.extend_from_slice(&buffer[..n]);
    Ok(n)
}

/// The caller's side of a service.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
}

impl Client {
    /// Wraps a connected stream. Must be called within a tokio runtime.
    pub fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Client> {
        Ok(Client { connection: Connection::new(stream)? })
    }

    /// Who serves.
    pub fn peer(&self) -> Peer {
        self.connection.peer()
    }

    /// Calls and decodes the one answer, within `deadline` (`None`: as long as it takes; only for
    /// calls that the user can end, such as waiting for a program).
    pub async fn call<Q: Serialize, R: DeserializeOwned>(
        &mut self,
        request: &Q,
        fds: &[BorrowedFd<'_>],
        deadline: Option<Duration>,
    ) -> Result<R> {
        let exchange = async {
            self.connection.send(&call_envelope(request, false, fds.len())?, fds).await?;
            self.answer().await.map(|(_, value, _)| value)
        };
        decode(within(deadline, exchange).await?)
    }

    /// [`Client::call`] for an answer that brings descriptors.
    pub async fn call_for_fds<Q: Serialize, R: DeserializeOwned>(
        &mut self,
        request: &Q,
        fds: &[BorrowedFd<'_>],
        deadline: Option<Duration>,
    ) -> Result<(R, Vec<OwnedFd>)> {
        let exchange = async {
            self.connection.send(&call_envelope(request, false, fds.len())?, fds).await?;
            self.answer().await
        };
        let (_, value, fds) = within(deadline, exchange).await?;
        Ok((decode(value)?, fds))
    }

    /// Calls with `more`: every answer but the last goes to `progress`. `silence` bounds the time
    /// between two answers.
    pub async fn call_with_progress<Q: Serialize, P: DeserializeOwned, R: DeserializeOwned>(
        &mut self,
        request: &Q,
        fds: &[BorrowedFd<'_>],
        silence: Option<Duration>,
        mut progress: impl FnMut(P),
    ) -> Result<R> {
        let call = call_envelope(request, true, fds.len())?;
        within(silence, self.connection.send(&call, fds)).await?;
        loop {
            let (continues, value, _) = within(silence, self.answer()).await?;
            if !continues {
                return decode(value);
            }
            progress(decode(value)?);
        }
    }

    async fn answer(&mut self) -> Result<(bool, Value, Vec<OwnedFd>)> {
        let gone = || ApiError::new(ErrorCode::Disconnected, "the service closed the connection");
        let (envelope, fds) = self.connection.receive().await?.ok_or_else(gone)?;
        if let Some(error) = envelope.error {
            return Err(decode_error(&error, &envelope.parameters));
        }
        let reply = match envelope.parameters {
            Value::Object(mut map) => map.remove("reply").unwrap_or(Value::Null),
            _ => Value::Null,
        };
        Ok((envelope.continues, reply, fds))
    }
}

async fn within<T>(deadline: Option<Duration>, work: impl Future<Output = Result<T>>) -> Result<T> {
    match deadline {
        None => work.await,
        Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            let message = format!("no answer within {} s", limit.as_secs_f32());
            Err(ApiError::new(ErrorCode::Timeout, message))
        }),
    }
}

fn call_envelope<Q: Serialize>(request: &Q, more: bool, fds: usize) -> Result<Envelope> {
    let encode = |e| ApiError::internal(format!("encoding a call: {e}"));
    let Value::Object(mut map) = serde_json::to_value(request).map_err(encode)? else {
        return Err(ApiError::internal("a call must be a tagged enum"));
    };
    let method = map.remove("method").and_then(|m| m.as_str().map(String::from));
    let parameters = map.remove("parameters").unwrap_or_default();
    Ok(Envelope { method, parameters, more, fds, ..Envelope::default() })
}

fn decode<R: DeserializeOwned>(value: Value) -> Result<R> {
    serde_json::from_value(value)
        .map_err(|e| ApiError::new(ErrorCode::InvalidData, format!("unexpected answer: {e}")))
}

fn decode_error(name: &str, parameters: &Value) -> ApiError {
    let code = name.strip_prefix(ERROR_PREFIX).unwrap_or(name);
    let code = serde_json::from_value(Value::from(code)).unwrap_or(ErrorCode::Internal);
    let message = parameters.get("message").and_then(Value::as_str).unwrap_or(name);
    ApiError::new(code, message)
}

/// Sends the answers to one call.
#[derive(Debug)]
pub struct Responder {
    connection: Arc<Connection>,
    more: bool,
    peer: Peer,
}

impl Responder {
    /// Who called.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Who called, and with which program.
    pub fn requester(&self) -> crate::audit::Requester {
        crate::socket::requester(&self.connection.stream, self.peer)
    }

    /// Whether the caller wants progress.
    pub fn wants_progress(&self) -> bool {
        self.more
    }

    /// Sends one item of progress; nothing when the caller did not ask for it.
    pub async fn progress(&self, item: &impl Serialize) -> Result<()> {
        if !self.more {
            return Ok(());
        }
        let parameters = reply_parameters(item)?;
        let envelope = Envelope { parameters, continues: true, ..Envelope::default() };
        self.connection.send(&envelope, &[]).await
    }

    /// Resolves when the caller has gone: the moment to cancel what it asked for.
    pub async fn hung_up(&self) {
        Connection::hung_up(&self.connection.stream).await;
    }
}

fn reply_parameters(reply: &impl Serialize) -> Result<Value> {
    let encode = |e| ApiError::internal(format!("encoding an answer: {e}"));
    let mut map = Map::new();
    map.insert("reply".into(), serde_json::to_value(reply).map_err(encode)?);
    Ok(Value::Object(map))
}

/// What a call is answered with: a value and descriptors.
#[derive(Debug)]
pub struct Reply {
    value: Value,
    fds: Vec<OwnedFd>,
}

impl Reply {
    /// An answer without descriptors.
    pub fn new(value: &impl Serialize) -> Result<Reply> {
        Self::with_fds(value, Vec::new())
    }

    /// An answer with descriptors.
    pub fn with_fds(value: &impl Serialize, fds: Vec<OwnedFd>) -> Result<Reply> {
        Ok(Reply { value: reply_parameters(value)?, fds })
    }

    /// An answer that says nothing but "done".
    pub fn done() -> Result<Reply> {
        Self::new(&())
    }
}

/// The serving side: a typed request in, a reply out. One instance serves all connections.
pub trait Service: Send + Sync + 'static {
    /// The service's request enum, tagged `method`/`parameters`.
    type Request: DeserializeOwned + Send;

    /// Handles one call. The future is dropped when the service ends, never when the caller goes
    /// away: whoever wants that watches [`Responder::hung_up`].
    fn call(
        &self,
        request: Self::Request,
        fds: Vec<OwnedFd>,
        responder: &Responder,
    ) -> impl Future<Output = Result<Reply>> + Send;

    /// Is told of somebody who was turned away.
    fn refused(&self, _requester: crate::audit::Requester) {}
}

/// Serves one connection until the other side closes it or breaks the protocol.
pub async fn serve<S: Service>(
    service: Arc<S>,
    stream: std::os::unix::net::UnixStream,
) -> Result<()> {
    let mut connection = Connection::new(stream)?;
    while let Some((envelope, fds)) = connection.receive().await? {
        let shared = Arc::new(connection);
        let responder =
            Responder { connection: shared.clone(), more: envelope.more, peer: shared.peer };
        let outcome = match decode_call::<S::Request>(envelope) {
            Ok(request) => service.call(request, fds, &responder).await,
            Err(error) => Err(error),
        };
        drop(responder);
        connection = Arc::into_inner(shared)
            .ok_or_else(|| ApiError::internal("a responder outlived its call"))?;
        send_outcome(&connection, outcome).await?;
    }
    Ok(())
}

fn decode_call<Q: DeserializeOwned>(envelope: Envelope) -> Result<Q> {
    let mut map = Map::new();
    let method = envelope.method.ok_or_else(|| ApiError::invalid("a call without a method"))?;
    map.insert("method".into(), Value::from(method));
    if !envelope.parameters.is_null() {
        map.insert("parameters".into(), envelope.parameters);
    }
    serde_json::from_value(Value::Object(map))
        .map_err(|e| ApiError::invalid(format!("malformed call: {e}")))
}

async fn send_outcome(connection: &Connection, outcome: Result<Reply>) -> Result<()> {
    match outcome {
        Ok(reply) => {
            let fds: Vec<BorrowedFd<'_>> = reply.fds.iter().map(std::os::fd::AsFd::as_fd).collect();
            let envelope =
                Envelope { parameters: reply.value, fds: fds.len(), ..Envelope::default() };
            connection.send(&envelope, &fds).await
        }
        Err(error) => {
            let name = serde_json::to_value(error.code).ok();
            let name = name.as_ref().and_then(Value::as_str).unwrap_or("Internal");
            let envelope = Envelope {
                error: Some(format!("{ERROR_PREFIX}{name}")),
                parameters: serde_json::json!({ "message": error.message }),
                ..Envelope::default()
            };
            connection.send(&envelope, &[]).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[derive(Serialize, Deserialize)]
    #[serde(tag = "method", content = "parameters")]
    enum Request {
        #[serde(rename = "dev.container.Test.Echo")]
        Echo { text: String },
        #[serde(rename = "dev.container.Test.Count")]
        Count { to: u32 },
        #[serde(rename = "dev.container.Test.Fail")]
        Fail,
        #[serde(rename = "dev.container.Test.Swap")]
        Swap,
        #[serde(rename = "dev.container.Test.Hang")]
        Hang,
    }

    struct Test;

    impl Service for Test {
        type Request = Request;

        async fn call(
            &self,
            request: Request,
            fds: Vec<OwnedFd>,
            responder: &Responder,
        ) -> Result<Reply> {
            match request {
                Request::Echo { text } => Reply::new(&text),
                Request::Count { to } => {
                    for i in 0..to {
                        responder.progress(&i).await?;
                    }
                    Reply::new(&to)
                }
                Request::Fail => Err(ApiError::not_found("no such thing")),
                Request::Swap => {
                    for fd in &fds {
                        std::fs::File::from(fd.try_clone()?).write_all(b"seen")?;
                    }
                    Reply::with_fds(&fds.len(), fds)
                }
                Request::Hang => {
                    responder.hung_up().await;
                    Err(ApiError::new(ErrorCode::Cancelled, "gone"))
                }
            }
        }
    }

    fn pair() -> (Client, tokio::task::JoinHandle<Result<()>>) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        (Client::new(ours).unwrap(), tokio::spawn(serve(Arc::new(Test), theirs)))
    }

    #[tokio::test]
    async fn calls_progress_errors_and_large_messages() {
        let (mut client, _server) = pair();
        let long = "x\0y".repeat(1 << 20);
        let second = Some(Duration::from_secs(60));
        let echoed: String =
            client.call(&Request::Echo { text: long.clone() }, &[], second).await.unwrap();
        assert_eq!(echoed, long);
        let mut seen = Vec::new();
        let last: u32 = client
            .call_with_progress(&Request::Count { to: 100 }, &[], second, |i: u32| seen.push(i))
            .await
            .unwrap();
        assert_eq!((last, seen), (100, (0..100).collect()));
        let error = client.call::<_, ()>(&Request::Fail, &[], second).await.unwrap_err();
        assert_eq!(error, ApiError::not_found("no such thing"));
    }

    #[tokio::test]
    async fn descriptors_travel_both_ways() {
        let (mut client, _server) = pair();
        let (mut reader, writer) = io::pipe().unwrap();
        use std::os::fd::AsFd;
        let (count, fds): (usize, _) = client
            .call_for_fds(&Request::Swap, &[writer.as_fd(), writer.as_fd()], None)
            .await
            .unwrap();
        assert_eq!((count, fds.len()), (2, 2));
        drop((fds, writer));
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "seenseen");
    }

    #[tokio::test]
    async fn a_deadline_and_a_hang_up_end_a_call() {
        let (mut client, server) = pair();
        let limit = Some(Duration::from_millis(20));
        let error = client.call::<_, ()>(&Request::Hang, &[], limit).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Timeout);
        drop(client);
        // The answer finds nobody: a broken pipe, not a hang.
        server.await.unwrap().unwrap_err();
    }

    #[tokio::test]
    async fn garbage_ends_the_connection() {
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let server = tokio::spawn(serve(Arc::new(Test), theirs));
        ours.write_all(b"{\"method\": 5}\0").unwrap();
        assert_eq!(server.await.unwrap().unwrap_err().code, ErrorCode::InvalidData);
    }
}
