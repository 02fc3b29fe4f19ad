//! The two directions of a stream, each with its credit.

use crate::STREAM_WINDOW;
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SendState {
    Open,
    Closed,
}

#[derive(Debug)]
pub(super) struct SendHalf {
    /// Bytes that the peer has room for.
    pub credit: usize,
    pub state: SendState,
}

impl SendHalf {
    pub fn capacity(&self) -> usize {
        if self.state == SendState::Open { self.credit } else { 0 }
    }

    pub fn grant(&mut self, len: usize) -> Result<(), ()> {
        let credit = self.credit.saturating_add(len);
        if credit > STREAM_WINDOW {
            return Err(());
        }
        self.credit = credit;
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct ReceiveHalf {
    buffer: VecDeque<u8>,
    /// Bytes that the peer may still send.
    credit: usize,
    /// Bytes consumed and not granted again yet.
    consumed: usize,
    ended: bool,
}

impl ReceiveHalf {
    pub fn new() -> Self {
        ReceiveHalf { buffer: VecDeque::new(), credit: STREAM_WINDOW, consumed: 0, ended: false }
    }

    pub fn take_credit(&mut self, len: usize) -> Result<(), ()> {
        if self.ended || len > self.credit {
            return Err(());
        }
        self.credit -= len;
        Ok(())
    }

    pub fn push(&mut self, bytes: &[u8]) {
        if !self.ended {
            self.buffer.extend(bytes);
        }
    }

    pub fn readable(&self) -> &[u8] {
        self.buffer.as_slices().0
    }

    /// Returns how much to grant the peer, once it is worth a frame.
    pub fn consume(&mut self, len: usize, step: usize) -> Option<usize> {
        self.buffer.drain(..len);
        self.consumed += len;
        if self.buffer.is_empty() && self.ended {
            self.buffer = VecDeque::new();
        }
        if self.ended || self.consumed < step {
            return None;
        }
        let grant = std::mem::take(&mut self.consumed);
        self.credit += grant;
        Some(grant)
    }

    pub fn end(&mut self) {
        self.ended = true;
    }

    pub fn abort(&mut self) {
        self.ended = true;
        self.buffer = VecDeque::new();
    }

    pub fn ended(&self) -> bool {
        self.ended && self.buffer.is_empty()
    }
}
