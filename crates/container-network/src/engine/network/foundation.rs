//! What a network's namespace has before anybody is on it, but the rules.

use std::io;

use container_api::error::Result;
use container_api::network::{Mac, NetworkConfig};

use crate::engine::namespace::{sysctl, sysctl_where_present};
use crate::engine::netlink::{self, Netlink};
use crate::engine::rules::{self, BRIDGE};
use crate::engine::tap;

/// The routing table of [`keep_answers`].
const ANSWERS: u8 = 100;

/// How many connections of a container the kernel is to remember: a quarter of its table, or what
/// is plenty.
pub(super) fn connections() -> u32 {
    let table = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max");
    let table: Option<u32> = table.ok().and_then(|text| text.trim().parse().ok());
    table.map_or(rules::CONNECTIONS, |most| rules::CONNECTIONS.min((most / 4).max(1)))
}

/// What every namespace of ours has before it has links.
pub(in crate::engine) fn settings() -> Result<()> {
    sysctl(&[
        // Links speak IPv6 where told to; taps never.
        ("ipv6/conf/default/disable_ipv6", "1"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/accept_redirects", "0"),
        ("ipv6/conf/default/addr_gen_mode", "1"),
        ("ipv6/conf/all/accept_redirects", "0"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv4/conf/default/accept_redirects", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv4/conf/all/accept_source_route", "0"),
        ("ipv4/conf/all/arp_ignore", "1"),
        // An address of the uplink's is not answered for on the bridge.
        ("ipv4/conf/all/arp_announce", "2"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
    ])?;
    // What has ended, or was never answered, is forgotten before it counts against its container.
    for (what, seconds) in [
        ("tcp_timeout_time_wait", "10"),
        ("tcp_timeout_close", "10"),
        ("tcp_timeout_fin_wait", "30"),
        ("tcp_timeout_last_ack", "30"),
        ("tcp_timeout_syn_sent", "60"),
        ("udp_timeout", "10"),
        ("icmp_timeout", "10"),
        ("icmpv6_timeout", "10"),
    ] {
        sysctl_where_present(&format!("netfilter/nf_conntrack_{what}"), seconds)?;
    }
    // Frames between containers are the bridge table's business alone.
    for family in ["ip", "ip6", "arp"] {
        sysctl_where_present(&format!("bridge/bridge-nf-call-{family}tables"), "0")?;
    }
    Ok(())
}

pub(super) fn make_bridge(
    netlink: &mut Netlink,
    config: &NetworkConfig,
) -> io::Result<netlink::Link> {
    let mut bytes = [0; 6];
    tap::getrandom(&mut bytes).map_err(io::Error::other)?;
    // Unicast, locally administered.
    bytes[0] = bytes[0] & 0xfc | 2;
    let lo = netlink.link("lo")?.map_or(1, |link| link.index);
    netlink.apply(vec![netlink::up(lo), netlink::make_bridge(BRIDGE, Mac(bytes), config.mtu)])?;
    let bridge = netlink.link(BRIDGE)?.ok_or(io::ErrorKind::NotFound)?;
    sysctl(&[(&format!("ipv6/conf/{BRIDGE}/disable_ipv6"), "0")]).map_err(io::Error::other)?;
    let (v4, v6) = (config.ipv4_subnet, config.ipv6_subnet);
    netlink.apply(vec![
        netlink::address(bridge.index, config.ipv4_gateway.into(), v4.prefix_len()),
        netlink::address(bridge.index, config.ipv6_gateway.into(), v6.prefix_len()),
        netlink::up(bridge.index),
    ])?;
    Ok(bridge)
}

/// Answers to clients of published ports that are seen by their own addresses belong to the
/// forwarders' sockets.
pub(super) fn keep_answers(netlink: &mut Netlink) -> io::Result<()> {
    let lo = netlink.link("lo")?.map_or(1, |link| link.index);
    for change in netlink::keep_marked(rules::ANSWER, ANSWERS, lo) {
        match netlink.apply(vec![change]) {
            Err(error) if error.raw_os_error() != Some(nix::libc::EEXIST) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
