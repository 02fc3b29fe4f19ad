//! The streams' port: handshake, then the mux.

use crate::failure::Failure;
use nix::errno::Errno;
use nix::sys::uio::readv;
use nix::unistd::write;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vminitd_protocol::handshake::{GuestHandshake, Port};
use vminitd_protocol::mux::{Mux, MuxError, Side};

/// Bytes per buffer of the port in the kernel: one `read` gives no more.
const PORT_BUFFER: usize = 4096;
/// Bytes read at once.
const READ_LEN: usize = 64 << 10;
/// Reads before others get their turn.
const READS: usize = 4;

/// The port, and the mux while a host is there.
pub struct Bulk {
    port: OwnedFd,
    readable: bool,
    writable: bool,
    handshake: Option<GuestHandshake>,
    /// Bytes of a welcome not written yet.
    welcome: Vec<u8>,
    /// All streams.
    pub mux: Mux,
    buffer: Vec<u8>,
}

impl AsFd for Bulk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.port.as_fd()
    }
}

/// Reads from a virtio-serial port. Its driver gives one page per call, so a
/// vector of pages saves calls.
pub fn read_port(port: &OwnedFd, buffer: &mut [u8]) -> nix::Result<usize> {
    let mut pages: Vec<_> = buffer.chunks_mut(PORT_BUFFER).map(IoSliceMut::new).collect();
    readv(port, &mut pages)
}

impl Bulk {
    pub fn new(port: OwnedFd) -> Self {
        Bulk {
            port,
            readable: true,
            writable: true,
            handshake: Some(GuestHandshake::new(Port::Bulk)),
            welcome: Vec::new(),
            mux: Mux::new(Side::Guest),
            buffer: vec![0; READ_LEN],
        }
    }

    /// Whether a host has been greeted.
    pub fn has_host(&self) -> bool {
        self.handshake.is_none()
    }

    pub fn mark(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// Takes what has come. Returns whether there may be more; lost framing is
    /// fatal.
    pub fn receive(&mut self) -> Result<bool, Failure> {
        for _ in 0..READS {
            if !self.readable {
                return Ok(false);
            }
            let mut buffer = std::mem::take(&mut self.buffer);
            let result = match read_port(&self.port, &mut buffer) {
                Ok(0) => {
                    self.readable = false;
                    self.reset();
                    Ok(())
                }
                Ok(n) => self.feed(&buffer[..n]),
                Err(Errno::EINTR) => Ok(()),
                Err(_) => {
                    self.readable = false;
                    Ok(())
                }
            };
            self.buffer = buffer;
            result?;
        }
        Ok(true)
    }

    /// No host, or a new one: what was open on the mux is void.
    fn reset(&mut self) {
        self.handshake = Some(GuestHandshake::new(Port::Bulk));
        self.mux = Mux::new(Side::Guest);
        self.welcome.clear();
    }

    fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        loop {
            while let Some(handshake) = &mut self.handshake {
                let Some(hello) = handshake.receive(bytes) else { return Ok(()) };
                bytes = &bytes[hello.consumed..];
                self.welcome.extend_from_slice(&hello.welcome);
                if hello.same_generation {
                    self.handshake = None;
                }
            }
            match self.mux.receive(bytes) {
                Ok(()) => return Ok(()),
                Err(MuxError::NewHandshake { consumed }) => {
                    bytes = &bytes[consumed..];
                    self.reset();
                }
                Err(error) => return Err(Failure::invalid(error.to_string())),
            }
        }
    }

    /// Writes what the port takes.
    pub fn flush(&mut self) -> Result<(), Failure> {
        while self.writable && !self.welcome.is_empty() {
            match write(&self.port, &self.welcome) {
                Ok(n) => drop(self.welcome.drain(..n)),
                Err(Errno::EINTR) => {}
                Err(_) => self.writable = false,
            }
        }
        while self.writable && self.handshake.is_none() && !self.mux.transmit().is_empty() {
            match write(&self.port, self.mux.transmit()) {
                Ok(n) => self.mux.transmitted(n),
                Err(Errno::EINTR) => {}
                Err(_) => self.writable = false,
            }
        }
        Ok(())
    }
}
