//! What egress rules let a container learn from outside.
//!
//! All rules that apply to a container hold at once: a name must be allowed by every one that is
//! not `allow`, for a port that all of them allow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use container_api::network::{Egress, Target};
use ipnet::{Ipv4Net, Ipv6Net};

/// What a container may do with a name outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No rule restricts it.
    Open,
    /// It may learn the name's addresses, for these ports (empty: all).
    Named(Vec<u16>),
    /// Not even the question leaves.
    Refused,
}

/// Judges `name`, lower case and without the last dot.
pub fn judge(name: &str, rules: &[Egress]) -> Verdict {
    let mut verdict = Verdict::Open;
    for rule in rules {
        let Egress::Only(targets) = rule else { continue };
        let Some(ports) = ports(name, targets) else { return Verdict::Refused };
        verdict = match (verdict, ports) {
            (Verdict::Named(before), ports) if ports.is_empty() => Verdict::Named(before),
            (Verdict::Named(before), ports) if !before.is_empty() => {
                let both: Vec<u16> = before.into_iter().filter(|p| ports.contains(p)).collect();
                match both.is_empty() {
                    true => return Verdict::Refused,
                    false => Verdict::Named(both),
                }
            }
            (_, ports) => Verdict::Named(ports),
        };
    }
    verdict
}

/// The ports for which one rule allows a name, sorted; `None`: it doesn't.
fn ports(name: &str, targets: &[Target]) -> Option<Vec<u16>> {
    let mut allowed: Option<Vec<u16>> = None;
    for target in targets {
        match target {
            Target::Host { name: pattern, port } if matches(pattern, name) => match port {
                None => return Some(Vec::new()),
                Some(port) => allowed.get_or_insert_default().push(*port),
            },
            _ => {}
        }
    }
    if let Some(ports) = &mut allowed {
        ports.sort_unstable();
        ports.dedup();
    }
    allowed
}

/// Exact, or `*.` and a name: that one's children, however deep.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        None => pattern == name,
        Some(parent) => {
            !parent.is_empty()
                && name
                    .strip_suffix(parent)
                    .and_then(|child| child.strip_suffix('.'))
                    .is_some_and(|child| !child.is_empty())
        }
    }
}

/// Whether every rule that restricts allows the address by itself.
pub fn allowed_by_address(address: IpAddr, rules: &[Egress]) -> bool {
    let mut restricted = false;
    for rule in rules {
        let Egress::Only(targets) = rule else { continue };
        restricted = true;
        let contains = |t: &Target| matches!(t, Target::Cidr { net, .. } if net.contains(&address));
        if !targets.iter().any(contains) {
            return false;
        }
    }
    restricted
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(a: u16, b: u16, c: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

/// IPv4 addresses that no name of the internet has any business to lead to.
const PRIVATE_V4: [Ipv4Net; 11] = [
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(168, 63, 129, 16, 32),
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(224, 0, 0, 0, 3),
];

/// The same of IPv6: unspecified, loopback, compatible, mapped and translated on site, Teredo,
/// discard, unique local, link-local, site-local, multicast.
const PRIVATE_V6: [Ipv6Net; 8] = [
    v6(0, 0, 0, 32),
    v6(0x64, 0xff9b, 1, 48),
    v6(0x100, 0, 0, 64),
    v6(0x2001, 0, 0, 32),
    v6(0xfc00, 0, 0, 7),
    v6(0xfe80, 0, 0, 10),
    v6(0xfec0, 0, 0, 10),
    v6(0xff00, 0, 0, 8),
];

/// NAT64 and 6to4 hold an IPv4 address, which is what counts.
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 0, 96);
const SIX_TO_FOUR: Ipv6Net = v6(0x2002, 0, 0, 16);

/// Whether an address is private, loopback, link-local, shared, multicast or reserved.
pub fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => PRIVATE_V4.iter().any(|net| net.contains(&address)),
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            let [_, _, e, f, g, h, ..] = address.octets();
            let held = if NAT64.contains(&address) {
                Some(Ipv4Addr::new(a, b, c, d))
            } else if SIX_TO_FOUR.contains(&address) {
                Some(Ipv4Addr::new(e, f, g, h))
            } else {
                None
            };
            PRIVATE_V6.iter().any(|net| net.contains(&address))
                || held.is_some_and(|held| is_private(IpAddr::V4(held)))
        }
    }
}

/// What becomes of an address in an answer from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Answered. A restricted container's rules are told first.
    Pin,
    /// Answered; a rule for addresses says for itself what may be done with it.
    Plain,
    /// Left out.
    Drop,
}

/// Judges an address that a container would learn.
pub fn address(address: IpAddr, rules: &[Egress], host: &[IpAddr]) -> Fate {
    let restricted = rules.iter().any(|rule| *rule != Egress::Allow);
    match host.contains(&address) || (restricted && is_private(address)) {
        true if allowed_by_address(address, rules) => Fate::Plain,
        true => Fate::Drop,
        false if restricted => Fate::Pin,
        false => Fate::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(name: &str, port: Option<u16>) -> Target {
        Target::Host { name: name.into(), port }
    }

    fn cidr(net: &str) -> Target {
        Target::Cidr { net: net.parse().unwrap(), port: None }
    }

    fn only(targets: &[Target]) -> Egress {
        Egress::Only(targets.to_vec())
    }

    #[test]
    fn names_are_exact_or_children() {
        let rules = [only(&[host("example.com", None), host("*.cdn.example", Some(443))])];
        assert_eq!(judge("example.com", &rules), Verdict::Named(vec![]));
        assert_eq!(judge("a.b.cdn.example", &rules), Verdict::Named(vec![443]));
        for refused in ["cdn.example", "xcdn.example", ".cdn.example", "www.example.com", ""] {
            assert_eq!(judge(refused, &rules), Verdict::Refused, "{refused}");
        }
        assert_eq!(judge("anything", &[]), Verdict::Open);
        assert_eq!(judge("anything", &[Egress::Allow]), Verdict::Open);
        assert_eq!(judge("anything", &[Egress::Only(vec![])]), Verdict::Refused);
    }

    #[test]
    fn all_rules_hold_at_once() {
        let name = |port| only(&[host("a.example", port)]);
        let both = |a, b| judge("a.example", &[name(a), Egress::Allow, name(b)]);
        assert_eq!(both(None, Some(80)), Verdict::Named(vec![80]));
        assert_eq!(both(Some(80), None), Verdict::Named(vec![80]));
        assert_eq!(both(Some(80), Some(80)), Verdict::Named(vec![80]));
        assert_eq!(both(Some(80), Some(443)), Verdict::Refused);
        let rules = [name(None), only(&[cidr("192.0.2.0/24")])];
        assert_eq!(judge("a.example", &rules), Verdict::Refused);
    }

    #[test]
    fn private_addresses_are_known() {
        let private = [
            "0.1.2.3",
            "10.1.1.1",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "168.63.129.16",
            "172.31.0.1",
            "192.168.1.1",
            "239.1.1.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:8.8.8.8",
            "::10.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2002:a00:1::1",
            "fd00:ec2::254",
            "fe80::1",
            "ff02::1",
            "2001::1",
        ];
        for address in private {
            assert!(is_private(address.parse().unwrap()), "{address}");
        }
        let public = [
            "1.1.1.1",
            "100.128.0.1",
            "172.32.0.1",
            "2606:4700::1111",
            "64:ff9b::101:101",
            "2002:101:101::1",
            "2001:db8::1",
        ];
        for address in public {
            assert!(!is_private(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn addresses_from_outside() {
        let own = ["198.51.100.7".parse().unwrap()];
        let judge = |text: &str, rules: &[Egress]| address(text.parse().unwrap(), rules, &own);
        let rules = [only(&[host("a.example", None), cidr("10.0.0.0/8")])];
        assert_eq!(judge("198.51.100.8", &rules), Fate::Pin);
        assert_eq!(judge("10.1.2.3", &rules), Fate::Plain);
        assert_eq!(judge("192.168.1.1", &rules), Fate::Drop);
        assert_eq!(judge("198.51.100.7", &rules), Fate::Drop);
        assert_eq!(judge("198.51.100.7", &[]), Fate::Drop);
        assert_eq!(judge("192.168.1.1", &[]), Fate::Plain);
        // A container can't allow itself what its network doesn't.
        let narrow = [only(&[host("a.example", None)]), rules[0].clone()];
        assert_eq!(judge("10.1.2.3", &narrow), Fate::Drop);
    }

    proptest! {
        #[test]
        fn children_of_a_name_alone_match(parent in "[a-z.]{1,12}", name in "[a-z.]{0,20}") {
            let matched = matches(&format!("*.{parent}"), &name);
            prop_assert_eq!(matched, name.len() > parent.len() + 1
                && name.ends_with(&format!(".{parent}")));
        }
    }
}
