//! Which addresses a network may have, and which it gets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use container_api::{ApiError, ErrorCode, Result};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Prefix lengths of a network's IPv4 addresses.
const V4_PREFIX: std::ops::RangeInclusive<u8> = 8..=29;
/// Prefix lengths of a network's IPv6 addresses.
const V6_PREFIX: std::ops::RangeInclusive<u8> = 48..=120;
/// The prefix of an automatic IPv4 network: the default one's, where the pool has it.
const V4_AUTOMATIC: u8 = 24;
/// The prefix of an automatic IPv6 network.
const V6_AUTOMATIC: u8 = 64;
/// Subnets looked at before a pool counts as full.
const MOST_CANDIDATES: usize = 1 << 16;

/// Addresses that no network may have any of: they mean something else, or rules drop them.
const V4_SPECIAL: [(&str, Ipv4Net); 7] = [
    ("this host", Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8)),
    ("loopback addresses", Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
    ("link-local addresses", Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16)),
    ("multicast addresses", Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)),
    ("reserved addresses", Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4)),
    ("a metadata address", Ipv4Net::new_assert(Ipv4Addr::new(168, 63, 129, 16), 32)),
    ("a metadata address", Ipv4Net::new_assert(Ipv4Addr::new(100, 100, 100, 200), 32)),
];

/// As [`V4_SPECIAL`].
const V6_SPECIAL: [(&str, Ipv6Net); 7] = [
    ("the host or IPv4 addresses", Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 80)),
    ("translated IPv4 addresses", v6(0x64, 0xff9b, 0, 32)),
    ("tunnels' addresses", v6(0x2001, 0, 0, 32)),
    ("IPv4 tunnels' addresses", v6(0x2002, 0, 0, 16)),
    ("link-local addresses", v6(0xfe80, 0, 0, 10)),
    ("multicast addresses", v6(0xff00, 0, 0, 8)),
    (
        "a metadata address",
        Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128),
    ),
];

const fn v6(a: u16, b: u16, c: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

/// What a new network must keep away from.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// Our networks, with their names.
    pub networks: Vec<(String, IpNet)>,
    /// Where the host's routes lead, and its own addresses.
    pub host: Vec<IpNet>,
}

impl Taken {
    fn conflict(&self, net: IpNet) -> Option<String> {
        let network = self.networks.iter().find(|(_, other)| overlap(net, *other));
        if let Some((name, other)) = network {
            return Some(format!("network '{name}' has {other}"));
        }
        // Our own routes to our networks, where there are some, are no others.
        let own = |route: &IpNet| self.networks.iter().any(|(_, own)| own.contains(route));
        let route = self.host.iter().find(|route| overlap(net, **route) && !own(route));
        route.map(|route| format!("the host has a route to {route}"))
    }
}

/// Whether two have an address in common.
pub fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// Whether a route is one that a subnet should keep away from: not one to everywhere, nor the
/// halves and quarters of it that tunnels use.
pub fn is_particular(route: &IpNet) -> bool {
    route.prefix_len() >= 8
}

/// Checks an IPv4 subnet that was asked for.
pub fn check_v4(net: Ipv4Net, taken: &Taken) -> Result<Ipv4Net> {
    shape(net.into(), V4_PREFIX)?;
    let special = V4_SPECIAL.iter().find(|(_, special)| overlap(net.into(), (*special).into()));
    not_special(net.into(), special.map(|(what, _)| *what))?;
    free(net.into(), taken)?;
    Ok(net)
}

/// Checks an IPv6 subnet that was asked for.
pub fn check_v6(net: Ipv6Net, taken: &Taken) -> Result<Ipv6Net> {
    shape(net.into(), V6_PREFIX)?;
    let special = V6_SPECIAL.iter().find(|(_, special)| overlap(net.into(), (*special).into()));
    not_special(net.into(), special.map(|(what, _)| *what))?;
    free(net.into(), taken)?;
    Ok(net)
}

fn shape(net: IpNet, prefixes: std::ops::RangeInclusive<u8>) -> Result<()> {
    if net.addr() != net.network() {
        let message = format!("subnet {net} has host bits: {} is meant", net.trunc());
        return Err(ApiError::invalid(message));
    }
    if !prefixes.contains(&net.prefix_len()) {
        let size = if net.prefix_len() > *prefixes.end() { "small" } else { "large" };
        let (largest, smallest) = (prefixes.start(), prefixes.end());
        let message = format!("subnet {net} is too {size}: /{largest} to /{smallest} is possible");
        return Err(ApiError::invalid(message));
    }
    Ok(())
}

fn not_special(net: IpNet, what: Option<&str>) -> Result<()> {
    match what {
        None => Ok(()),
        Some(what) => Err(ApiError::invalid(format!("subnet {net} has {what} in it"))),
    }
}

fn free(net: IpNet, taken: &Taken) -> Result<()> {
    match taken.conflict(net) {
        None => Ok(()),
        Some(whose) => {
            Err(ApiError::invalid(format!("subnet {net} overlaps: {whose}; choose another")))
        }
    }
}

/// The first free subnet of the pool.
pub fn choose_v4(pool: &[IpNet], taken: &Taken) -> Result<Ipv4Net> {
    let prefixes = pool.iter().filter_map(|net| match net {
        IpNet::V4(net) => net.subnets(V4_AUTOMATIC.max(net.prefix_len())).ok(),
        IpNet::V6(_) => None,
    });
    let found = prefixes.flatten().take(MOST_CANDIDATES).find(|net| check_v4(*net, taken).is_ok());
    found.ok_or_else(|| full("IPv4", "--subnet"))
}

/// The first free subnet of the pool; without a pool a random one of `fd00::/8`.
pub fn choose_v6(
    pool: &[IpNet],
    taken: &Taken,
    mut random: impl FnMut() -> Result<[u8; 7]>,
) -> Result<Ipv6Net> {
    let mut pool = pool.iter().filter_map(|net| match net {
        IpNet::V6(net) => Some(net),
        IpNet::V4(_) => None,
    });
    let Some(first) = pool.next() else {
        for _ in 0..64 {
            let mut octets = [0; 16];
            octets[0] = 0xfd;
            octets[1..8].copy_from_slice(&random()?);
            let net = Ipv6Net::new_assert(octets.into(), V6_AUTOMATIC);
            if check_v6(net, taken).is_ok() {
                return Ok(net);
            }
        }
        return Err(full("IPv6", "--subnet-v6"));
    };
    let prefixes = std::iter::once(first)
        .chain(pool)
        .filter_map(|net| net.subnets(V6_AUTOMATIC.max(net.prefix_len())).ok());
    let found = prefixes.flatten().take(MOST_CANDIDATES).find(|net| check_v6(*net, taken).is_ok());
    found.ok_or_else(|| full("IPv6", "--subnet-v6"))
}

fn full(family: &str, option: &str) -> ApiError {
    let message = format!(
        "no {family} subnet of the pool is free: name one with {option}, or add to pool in \
         [network] of the configuration"
    );
    ApiError::new(ErrorCode::ResourceExhausted, message)
}

/// The gateway: a network's first address.
pub fn gateway_v4(net: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(net.network()) + 1)
}

/// As [`gateway_v4`].
pub fn gateway_v6(net: Ipv6Net) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(net.network()) + 1)
}

/// Whether a host could have this address, as one to speak to.
pub fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !(a.is_multicast() || a.is_broadcast() || a.is_unspecified()),
        IpAddr::V6(a) => !(a.is_multicast() || a.is_unspecified()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn taken(networks: &[&str], host: &[&str]) -> Taken {
        let parse = |text: &&str| text.parse::<IpNet>().unwrap();
        Taken {
            networks: networks.iter().map(|n| ("other".into(), parse(n))).collect(),
            host: host.iter().map(parse).collect(),
        }
    }

    #[test]
    fn wrong_subnets_are_refused_with_the_reason() {
        let taken = taken(&["10.1.0.0/16", "fd01::/64"], &["172.16.0.0/12", "2001:db8::/64"]);
        for (net, reason) in [
            ("10.2.0.1/24", "10.2.0.0/24 is meant"),
            ("10.2.0.0/30", "too small"),
            ("10.2.0.0/32", "too small"),
            ("10.0.0.0/7", "10.0.0.0/7 is too large"),
            ("127.0.0.0/16", "loopback"),
            ("169.254.0.0/16", "link-local"),
            ("168.63.0.0/16", "metadata"),
            ("230.0.0.0/8", "multicast"),
            ("10.1.4.0/24", "network 'other' has 10.1.0.0/16"),
            ("10.0.0.0/8", "network 'other'"),
            ("172.20.0.0/16", "route to 172.16.0.0/12"),
        ] {
            let error = check_v4(net.parse().unwrap(), &taken).unwrap_err();
            assert!(error.message.contains(reason), "{net}: {error}");
        }
        for (net, reason) in [
            ("fd02::1/64", "host bits"),
            ("fd02::/121", "too small"),
            ("fd00::/8", "too large"),
            ("fe80::/64", "link-local"),
            ("fd00:ec2::/64", "metadata"),
            ("::/64", "the host"),
            ("fd01::/112", "network 'other'"),
            ("2001:db8::/48", "route to 2001:db8::/64"),
        ] {
            let error = check_v6(net.parse().unwrap(), &taken).unwrap_err();
            assert!(error.message.contains(reason), "{net}: {error}");
        }
        check_v4("192.168.0.0/29".parse().unwrap(), &taken).unwrap();
        check_v6("fd05::/120".parse().unwrap(), &taken).unwrap();
    }

    #[test]
    fn the_next_free_subnet_is_chosen() {
        let pool: Vec<IpNet> = vec!["192.168.64.0/23".parse().unwrap()];
        let none = Taken::default();
        assert_eq!(choose_v4(&pool, &none).unwrap().to_string(), "192.168.64.0/24");
        let lan = taken(&[], &["192.168.64.128/25"]);
        assert_eq!(choose_v4(&pool, &lan).unwrap().to_string(), "192.168.65.0/24");
        // A host's route to a network of ours is ours.
        let own = taken(&["192.168.64.0/24"], &["192.168.64.0/24"]);
        assert_eq!(choose_v4(&pool, &own).unwrap().to_string(), "192.168.65.0/24");
        let both = taken(&["192.168.64.0/24", "192.168.65.0/24"], &[]);
        assert_eq!(choose_v4(&pool, &both).unwrap_err().code, ErrorCode::ResourceExhausted);
        let mut calls = 0;
        let random = || {
            calls += 1;
            Ok([0, 0x0e, 0xc2, 0, 0, 0, calls - 1])
        };
        let net = choose_v6(&pool, &none, random).unwrap();
        assert_eq!(net.to_string(), "fd00:ec2:0:1::/64", "the metadata's was passed over");
        let pool: Vec<IpNet> = vec!["fd12::/62".parse().unwrap()];
        let first = taken(&["fd12::/64"], &[]);
        assert_eq!(choose_v6(&pool, &first, || Ok([0; 7])).unwrap().to_string(), "fd12:0:0:1::/64");
    }

    #[test]
    fn routes_to_everywhere_are_no_obstacle() {
        for route in ["0.0.0.0/0", "0.0.0.0/1", "::/0", "2000::/3", "fc00::/7"] {
            assert!(!is_particular(&route.parse().unwrap()), "{route}");
        }
        for route in ["10.0.0.0/8", "192.168.1.1/32", "fd00::/48"] {
            assert!(is_particular(&route.parse().unwrap()), "{route}");
        }
    }

    proptest! {
        #[test]
        fn what_is_chosen_overlaps_nothing(
            networks in proptest::collection::vec((0u8..64, 18u8..=29), 0..12),
            host in proptest::collection::vec((0u8..64, 18u8..=32), 0..6),
        ) {
            let net = |(third, prefix): (u8, u8)| {
                IpNet::new(Ipv4Addr::new(192, 168, 64 + third, 0).into(), prefix).unwrap().trunc()
            };
            let taken = Taken {
                networks: networks.into_iter().map(|n| ("n".into(), net(n))).collect(),
                host: host.into_iter().map(net).collect(),
            };
            let pool = ["192.168.64.0/18".parse().unwrap()];
            if let Ok(chosen) = choose_v4(&pool, &taken) {
                for (_, other) in &taken.networks {
                    prop_assert!(!overlap(chosen.into(), *other));
                }
                prop_assert!(check_v4(chosen, &taken).is_ok());
            }
        }
    }
}
