//! Datagrams: each client has a socket of its own towards the container, so that answers find back.
//! A client that is silent for [`limits::CLIENT_IDLE`] is forgotten.

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use rustix::net::{RecvFlags, SendFlags, SocketType, recv, send};

use super::slab::Key;
use super::{limits, socket};
use crate::wire::Route;

/// A client: where it is, and which of our addresses it speaks to.
pub type From = (SocketAddr, Option<Here>);

/// An address of this side, and the interface where it needs one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Here {
    address: IpAddr,
    interface: u32,
}

/// A socket that clients send to.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    route: Route,
    /// Whether it listens on many addresses: the answer must come from the one asked.
    many: bool,
    /// Who has sent here.
    pub clients: HashMap<From, Key>,
}

/// A client's socket towards the container.
#[derive(Debug)]
pub struct Client {
    /// Connected to the target.
    pub socket: OwnedFd,
    /// Where answers go out.
    pub listener: Key,
    /// Whose it is.
    pub from: From,
    /// When something last came or went.
    pub last: Instant,
}

impl Listener {
    /// Takes a bound socket.
    pub fn new(socket: OwnedFd, route: Route) -> nix::Result<Listener> {
        let address = rustix::net::getsockname(&socket).map_err(errno)?;
        let address = SocketAddr::try_from(address).map_err(errno)?;
        let many = address.ip().is_unspecified();
        match address {
            SocketAddr::V4(_) if many => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            SocketAddr::V6(_) if many => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
            _ => {}
        }
        Ok(Listener { socket, route, many, clients: HashMap::new() })
    }

    /// The socket.
    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// The next datagram, if there is one.
    pub fn receive(&self, buffer: &mut [u8]) -> nix::Result<(From, usize)> {
        let mut control = nix::cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo);
        let mut slices = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let control = self.many.then_some(control.as_mut_slice());
        let message =
            recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut slices, control, flags)?;
        let mut here = None;
        if self.many {
            for item in message.cmsgs()? {
                here = match item {
                    ControlMessageOwned::Ipv4PacketInfo(info) => Some(Here {
                        address: Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()).into(),
                        interface: 0,
                    }),
                    ControlMessageOwned::Ipv6PacketInfo(info) => Some(here_v6(&info)),
                    _ => here,
                };
            }
        }
        let address = message.address.as_ref().and_then(address).ok_or(Errno::EAFNOSUPPORT)?;
        Ok(((address, here), message.bytes))
    }

    /// Where a client's datagrams lead: a socket for it.
    pub fn open(&self, (client, _): From) -> rustix::io::Result<OwnedFd> {
        let client = self.route.keep_client.then(|| socket::own_address(client.ip())).flatten();
        socket::connect_as(client, SocketType::DGRAM, self.route.target)
    }

    /// Sends an answer to a client.
    pub fn answer(&self, (to, here): From, bytes: &[u8]) -> nix::Result<()> {
        let slices = [IoSlice::new(bytes)];
        let to = SockaddrStorage::from(to);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let socket = self.socket.as_raw_fd();
        let sent = match here.map(|here| (here.address, here.interface)) {
            None => sendmsg(socket, &slices, &[], flags, Some(&to)),
            Some((IpAddr::V4(address), _)) => {
                let source = libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) };
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: source,
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                let control = [ControlMessage::Ipv4PacketInfo(&info)];
                sendmsg(socket, &slices, &control, flags, Some(&to))
            }
            Some((IpAddr::V6(address), interface)) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: address.octets() },
                    ipi6_ifindex: interface,
                };
                let control = [ControlMessage::Ipv6PacketInfo(&info)];
                sendmsg(socket, &slices, &control, flags, Some(&to))
            }
        };
        sent.map(drop)
    }
}

impl Client {
    /// Passes a datagram on. One that can't go is lost, as datagrams are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.last = Instant::now();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        // The first call may only tell that an earlier datagram found nobody.
        if send(&self.socket, bytes, flags) == Err(rustix::io::Errno::CONNREFUSED) {
            let _ = send(&self.socket, bytes, flags);
        }
    }

    /// The next answer, if there is one.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Option<usize> {
        for _ in 0..2 {
            match recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((_, length)) => {
                    self.last = Instant::now();
                    return Some(length);
                }
                // Nobody listens there, yet; what comes behind it may be an answer.
                Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        None
    }

    /// Whether it has been silent for long.
    pub fn is_idle(&self, now: Instant) -> bool {
        now.duration_since(self.last) >= limits::CLIENT_IDLE
    }
}

fn here_v6(info: &libc::in6_pktinfo) -> Here {
    let address = std::net::Ipv6Addr::from(info.ipi6_addr.s6_addr);
    let interface = if address.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
    Here { address: address.into(), interface }
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    match (storage.as_sockaddr_in(), storage.as_sockaddr_in6()) {
        (Some(v4), _) => Some(SocketAddr::V4((*v4).into())),
        (_, Some(v6)) => Some(SocketAddr::V6((*v6).into())),
        _ => None,
    }
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}
