//! How descriptors come into a worker, whose table of descriptors is its own.
//!
//! `close_range` with `CLOSE_RANGE_UNSHARE` gives a thread a table in which nothing is left but
//! its end of a socket pair. From then on a descriptor's number means something else there, so
//! nothing that owns one may go from thread to thread but through the pair.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::wire::Route;

/// Longest message: [`MAX_FDS`] routes, each with a list of ports of ordinary length.
const MAX_MESSAGE: usize = 160 << 10;
/// Most descriptors with one message.
const MAX_FDS: usize = container_api::varlink::MAX_FDS;
const STACK: usize = 256 << 10;

/// What a worker is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Listen on these, beside what there is or in its place. Brings their sockets. Answered.
    Routes {
        /// One for each socket.
        routes: Vec<Route>,
        /// Whether what there is stays.
        add: bool,
    },
    /// Forward this connection, which comes with it.
    Connection {
        /// Where to.
        target: SocketAddr,
        /// Where to if it is refused there.
        fallback: Option<SocketAddr>,
        /// Whether the client's own address is to be seen there.
        keep: bool,
    },
}

/// One end of a socket pair between two tables.
#[derive(Debug)]
pub struct Door(OwnedFd);

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Door {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Door {
    /// Sends an order; `WouldBlock` when the other side is behind.
    pub fn send(&self, order: &Order, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(order)?;
        if bytes.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an order is too large"));
        }
        self.send_bytes(&bytes, fds)
    }

    /// Says that an order is done.
    pub fn answer(&self, outcome: Result<(), String>) -> io::Result<()> {
        self.send_bytes(&serde_json::to_vec(&outcome)?, &[])
    }

    fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<()>(self.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?;
        Ok(())
    }

    /// The next order; `None` when the other side has gone.
    pub fn receive(&self) -> io::Result<Option<(Order, Vec<OwnedFd>)>> {
        self.receive_bytes()?
            .map(|(bytes, fds)| Ok((serde_json::from_slice(&bytes)?, fds)))
            .transpose()
    }

    /// The answer to an order.
    pub fn answered(&self) -> io::Result<Result<(), String>> {
        let (bytes, _) = self.receive_bytes()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    fn receive_bytes(&self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        let mut buffer = vec![0; MAX_MESSAGE];
        let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let mut fds = Vec::new();
        let length = {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let message = recvmsg::<()>(self.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
            for item in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(raw) = item {
                    // SAFETY: the kernel has just installed these descriptors for us and for no
                    // one else.
                    fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
            message.bytes
        };
        buffer.truncate(length);
        Ok((length > 0).then_some((buffer, fds)))
    }
}

/// Starts a thread with a table of descriptors of its own, and returns when it is ready.
/// `prepare` runs in it first, while it still has the caller's table.
pub fn spawn<E: From<io::Error> + Send + 'static>(
    name: &str,
    prepare: impl FnOnce() -> Result<(), E> + Send + 'static,
    work: impl FnOnce(Door) + Send + 'static,
) -> Result<Door, E> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
        .map_err(io::Error::from)?;
    let number = theirs.as_raw_fd();
    let (ready, prepared) = std::sync::mpsc::sync_channel(1);
    let body = move || {
        let outcome = prepare().and_then(|()| Ok(own_table(number)?));
        let failed = outcome.is_err();
        // Nobody listens when the caller's thread has gone; then this one has no use either.
        if ready.send(outcome).is_err() || failed {
            return;
        }
        // SAFETY: in this thread's table the number is a copy that nothing else owns.
        work(Door(unsafe { OwnedFd::from_raw_fd(number) }));
    };
    std::thread::Builder::new().name(name.into()).stack_size(STACK).spawn(body)?;
    let gone = || io::Error::other("a thread ended at its start");
    prepared.recv().map_err(|_| gone())??;
    Ok(Door(ours))
}

/// Leaves nothing in this thread's own table but `keep` and the standard descriptors.
fn own_table(keep: RawFd) -> io::Result<()> {
    let close = |first: RawFd, last: u32, flags: u32| {
        // SAFETY: closes descriptors of a table that this thread alone has: the first call unshares
        // it, and of the others' descriptors nothing in this thread knows.
        match unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    close(keep + 1, u32::MAX, libc::CLOSE_RANGE_UNSHARE)?;
    match keep {
        0..=3 => Ok(()),
        _ => close(3, keep as u32 - 1, 0),
    }
}
