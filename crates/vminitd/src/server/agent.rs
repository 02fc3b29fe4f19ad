//! The control port: handshake, requests in, responses and events out.

use super::bulk::read_port;
use crate::failure::Failure;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::write;
use prost::Message;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vminitd_protocol::frame::{self, Decoder, FrameError};
use vminitd_protocol::handshake::{GuestHandshake, Port};
use vminitd_protocol::message::{
    Error, ErrorCode, Event, GuestBody, GuestMessage, Happening, Reply, Request, Response,
};

/// Queued bytes above which no further request is taken.
const OUT_LIMIT: usize = 4 << 20;

/// The port and what is under way on it.
pub struct Agent {
    port: OwnedFd,
    readable: bool,
    writable: bool,
    link: Link,
    greeted: bool,
    out: Vec<u8>,
}

enum Link {
    Waiting(GuestHandshake),
    Open(Decoder),
}

impl AsFd for Agent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.port.as_fd()
    }
}

impl Agent {
    pub fn new(port: OwnedFd) -> Self {
        let link = Link::Waiting(GuestHandshake::new(Port::Agent));
        Agent { port, readable: true, writable: true, link, greeted: false, out: Vec::new() }
    }

    /// Whether a host has been greeted.
    pub fn has_host(&self) -> bool {
        matches!(self.link, Link::Open(_))
    }

    /// Whether a host has greeted since this was asked last.
    pub fn was_greeted(&mut self) -> bool {
        std::mem::take(&mut self.greeted)
    }

    pub fn mark(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// The next request. A frame that is no request is answered with an error;
    /// lost framing is fatal.
    pub fn next_request(&mut self) -> Result<Option<Request>, Failure> {
        loop {
            if self.out.len() > OUT_LIMIT {
                return Ok(None);
            }
            if let Link::Open(decoder) = &mut self.link {
                match decoder.next_frame() {
                    Ok(Some(bytes)) => match Request::decode(bytes) {
                        Ok(request) => return Ok(Some(request)),
                        Err(error) => {
                            self.malformed(&error);
                            continue;
                        }
                    },
                    Ok(None) => {}
                    Err(FrameError::NewHandshake) => {
                        let rest = std::mem::take(decoder).into_rest();
                        self.link = Link::Waiting(GuestHandshake::new(Port::Agent));
                        self.out.clear();
                        self.feed(&rest);
                        continue;
                    }
                    Err(error) => return Err(Failure::invalid(error.to_string())),
                }
            }
            if !self.read() {
                return Ok(None);
            }
        }
    }

    /// Whether a request waits for room in the output.
    pub fn has_more(&self) -> bool {
        self.readable && self.out.len() <= OUT_LIMIT
    }

    fn malformed(&mut self, error: &prost::DecodeError) {
        let message = format!("request can't be decoded: {error}");
        self.respond(0, Reply::Error(Error::new(ErrorCode::InvalidRequest, message)));
    }

    /// Reads once; false when there is nothing to read.
    fn read(&mut self) -> bool {
        if !self.readable {
            return false;
        }
        let mut buffer = [0u8; 16 << 10];
        match read_port(&self.port, &mut buffer) {
            Ok(0) => {
                // No host. What it sent and what it was to get are void.
                self.readable = false;
                self.link = Link::Waiting(GuestHandshake::new(Port::Agent));
                self.out.clear();
            }
            Ok(n) => self.feed(&buffer[..n]),
            Err(Errno::EINTR) => {}
            Err(_) => self.readable = false,
        }
        self.readable
    }

    fn feed(&mut self, mut bytes: &[u8]) {
        while let Link::Waiting(handshake) = &mut self.link {
            let Some(hello) = handshake.receive(bytes) else { return };
            self.out.extend_from_slice(&hello.welcome);
            self.greeted = true;
            bytes = &bytes[hello.consumed..];
            if hello.same_generation {
                self.link = Link::Open(Decoder::new());
            }
        }
        if let Link::Open(decoder) = &mut self.link {
            decoder.feed(bytes);
        }
    }

    /// Queues the answer of a request.
    pub fn respond(&mut self, id: u64, reply: Reply) {
        self.send(GuestBody::Response(Response { id, reply: Some(reply) }));
    }

    /// Queues an event.
    pub fn event(&mut self, happening: Happening) {
        self.send(GuestBody::Event(Event { happening: Some(happening) }));
    }

    fn send(&mut self, body: GuestBody) {
        if matches!(self.link, Link::Open(_))
            && let Ok(bytes) = frame::encode(&GuestMessage { body: Some(body) })
        {
            self.out.extend_from_slice(&bytes);
        }
    }

    /// Writes what the port takes.
    pub fn flush(&mut self) -> Result<(), Failure> {
        let mut done = 0;
        while self.writable && done < self.out.len() {
            match write(&self.port, &self.out[done..]) {
                Ok(n) => done += n,
                Err(Errno::EINTR) => {}
                Err(_) => self.writable = false,
            }
        }
        self.out.drain(..done);
        Ok(())
    }

    /// Writes everything and waits until the host's side has taken it: the last
    /// words before the power goes.
    pub fn flush_for_good(&mut self) {
        let _ = fcntl(&self.port, FcntlArg::F_SETFL(OFlag::O_RDWR));
        self.writable = true;
        let _ = self.flush();
    }
}
