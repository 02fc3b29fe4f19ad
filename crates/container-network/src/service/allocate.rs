//! Addresses for containers: which are free, and which one is next.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use container_api::network::{Mac, NetworkConfig};
use container_api::{ApiError, ErrorCode, Result};

use super::subnet;

/// What is in use on one network.
#[derive(Clone, Debug, Default)]
pub struct Used {
    /// Addresses of containers, with whose they are.
    pub addresses: Vec<(IpAddr, String)>,
    /// Their NICs' addresses, likewise.
    pub macs: Vec<(Mac, String)>,
}

/// Where the search for a free address begins: behind the one that was given out last, so that
/// nobody gets one that others have just forgotten, or not yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor(u128);

/// A container's addresses on a network: those asked for, or free ones.
pub fn addresses(
    config: &NetworkConfig,
    used: &Used,
    asked: &[IpAddr],
    cursor: &mut Cursor,
) -> Result<(Ipv4Addr, Ipv6Addr)> {
    for address in asked {
        check_fixed(config, *address)?;
        if let Some((_, owner)) = used.addresses.iter().find(|(other, _)| other == address) {
            let (network, code) = (&config.id, ErrorCode::AlreadyExists);
            let message = format!("{address} on network '{network}' is container '{owner}''s");
            return Err(ApiError::new(code, message));
        }
    }
    let v4 = asked.iter().find_map(|a| if let IpAddr::V4(a) = a { Some(*a) } else { None });
    let v6 = asked.iter().find_map(|a| if let IpAddr::V6(a) = a { Some(*a) } else { None });
    let taken: HashSet<IpAddr> = used.addresses.iter().map(|(address, _)| *address).collect();
    let v4 = match v4 {
        Some(v4) => v4,
        None => free_v4(config, &taken, cursor)?,
    };
    let v6 = match v6 {
        Some(v6) => v6,
        None => free_v6(config, &taken, u32::from(v4) - u32::from(config.ipv4_subnet.network()))?,
    };
    Ok((v4, v6))
}

/// Checks an address that was asked for, but not whether it is in use.
pub fn check_fixed(config: &NetworkConfig, address: IpAddr) -> Result<()> {
    let network = &config.id;
    let wrong =
        |what: &str| Err(ApiError::invalid(format!("{address} on network '{network}' is {what}")));
    match address {
        IpAddr::V4(a) => {
            let net = config.ipv4_subnet;
            match () {
                () if !net.contains(&a) => wrong(&format!("not in its subnet {net}")),
                () if a == config.ipv4_gateway => wrong("its gateway"),
                () if a == net.network() || a == net.broadcast() => wrong("no container's to have"),
                () => Ok(()),
            }
        }
        IpAddr::V6(a) => {
            let net = config.ipv6_subnet;
            match () {
                () if !net.contains(&a) => wrong(&format!("not in its subnet {net}")),
                () if a == config.ipv6_gateway => wrong("its gateway"),
                () if a == net.network() => wrong("no container's to have"),
                () => Ok(()),
            }
        }
    }
}

fn free_v4(
    config: &NetworkConfig,
    taken: &HashSet<IpAddr>,
    cursor: &mut Cursor,
) -> Result<Ipv4Addr> {
    let net = config.ipv4_subnet;
    let base = u32::from(net.network());
    let last = u32::from(net.broadcast()) - base - 1;
    // Offsets 0 and 1 are the network's and the gateway's.
    let count = last - 1;
    // Among as many as are taken, and one, at least one is free.
    let tries = count.min(u32::try_from(taken.len()).unwrap_or(u32::MAX).saturating_add(1));
    let begin = u32::try_from(cursor.0).unwrap_or(0) % count;
    for step in 0..tries {
        let index = (begin + step) % count;
        let address = Ipv4Addr::from(base + 2 + index);
        if !taken.contains(&IpAddr::V4(address)) {
            cursor.0 = u128::from(index) + 1;
            return Ok(address);
        }
    }
    let message =
        format!("network '{}' is full: all {count} addresses of {net} are in use", config.id);
    Err(ApiError::new(ErrorCode::ResourceExhausted, message))
}

/// The address at the same place as the IPv4 one, when the subnet is large enough and it is free,
/// so that the two are easily told to belong together.
fn free_v6(config: &NetworkConfig, taken: &HashSet<IpAddr>, offset: u32) -> Result<Ipv6Addr> {
    let net = config.ipv6_subnet;
    let base = u128::from(net.network());
    let count = (u128::from(net.broadcast()) - base).saturating_sub(1);
    let tries = count.min(taken.len() as u128 + 1);
    let begin = u128::from(offset).saturating_sub(2);
    for step in 0..tries {
        let address = Ipv6Addr::from(base + 2 + (begin + step) % count);
        if !taken.contains(&IpAddr::V6(address)) {
            return Ok(address);
        }
    }
    let message =
        format!("network '{}' is full: all {count} addresses of {net} are in use", config.id);
    Err(ApiError::new(ErrorCode::ResourceExhausted, message))
}

/// A container's Ethernet address on a network: the one asked for, or a new one.
pub fn mac(
    network: &str,
    used: &Used,
    asked: Option<Mac>,
    mut random: impl FnMut() -> Result<[u8; 6]>,
) -> Result<Mac> {
    let owner = |mac: Mac| used.macs.iter().find(|(other, _)| *other == mac);
    if let Some(mac) = asked {
        check_mac(mac)?;
        return match owner(mac) {
            None => Ok(mac),
            Some((_, owner)) => {
                let message = format!("{mac} on network '{network}' is container '{owner}''s");
                Err(ApiError::new(ErrorCode::AlreadyExists, message))
            }
        };
    }
    loop {
        let mut bytes = random()?;
        // Unicast, and administered by us.
        bytes[0] = bytes[0] & 0xfc | 0x02;
        if owner(Mac(bytes)).is_none() {
            return Ok(Mac(bytes));
        }
    }
}

/// Checks an Ethernet address that was asked for, but not whether it is in use.
pub fn check_mac(mac: Mac) -> Result<()> {
    let wrong =
        |what: &str| Err(ApiError::invalid(format!("{mac} is {what}, not a NIC's address")));
    match mac.0 {
        [0, 0, 0, 0, 0, 0] => wrong("nobody's address"),
        [first, ..] if first & 1 == 1 => wrong("a multicast or broadcast address"),
        _ => Ok(()),
    }
}

/// The gateways, for a configuration.
pub fn gateways(v4: ipnet::Ipv4Net, v6: ipnet::Ipv6Net) -> (Ipv4Addr, Ipv6Addr) {
    (subnet::gateway_v4(v4), subnet::gateway_v6(v6))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::tests::network;
    use proptest::prelude::*;

    fn take(used: &mut Used, v4: Ipv4Addr, v6: Ipv6Addr) {
        used.addresses.push((v4.into(), "web".into()));
        used.addresses.push((v6.into(), "web".into()));
    }

    #[test]
    fn a_network_fills_up_and_says_so() {
        let config = network("small", "10.0.0.0/29", "fd00::/64");
        let (mut used, mut cursor) = (Used::default(), Cursor::default());
        let mut given = Vec::new();
        for _ in 0..5 {
            let (v4, v6) = addresses(&config, &used, &[], &mut cursor).unwrap();
            take(&mut used, v4, v6);
            given.push(v4.to_string());
        }
        assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        let error = addresses(&config, &used, &[], &mut cursor).unwrap_err();
        assert_eq!(error.code, ErrorCode::ResourceExhausted);
        assert!(error.message.contains("full: all 5 addresses of 10.0.0.0/29"), "{error}");
        // One that has become free is found wherever the search begins.
        used.addresses.retain(|(a, _)| *a != IpAddr::from([10, 0, 0, 4]));
        assert_eq!(addresses(&config, &used, &[], &mut cursor).unwrap().0.to_string(), "10.0.0.4");
    }

    #[test]
    fn addresses_are_not_given_out_again_at_once() {
        let config = network("n", "10.0.0.0/24", "fd00::/64");
        let (used, mut cursor) = (Used::default(), Cursor::default());
        let first = addresses(&config, &used, &[], &mut cursor).unwrap();
        let second = addresses(&config, &used, &[], &mut cursor).unwrap();
        assert_eq!(
            (first.0.to_string(), first.1.to_string()),
            ("10.0.0.2".into(), "fd00::2".into())
        );
        assert_eq!(
            (second.0.to_string(), second.1.to_string()),
            ("10.0.0.3".into(), "fd00::3".into())
        );
    }

    #[test]
    fn fixed_addresses_and_macs_are_checked() {
        let config = network("n", "10.0.0.0/24", "fd00::/64");
        let mut used = Used::default();
        take(&mut used, "10.0.0.9".parse().unwrap(), "fd00::9".parse().unwrap());
        let mut cursor = Cursor::default();
        for (asked, reason) in [
            ("10.0.1.1", "not in its subnet 10.0.0.0/24"),
            ("10.0.0.1", "its gateway"),
            ("10.0.0.0", "no container's"),
            ("10.0.0.255", "no container's"),
            ("10.0.0.9", "container 'web''s"),
            ("fd01::2", "not in its subnet"),
            ("fd00::1", "its gateway"),
            ("fd00::9", "container 'web''s"),
        ] {
            let asked = [asked.parse().unwrap()];
            let error = addresses(&config, &used, &asked, &mut cursor).unwrap_err();
            assert!(error.message.contains(reason), "{error}");
        }
        let asked = ["10.0.0.77".parse().unwrap(), "fd00::1:1".parse().unwrap()];
        let (v4, v6) = addresses(&config, &used, &asked, &mut cursor).unwrap();
        assert_eq!((IpAddr::V4(v4), IpAddr::V6(v6)), (asked[0], asked[1]));
        used.macs.push((Mac([2, 0, 0, 0, 0, 1]), "web".into()));
        for wrong in
            ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "02:00:00:00:00:01"]
        {
            mac("n", &used, Some(wrong.parse().unwrap()), || Ok([0; 6])).unwrap_err();
        }
        let mut randoms = [[0, 0, 0, 0, 0, 1], [0xff; 6]].into_iter();
        let own = mac("n", &used, None, || Ok(randoms.next().unwrap())).unwrap();
        assert_eq!(own.to_string(), "fe:ff:ff:ff:ff:ff");
    }

    proptest! {
        #[test]
        fn all_addresses_differ_and_are_the_networks(
            v4 in 24u8..=29, v6 in 110u8..=120, drops in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let config = network("n", &format!("10.0.0.0/{v4}"), &format!("fd00::/{v6}"));
            let (mut used, mut cursor) = (Used::default(), Cursor::default());
            let mut drops = drops.into_iter();
            while let Ok((a, b)) = addresses(&config, &used, &[], &mut cursor) {
                for new in [IpAddr::V4(a), IpAddr::V6(b)] {
                    prop_assert!(used.addresses.iter().all(|(other, _)| *other != new));
                    prop_assert!(check_fixed(&config, new).is_ok());
                }
                take(&mut used, a, b);
                if let Some(drop) = drops.next() {
                    let at = drop.index(used.addresses.len());
                    used.addresses.remove(at);
                }
            }
            let v4s = used.addresses.iter().filter(|(a, _)| a.is_ipv4()).count();
            let v6s = used.addresses.iter().filter(|(a, _)| a.is_ipv6()).count();
            prop_assert!(v4s == (1 << (32 - v4)) - 3 || v6s == (1 << (128 - v6)) - 2);
        }
    }
}
