//! What is done to a socket.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::{Errno, Result};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// A socket on its way to `target`, or there already.
pub fn connect(kind: SocketType, target: SocketAddr) -> Result<OwnedFd> {
    let family = match target {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = net::socket_with(family, kind, FLAGS, None)?;
    if kind == SocketType::STREAM {
        sockopt::set_tcp_nodelay(&socket, true)?;
    }
    match net::connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// The next connection, ready to be forwarded.
pub fn accept(listener: impl AsFd) -> Result<OwnedFd> {
    let socket = net::accept_with(listener, FLAGS)?;
    // What is written together is sent together by whoever wrote it; we only pass it on.
    sockopt::set_tcp_nodelay(&socket, true)?;
    // A program in the container that asks whether its client is alive asks our socket; this one
    // asks the client. Not so towards the container: it may stand still for long.
    sockopt::set_socket_keepalive(&socket, true)?;
    Ok(socket)
}

/// Closes a connection so that its peer sees a reset, not an end.
pub fn reset(socket: OwnedFd) {
    // One that is gone already needs no reset.
    let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
}

/// The port that a redirected client wanted.
pub fn wanted_port(socket: impl AsFd) -> Result<u16> {
    let address = net::getsockname(&socket)?;
    let here = SocketAddr::try_from(address)?;
    let wanted = match here.ip().to_canonical() {
        IpAddr::V4(_) => sockopt::ip_original_dst(&socket).map(|address| address.port()),
        IpAddr::V6(_) => sockopt::ipv6_original_dst(&socket).map(|address| address.port()),
    };
    match wanted {
        Ok(port) => Ok(port),
        // Not redirected by address translation: then it was led here as it is.
        Err(Errno::NOENT | Errno::NOPROTOOPT) => Ok(here.port()),
        Err(error) => Err(error),
    }
}
