//! What several rules for leaving a network allow together.

use container_api::network::Egress;
use ipnet::IpNet;

use crate::engine::rules::Outside;

/// What all of these allow.
pub(super) fn outside(egress: &[Egress]) -> Outside {
    egress.iter().fold(Outside::Everything, |so_far, rule| match (so_far, rule) {
        (so_far, Egress::Allow) => so_far,
        (Outside::Everything, Egress::Only(targets)) => Outside::Only(nets(targets)),
        (Outside::Only(list), Egress::Only(targets)) => {
            let other = nets(targets);
            let both = list.iter().flat_map(|a| other.iter().filter_map(|b| common(*a, *b)));
            Outside::Only(both.collect())
        }
    })
}

fn nets(targets: &[container_api::network::Target]) -> Vec<(IpNet, Option<u16>)> {
    targets
        .iter()
        .filter_map(|target| match target {
            container_api::network::Target::Cidr { net, port } => Some((net.trunc(), *port)),
            container_api::network::Target::Host { .. } => None,
        })
        .collect()
}

fn common(a: (IpNet, Option<u16>), b: (IpNet, Option<u16>)) -> Option<(IpNet, Option<u16>)> {
    let net = match (a.0.contains(&b.0), b.0.contains(&a.0)) {
        (true, _) => b.0,
        (_, true) => a.0,
        _ => return None,
    };
    match (a.1, b.1) {
        (Some(a), Some(b)) if a != b => None,
        (a, b) => Some((net, a.or(b))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use container_api::network::Target;
    use proptest::prelude::*;

    use super::*;

    fn allows(outside: &Outside, address: IpAddr, port: u16) -> bool {
        match outside {
            Outside::Everything => true,
            Outside::Only(list) => list
                .iter()
                .any(|(net, only)| net.contains(&address) && only.is_none_or(|only| only == port)),
        }
    }

    /// Few values, so that networks overlap.
    fn net() -> impl Strategy<Value = (IpNet, Option<u16>)> {
        let address = (0..4u32, 0..4u32).prop_map(|(a, b)| a << 30 | b);
        let port = prop_oneof![Just(None), Just(Some(80)), Just(Some(443))];
        (address, 0..=32u8, port).prop_filter_map("a prefix", |(bits, prefix, port)| {
            let net = ipnet::Ipv4Net::new(bits.into(), prefix).ok()?;
            Some((IpNet::V4(net), port))
        })
    }

    fn rule() -> impl Strategy<Value = Egress> {
        let target = net().prop_map(|(net, port)| Target::Cidr { net, port });
        prop_oneof![Just(Egress::Allow), prop::collection::vec(target, 0..4).prop_map(Egress::Only)]
    }

    proptest! {
        #[test]
        fn several_rules_allow_what_each_allows(
            rules in prop::collection::vec(rule(), 0..4),
            (high, low) in (0..4u32, 0..4u32),
            port in prop_oneof![Just(80u16), Just(443), Just(22)],
        ) {
            let address = Ipv4Addr::from(high << 30 | low).into();
            let each = rules.iter().all(|rule| {
                allows(&outside(std::slice::from_ref(rule)), address, port)
            });
            prop_assert_eq!(allows(&outside(&rules), address, port), each);
        }
    }

    #[test]
    fn names_allow_no_address_by_themselves() {
        let name = Target::Host { name: "example.com".to_owned(), port: None };
        assert_eq!(outside(&[Egress::Only(vec![name])]), Outside::Only(Vec::new()));
    }
}
