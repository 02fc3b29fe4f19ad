//! The rules of a network as `nft` reads them, and reading back what they have counted.
//!
//! Two tables. `bridge container` judges each frame of a tap before the bridge sees it: only
//! what is listed passes, with this container's own addresses. Questions for neighbours (ARP,
//! ND) are turned into unicast to the one asked, so nothing is ever flooded. It also marks what
//! passes with the container's number (its tap's index), which `inet container` goes by to judge
//! what leaves the bridge. A container is elements of sets and maps: attaching one costs one short
//! transaction, and its drops are counted by the sets' elements.

mod members;
mod tables;

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use container_api::network::{Mac, Mode};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub(super) use self::members::{
    Outside, PinElement, Redirect, UNKNOWN, attach, detach, detach_outside, pin, redirect,
};
use self::tables::{bridge_table, inet_table};

/// Name of both tables.
pub(super) const TABLE: &str = "container";
/// An empty chain of this name says which edition of these rules a namespace has.
pub(super) const EDITION: &str = "edition_3";
/// The bridge.
pub(super) const BRIDGE: &str = "br0";
/// The link that `pasta` makes.
pub(super) const UPLINK: &str = "uplink";
/// The namespace's end of the link to the host.
pub(super) const HOST_LINK: &str = "host0";
/// The mark of connections that a forwarder makes with a client's own address, and of what a
/// container answers to them. No link has such an index.
pub(super) const ANSWER: u32 = 0x4000_0000;
/// The host's address on that link (a dummy of RFC 7335's block, the same on all our links).
pub(super) const HOST4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 5);
/// The host's address on that link.
pub(super) const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd63, 0x6f6e, 0x7461, 0x696e, 0, 0, 0, 5);

/// Why the bridge drops a frame.
pub(super) const BRIDGE_REASONS: [&str; 6] =
    ["spoofed", "protocol", "control", "broadcast", "flood", "neighbour"];
/// Why a packet that would leave the bridge is dropped.
pub(super) const ROUTE_REASONS: [&str; 8] =
    ["host", "metadata", "network", "special", "egress", "internal", "neighbour", "connections"];

/// Connections that the kernel remembers of one container, over TCP and all else: its table is the
/// namespace's. What has ended is soon forgotten there (`network::settings`).
pub(super) const CONNECTIONS: u32 = 16_384;

/// A container as the rules know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Its tap.
    pub(super) tap: String,
    /// Its tap's index.
    pub(super) mark: u32,
    pub(super) mac: Mac,
    pub(super) ipv4: Ipv4Addr,
    pub(super) ipv6: Ipv6Addr,
}

/// The link-local address that follows from an Ethernet address (RFC 4291, EUI-64).
pub(super) fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0.map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f)
}

/// What the tables of a network are made for.
pub(super) struct Base {
    pub(super) mode: Mode,
    pub(super) isolated: bool,
    pub(super) bridge_mac: Mac,
    pub(super) gateway4: Ipv4Addr,
    pub(super) gateway6: Ipv6Addr,
    pub(super) subnet4: Ipv4Net,
    pub(super) subnet6: Ipv6Net,
    /// The most connections of a container: [`CONNECTIONS`], or less where the kernel's table is
    /// small.
    pub(super) connections: u32,
}

/// Removes both tables, if they are there.
pub(super) fn nothing() -> String {
    ["bridge", "inet"]
        .map(|family| format!("table {family} {TABLE}\ndelete table {family} {TABLE}\n"))
        .concat()
}

/// Both tables, without containers, in place of what is there.
pub(super) fn base(base: &Base) -> String {
    let mut text = nothing();
    bridge_table(&mut text, base);
    inet_table(&mut text, base);
    let _ = writeln!(
        text,
        "add element bridge {TABLE} mac4 {{ {} : {} }}\n\
         add element bridge {TABLE} nd_mac {{ {:#034x} : {} }}",
        base.gateway4,
        base.bridge_mac,
        base.gateway6.to_bits(),
        base.bridge_mac
    );
    text
}

/// Replaces sets of addresses: `host` or `others`.
pub(super) fn replace(set: &str, nets: &[IpNet]) -> String {
    let mut text = String::new();
    for (kind, v4) in [("4", true), ("6", false)] {
        let _ = writeln!(text, "flush set inet {TABLE} {set}{kind}");
        let nets: Vec<IpNet> =
            nets.iter().filter(|net| matches!(net, IpNet::V4(_)) == v4).copied().collect();
        let nets: Vec<String> = IpNet::aggregate(&nets).iter().map(ToString::to_string).collect();
        if !nets.is_empty() {
            let _ =
                writeln!(text, "add element inet {TABLE} {set}{kind} {{ {} }}", nets.join(", "));
        }
    }
    text
}

/// Replaces the addresses that stand for the host's loopback.
pub(super) fn localhost(addresses: &[Ipv4Addr]) -> String {
    let mut text = format!("flush set inet {TABLE} localhost4\n");
    for address in addresses {
        let _ = writeln!(text, "add element inet {TABLE} localhost4 {{ {address} }}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_follows_from_an_ethernet_address() {
        let address = link_local(Mac([0x02, 0x11, 0x22, 0x33, 0x44, 0x55]));
        assert_eq!(address.to_string(), "fe80::11:22ff:fe33:4455");
    }

    #[test]
    fn sets_of_addresses_have_no_overlaps() {
        let nets = ["10.0.0.0/8", "10.1.0.0/16", "fd00::/16", "fd00::1/128"]
            .map(|net| net.parse().expect("a net"));
        let text = replace("host", &nets);
        assert!(text.contains("host4 { 10.0.0.0/8 }") && text.contains("host6 { fd00::/16 }"));
    }
}
