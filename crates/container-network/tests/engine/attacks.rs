//! Frames that a container must not get through. They are looked for on the other side.

use std::net::{Ipv4Addr, Ipv6Addr};

use container_api::network::Mode;

use crate::guest::{Raw, Setup, at, config, contains};
use crate::packet::{ALL, arp, ethernet, icmp, icmp6, ipv4, ipv6, multicast, nd, solicited, udp};
use crate::world::{Away, packet_socket, within};

/// In every frame that must not arrive.
const FORBIDDEN: &[u8] = b"forbidden";
const ALLOWED: &[u8] = b"allowed";

fn local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f)
}

/// Names and frames of a (the attacker) towards b, some as if from v (another container).
fn forbidden(
    a: &Raw,
    b: &Raw,
    v: &Raw,
    bridge: [u8; 6],
    gateway4: Ipv4Addr,
    gateway6: Ipv6Addr,
) -> Vec<(&'static str, Vec<u8>)> {
    let bad = |from: u16, to: u16| udp(from, to, FORBIDDEN);
    let all_nodes: Ipv6Addr = "ff02::1".parse().expect("an address");
    let tail = |bytes: Vec<u8>| [&bytes[..], FORBIDDEN].concat();
    let frame4 = |body: &[u8]| ethernet(b.mac, a.mac, 0x0800, body);
    let frame6 = |body: &[u8]| ethernet(b.mac, a.mac, 0x86dd, body);
    let udp6 = |from: Ipv6Addr, to: Ipv6Addr| ipv6(from, to, 17, 64, &bad(1, 2));
    let ra = |from: Ipv6Addr, to: Ipv6Addr| {
        let body = [64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        icmp6(from, to, 134, &tail(body.to_vec()))
    };
    let lla = local(a.mac);
    let destination_options = |next: u8| vec![next, 0, 1, 4, 0, 0, 0, 0];
    let fragment =
        |next: u8, offset: u16| [&[next, 0][..], &offset.to_be_bytes(), &[0, 0, 0, 7]].concat();
    let na = |target: Ipv6Addr, mac: [u8; 6], from: Ipv6Addr, to: Ipv6Addr| {
        ipv6(from, to, 58, 255, &icmp6(from, to, 136, &nd(0x6000_0000, target, 2, mac)))
    };
    let vlan = |tag: [u8; 4], inner: &[u8]| {
        [&b.mac[..], &a.mac, &tag, &0x0800u16.to_be_bytes(), inner].concat()
    };
    let good4 = ipv4(a.ipv4, b.ipv4, 17, 0, &bad(1, 2));
    let mut with_option = ipv4(a.ipv4, b.ipv4, 17, 0, &[&[7, 4, 4, 0][..], &bad(1, 2)].concat());
    with_option[0] = 0x46;
    let stp = [0x01, 0x80, 0xc2, 0, 0, 0];
    let named = |mut frame: Vec<u8>| {
        frame.extend_from_slice(FORBIDDEN);
        frame
    };
    vec![
        // Ethernet.
        ("another's MAC", ethernet(b.mac, v.mac, 0x0800, &good4)),
        ("nobody's MAC", ethernet(b.mac, [2, 9, 9, 9, 9, 9], 0x0800, &good4)),
        ("the bridge's MAC", ethernet(b.mac, bridge, 0x0800, &good4)),
        ("an unknown EtherType", ethernet(b.mac, a.mac, 0x88b5, &good4)),
        ("an 802.3 length", ethernet(b.mac, a.mac, 40, &good4)),
        ("RARP", named(ethernet(b.mac, a.mac, 0x8035, &arp(3, a.mac, a.ipv4, a.mac, a.ipv4)))),
        ("PPPoE", ethernet(b.mac, a.mac, 0x8864, &good4)),
        ("EAPOL", named(ethernet(b.mac, a.mac, 0x888e, &[1, 1, 0, 0]))),
        ("MPLS", ethernet(b.mac, a.mac, 0x8847, &[&[0, 0, 1, 64][..], &good4].concat())),
        ("a VLAN tag", vlan([0x81, 0, 0, 5], &good4)),
        ("a priority tag", vlan([0x81, 0, 0xe0, 0], &good4)),
        ("a provider tag", vlan([0x88, 0xa8, 0, 5], &good4)),
        ("two VLAN tags", vlan([0x81, 0, 0, 5], &[&[0, 5, 8, 0][..], &good4].concat())),
        ("a BPDU", ethernet(stp, a.mac, 38, &named(vec![0x42, 0x42, 3, 0, 0, 0, 0, 0]))),
        ("LLDP", ethernet([1, 0x80, 0xc2, 0, 0, 0x0e], a.mac, 0x88cc, FORBIDDEN)),
        ("IP to a bridges' address", ethernet([1, 0x80, 0xc2, 0, 0, 3], a.mac, 0x0800, &good4)),
        ("a pause frame", ethernet([1, 0x80, 0xc2, 0, 0, 1], a.mac, 0x8808, FORBIDDEN)),
        ("a broadcast", ethernet(ALL, a.mac, 0x0800, &good4)),
        ("a multicast", ethernet([1, 0, 0x5e, 0, 0, 5], a.mac, 0x0800, &good4)),
        // ARP.
        (
            "ARP: another's address",
            named(ethernet(b.mac, a.mac, 0x0806, &arp(2, a.mac, v.ipv4, b.mac, b.ipv4))),
        ),
        (
            "ARP: the gateway's address",
            named(ethernet(b.mac, a.mac, 0x0806, &arp(2, a.mac, gateway4, b.mac, b.ipv4))),
        ),
        (
            "ARP: another's MAC",
            named(ethernet(b.mac, a.mac, 0x0806, &arp(2, v.mac, a.ipv4, b.mac, b.ipv4))),
        ),
        (
            "ARP: another's all, inside",
            named(ethernet(b.mac, a.mac, 0x0806, &arp(2, v.mac, v.ipv4, b.mac, b.ipv4))),
        ),
        (
            "ARP: a question in another's name",
            named(ethernet(ALL, a.mac, 0x0806, &arp(1, a.mac, v.ipv4, [0; 6], b.ipv4))),
        ),
        (
            "ARP: an announcement of another's",
            named(ethernet(ALL, a.mac, 0x0806, &arp(1, a.mac, v.ipv4, [0; 6], v.ipv4))),
        ),
        (
            "ARP: a broadcast answer",
            named(ethernet(ALL, a.mac, 0x0806, &arp(2, a.mac, a.ipv4, ALL, a.ipv4))),
        ),
        (
            "ARP: a probe",
            named(ethernet(
                ALL,
                a.mac,
                0x0806,
                &arp(1, a.mac, Ipv4Addr::UNSPECIFIED, [0; 6], b.ipv4),
            )),
        ),
        (
            "ARP: a question for nobody",
            named(ethernet(
                ALL,
                a.mac,
                0x0806,
                &arp(1, a.mac, a.ipv4, [0; 6], Ipv4Addr::new(192, 168, 64, 200)),
            )),
        ),
        ("ARP: odd lengths", {
            let mut body = arp(2, a.mac, a.ipv4, b.mac, b.ipv4);
            body[4] = 8;
            named(ethernet(b.mac, a.mac, 0x0806, &body))
        }),
        (
            "ARP: another operation",
            named(ethernet(b.mac, a.mac, 0x0806, &arp(9, a.mac, a.ipv4, b.mac, b.ipv4))),
        ),
        // IPv4.
        ("another's IPv4", frame4(&ipv4(v.ipv4, b.ipv4, 17, 0, &bad(1, 2)))),
        ("the gateway's IPv4", frame4(&ipv4(gateway4, b.ipv4, 17, 0, &bad(53, 2)))),
        ("an internet IPv4", frame4(&ipv4(Ipv4Addr::new(8, 8, 8, 8), b.ipv4, 17, 0, &bad(53, 2)))),
        ("no IPv4", frame4(&ipv4(Ipv4Addr::UNSPECIFIED, b.ipv4, 17, 0, &bad(68, 67)))),
        ("a DHCP answer", frame4(&ipv4(a.ipv4, b.ipv4, 17, 0, &bad(67, 68)))),
        ("a DHCP answer in fragments", frame4(&ipv4(a.ipv4, b.ipv4, 17, 0x2000, &bad(67, 68)))),
        (
            "an IPv4 redirect",
            frame4(&ipv4(
                a.ipv4,
                b.ipv4,
                1,
                0,
                &icmp(5, 1, &[&gateway4.octets()[..], FORBIDDEN].concat()),
            )),
        ),
        ("an IPv4 router", frame4(&ipv4(a.ipv4, b.ipv4, 1, 0, &icmp(9, 0, FORBIDDEN)))),
        ("IGMP", frame4(&ipv4(a.ipv4, b.ipv4, 2, 0, FORBIDDEN))),
        ("OSPF", frame4(&ipv4(a.ipv4, b.ipv4, 89, 0, FORBIDDEN))),
        ("IPv4 options", frame4(&with_option)),
        (
            "an IPv4 multicast in unicast",
            frame4(&ipv4(a.ipv4, Ipv4Addr::new(224, 0, 0, 251), 17, 0, &bad(5353, 5353))),
        ),
        ("an IPv6 packet called IPv4", frame4(&udp6(a.ipv6, b.ipv6))),
        // IPv6.
        ("another's IPv6", frame6(&udp6(v.ipv6, b.ipv6))),
        ("the gateway's IPv6", frame6(&udp6(gateway6, b.ipv6))),
        ("another's link-local", frame6(&udp6(local(v.mac), b.ipv6))),
        ("no IPv6", frame6(&udp6(Ipv6Addr::UNSPECIFIED, b.ipv6))),
        ("an IPv4 packet called IPv6", frame6(&good4)),
        (
            "a router advertisement",
            ethernet(
                multicast(all_nodes),
                a.mac,
                0x86dd,
                &ipv6(lla, all_nodes, 58, 255, &ra(lla, all_nodes)),
            ),
        ),
        ("one in unicast", frame6(&ipv6(lla, b.ipv6, 58, 255, &ra(lla, b.ipv6)))),
        (
            "one behind destination options",
            frame6(&ipv6(
                lla,
                b.ipv6,
                60,
                255,
                &[destination_options(58), ra(lla, b.ipv6)].concat(),
            )),
        ),
        (
            "one behind hop-by-hop options",
            frame6(&ipv6(
                lla,
                b.ipv6,
                0,
                255,
                &[destination_options(58), ra(lla, b.ipv6)].concat(),
            )),
        ),
        (
            "one behind a routing header",
            frame6(&ipv6(
                lla,
                b.ipv6,
                43,
                255,
                &[vec![58, 0, 0, 0, 0, 0, 0, 0], ra(lla, b.ipv6)].concat(),
            )),
        ),
        (
            "one in a fragment",
            frame6(&ipv6(lla, b.ipv6, 44, 255, &[fragment(58, 0), ra(lla, b.ipv6)].concat())),
        ),
        (
            "one in a first fragment",
            frame6(&ipv6(lla, b.ipv6, 44, 255, &[fragment(58, 1), ra(lla, b.ipv6)].concat())),
        ),
        (
            "one in a later fragment",
            frame6(&ipv6(lla, b.ipv6, 44, 255, &[fragment(58, 8), ra(lla, b.ipv6)].concat())),
        ),
        (
            "one behind options in a fragment",
            frame6(&ipv6(
                lla,
                b.ipv6,
                44,
                255,
                &[fragment(60, 0), destination_options(58), ra(lla, b.ipv6)].concat(),
            )),
        ),
        (
            "one behind two options",
            frame6(&ipv6(
                lla,
                b.ipv6,
                60,
                255,
                &[destination_options(60), destination_options(58), ra(lla, b.ipv6)].concat(),
            )),
        ),
        (
            "one behind an authentication header",
            frame6(&ipv6(
                lla,
                b.ipv6,
                51,
                255,
                &[vec![58, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1], ra(lla, b.ipv6)].concat(),
            )),
        ),
        (
            "an IPv6 redirect",
            frame6(&ipv6(
                lla,
                b.ipv6,
                58,
                255,
                &icmp6(lla, b.ipv6, 137, &tail(nd(0, gateway6, 2, a.mac))),
            )),
        ),
        (
            "a router solicitation",
            ethernet(
                multicast("ff02::2".parse().expect("")),
                a.mac,
                0x86dd,
                &ipv6(
                    lla,
                    "ff02::2".parse().expect(""),
                    58,
                    255,
                    &icmp6(lla, "ff02::2".parse().expect(""), 133, FORBIDDEN),
                ),
            ),
        ),
        (
            "multicast listeners",
            frame6(&ipv6(lla, b.ipv6, 58, 1, &icmp6(lla, b.ipv6, 143, FORBIDDEN))),
        ),
        (
            "a node information query",
            frame6(&ipv6(a.ipv6, b.ipv6, 58, 64, &icmp6(a.ipv6, b.ipv6, 139, FORBIDDEN))),
        ),
        ("a DHCPv6 answer", frame6(&ipv6(a.ipv6, b.ipv6, 17, 64, &bad(547, 546)))),
        (
            "a DHCPv6 answer in fragments",
            frame6(&ipv6(a.ipv6, b.ipv6, 44, 64, &[fragment(17, 1), bad(547, 546)].concat())),
        ),
        (
            "ND: another's address",
            frame6(&na(v.ipv6, a.mac, a.ipv6, b.ipv6))
                .into_iter()
                .chain(FORBIDDEN.iter().copied())
                .collect(),
        ),
        ("ND: the gateway's address", named(frame6(&na(gateway6, a.mac, a.ipv6, b.ipv6)))),
        ("ND: another's MAC", named(frame6(&na(a.ipv6, v.mac, a.ipv6, b.ipv6)))),
        ("ND: an answer in another's name", named(frame6(&na(v.ipv6, a.mac, v.ipv6, b.ipv6)))),
        (
            "ND: an answer to all",
            named(ethernet(
                multicast(all_nodes),
                a.mac,
                0x86dd,
                &na(a.ipv6, a.mac, a.ipv6, all_nodes),
            )),
        ),
        ("ND: a question with another's MAC", {
            let to = solicited(b.ipv6);
            named(ethernet(
                multicast(to),
                a.mac,
                0x86dd,
                &ipv6(a.ipv6, to, 58, 255, &icmp6(a.ipv6, to, 135, &nd(0, b.ipv6, 1, v.mac))),
            ))
        }),
        ("ND: a question in another's name", {
            let to = solicited(b.ipv6);
            named(ethernet(
                multicast(to),
                a.mac,
                0x86dd,
                &ipv6(v.ipv6, to, 58, 255, &icmp6(v.ipv6, to, 135, &nd(0, b.ipv6, 1, a.mac))),
            ))
        }),
        ("ND: from afar", {
            let to = solicited(b.ipv6);
            named(ethernet(
                multicast(to),
                a.mac,
                0x86dd,
                &ipv6(a.ipv6, to, 58, 64, &icmp6(a.ipv6, to, 135, &nd(0, b.ipv6, 1, a.mac))),
            ))
        }),
        ("ND: with more options", {
            let body =
                tail([nd(0, b.ipv6, 1, a.mac), nd(0, b.ipv6, 1, v.mac)[20..].to_vec()].concat());
            let to = solicited(b.ipv6);
            ethernet(
                multicast(to),
                a.mac,
                0x86dd,
                &ipv6(a.ipv6, to, 58, 255, &icmp6(a.ipv6, to, 135, &body)),
            )
        }),
        ("an IPv6 multicast in unicast", frame6(&udp6(a.ipv6, "ff02::fb".parse().expect("")))),
        // Too short to be anything.
        ("half a header", named(ethernet(b.mac, a.mac, 0x0800, &good4[..10]))),
        ("half an IPv6 header", named(ethernet(b.mac, a.mac, 0x86dd, &[0x60, 0, 0, 0]))),
    ]
}

/// Frames that arrive: what the ones above are made of isn't wrong.
fn allowed(a: &Raw, b: &Raw) -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let good = udp(1000, 2000, ALLOWED);
    let frame4 = |body: &[u8]| ethernet(b.mac, a.mac, 0x0800, body);
    let frame6 = |body: &[u8]| ethernet(b.mac, a.mac, 0x86dd, body);
    let question = arp(1, a.mac, a.ipv4, [0; 6], b.ipv4);
    let to = solicited(b.ipv6);
    let solicitation = icmp6(a.ipv6, to, 135, &nd(0, b.ipv6, 1, a.mac));
    let advertisement = icmp6(a.ipv6, b.ipv6, 136, &nd(0x6000_0000, a.ipv6, 2, a.mac));
    let first = [&[17, 0, 0, 1, 0, 0, 0, 7][..], &good, &[0; 7]].concat();
    vec![
        ("UDP", frame4(&ipv4(a.ipv4, b.ipv4, 17, 0, &good)), ALLOWED.to_vec()),
        ("a fragment", frame4(&ipv4(a.ipv4, b.ipv4, 17, 0x2000, &good)), ALLOWED.to_vec()),
        ("a later fragment", frame4(&ipv4(a.ipv4, b.ipv4, 17, 3, ALLOWED)), ALLOWED.to_vec()),
        ("a ping", frame4(&ipv4(a.ipv4, b.ipv4, 1, 0, &icmp(8, 0, ALLOWED))), ALLOWED.to_vec()),
        ("UDP over IPv6", frame6(&ipv6(a.ipv6, b.ipv6, 17, 64, &good)), ALLOWED.to_vec()),
        (
            "from the link-local address",
            frame6(&ipv6(local(a.mac), b.ipv6, 17, 64, &good)),
            ALLOWED.to_vec(),
        ),
        ("an IPv6 fragment", frame6(&ipv6(a.ipv6, b.ipv6, 44, 64, &first)), ALLOWED.to_vec()),
        (
            "a ping over IPv6",
            frame6(&ipv6(a.ipv6, b.ipv6, 58, 64, &icmp6(a.ipv6, b.ipv6, 128, ALLOWED))),
            ALLOWED.to_vec(),
        ),
        // Questions to all are turned into ones to him.
        (
            "a question",
            ethernet(ALL, a.mac, 0x0806, &question),
            [&b.mac[..], &a.mac, &[8, 6], &question].concat(),
        ),
        (
            "an answer",
            ethernet(b.mac, a.mac, 0x0806, &arp(2, a.mac, a.ipv4, b.mac, b.ipv4)),
            arp(2, a.mac, a.ipv4, b.mac, b.ipv4),
        ),
        (
            "an IPv6 question",
            ethernet(multicast(to), a.mac, 0x86dd, &ipv6(a.ipv6, to, 58, 255, &solicitation)),
            [&b.mac[..], &a.mac, &[0x86, 0xdd]].concat(),
        ),
        (
            "an IPv6 answer",
            frame6(&ipv6(a.ipv6, b.ipv6, 58, 255, &advertisement)),
            advertisement.clone(),
        ),
    ]
}

pub fn neighbours(away: &Away) {
    let setup = Setup::new(away);
    let net = config("default", 64, Mode::Nat);
    setup.network(&net);
    let (a, b, v) = (setup.raw(&net, "a", 2), setup.raw(&net, "b", 3), setup.raw(&net, "v", 4));
    let namespace = setup.engine.handles("default").expect("handles").network;
    let inside = within(&namespace, packet_socket);
    let bridge = setup.bridge_mac("default");
    for (name, frame, sign) in allowed(&a, &b) {
        a.send(&frame);
        assert!(b.sees(&sign), "not seen: {name}");
    }
    let _ = (b.seen(), v.seen(), away.seen());
    let (container_api_v4, container_api_v6) = (net.ipv4_gateway, net.ipv6_gateway);
    let list = forbidden(&a, &b, &v, bridge, container_api_v4, container_api_v6);
    for (name, frame) in &list {
        a.send(frame);
        // Another frame behind it: when that has come, the first one would have.
        a.send(&allowed(&a, &b)[0].1);
        let mut seen = Vec::new();
        crate::world::until(name, || {
            seen.extend(b.seen());
            seen.iter().any(|f| contains(f, ALLOWED))
        });
        seen.extend(v.seen());
        seen.retain(|f| !contains(f, ALLOWED));
        assert!(seen.is_empty(), "{name}: {seen:02x?}");
    }
    assert!(away.seen().iter().all(|f| !contains(f, FORBIDDEN)), "the internet saw one");
    drop(inside);
    let dropped = ["spoofed", "protocol", "control", "broadcast"]
        .map(|reason| (reason, setup.dropped(&net, "a", reason)));
    println!("{} frames were forbidden; counted: {dropped:?}", list.len());
    assert!(dropped.iter().all(|(_, count)| *count > 0));
    // The kernel's own drops are for what a bridge never passes.
    assert!(dropped.iter().map(|(_, n)| n).sum::<u64>() >= list.len() as u64 - 4);
    assert_eq!(setup.dropped(&net, "b", "spoofed"), 0);
    let _ = at(&net, 2, false);
    setup.end();
}

/// While one container storms, others are undisturbed, and nothing of it reaches them.
pub fn storms(away: &Away) {
    let setup = Setup::new(away);
    let net = config("default", 64, Mode::Nat);
    setup.network(&net);
    let (a, b, c) = (setup.raw(&net, "a", 2), setup.raw(&net, "b", 3), setup.raw(&net, "c", 4));
    let broadcast = ethernet(
        ALL,
        a.mac,
        0x0800,
        &ipv4(a.ipv4, Ipv4Addr::BROADCAST, 17, 0, &udp(1, 2, FORBIDDEN)),
    );
    let question = ethernet(ALL, a.mac, 0x0806, &arp(1, a.mac, a.ipv4, [0; 6], b.ipv4));
    for _ in 0..20_000 {
        a.send(&broadcast);
        a.send(&question);
    }
    let seen = b.seen();
    assert!(seen.iter().all(|f| !contains(f, FORBIDDEN)), "a broadcast");
    assert!(seen.len() < 2_000, "{} questions came", seen.len());
    assert!(c.seen().is_empty(), "one that nobody asked for");
    assert!(setup.dropped(&net, "a", "flood") > 10_000);
    // The neighbour's own questions are answered as ever.
    c.send(&ethernet(ALL, c.mac, 0x0806, &arp(1, c.mac, c.ipv4, [0; 6], b.ipv4)));
    assert!(b.sees(&arp(1, c.mac, c.ipv4, [0; 6], b.ipv4)));
    setup.end();
}

/// One container that opens connections without end leaves room for those of others, and keeps what
/// it has.
pub fn connections(away: &Away) {
    const MOST: u16 = 16_384;
    let setup = Setup::new(away);
    let net = config("default", 64, Mode::Nat);
    setup.network(&net);
    let (a, b) = (setup.raw(&net, "a", 2), setup.raw(&net, "b", 3));
    let router = setup.bridge_mac("default");
    // None is forgotten meanwhile, however slow the machine is.
    let namespace = setup.engine.handles("default").expect("handles").network;
    within(&namespace, || {
        crate::world::sh(
            "echo 600 >/proc/sys/net/netfilter/nf_conntrack_udp_timeout
            echo 600 >/proc/sys/net/netfilter/nf_conntrack_icmp_timeout",
        )
    });
    let question = |from: &Raw, port: u16| {
        let body = udp(port, 53, ALLOWED);
        ethernet(router, from.mac, 0x0800, &ipv4(from.ipv4, net.ipv4_gateway, 17, 0, &body))
    };
    let ping = icmp(8, 0, &[&[0, 7, 0, 1][..], ALLOWED].concat());
    let ping = ethernet(router, a.mac, 0x0800, &ipv4(a.ipv4, net.ipv4_gateway, 1, 0, &ping));
    a.send(&ping);
    assert!(a.sees(ALLOWED), "the gateway answers");
    for port in 1_000..1_000 + MOST + 2_000 {
        a.send(&question(&a, port));
    }
    let dropped = setup.dropped(&net, "a", "connections");
    assert!((1..=2_001).contains(&dropped), "{dropped} were dropped");
    // What it has goes on.
    a.send(&ping);
    assert_eq!(setup.dropped(&net, "a", "connections"), dropped);
    for port in 1_000..1_100 {
        b.send(&question(&b, port));
    }
    assert_eq!(setup.dropped(&net, "b", "connections"), 0);
    setup.end();
}
