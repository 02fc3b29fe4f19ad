//! Header of a bulk frame.

use super::MuxError;
use crate::handshake::HELLO_FIRST_BYTE;

/// Length of a header in bytes.
pub const HEADER_LEN: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `len` bytes follow.
    Data = 1,
    /// The sender of this frame has room for `len` bytes more.
    Credit = 2,
    /// The sender of this frame sends nothing more on the stream.
    Eof = 3,
    /// The stream is gone, both ways.
    Reset = 4,
}

const _: () = assert!(HELLO_FIRST_BYTE > Kind::Reset as u8);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub kind: Kind,
    pub stream: u32,
    pub len: u32,
}

impl Header {
    pub fn new(kind: Kind, stream: u32, len: u32) -> Self {
        Header { kind, stream, len }
    }

    pub fn encode(self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0] = self.kind as u8;
        out[4..8].copy_from_slice(&self.stream.to_le_bytes());
        out[8..].copy_from_slice(&self.len.to_le_bytes());
        out
    }

    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, MuxError> {
        let kind = match bytes[..4] {
            [1, 0, 0, 0] => Kind::Data,
            [2, 0, 0, 0] => Kind::Credit,
            [3, 0, 0, 0] => Kind::Eof,
            [4, 0, 0, 0] => Kind::Reset,
            _ => return Err(MuxError::BadHeader { kind: bytes[0] }),
        };
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        Ok(Header { kind, stream: word(4), len: word(8) })
    }
}
