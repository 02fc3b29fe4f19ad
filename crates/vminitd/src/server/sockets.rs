//! Connections of unix sockets between the container and the host.
//!
//! ```text
//! a program connects:  Listener ──accept, event──► Waiting ──AcceptSocket──► Open
//! the host connects:   ConnectSocket ──► Connecting ──connected, answer──► Open
//! Open ──both directions have ended, or one is cut──► gone
//! ```

use super::bulk::Bulk;
use super::{Server, State, token, watch};
use crate::failure::{Context, Failure};
use crate::launch::socket;
use crate::validate;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollFlags};
use nix::sys::socket::{MsgFlags, Shutdown, SockFlag, accept4, send, shutdown};
use nix::unistd::read;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use vminitd_protocol::message::{
    AcceptSocket, ConnectSocket, Done, ErrorCode, Happening, ListenSocket, Reply, SocketConnected,
};
use vminitd_protocol::mux::Direction;
use vminitd_protocol::{MAX_BULK_CHUNK, MAX_SOCKET_CONNECTIONS};

/// Chunks per direction and turn.
const CHUNKS: usize = 4;
/// Queued bytes that are worth a write to the port before reading on.
const FLUSH_AT: usize = 64 << 10;

/// All of them, by numbers that are never used again.
#[derive(Default)]
pub struct Sockets {
    slots: BTreeMap<u64, Slot>,
    last: u64,
}

enum Slot {
    /// One of [`vminitd_protocol::message::ContainerSpec::sockets`].
    Listener {
        fd: OwnedFd,
        number: u32,
        ready: bool,
    },
    /// A program's connection that the host has been told of.
    Waiting(OwnedFd),
    /// A child is about to connect.
    Connecting {
        answer: OwnedFd,
        request: u64,
        stream: u32,
    },
    Open(Open),
}

struct Open {
    fd: OwnedFd,
    stream: u32,
    readable: bool,
    writable: bool,
    /// The program has sent all.
    sent: bool,
    /// The program has got all.
    got: bool,
}

impl Sockets {
    /// Forgets all of a container.
    pub fn clear(&mut self, bulk: &mut Bulk) {
        for slot in std::mem::take(&mut self.slots).into_values() {
            if let Slot::Open(open) = slot {
                bulk.mux.reset(open.stream);
            }
        }
    }

    /// Listens on a new container's sockets in place of a former one's.
    pub fn listen(
        &mut self,
        epoll: &Epoll,
        bulk: &mut Bulk,
        wanted: &[ListenSocket],
    ) -> Result<(), Failure> {
        self.clear(bulk);
        for (number, fd) in socket::create(wanted)?.into_iter().enumerate() {
            let slot = self.next();
            watch(epoll, &fd, EpollFlags::EPOLLIN, token::SOCKETS | slot)?;
            self.slots.insert(slot, Slot::Listener { fd, number: number as u32, ready: true });
        }
        Ok(())
    }

    pub fn mark(&mut self, token: u64, is_readable: bool, is_writable: bool) {
        match self.slots.get_mut(&(token & !token::SOCKETS)) {
            Some(Slot::Listener { ready, .. }) => *ready |= is_readable,
            Some(Slot::Open(open)) => {
                open.readable |= is_readable;
                open.writable |= is_writable;
            }
            _ => {} // Looked at in any case.
        }
    }

    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn is_full(&self) -> bool {
        let connections =
            self.slots.values().filter(|slot| !matches!(slot, Slot::Listener { .. })).count();
        connections >= MAX_SOCKET_CONNECTIONS
    }

    fn open(&mut self, epoll: &Epoll, fd: OwnedFd, stream: u32) -> Result<(), Failure> {
        let slot = self.next();
        let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT;
        watch(epoll, &fd, both, token::SOCKETS | slot)?;
        let open = Open { fd, stream, readable: true, writable: true, sent: false, got: false };
        self.slots.insert(slot, Slot::Open(open));
        Ok(())
    }
}

impl Server {
    /// One turn for every socket. Returns whether there may be more to move.
    pub(super) fn serve_sockets(&mut self) -> bool {
        let mut more = false;
        let slots: Vec<u64> = self.sockets.slots.keys().copied().collect();
        for slot in slots {
            let bulk = &mut self.bulk;
            match self.sockets.slots.get_mut(&slot) {
                Some(Slot::Listener { ready: true, .. }) => self.accept_some(slot),
                Some(Slot::Connecting { .. }) => self.look_at_connecting(slot),
                Some(Slot::Open(open)) => match pump(open, bulk) {
                    Some(again) => more |= again,
                    None => drop(self.sockets.slots.remove(&slot)),
                },
                _ => {}
            }
        }
        more
    }

    /// Tells the host of programs that have connected. Further ones wait as long as there is no
    /// room.
    fn accept_some(&mut self, slot: u64) {
        while !self.sockets.is_full() {
            let Some(Slot::Listener { fd, number, ready }) = self.sockets.slots.get_mut(&slot)
            else {
                return;
            };
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let number = *number;
            match accept4(fd.as_raw_fd(), flags) {
                Ok(accepted) => {
                    // SAFETY: the kernel has just made this descriptor for us.
                    let accepted = unsafe { OwnedFd::from_raw_fd(accepted) };
                    let connection = self.sockets.next();
                    self.sockets.slots.insert(connection, Slot::Waiting(accepted));
                    let told = SocketConnected { socket: number, connection };
                    self.agent.event(Happening::SocketConnected(told));
                }
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                Err(_) => {
                    *ready = false;
                    return;
                }
            }
        }
    }

    fn look_at_connecting(&mut self, slot: u64) {
        let Some(Slot::Connecting { answer, request, stream }) = self.sockets.slots.get(&slot)
        else {
            return;
        };
        let (request, stream) = (*request, *stream);
        let Some(outcome) = socket::connected(answer) else { return };
        self.sockets.slots.remove(&slot);
        let outcome = outcome
            .context(ErrorCode::Internal, || "connect to the container's socket")
            .and_then(|fd| self.open_stream(fd, stream));
        self.agent.respond(
            request,
            match outcome {
                Ok(()) => Reply::Done(Done {}),
                Err(failure) => Reply::Error(failure.into()),
            },
        );
    }

    fn open_stream(&mut self, fd: OwnedFd, stream: u32) -> Result<(), Failure> {
        let opened = self.bulk.mux.open(stream, Direction::Both);
        opened.map_err(|e| Failure::new(ErrorCode::InUse, e.to_string()))?;
        self.sockets.open(&self.epoll, fd, stream)
    }

    /// [`vminitd_protocol::message::Call::ConnectSocket`]: answered once a child has connected.
    pub(super) fn connect_socket(
        &mut self,
        request: u64,
        wanted: &ConnectSocket,
    ) -> Result<(), Failure> {
        let State::Running(_, container) = &self.state else { return Err(self.illegal()) };
        validate::socket_path(&wanted.path)?;
        if self.bulk.mux.is_open(wanted.stream) {
            return Err(Failure::new(ErrorCode::InUse, "the stream number is in use"));
        }
        if self.sockets.is_full() {
            return Err(Failure::new(ErrorCode::Exhausted, "too many connections of sockets"));
        }
        let answer = socket::connect(container, &wanted.path)?;
        let slot = self.sockets.next();
        watch(&self.epoll, &answer, EpollFlags::EPOLLIN, token::SOCKETS | slot)?;
        let connecting = Slot::Connecting { answer, request, stream: wanted.stream };
        self.sockets.slots.insert(slot, connecting);
        Ok(())
    }

    /// [`vminitd_protocol::message::Call::AcceptSocket`].
    pub(super) fn accept_socket(&mut self, wanted: &AcceptSocket) -> Result<(), Failure> {
        if !matches!(self.sockets.slots.get(&wanted.connection), Some(Slot::Waiting(_))) {
            return Err(Failure::invalid("no such connection waits"));
        }
        match self.sockets.slots.remove(&wanted.connection) {
            Some(Slot::Waiting(fd)) => self.open_stream(fd, wanted.stream),
            _ => Ok(()),
        }
    }
}

/// Moves bytes of a connection; `None` when it is over.
fn pump(open: &mut Open, bulk: &mut Bulk) -> Option<bool> {
    let there = pump_in(open, bulk);
    let back = pump_out(open, bulk);
    match (there, back) {
        (Ok(_), Ok(_)) if open.got && open.sent => {
            bulk.mux.close(open.stream);
            None
        }
        (Ok(there), Ok(back)) => Some(there || back),
        _ => {
            bulk.mux.reset(open.stream);
            None
        }
    }
}

/// Host to program.
fn pump_in(open: &mut Open, bulk: &mut Bulk) -> Result<bool, Errno> {
    for _ in 0..CHUNKS {
        if open.got {
            return Ok(false);
        }
        if bulk.mux.receive_ended(open.stream) {
            open.got = true;
            // A program that has gone needs not be told.
            let _ = shutdown(open.fd.as_raw_fd(), Shutdown::Write);
            return Ok(false);
        }
        let bytes = bulk.mux.readable(open.stream);
        if bytes.is_empty() || !open.writable {
            return Ok(false);
        }
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        match send(open.fd.as_raw_fd(), bytes, flags) {
            Ok(n) => bulk.mux.consume(open.stream, n),
            Err(Errno::EAGAIN) => open.writable = false,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(true)
}

/// Program to host.
fn pump_out(open: &mut Open, bulk: &mut Bulk) -> Result<bool, Errno> {
    for _ in 0..CHUNKS {
        if open.sent {
            return Ok(false);
        }
        if bulk.mux.send_closed(open.stream) {
            // The host wants no more: the program is to see that.
            return Err(Errno::EPIPE);
        }
        if !open.readable {
            return Ok(false);
        }
        if bulk.mux.send_capacity(open.stream) == 0 {
            let _ = bulk.flush();
            if bulk.mux.send_capacity(open.stream) == 0 {
                return Ok(false);
            }
        }
        let fd = &open.fd;
        match bulk.mux.fill(open.stream, MAX_BULK_CHUNK, |room| read(fd, room)) {
            Ok(0) => {
                open.sent = true;
                bulk.mux.finish(open.stream);
            }
            Ok(_) if bulk.mux.queued() >= FLUSH_AT => drop(bulk.flush()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => open.readable = false,
            Err(errno) => return Err(errno),
        }
    }
    Ok(true)
}
