//! What is done to a socket.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::sockopt::{IpBindAddressNoPort, IpTransparent};
use rustix::io::{Errno, Result};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// A socket on its way to `target`, or there already.
pub fn connect(kind: SocketType, target: SocketAddr) -> Result<OwnedFd> {
    begin(open(kind, target)?, target)
}

/// The same from a client's address, where that is possible, else from our own.
pub fn connect_as(client: Option<IpAddr>, kind: SocketType, target: SocketAddr) -> Result<OwnedFd> {
    let client = client.filter(|client| client.is_ipv4() == target.is_ipv4());
    let Some(client) = client else { return connect(kind, target) };
    match pose(kind, target, client).and_then(|socket| begin(socket, target)) {
        Ok(socket) => Ok(socket),
        Err(_) => connect(kind, target),
    }
}

fn open(kind: SocketType, target: SocketAddr) -> Result<OwnedFd> {
    let family = match target {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = net::socket_with(family, kind, FLAGS, None)?;
    if kind == SocketType::STREAM {
        sockopt::set_tcp_nodelay(&socket, true)?;
    }
    Ok(socket)
}

/// A socket whose own address is a client's, on any port.
fn pose(kind: SocketType, target: SocketAddr, client: IpAddr) -> Result<OwnedFd> {
    let socket = open(kind, target)?;
    let errno = |error: nix::errno::Errno| Errno::from_raw_os_error(error as i32);
    // Both are one setting of both families.
    nix::sys::socket::setsockopt(&socket, IpTransparent, &true).map_err(errno)?;
    // The port is chosen once the target is known: one serves for many targets.
    nix::sys::socket::setsockopt(&socket, IpBindAddressNoPort, &true).map_err(errno)?;
    net::bind(&socket, &SocketAddr::new(client, 0))?;
    Ok(socket)
}

fn begin(socket: OwnedFd, target: SocketAddr) -> Result<OwnedFd> {
    match net::connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// The address by which a container may know a client: none of the host's loopback, nor one that
/// means something else or nothing over there.
pub fn own_address(client: IpAddr) -> Option<IpAddr> {
    let address = client.to_canonical();
    let elsewhere = match address {
        IpAddr::V4(v4) => {
            v4.is_link_local() || v4.octets()[..3] == [192, 0, 0] || v4.is_broadcast()
        }
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let none = address.is_loopback() || address.is_unspecified() || address.is_multicast();
    (!elsewhere && !none).then_some(address)
}

/// The same of a connection.
pub fn client(socket: impl AsFd) -> Option<IpAddr> {
    let address = net::getpeername(socket).ok()??;
    own_address(SocketAddr::try_from(address).ok()?.ip())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_address_a_container_may_see() {
        for kept in ["10.99.0.2", "203.0.113.9", "2001:db8::9", "fd00::9"] {
            assert_eq!(own_address(kept.parse().unwrap()), kept.parse().ok(), "{kept}");
        }
        assert_eq!(own_address("::ffff:10.9.9.9".parse().unwrap()), "10.9.9.9".parse().ok());
        for other in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "fe80::1", "169.254.169.254"] {
            assert_eq!(own_address(other.parse().unwrap()), None, "{other}");
        }
        for other in ["0.0.0.0", "224.0.0.1", "255.255.255.255", "192.0.0.5", "ff02::1"] {
            assert_eq!(own_address(other.parse().unwrap()), None, "{other}");
        }
    }
}
