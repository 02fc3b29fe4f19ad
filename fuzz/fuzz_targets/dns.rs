//! Packets of an asker, and of a server outside, through the resolver.

#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use container_api::network::{Egress, HostAccess, Target};
use container_network::resolver::{Begun, Resolver};
use container_network::wire::{Resident, ResolverConfig};
use hickory_proto::op::Message;
use hickory_proto::rr::RData;
use libfuzzer_sys::fuzz_target;

/// A container that may learn what is below `example` alone, and one without rules.
const ASKERS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 2), Ipv4Addr::new(192, 0, 2, 3)];
/// The host's own address.
const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

static CONFIG: LazyLock<ResolverConfig> = LazyLock::new(|| {
    let only = ["example", "*.example"].map(|name| Target::Host { name: name.into(), port: None });
    let rules = [vec![Egress::Only(only.to_vec())], Vec::new()];
    let resident = |(address, egress): (&Ipv4Addr, Vec<Egress>)| Resident {
        container: address.to_string(),
        names: vec!["web".into()],
        ipv4: Some(*address),
        egress,
        host_access: HostAccess::All,
        sees_neighbours: true,
        ..Resident::default()
    };
    ResolverConfig {
        gateways: vec![IpAddr::from([192, 0, 2, 1])],
        domain: Some("test".into()),
        upstreams: vec![([192, 0, 2, 53], 53).into()],
        containers: ASKERS.iter().zip(rules).map(resident).collect(),
        host_addresses: vec![HOST.into()],
        ..ResolverConfig::default()
    }
});

// The first byte says who asks, the next two how long the question is; the server's answer follows.
fuzz_target!(|data: &[u8]| {
    let [who, high, low, rest @ ..] = data else { return };
    let restricted = who % 2 == 0;
    let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
    let (question, server) = rest.split_at(length);
    // A new one each time: shares of a container run out.
    let resolver = Resolver::default();
    resolver.configure(CONFIG.clone());
    let from = ASKERS[usize::from(who % 2)].into();
    let answer = match resolver.begin(question, from, false) {
        Begun::Dropped => return,
        Begun::Answered(answer) => answer,
        Begun::Pending(pending) => {
            let Some(answer) = pending.told(server) else { return };
            answer
        }
    };
    let message = Message::from_vec(&answer).expect("we write what can be read");
    for record in &message.answers {
        match &record.data {
            RData::A(address) if restricted => {
                let ours = ASKERS.contains(&address.0) || address.0 == Ipv4Addr::new(192, 0, 2, 1);
                // "localhost" is the asker's own.
                let public = !address.0.is_private() && !address.0.is_link_local();
                assert!((ours || public) && address.0 != HOST, "{address}");
            }
            RData::AAAA(_) | RData::PTR(_) => {}
            other => assert!(!restricted && *other != RData::A(HOST.into()), "{other}"),
        }
    }
});
