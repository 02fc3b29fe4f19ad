//! Where the host's routes lead: what subnets of ours keep away from.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::subnet;

/// `RTF_UP` without `RTF_REJECT`: the route is used.
const UP: u32 = 0x0001;
const REJECT: u32 = 0x0200;

/// Routes and addresses of the network namespace that the calling thread is in, but for those to
/// everywhere, to the host itself and to one link.
pub fn of_host() -> io::Result<Vec<IpNet>> {
    let mut found = addresses()?;
    found.extend(read("/proc/thread-self/net/route")?.lines().skip(1).filter_map(ipv4));
    found.extend(read("/proc/thread-self/net/ipv6_route")?.lines().filter_map(ipv6));
    let special = |net: &IpNet| match net.addr() {
        IpAddr::V4(a) => a.is_loopback() || a.is_link_local() || a.is_multicast(),
        IpAddr::V6(a) => a.is_loopback() || a.is_unicast_link_local() || a.is_multicast(),
    };
    found.retain(|net| subnet::is_particular(net) && !special(net));
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// A kernel without IPv6 has no such file.
fn read(path: &str) -> io::Result<String> {
    match std::fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other,
    }
}

/// The subnets that the host's addresses are in, whatever table routes to them.
fn addresses() -> io::Result<Vec<IpNet>> {
    let ip = |storage: nix::sys::socket::SockaddrStorage| -> Option<IpAddr> {
        let v4 = storage.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    };
    let net = |found: nix::ifaddrs::InterfaceAddress| {
        let (address, mask) = (ip(found.address?)?, ip(found.netmask?)?);
        IpNet::with_netmask(address, mask).ok().map(|net| net.trunc())
    };
    Ok(nix::ifaddrs::getifaddrs()?.filter_map(net).collect())
}

/// A line of `/proc/net/route`: interface, destination, gateway, flags, …, mask as the eighth.
fn ipv4(line: &str) -> Option<IpNet> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let hex = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
    if hex(3)? & (UP | REJECT) != UP {
        return None;
    }
    // Addresses are printed as the machine holds them in memory.
    let address = |value: u32| IpAddr::V4(Ipv4Addr::from(value.to_ne_bytes()));
    IpNet::with_netmask(address(hex(1)?), address(hex(7)?)).ok()
}

/// A line of `/proc/net/ipv6_route`: destination, its prefix, …, flags as the ninth.
fn ipv6(line: &str) -> Option<IpNet> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let hex = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
    if hex(8)? & (UP | REJECT) != UP {
        return None;
    }
    let address = u128::from_str_radix(fields.first()?, 16).ok()?;
    IpNet::new(Ipv6Addr::from(address).into(), u8::try_from(hex(1)?).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_of_the_kernel() {
        let line = "eth0\t0040A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0";
        assert_eq!(ipv4(line).unwrap().to_string(), "192.168.64.0/24");
        assert_eq!(ipv4(&line.replace("\t0001\t", "\t0201\t")), None);
        let line = "fd000000000000010000000000000000 40 00000000000000000000000000000000 00 \
                    00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth0";
        assert_eq!(ipv6(line).unwrap().to_string(), "fd00:0:0:1::/64");
    }

    #[test]
    fn this_host_can_be_asked() {
        of_host().unwrap();
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = (ipv4(&text), ipv6(&text));
        }
    }
}
