//! Nonce handshake that opens each port.
//!
//! A virtio-serial port outlives its host connection, so a new host sees bytes
//! that were meant for the last one, and so does the guest. The host sends a
//! hello with a random nonce, the guest echoes it, and both discard everything
//! before their peer's hello.
//!
//! ```text
//! host:   Waiting ──welcome with our nonce──► done (or Generation error)
//! guest:  Waiting ──hello──► answer it ──► done;  a later hello at a frame
//!                                                 boundary starts again
//! ```
//!
//! The first byte of a hello is neither a valid bulk frame kind, nor do its
//! first four bytes make a valid control length, so a hello that comes while
//! the guest expects a frame is recognised without doubt.

use crate::GENERATION;

/// Length of a hello and of a welcome in bytes: magic, generation, nonce.
pub const HELLO_LEN: usize = 8 + 4 + NONCE_LEN;
/// Length of the nonce in bytes.
pub const NONCE_LEN: usize = 16;
/// First byte of every hello.
pub const HELLO_FIRST_BYTE: u8 = 0xC7;

/// Which of the two ports a handshake opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Control messages.
    Agent,
    /// Stdio streams.
    Bulk,
}

impl Port {
    const fn hello_magic(self) -> [u8; 8] {
        match self {
            Port::Agent => *b"\xC7\xF1vmH-A\xFF",
            Port::Bulk => *b"\xC7\xF1vmH-B\xFF",
        }
    }

    const fn welcome_magic(self) -> [u8; 8] {
        match self {
            Port::Agent => *b"\xC7\xF1vmG-A\xFF",
            Port::Bulk => *b"\xC7\xF1vmG-B\xFF",
        }
    }
}

const _: () = {
    let magic = Port::Agent.hello_magic();
    assert!(magic[0] == HELLO_FIRST_BYTE);
    let as_len = u32::from_le_bytes([magic[0], magic[1], magic[2], magic[3]]);
    assert!(as_len as usize > crate::MAX_CONTROL_FRAME);
};

/// The guest speaks another generation of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("guest speaks protocol generation {guest}, this host speaks {host}")]
pub struct GenerationMismatch {
    /// Generation of this side.
    pub host: u32,
    /// Generation that the guest announced.
    pub guest: u32,
}

/// Looks for one 28-byte record in a stream, holding at most that many bytes.
#[derive(Debug)]
struct Scanner {
    magic: [u8; 8],
    window: [u8; HELLO_LEN],
    filled: usize,
}

impl Scanner {
    fn new(magic: [u8; 8]) -> Self {
        Scanner { magic, window: [0; HELLO_LEN], filled: 0 }
    }

    /// Takes one byte; returns generation and nonce once a record is complete.
    fn push(&mut self, byte: u8) -> Option<(u32, [u8; NONCE_LEN])> {
        self.window[self.filled] = byte;
        self.filled += 1;
        self.drop_mismatch();
        if self.filled < HELLO_LEN {
            return None;
        }
        let generation = u32::from_le_bytes(self.window[8..12].try_into().expect("4 bytes"));
        let nonce = self.window[12..].try_into().expect("16 bytes");
        Some((generation, nonce))
    }

    /// Shifts the window until it is a prefix of a record again.
    fn drop_mismatch(&mut self) {
        while self.filled > 0 {
            let n = self.filled.min(self.magic.len());
            if self.window[..n] == self.magic[..n] {
                return;
            }
            self.shift();
        }
    }

    /// Drops the first byte; call `drop_mismatch` after it.
    fn shift(&mut self) {
        self.window.copy_within(1..self.filled, 0);
        self.filled -= 1;
    }
}

fn record(magic: [u8; 8], generation: u32, nonce: &[u8; NONCE_LEN]) -> [u8; HELLO_LEN] {
    let mut out = [0; HELLO_LEN];
    out[..8].copy_from_slice(&magic);
    out[8..12].copy_from_slice(&generation.to_le_bytes());
    out[12..].copy_from_slice(nonce);
    out
}

/// The host's half: send [`HostHandshake::hello`], feed what comes back.
#[derive(Debug)]
pub struct HostHandshake {
    port: Port,
    nonce: [u8; NONCE_LEN],
    scanner: Scanner,
}

impl HostHandshake {
    /// Begins a handshake. `nonce` must be fresh random bytes.
    pub fn new(port: Port, nonce: [u8; NONCE_LEN]) -> Self {
        HostHandshake { port, nonce, scanner: Scanner::new(port.welcome_magic()) }
    }

    /// The bytes to send first.
    pub fn hello(&self) -> [u8; HELLO_LEN] {
        record(self.port.hello_magic(), GENERATION, &self.nonce)
    }

    /// Feeds received bytes. `Ok(None)`: all consumed, feed more. `Ok(Some(n))`:
    /// the guest is found and the bytes from `n` on belong to the framing.
    ///
    /// # Errors
    /// [`GenerationMismatch`] when the guest answered our nonce with another
    /// generation.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Option<usize>, GenerationMismatch> {
        for (i, byte) in bytes.iter().enumerate() {
            let Some((guest, nonce)) = self.scanner.push(*byte) else { continue };
            if nonce == self.nonce {
                return if guest == GENERATION {
                    Ok(Some(i + 1))
                } else {
                    Err(GenerationMismatch { host: GENERATION, guest })
                };
            }
            // A welcome for an earlier host; the true one may begin inside it.
            self.scanner.shift();
            self.scanner.drop_mismatch();
        }
        Ok(None)
    }
}

/// What the guest found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// How many of the fed bytes were consumed.
    pub consumed: usize,
    /// The bytes to answer with.
    pub welcome: [u8; HELLO_LEN],
    /// Whether the host's generation is ours. When not, send the welcome (it
    /// tells the host why) and keep waiting.
    pub same_generation: bool,
}

/// The guest's half: feed bytes until a hello is found.
#[derive(Debug)]
pub struct GuestHandshake {
    port: Port,
    scanner: Scanner,
}

impl GuestHandshake {
    /// Waits for a hello on `port`.
    pub fn new(port: Port) -> Self {
        GuestHandshake { port, scanner: Scanner::new(port.hello_magic()) }
    }

    /// Feeds received bytes; `None` when all were consumed without a hello.
    pub fn receive(&mut self, bytes: &[u8]) -> Option<Hello> {
        for (i, byte) in bytes.iter().enumerate() {
            if let Some((generation, nonce)) = self.scanner.push(*byte) {
                self.scanner.filled = 0;
                return Some(Hello {
                    consumed: i + 1,
                    welcome: record(self.port.welcome_magic(), GENERATION, &nonce),
                    same_generation: generation == GENERATION,
                });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn feed_host(host: &mut HostHandshake, stream: &[u8], step: usize) -> Option<usize> {
        for (i, chunk) in stream.chunks(step).enumerate() {
            if let Some(n) = host.receive(chunk).unwrap() {
                return Some(i * step + n);
            }
        }
        None
    }

    #[test]
    fn guest_reports_another_generation() {
        let mut hello = HostHandshake::new(Port::Agent, [7; 16]).hello();
        hello[8] = 99;
        let found = GuestHandshake::new(Port::Agent).receive(&hello).unwrap();
        assert!(!found.same_generation);
        let mut welcome = found.welcome;
        welcome[8] = 99;
        let err = HostHandshake::new(Port::Agent, [7; 16]).receive(&welcome).unwrap_err();
        assert_eq!(err, GenerationMismatch { host: GENERATION, guest: 99 });
    }

    #[test]
    fn ports_do_not_answer_each_other() {
        let hello = HostHandshake::new(Port::Agent, [7; 16]).hello();
        assert_eq!(GuestHandshake::new(Port::Bulk).receive(&hello), None);
    }

    proptest! {
        #[test]
        fn found_behind_garbage_and_stale_welcomes(
            garbage in proptest::collection::vec(any::<u8>(), 0..200),
            stale in any::<[u8; 16]>(), cut in 0usize..=HELLO_LEN,
            nonce in any::<[u8; 16]>(), tail in proptest::collection::vec(any::<u8>(), 0..50),
            step in 1usize..64,
        ) {
            prop_assume!(stale != nonce);
            let mut guest = GuestHandshake::new(Port::Bulk);
            let mut host = HostHandshake::new(Port::Bulk, nonce);
            let mut up = garbage.clone();
            up.extend_from_slice(&host.hello());
            let found = guest.receive(&up).unwrap();
            prop_assert_eq!(found.consumed, up.len());
            prop_assert!(found.same_generation);

            // A cut stale welcome and a whole one go before the real one.
            let mut down = garbage;
            down.extend_from_slice(&record(Port::Bulk.welcome_magic(), GENERATION, &stale)[..cut]);
            down.extend_from_slice(&record(Port::Bulk.welcome_magic(), 5, &stale));
            down.extend_from_slice(&found.welcome);
            let end = down.len();
            down.extend_from_slice(&tail);
            prop_assert_eq!(feed_host(&mut host, &down, step), Some(end));
        }

        #[test]
        fn garbage_never_completes(garbage in proptest::collection::vec(any::<u8>(), 0..4000)) {
            let mut host = HostHandshake::new(Port::Agent, [3; 16]);
            prop_assert_eq!(host.receive(&garbage).unwrap(), None);
            let _ = GuestHandshake::new(Port::Agent).receive(&garbage);
        }
    }
}
