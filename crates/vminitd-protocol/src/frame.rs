//! Control frames: a little-endian `u32` length, then that many bytes of one
//! protobuf message.

use crate::MAX_CONTROL_FRAME;
use crate::handshake::HELLO_FIRST_BYTE;
use prost::Message;

/// Bytes of the length prefix.
pub const PREFIX_LEN: usize = 4;
/// Buffer capacity that a decoder keeps between frames, in bytes.
const KEPT_CAPACITY: usize = 64 << 10;

/// A control stream that can't be followed any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is beyond [`MAX_CONTROL_FRAME`]: framing is lost.
    #[error("control frame of {len} bytes, {MAX_CONTROL_FRAME} are allowed")]
    TooLong {
        /// The announced length in bytes.
        len: u32,
    },
    /// A hello where a frame was expected: the host began anew. Give what
    /// [`Decoder::into_rest`] returns to a new handshake.
    #[error("peer began a new handshake")]
    NewHandshake,
}

/// A message that doesn't fit a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("message of {len} bytes, {MAX_CONTROL_FRAME} fit a control frame")]
pub struct MessageTooLong {
    /// Encoded length in bytes.
    pub len: usize,
}

/// Encodes one message as a frame.
///
/// # Errors
/// [`MessageTooLong`] when it is longer than [`MAX_CONTROL_FRAME`].
pub fn encode(message: &impl Message) -> Result<Vec<u8>, MessageTooLong> {
    let len = message.encoded_len();
    if len > MAX_CONTROL_FRAME {
        return Err(MessageTooLong { len });
    }
    let mut out = Vec::with_capacity(PREFIX_LEN + len);
    out.extend_from_slice(&(len as u32).to_le_bytes());
    message.encode(&mut out).expect("a Vec grows");
    Ok(out)
}

/// Splits a byte stream into frames; holds one frame at most, and what a caller
/// fed beyond it.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds received bytes. Call [`Decoder::next_frame`] until it returns `None`
    /// before feeding more, so that memory stays bounded.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
            // One huge frame must not pin its memory for ever.
            self.buffer.shrink_to(KEPT_CAPACITY.max(bytes.len()));
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame's payload, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError`]; the decoder is of no use after it.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let pending = &self.buffer[self.start..];
        if pending.first() == Some(&HELLO_FIRST_BYTE) && pending.len() >= PREFIX_LEN {
            let len = u32::from_le_bytes(pending[..PREFIX_LEN].try_into().expect("4 bytes"));
            if len as usize > MAX_CONTROL_FRAME {
                return Err(FrameError::NewHandshake);
            }
        }
        let Some(prefix) = pending.get(..PREFIX_LEN) else { return Ok(None) };
        let len = u32::from_le_bytes(prefix.try_into().expect("4 bytes"));
        if len as usize > MAX_CONTROL_FRAME {
            return Err(FrameError::TooLong { len });
        }
        let end = PREFIX_LEN + len as usize;
        if pending.len() < end {
            return Ok(None);
        }
        let from = self.start + PREFIX_LEN;
        self.start += end;
        Ok(Some(&self.buffer[from..from + len as usize]))
    }

    /// Bytes held.
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// The bytes that no frame has taken.
    pub fn into_rest(mut self) -> Vec<u8> {
        self.buffer.drain(..self.start);
        self.buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::{HostHandshake, Port};
    use proptest::prelude::*;

    #[test]
    fn a_hello_between_frames_is_seen() {
        let hello = HostHandshake::new(Port::Agent, [1; 16]).hello();
        let mut decoder = Decoder::new();
        decoder.feed(&[1, 0, 0, 0, 42]);
        decoder.feed(&hello);
        assert_eq!(decoder.next_frame(), Ok(Some(&[42][..])));
        assert_eq!(decoder.next_frame(), Err(FrameError::NewHandshake));
        assert_eq!(decoder.into_rest(), hello);
    }

    #[test]
    fn a_too_long_frame_is_refused_before_it_arrives() {
        let mut decoder = Decoder::new();
        decoder.feed(&u32::MAX.to_le_bytes());
        assert_eq!(decoder.next_frame(), Err(FrameError::TooLong { len: u32::MAX }));
    }

    proptest! {
        #[test]
        fn random_splits_give_the_same_frames(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..20),
            step in 1usize..100,
        ) {
            let mut stream = Vec::new();
            for frame in &frames {
                stream.extend_from_slice(&(frame.len() as u32).to_le_bytes());
                stream.extend_from_slice(frame);
            }
            let mut decoder = Decoder::new();
            let mut seen = Vec::new();
            for chunk in stream.chunks(step) {
                decoder.feed(chunk);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame.to_vec());
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert_eq!(decoder.buffered(), 0);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000), step in 1usize..50) {
            let mut decoder = Decoder::new();
            'all: for chunk in bytes.chunks(step) {
                decoder.feed(chunk);
                loop {
                    match decoder.next_frame() {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'all,
                    }
                }
            }
        }
    }
}
