//! Published ports: bound before a VM starts, so that one in use is refused in time.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use container_api::network::{BoundPort, Protocol, PublishPort};
use container_api::{ApiError, ErrorCode, Result};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// How often another port is tried that is free on all addresses.
const TRIES: usize = 32;

/// A bound port and its socket.
#[derive(Debug)]
pub struct Bound {
    /// What it is.
    pub port: BoundPort,
    /// Its socket, a TCP one listening. Never blocks.
    pub socket: OwnedFd,
}

/// Binds all ports, or none: those that are bound go with the error. `defaults` are the host's
/// addresses of a port that names none; one of a family that the host does not have is left out.
pub fn bind_all(ports: &[PublishPort], defaults: &[IpAddr]) -> Result<Vec<Bound>> {
    let mut bound = Vec::new();
    for port in ports {
        for offset in 0..port.count {
            let host_port = if port.host_port == 0 { 0 } else { port.host_port + offset };
            let inner = port.container_port + offset;
            match port.host_address {
                Some(address) => {
                    let address = SocketAddr::new(address, host_port);
                    bound.push(bind(port.protocol, address, inner)?);
                }
                None => bind_defaults(port.protocol, host_port, inner, defaults, &mut bound)?,
            }
        }
    }
    Ok(bound)
}

/// Binds what a former process had bound, exactly.
pub fn bind_again(ports: &[BoundPort]) -> Result<Vec<Bound>> {
    ports.iter().map(|port| bind(port.protocol, port.host, port.container_port)).collect()
}

/// One port on all addresses; 0: the same free one on each.
fn bind_defaults(
    protocol: Protocol,
    port: u16,
    inner: u16,
    defaults: &[IpAddr],
    bound: &mut Vec<Bound>,
) -> Result<()> {
    for last in (0..TRIES).rev() {
        match bind_each(protocol, port, inner, defaults) {
            Err(error) if port == 0 && last > 0 && error.code == ErrorCode::AlreadyExists => {}
            other => {
                bound.extend(other?);
                return Ok(());
            }
        }
    }
    Ok(())
}

fn bind_each(
    protocol: Protocol,
    port: u16,
    inner: u16,
    addresses: &[IpAddr],
) -> Result<Vec<Bound>> {
    let mut bound: Vec<Bound> = Vec::new();
    let mut absent = None;
    for address in addresses {
        let port = bound.first().map_or(port, |first| first.port.host.port());
        match bind(protocol, SocketAddr::new(*address, port), inner) {
            Ok(one) => bound.push(one),
            Err(error) if error.code == ErrorCode::NotFound => absent = Some(error),
            Err(error) => return Err(error),
        }
    }
    match (bound.is_empty(), absent) {
        (true, Some(error)) => Err(error),
        _ => Ok(bound),
    }
}

fn bind(protocol: Protocol, address: SocketAddr, container_port: u16) -> Result<Bound> {
    let socket = open(protocol, address).map_err(|errno| refused(protocol, address, errno))?;
    let host = net::getsockname(&socket)
        .and_then(SocketAddr::try_from)
        .map_err(|errno| refused(protocol, address, errno))?;
    Ok(Bound { port: BoundPort { host, container_port, protocol }, socket })
}

fn open(protocol: Protocol, address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let (kind, transport) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(family, kind, flags, Some(transport))?;
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` are two ports, and may be two containers'.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Tcp {
        // Connections of a former forwarder that have ended hold no port. For UDP it would allow
        // two to share one.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    net::bind(&socket, &address)?;
    if protocol == Protocol::Tcp {
        net::listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

fn refused(protocol: Protocol, address: SocketAddr, errno: Errno) -> ApiError {
    let (host, port) = (address.ip(), address.port());
    let (code, problem) = match errno {
        Errno::ADDRINUSE => (
            ErrorCode::AlreadyExists,
            "is in use: publish another port, or end what listens there".into(),
        ),
        Errno::ACCESS | Errno::PERM => (
            ErrorCode::PermissionDenied,
            format!(
                "is not for this user: publish a port from {} on, or run the service as root",
                first_unprivileged()
            ),
        ),
        Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT => {
            (ErrorCode::NotFound, format!("can't be bound: this host has no address {host}"))
        }
        other => {
            (ApiError::from(std::io::Error::from(other)).code, format!("can't be bound: {other}"))
        }
    };
    ApiError::new(code, format!("host port {port}/{protocol} at {host} {problem}"))
}

fn first_unprivileged() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    fn publish(protocol: Protocol, host_address: Option<IpAddr>, host_port: u16) -> PublishPort {
        PublishPort { host_address, host_port, container_port: 80, count: 1, protocol }
    }

    #[test]
    fn any_port_is_the_same_on_every_address_and_listens() {
        let bound = bind_all(&[publish(Protocol::Tcp, None, 0)], &[V4, V6]).unwrap();
        let port = bound[0].port.host.port();
        assert_ne!(port, 0);
        assert!(bound.iter().all(|b| b.port.host.port() == port && b.port.container_port == 80));
        for b in &bound {
            TcpStream::connect(b.port.host).unwrap();
        }
        let again: Vec<BoundPort> = bound.iter().map(|b| b.port.clone()).collect();
        bind_again(&again).unwrap_err();
        drop(bound);
        assert_eq!(bind_again(&again).unwrap().len(), again.len());
    }

    #[test]
    fn one_in_use_is_refused_and_nothing_stays_bound() {
        let other = TcpListener::bind((V4, 0)).unwrap();
        let port = other.local_addr().unwrap().port();
        let udp = UdpSocket::bind((V4, 0)).unwrap();
        let udp_port = udp.local_addr().unwrap().port();
        let free = { TcpListener::bind((V4, 0)).unwrap().local_addr().unwrap().port() };
        let wanted =
            [publish(Protocol::Tcp, Some(V4), free), publish(Protocol::Tcp, Some(V4), port)];
        let error = bind_all(&wanted, &[]).unwrap_err();
        assert_eq!(error.code, ErrorCode::AlreadyExists);
        assert!(
            error.message.contains(&format!("host port {port}/tcp at 127.0.0.1 is in use")),
            "{error}"
        );
        TcpListener::bind((V4, free)).expect("the first one is free again");
        let error = bind_all(&[publish(Protocol::Udp, Some(V4), udp_port)], &[]).unwrap_err();
        assert_eq!(error.code, ErrorCode::AlreadyExists, "{error}");
        // The same number for the other protocol is another port.
        drop(other);
        bind_all(&[publish(Protocol::Udp, Some(V4), port)], &[]).unwrap();
    }

    #[test]
    fn an_address_of_somebody_else_is_refused() {
        let far = "192.0.2.1".parse().unwrap();
        let error = bind_all(&[publish(Protocol::Tcp, Some(far), 0)], &[]).unwrap_err();
        assert!(error.message.contains("this host has no address 192.0.2.1"), "{error}");
        // As a default it is left out, unless there is no other.
        assert_eq!(bind_all(&[publish(Protocol::Tcp, None, 0)], &[V4, far]).unwrap().len(), 1);
        bind_all(&[publish(Protocol::Tcp, None, 0)], &[far]).unwrap_err();
    }

    #[test]
    fn both_wildcards_are_two_ports() {
        let wild: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            assert_eq!(bind_all(&[publish(protocol, None, 0)], &wild).unwrap().len(), 2);
        }
    }
}
