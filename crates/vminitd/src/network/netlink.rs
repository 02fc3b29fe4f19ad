//! The little of rtnetlink that sets up a NIC: requests of fixed headers and attributes, sent
//! together, each answered by the kernel with its error or none.

use nix::Result;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use std::os::fd::{AsRawFd, OwnedFd};

/// Length of `nlmsghdr`.
const HEADER: usize = 16;
/// What the kernel fills at most with one message of a dump.
const BUFFER: usize = 32 << 10;

/// A socket to the kernel's network configuration, of the caller's network namespace.
pub struct Socket(OwnedFd);

/// Requests that are sent together and carried out one after another.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Where the last one begins.
    last: usize,
    count: u32,
}

/// Of which request, from 0 on, an error is.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    pub request: usize,
    pub errno: Errno,
}

impl Batch {
    /// Begins a request with the header of its kind. `flags` beside those of every request.
    pub fn request(&mut self, kind: u16, flags: i32, header: &[u8]) -> &mut Self {
        self.count += 1;
        self.begin(kind, flags | libc::NLM_F_ACK, self.count, header);
        self
    }

    fn begin(&mut self, kind: u16, flags: i32, sequence: u32, header: &[u8]) {
        self.last = self.bytes.len();
        let flags = (libc::NLM_F_REQUEST | flags) as u16;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(header);
        self.end();
    }

    /// Adds an attribute to the last request.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(&attribute(kind, value));
        self.end();
        self
    }

    /// Pads, and notes the last request's length.
    fn end(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let len = (self.bytes.len() - self.last) as u32;
        self.bytes[self.last..self.last + 4].copy_from_slice(&len.to_ne_bytes());
    }
}

/// One attribute with its padding; may be the value of another.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = (4 + value.len()) as u16;
    let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

impl Socket {
    pub fn open() -> Result<Socket> {
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        socket(AddressFamily::Netlink, kind, flags, SockProtocol::NetlinkRoute).map(Socket)
    }

    /// Has a batch carried out, whatever of it fails with a tolerated error. After any other the
    /// socket is of no use: answers may be left in it.
    pub fn carry_out(
        &self,
        batch: &Batch,
        tolerated: &[Errno],
    ) -> std::result::Result<(), Refused> {
        let failed = |errno| Refused { request: 0, errno };
        if batch.count == 0 {
            return Ok(());
        }
        self.send(&batch.bytes).map_err(failed)?;
        let mut buffer = [0; 4096];
        let mut open = batch.count;
        while open > 0 {
            let len = self.receive(&mut buffer).map_err(failed)?;
            for message in messages(&buffer[..len]) {
                open -= 1;
                if let Some(errno) = errno(message).filter(|errno| !tolerated.contains(errno)) {
                    let request = (message.sequence as usize).saturating_sub(1);
                    return Err(Refused { request, errno });
                }
            }
        }
        Ok(())
    }

    /// Asks for everything of a kind; `each` gets each answer, behind its `nlmsghdr`.
    pub fn dump(&self, kind: u16, header: &[u8], mut each: impl FnMut(&[u8])) -> Result<()> {
        let mut batch = Batch::default();
        batch.begin(kind, libc::NLM_F_DUMP, 0, header);
        self.send(&batch.bytes)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let len = self.receive(&mut buffer)?;
            for message in messages(&buffer[..len]) {
                match i32::from(message.kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return Err(errno(message).unwrap_or(Errno::EPROTO)),
                    _ => each(message.content),
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        match send(self.0.as_raw_fd(), bytes, MsgFlags::empty())? {
            len if len == bytes.len() => Ok(()),
            _ => Err(Errno::EMSGSIZE),
        }
    }

    fn receive(&self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match recv(self.0.as_raw_fd(), buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Ok(0) => return Err(Errno::EPROTO),
                result => return result,
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Message<'a> {
    kind: u16,
    sequence: u32,
    content: &'a [u8],
}

/// The error that a message tells; `None` of success.
fn errno(message: Message<'_>) -> Option<Errno> {
    let code =
        message.content.first_chunk().map_or(-libc::EPROTO, |code| i32::from_ne_bytes(*code));
    (code != 0).then(|| Errno::from_raw(-code))
}

/// The whole messages of a datagram.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let len = word(0) as usize;
        let content = bytes.get(HEADER..len)?;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let message = Message { kind, sequence: word(8), content };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes of a message, behind its kind's header.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d] = *bytes.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & libc::NLA_TYPE_MASK as u16, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_padded_and_counted() {
        let mut batch = Batch::default();
        batch.request(16, 0, &[7; 16]).attribute(1, &[1, 2, 3]).attribute(4, &5u32.to_ne_bytes());
        batch.request(20, libc::NLM_F_CREATE, &[0; 8]);
        let kinds: Vec<_> = messages(&batch.bytes).map(|m| (m.kind, m.sequence)).collect();
        assert_eq!(kinds, [(16, 1), (20, 2)]);
        let first = messages(&batch.bytes).next().unwrap().content;
        let found: Vec<_> = attributes(&first[16..]).collect();
        assert_eq!(found, [(1, &[1, 2, 3][..]), (4, &5u32.to_ne_bytes()[..])]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                let _ = errno(message);
            }
            let _ = attributes(&bytes).count();
        }
    }
}
