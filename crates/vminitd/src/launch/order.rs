//! What a launcher that was made ahead is told: the request and its
//! descriptors, in one message of a socket.

use super::stdio::ChildEnds;
use crate::failure::{Context, Failure};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use prost::Message;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use vminitd_protocol::message::ErrorCode::Internal;
use vminitd_protocol::message::StartContainer;

/// Longest request in bytes: within what a socket holds, so that nobody waits.
const MAX_LEN: usize = 64 << 10;
/// Most volumes.
const MAX_VOLUMES: usize = 32;
/// Before the request: the terminal's number, or this.
const NO_TERMINAL: u32 = u32::MAX;

/// A start, as the launcher sees it.
pub struct Order {
    /// The request.
    pub start: StartContainer,
    /// Streams of the program.
    pub stdio: ChildEnds,
    /// The container's root, as a detached mount.
    pub root: OwnedFd,
    /// Its volumes, as detached mounts.
    pub volumes: Vec<OwnedFd>,
}

/// Whether a request is short enough.
pub fn fits(start: &StartContainer, volumes: &[OwnedFd]) -> bool {
    start.encoded_len() <= MAX_LEN && volumes.len() <= MAX_VOLUMES
}

/// Sends it without waiting.
///
/// # Errors
/// `EPIPE` when there is no launcher any more.
pub fn send(
    socket: &OwnedFd,
    start: &StartContainer,
    stdio: &ChildEnds,
    root: &OwnedFd,
    volumes: &[OwnedFd],
) -> nix::Result<()> {
    let mut bytes = Vec::with_capacity(4 + start.encoded_len());
    bytes.extend_from_slice(&stdio.terminal.unwrap_or(NO_TERMINAL).to_le_bytes());
    start.encode(&mut bytes).map_err(|_| Errno::EMSGSIZE)?;
    let [stdin, stdout, stderr] = &stdio.fds;
    let fds = [root, stdin, stdout, stderr].into_iter().chain(volumes);
    let fds: Vec<RawFd> = fds.map(|fd| fd.as_raw_fd()).collect();
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let message = [IoSlice::new(&bytes)];
    sendmsg::<()>(socket.as_raw_fd(), &message, &[ControlMessage::ScmRights(&fds)], flags, None)
        .map(drop)
}

/// Waits for it; `None` when there is none to come.
pub fn receive(socket: &OwnedFd) -> Result<Option<Order>, Failure> {
    let mut bytes = vec![0; 4 + MAX_LEN];
    let mut space = nix::cmsg_space!([RawFd; 4 + MAX_VOLUMES]);
    let (len, fds) = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            result => {
                let message = result.internal("receive the request")?;
                let fds = message.cmsgs().internal("receive descriptors")?.find_map(owned);
                break (message.bytes, fds);
            }
        }
    };
    if len == 0 {
        return Ok(None);
    }
    decode(&bytes[..len], fds).map(Some).ok_or_else(|| Failure::new(Internal, "order is malformed"))
}

fn owned(message: ControlMessageOwned) -> Option<Vec<OwnedFd>> {
    let ControlMessageOwned::ScmRights(fds) = message else { return None };
    // SAFETY: the kernel has just made these descriptors for us.
    Some(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect())
}

fn decode(bytes: &[u8], fds: Option<Vec<OwnedFd>>) -> Option<Order> {
    let (terminal, request) = bytes.split_first_chunk()?;
    let terminal = Some(u32::from_le_bytes(*terminal)).filter(|number| *number != NO_TERMINAL);
    let mut fds = fds?.into_iter();
    let root = fds.next()?;
    let stdio = [fds.next()?, fds.next()?, fds.next()?];
    let start = StartContainer::decode(request).ok()?;
    let stdio = ChildEnds { fds: stdio, terminal };
    Some(Order { start, stdio, root, volumes: fds.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::fs::File;
    use vminitd_protocol::message::ContainerSpec;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn an_order_arrives_whole() {
        let (ours, theirs) = pair();
        let mut start = StartContainer::default();
        start.container.hostname = "box".into();
        start.process.env = vec![vec![b'x'; MAX_LEN - 100]];
        let many = || (0..MAX_VOLUMES).map(|_| null()).collect::<Vec<_>>();
        let mut too_many = many();
        too_many.push(null());
        assert!(fits(&start, &many()) && !fits(&start, &too_many));
        for (terminal, volumes) in [(None, vec![]), (Some(0), vec![null()]), (Some(7), many())] {
            let stdio = ChildEnds { fds: [null(), null(), null()], terminal };
            send(&ours, &start, &stdio, &null(), &volumes).unwrap();
            let order = receive(&theirs).unwrap().unwrap();
            assert_eq!((order.start, order.stdio.terminal), (start.clone(), terminal));
            assert_eq!(order.volumes.len(), volumes.len());
        }
        drop(ours);
        assert!(receive(&theirs).unwrap().is_none());
    }

    #[test]
    fn a_launcher_that_is_gone_is_noticed() {
        let (ours, _) = pair();
        let start = StartContainer { container: ContainerSpec::default(), ..Default::default() };
        let stdio = ChildEnds { fds: [null(), null(), null()], terminal: None };
        assert_eq!(send(&ours, &start, &stdio, &null(), &[]), Err(Errno::EPIPE));
    }
}
