//! Byte streams over the `bulk` port.
//!
//! A frame is `kind u8, zero u8 × 3, stream u32, length u32`, little-endian, and
//! for DATA that many bytes. Each direction of a stream has a credit: a sender
//! never sends more than its receiver has room for, so a consumer that is slow
//! stops its own stream and no other.
//!
//! ```text
//! send half:    Open ──finish: queues EOF──► Closed ◄──RESET received── Open
//! receive half: Open ──EOF or RESET received──► draining ──consumed──► ended
//! ```
//!
//! The host opens a stream before it asks for the process, the guest while it
//! answers. Hence the guest may send [`STREAM_WINDOW`] bytes at once, and the
//! host none before the guest's first CREDIT, which says that the stream is open.

mod halves;
mod header;

use crate::handshake::HELLO_FIRST_BYTE;
use crate::{MAX_BULK_CHUNK, MAX_STREAMS, STREAM_WINDOW};
use halves::{ReceiveHalf, SendHalf, SendState};
pub use header::HEADER_LEN;
use header::{Header, Kind};
use std::collections::BTreeMap;

/// Queued bytes above which streams are asked to wait.
const OUT_LIMIT: usize = 256 << 10;
/// Consumed bytes that are worth a CREDIT frame.
const CREDIT_STEP: usize = STREAM_WINDOW / 4;

/// Which side of the port this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The helper.
    Host,
    /// `vminitd`.
    Guest,
}

/// Which ways a stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Host to guest.
    ToGuest,
    /// Guest to host.
    ToHost,
    /// Both ways.
    Both,
}

/// A bulk stream that can't be followed any further, or a misuse of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MuxError {
    /// Framing is lost.
    #[error("bulk frame with unknown kind {kind} or bad header")]
    BadHeader {
        /// Its kind byte.
        kind: u8,
    },
    /// A DATA frame is longer than [`MAX_BULK_CHUNK`].
    #[error("bulk frame of {len} bytes, {MAX_BULK_CHUNK} are allowed")]
    TooLong {
        /// Its length in bytes.
        len: u32,
    },
    /// The peer sent more than it had credit for.
    #[error("peer sent {len} bytes on stream {stream} beyond its credit")]
    NoCredit {
        /// The stream.
        stream: u32,
        /// The frame's length in bytes.
        len: u32,
    },
    /// The peer granted more than a window.
    #[error("peer granted {len} bytes on stream {stream}, more than its window")]
    TooMuchCredit {
        /// The stream.
        stream: u32,
        /// The granted bytes.
        len: u32,
    },
    /// A hello where a frame was expected: the host began anew. The fed bytes
    /// from `consumed` on belong to a new handshake.
    #[error("peer began a new handshake")]
    NewHandshake {
        /// How many of the fed bytes came before it.
        consumed: usize,
    },
    /// [`Mux::open`] for a number that is open.
    #[error("stream {stream} is open already")]
    InUse {
        /// The stream.
        stream: u32,
    },
    /// [`Mux::open`] beyond [`MAX_STREAMS`].
    #[error("{MAX_STREAMS} streams are open")]
    TooMany,
}

#[derive(Debug, Default)]
struct Stream {
    send: Option<SendHalf>,
    receive: Option<ReceiveHalf>,
}

#[derive(Debug)]
enum Incoming {
    Header { bytes: [u8; HEADER_LEN], filled: usize },
    Payload { stream: u32, left: usize },
}

const AT_BOUNDARY: Incoming = Incoming::Header { bytes: [0; HEADER_LEN], filled: 0 };

/// All streams of one port, seen from one side.
#[derive(Debug)]
pub struct Mux {
    side: Side,
    streams: BTreeMap<u32, Stream>,
    incoming: Incoming,
    /// Queued bytes are `out[sent..end]`; what is beyond was used before and is
    /// not cleared again for every read.
    out: Vec<u8>,
    sent: usize,
    end: usize,
}

impl Mux {
    /// No streams yet.
    pub fn new(side: Side) -> Self {
        Mux {
            side,
            streams: BTreeMap::new(),
            incoming: AT_BOUNDARY,
            out: Vec::new(),
            sent: 0,
            end: 0,
        }
    }

    /// Opens a stream on this side.
    ///
    /// # Errors
    /// [`MuxError::InUse`], [`MuxError::TooMany`].
    pub fn open(&mut self, stream: u32, direction: Direction) -> Result<(), MuxError> {
        if self.streams.contains_key(&stream) {
            return Err(MuxError::InUse { stream });
        }
        if self.streams.len() >= MAX_STREAMS {
            return Err(MuxError::TooMany);
        }
        let (sends, receives) = match (direction, self.side) {
            (Direction::Both, _) => (true, true),
            (Direction::ToGuest, Side::Host) | (Direction::ToHost, Side::Guest) => (true, false),
            (Direction::ToGuest, Side::Guest) | (Direction::ToHost, Side::Host) => (false, true),
        };
        let mut entry = Stream::default();
        if sends {
            let credit = if self.side == Side::Guest { STREAM_WINDOW } else { 0 };
            entry.send = Some(SendHalf { credit, state: SendState::Open });
        }
        if receives {
            entry.receive = Some(ReceiveHalf::new());
            if self.side == Side::Guest {
                self.push(Header::new(Kind::Credit, stream, STREAM_WINDOW as u32));
            }
        }
        self.streams.insert(stream, entry);
        Ok(())
    }

    /// Feeds bytes from the port; what streams received is in
    /// [`Mux::readable`] afterwards. Frames of unknown streams are dropped:
    /// they may have crossed a close.
    ///
    /// # Errors
    /// A [`MuxError`] means that the port can't be followed any further.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), MuxError> {
        let mut at = 0;
        while at < bytes.len() {
            match &mut self.incoming {
                Incoming::Header { bytes: header, filled } => {
                    let n = (HEADER_LEN - *filled).min(bytes.len() - at);
                    if *filled == 0 && bytes[at] == HELLO_FIRST_BYTE {
                        return Err(MuxError::NewHandshake { consumed: at });
                    }
                    header[*filled..*filled + n].copy_from_slice(&bytes[at..at + n]);
                    *filled += n;
                    at += n;
                    if *filled == HEADER_LEN {
                        let header = Header::parse(header)?;
                        self.incoming = AT_BOUNDARY;
                        self.header(header)?;
                    }
                }
                Incoming::Payload { stream, left } => {
                    let n = (*left).min(bytes.len() - at);
                    let (stream, rest) = (*stream, *left - n);
                    self.incoming = match rest {
                        0 => AT_BOUNDARY,
                        left => Incoming::Payload { stream, left },
                    };
                    if let Some(half) = self.receive_half(stream) {
                        half.push(&bytes[at..at + n]);
                    }
                    at += n;
                }
            }
        }
        Ok(())
    }

    fn header(&mut self, Header { kind, stream, len }: Header) -> Result<(), MuxError> {
        match kind {
            Kind::Data => {
                if len as usize > MAX_BULK_CHUNK {
                    return Err(MuxError::TooLong { len });
                }
                if let Some(half) = self.receive_half(stream) {
                    half.take_credit(len as usize)
                        .map_err(|()| MuxError::NoCredit { stream, len })?;
                }
                if len > 0 {
                    self.incoming = Incoming::Payload { stream, left: len as usize };
                }
            }
            Kind::Credit => {
                if let Some(half) = self.send_half(stream) {
                    half.grant(len as usize)
                        .map_err(|()| MuxError::TooMuchCredit { stream, len })?;
                }
            }
            Kind::Eof => {
                if let Some(half) = self.receive_half(stream) {
                    half.end();
                }
            }
            Kind::Reset => {
                if let Some(entry) = self.streams.get_mut(&stream) {
                    if let Some(half) = &mut entry.send {
                        half.state = SendState::Closed;
                    }
                    if let Some(half) = &mut entry.receive {
                        half.abort();
                    }
                }
            }
        }
        Ok(())
    }

    /// What a stream has received and nobody consumed; more may follow once it
    /// is consumed.
    pub fn readable(&self, stream: u32) -> &[u8] {
        let half = self.streams.get(&stream).and_then(|s| s.receive.as_ref());
        half.map_or(&[], ReceiveHalf::readable)
    }

    /// Takes `len` bytes of [`Mux::readable`] away, which gives the peer credit.
    pub fn consume(&mut self, stream: u32, len: usize) {
        let Some(half) = self.receive_half(stream) else { return };
        if let Some(grant) = half.consume(len, CREDIT_STEP) {
            self.push(Header::new(Kind::Credit, stream, grant as u32));
        }
    }

    /// Whether everything that will ever come on this stream was consumed. True
    /// for an unknown stream.
    pub fn receive_ended(&self, stream: u32) -> bool {
        let half = self.streams.get(&stream).and_then(|s| s.receive.as_ref());
        half.is_none_or(ReceiveHalf::ended)
    }

    /// Tells the peer that nobody will consume what it sends on this stream
    /// any more; its sender sees [`Mux::send_closed`]. In a stream that goes
    /// both ways this ends both.
    pub fn reset(&mut self, stream: u32) {
        if self.streams.remove(&stream).is_some() {
            self.push(Header::new(Kind::Reset, stream, 0));
        }
    }

    /// Most bytes that [`Mux::write`] or [`Mux::fill`] would take now.
    pub fn send_capacity(&self, stream: u32) -> usize {
        if self.queued() >= OUT_LIMIT {
            return 0;
        }
        let half = self.streams.get(&stream).and_then(|s| s.send.as_ref());
        half.map_or(0, SendHalf::capacity).min(MAX_BULK_CHUNK)
    }

    /// Whether the peer takes no more on this stream, or we finished it. True
    /// for an unknown stream.
    pub fn send_closed(&self, stream: u32) -> bool {
        let half = self.streams.get(&stream).and_then(|s| s.send.as_ref());
        half.is_none_or(|half| half.state == SendState::Closed)
    }

    /// Queues bytes of `data` as one frame; returns how many were taken.
    pub fn write(&mut self, stream: u32, data: &[u8]) -> usize {
        let taken = self.fill::<()>(stream, data.len(), |room| {
            room.copy_from_slice(&data[..room.len()]);
            Ok(room.len())
        });
        taken.unwrap_or(0)
    }

    /// Queues at most `max` bytes that `read` puts into the queue itself, which
    /// saves a copy. Not called when there is no room; returns what it returned.
    ///
    /// # Errors
    /// Those of `read`, with nothing queued.
    pub fn fill<E>(
        &mut self,
        stream: u32,
        max: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let room = self.send_capacity(stream).min(max);
        if room == 0 {
            return Ok(0);
        }
        self.make_room(HEADER_LEN + room);
        let start = self.end;
        let payload = start + HEADER_LEN;
        let result = read(&mut self.out[payload..payload + room]);
        let n = *result.as_ref().unwrap_or(&0);
        assert!(n <= room, "read returned more than the room it had");
        if n == 0 {
            return result;
        }
        self.end = payload + n;
        let header = Header::new(Kind::Data, stream, n as u32);
        self.out[start..payload].copy_from_slice(&header.encode());
        if let Some(half) = self.send_half(stream) {
            half.credit -= n;
        }
        result
    }

    /// Ends our direction of a stream, behind what was written.
    pub fn finish(&mut self, stream: u32) {
        let Some(half) = self.send_half(stream) else { return };
        if half.state == SendState::Open {
            half.state = SendState::Closed;
            self.push(Header::new(Kind::Eof, stream, 0));
        }
    }

    /// Forgets a stream without a word to the peer. To be called when both
    /// directions have ended.
    pub fn close(&mut self, stream: u32) {
        self.streams.remove(&stream);
    }

    /// Whether the stream is open on this side.
    pub fn is_open(&self, stream: u32) -> bool {
        self.streams.contains_key(&stream)
    }

    /// The bytes to send to the port next.
    pub fn transmit(&self) -> &[u8] {
        &self.out[self.sent..self.end]
    }

    /// Takes `len` bytes of [`Mux::transmit`] away.
    pub fn transmitted(&mut self, len: usize) {
        self.sent += len;
        assert!(self.sent <= self.end, "more transmitted than there was");
        if self.sent == self.end {
            (self.sent, self.end) = (0, 0);
        }
    }

    /// Bytes waiting in [`Mux::transmit`].
    pub fn queued(&self) -> usize {
        self.end - self.sent
    }

    /// Makes `out` reach at least `len` bytes beyond `end`.
    fn make_room(&mut self, len: usize) {
        if self.sent >= OUT_LIMIT {
            self.out.copy_within(self.sent..self.end, 0);
            (self.sent, self.end) = (0, self.end - self.sent);
        }
        if self.out.len() < self.end + len {
            self.out.resize(self.end + len, 0);
        }
    }

    fn push(&mut self, header: Header) {
        self.make_room(HEADER_LEN);
        self.out[self.end..self.end + HEADER_LEN].copy_from_slice(&header.encode());
        self.end += HEADER_LEN;
    }

    fn receive_half(&mut self, stream: u32) -> Option<&mut ReceiveHalf> {
        self.streams.get_mut(&stream)?.receive.as_mut()
    }

    fn send_half(&mut self, stream: u32) -> Option<&mut SendHalf> {
        self.streams.get_mut(&stream)?.send.as_mut()
    }
}

#[cfg(test)]
mod tests;
