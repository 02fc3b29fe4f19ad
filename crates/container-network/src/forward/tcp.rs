//! One forwarded connection: two sockets, and bytes between them.
//!
//! ```text
//! connecting ──connected──► open ──both ends have ended, all is passed on──► closed
//!     │  refused: the fallback,     │
//!     ▼  then a reset               ▼ an error on either side
//!   reset ◄───────────────────────reset (both ends)
//! ```
//! An end of input is passed on as one (`shutdown`), a reset as a reset, and nothing is read that
//! the other side can't take, but for the rest of one chunk. Events are edges: what is known of a
//! socket's readiness is kept here.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};

use super::{limits, socket};

const INPUT: EventFlags =
    EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::HUP).union(EventFlags::ERR);

/// One of the two sockets, and the bytes that came from it.
#[derive(Debug)]
struct End {
    socket: OwnedFd,
    readable: bool,
    writable: bool,
    /// The kernel has said that the input ends: read until it does.
    ending: bool,
    /// The kernel has reported an error: what was read before is passed on, then all is reset.
    failed: bool,
    /// The input has ended.
    ended: bool,
    /// The peer of this end has been told that the other's input has ended.
    told: bool,
    /// Read from here, to be written to the other: from `held_from` on.
    held: Vec<u8>,
    held_from: usize,
}

impl End {
    fn new(socket: OwnedFd) -> End {
        End {
            socket,
            readable: false,
            writable: false,
            ending: false,
            failed: false,
            ended: false,
            told: false,
            held: Vec::new(),
            held_from: 0,
        }
    }
}

/// What a connection wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An event.
    Wait,
    /// Another turn, without an event.
    Again,
    /// To be connected to its fallback.
    Fallback(SocketAddr),
    /// To be dropped: all is done.
    Closed,
    /// To be dropped with a reset.
    Reset,
}

/// A forwarded connection.
#[derive(Debug)]
pub struct Pair {
    client: End,
    target: End,
    connecting: bool,
    fallback: Option<SocketAddr>,
    /// Whether it waits for another turn already.
    pub queued: bool,
}

/// What a turn may use.
#[derive(Debug)]
pub struct Turn<'a> {
    /// For bytes on their way.
    pub buffer: &'a mut [u8],
    /// Bytes that wait in all connections of the worker.
    pub held: &'a mut usize,
}

impl Pair {
    /// A client, and the socket that is on its way to where it leads.
    pub fn new(client: OwnedFd, target: OwnedFd, fallback: Option<SocketAddr>) -> Pair {
        Pair {
            client: End::new(client),
            target: End::new(target),
            connecting: true,
            fallback,
            queued: false,
        }
    }

    /// The client's socket, or the target's.
    pub fn socket(&self, target: bool) -> &OwnedFd {
        match target {
            false => &self.client.socket,
            true => &self.target.socket,
        }
    }

    /// Another target in place of the one that refused.
    pub fn retarget(&mut self, socket: OwnedFd) {
        self.target = End::new(socket);
    }

    /// How many bytes wait in it.
    pub fn held(&self) -> usize {
        self.client.held.len() + self.target.held.len()
    }

    /// Closes it so that whoever still is there sees a reset.
    pub fn reset(self) {
        socket::reset(self.client.socket);
        socket::reset(self.target.socket);
    }

    /// Notes what the kernel says of one socket.
    pub fn event(&mut self, target: bool, flags: EventFlags) -> Outcome {
        let end = if target { &mut self.target } else { &mut self.client };
        end.readable |= flags.intersects(INPUT);
        end.writable |= flags.intersects(EventFlags::OUT | EventFlags::HUP);
        end.ending |= flags.intersects(EventFlags::RDHUP | EventFlags::HUP);
        let failed = flags.contains(EventFlags::ERR);
        if !(target && self.connecting) {
            end.failed |= failed;
            return Outcome::Again;
        }
        if failed && !matches!(sockopt::socket_error(&end.socket), Ok(Ok(()))) {
            return self.fallback.take().map_or(Outcome::Reset, Outcome::Fallback);
        }
        self.connecting = !flags.contains(EventFlags::OUT);
        Outcome::Again
    }

    /// Passes on what can be passed on.
    pub fn turn(&mut self, turn: &mut Turn<'_>) -> Outcome {
        let failed = self.client.failed || self.target.failed;
        if self.connecting {
            return if failed { Outcome::Reset } else { Outcome::Wait };
        }
        let there = pump(&mut self.client, &mut self.target, turn);
        let back = pump(&mut self.target, &mut self.client, turn);
        match (there, back) {
            // Also where the other way is cut: what had come by then comes through.
            (Ok(true), _) | (_, Ok(true)) => Outcome::Again,
            (Ok(_), Ok(_)) if self.client.told && self.target.told => Outcome::Closed,
            (Ok(_), Ok(_)) if !failed => Outcome::Wait,
            _ => Outcome::Reset,
        }
    }
}

/// Passes bytes on in one direction; says whether it stopped for others' sake alone.
fn pump(from: &mut End, to: &mut End, turn: &mut Turn<'_>) -> Result<bool, Errno> {
    for _ in 0..limits::TURN {
        if !from.held.is_empty() {
            if !to.writable {
                return Ok(false);
            }
            let sent = write(to, &from.held[from.held_from..])?;
            from.held_from += sent;
            if from.held_from < from.held.len() {
                continue;
            }
            *turn.held -= from.held.len();
            from.held = Vec::new();
        }
        if from.ended {
            if !to.told {
                to.told = true;
                shutdown(&to.socket, Shutdown::Write)?;
            }
            return Ok(false);
        }
        if !to.writable || !from.readable {
            return Ok(false);
        }
        let size = if *turn.held > limits::MANY_HELD { limits::SMALL_CHUNK } else { limits::CHUNK };
        let buffer = &mut turn.buffer[..size];
        let read = match recv(&from.socket, &mut *buffer, RecvFlags::DONTWAIT) {
            // The error itself went to whoever wrote.
            Ok((_, 0)) if from.failed => return Err(Errno::CONNRESET),
            Ok((_, 0)) => {
                from.ended = true;
                continue;
            }
            Ok((_, read)) => read,
            Err(Errno::AGAIN) => {
                from.readable = false;
                continue;
            }
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error),
        };
        // A stream that gives less than there is room for is empty, unless its end follows.
        from.readable = read == size || from.ending || from.failed;
        let sent = write(to, &buffer[..read])?;
        if sent < read {
            from.held = buffer[sent..read].to_vec();
            from.held_from = 0;
            *turn.held += from.held.len();
        }
    }
    Ok(true)
}

fn write(to: &mut End, bytes: &[u8]) -> Result<usize, Errno> {
    loop {
        match send(&to.socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) => {
                to.writable = sent == bytes.len();
                return Ok(sent);
            }
            Err(Errno::AGAIN) => {
                to.writable = false;
                return Ok(0);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}
