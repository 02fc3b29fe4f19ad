//! The rules of a network as `nft` reads them, and reading back what they have counted.
//!
//! Two tables. `bridge container` judges each frame of a tap before the bridge sees it: only
//! what is listed passes, with this container's own addresses. Questions for neighbours (ARP,
//! ND) are turned into unicast to the one asked, so nothing is ever flooded. It also marks what
//! passes with the container's number (its tap's index), which `inet container` goes by to judge
//! what leaves the bridge. A container is elements of sets and maps: attaching one costs one short
//! transaction, and its drops are counted by the sets' elements.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use container_api::network::{Mac, Mode, Protocol};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

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

/// Destinations that lead nowhere good: this host, loopback, multicast, reserved; what maps onto
/// IPv4 within IPv6.
const SPECIAL4: &str = "0.0.0.0/8, 127.0.0.0/8, 192.0.0.0/24, 224.0.0.0/4, 240.0.0.0/4";
const SPECIAL6: &str = "::/96, ::ffff:0:0/96, 64:ff9b::/96, 64:ff9b:1::/48, 2002::/16, \
                        2001::/32, fe80::/10, fec0::/10, ff00::/8";
/// Where clouds keep what a machine must not tell its guests.
const METADATA4: &str = "169.254.0.0/16, 168.63.129.16, 100.100.100.200";
const METADATA6: &str = "fd00:ec2::254";

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

fn bridge_table(text: &mut String, base: &Base) {
    let mut reasons = String::new();
    for reason in BRIDGE_REASONS {
        let _ = writeln!(
            reasons,
            "  set n_{reason} {{ type ifname; counter; }}\n  \
             chain d_{reason} {{ iifname @n_{reason} drop; drop; }}"
        );
    }
    // An isolated network's bridge has ports that can't reach each other; this counts it too.
    let neighbour = match base.isolated {
        true => format!("ether daddr != {} goto d_neighbour", base.bridge_mac),
        false => String::new(),
    };
    // `ether type` reads the frame's own field: a frame with a VLAN tag is none of the three.
    // Fragments that aren't the first pass: the first one, with all of the header, was judged.
    // GRE is 47: nft would look its name up in /etc/protocols, which small hosts don't have.
    let _ = write!(
        text,
        r#"table bridge {TABLE} {{
  chain {EDITION} {{ }}
  set own4 {{ type ifname . ether_addr . ipv4_addr; }}
  set own6 {{ type ifname . ether_addr . ipv6_addr; }}
  set nd_target {{ typeof iifname . ether saddr . @th,64,128; }}
  set nd_option {{ typeof iifname . @th,192,64; }}
  map mac4 {{ type ipv4_addr : ether_addr; }}
  map nd_mac {{ typeof @th,64,128 : ether daddr; }}
  map marks {{ type ifname : mark; }}
  set asking {{ type ifname; size 65535; flags dynamic; }}
{reasons}
  chain c_arp {{
    arp htype != 1 goto d_protocol
    arp ptype != 0x0800 goto d_protocol
    arp hlen != 6 goto d_protocol
    arp plen != 4 goto d_protocol
    iifname . ether saddr . arp saddr ip != @own4 goto d_spoofed
    iifname . arp saddr ether . arp saddr ip != @own4 goto d_spoofed
    update @asking {{ iifname limit rate over 200/second burst 400 packets }} goto d_flood
    arp operation request ether daddr set arp daddr ip map @mac4 accept
    arp operation reply ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 accept
    goto d_broadcast
  }}
  chain c_udp {{
    udp sport {{ 67, 547 }} goto d_control
    accept
  }}
  chain c_icmp {{
    ip frag-off & 0x1fff != 0 accept
    icmp type {{ echo-request, echo-reply, destination-unreachable, time-exceeded, parameter-problem }} accept
    goto d_control
  }}
  chain c_ip4 {{
    ip saddr 0.0.0.0 goto d_broadcast
    iifname . ether saddr . ip saddr != @own4 goto d_spoofed
    ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 goto d_broadcast
    ip daddr {{ 224.0.0.0/4, 255.255.255.255 }} goto d_broadcast
    ip version != 4 goto d_protocol
    ip hdrlength != 5 goto d_protocol
    {neighbour}
    ip protocol vmap {{ tcp : accept, udp : goto c_udp, icmp : goto c_icmp, sctp : accept, dccp : accept, udplite : accept, 47 : accept, esp : accept, 4 : accept, 41 : accept }}
    goto d_protocol
  }}
  chain c_nd {{
    ip6 hoplimit != 255 goto d_protocol
    icmpv6 code != 0 goto d_protocol
    ip6 length != {{ 24, 32 }} goto d_protocol
    ip6 length 32 iifname . @th,192,64 != @nd_option goto d_spoofed
    update @asking {{ iifname limit rate over 200/second burst 400 packets }} goto d_flood
    icmpv6 type nd-neighbor-solicit ether daddr set @th,64,128 map @nd_mac accept
    icmpv6 type nd-neighbor-solicit goto d_broadcast
    iifname . ether saddr . @th,64,128 != @nd_target goto d_spoofed
    ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 goto d_broadcast
    {neighbour}
    accept
  }}
  chain c_icmp6 {{
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} goto c_nd
    icmpv6 type {{ nd-router-advert, nd-redirect }} goto d_control
    ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 goto d_broadcast
    ip6 daddr ff00::/8 goto d_broadcast
    {neighbour}
    icmpv6 type {{ echo-request, echo-reply, destination-unreachable, packet-too-big, time-exceeded, parameter-problem }} accept
    goto d_control
  }}
  chain c_fragment6 {{
    frag nexthdr tcp accept
    frag nexthdr udp goto c_udp
    frag nexthdr sctp accept
    goto d_protocol
  }}
  chain c_ip6 {{
    ip6 saddr :: goto d_broadcast
    iifname . ether saddr . ip6 saddr != @own6 goto d_spoofed
    ip6 version != 6 goto d_protocol
    ip6 nexthdr icmpv6 goto c_icmp6
    ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 goto d_broadcast
    ip6 daddr ff00::/8 goto d_broadcast
    {neighbour}
    ip6 nexthdr vmap {{ tcp : accept, udp : goto c_udp, 44 : goto c_fragment6, sctp : accept, dccp : accept, udplite : accept, 47 : accept, esp : accept, 4 : accept, 41 : accept }}
    goto d_protocol
  }}
  chain from_ports {{
    type filter hook prerouting priority -300; policy drop;
    meta mark set iifname map @marks
    ether type vmap {{ arp : goto c_arp, ip : goto c_ip4, ip6 : goto c_ip6 }}
    goto d_protocol
  }}
  chain from_host {{
    # The bridge's ports flood what the host itself says to all, whatever their settings.
    type filter hook output priority -300; policy accept;
    ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 drop
  }}
  chain to_host {{
    # What the bridge hands up unseen by the chain above: addresses reserved for bridges.
    type filter hook input priority -300; policy accept;
    ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 goto d_control
  }}
}}
"#
    );
}

fn inet_table(text: &mut String, base: &Base) {
    let mut reasons = String::new();
    for reason in ROUTE_REASONS {
        // Those that a program runs into by honest mistake are told.
        let verdict = match reason {
            "egress" | "internal" => "reject with icmpx admin-prohibited",
            _ => "drop",
        };
        let _ = writeln!(
            reasons,
            "  set n_{reason} {{ type mark; counter; }}\n  \
             chain d_{reason} {{ meta mark @n_{reason} {verdict}; drop; }}"
        );
    }
    let Base { gateway4, gateway6, subnet4, subnet6, connections, .. } = base;
    let out = match base.mode {
        Mode::HostOnly => "goto d_internal".to_owned(),
        Mode::Nat => "ct state invalid drop\n    ct state established,related accept\n    \
             meta mark vmap @egress\n    goto d_egress"
            .to_owned(),
    };
    let _ = write!(
        text,
        r#"table inet {TABLE} {{
  chain {EDITION} {{ }}
  set host4 {{ type ipv4_addr; flags interval; auto-merge; }}
  set host6 {{ type ipv6_addr; flags interval; auto-merge; }}
  set others4 {{ type ipv4_addr; flags interval; auto-merge; }}
  set others6 {{ type ipv6_addr; flags interval; auto-merge; }}
  set localhost4 {{ type ipv4_addr; }}
  map egress {{ type mark : verdict; }}
  map host_tcp {{ type mark . inet_service : inet_service; }}
  map host_udp {{ type mark . inet_service : inet_service; }}
  map host_all_tcp {{ type mark : inet_service; }}
  set connections {{ type mark; size 65535; flags dynamic; }}
{reasons}
  chain judge {{
    type filter hook prerouting priority -150; policy accept;
    iifname != "{BRIDGE}" accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    ct state new add @connections {{ meta mark ct count over {connections} }} goto d_connections
    ip daddr {gateway4} accept
    ip6 daddr {gateway6} accept
    ip daddr @localhost4 accept
    # Answers to a client that a forwarder stands for are the forwarder's.
    ct mark {ANSWER:#x} ct direction reply ct state established,related meta mark set {ANSWER:#x} accept
    ip daddr {HOST4} ct direction reply ct state established,related accept
    ip6 daddr {HOST6} ct direction reply ct state established,related accept
    ip daddr @host4 goto d_host
    ip6 daddr @host6 goto d_host
    ip daddr {{ {METADATA4} }} goto d_metadata
    ip6 daddr {METADATA6} goto d_metadata
    ip daddr {{ {SPECIAL4} }} goto d_special
    ip6 daddr {{ {SPECIAL6} }} goto d_special
    ip daddr {subnet4} goto d_neighbour
    ip6 daddr {subnet6} goto d_neighbour
    ip daddr @others4 goto d_network
    ip6 daddr @others6 goto d_network
    {out}
  }}
  chain redirects {{
    meta l4proto tcp redirect to :meta mark . tcp dport map @host_tcp
    meta l4proto udp redirect to :meta mark . udp dport map @host_udp
    meta l4proto tcp redirect to :meta mark map @host_all_tcp
  }}
  chain to_host_ports {{
    type nat hook prerouting priority -100; policy accept;
    iifname != "{BRIDGE}" accept
    th dport 53 accept
    ip daddr {gateway4} jump redirects
    ip6 daddr {gateway6} jump redirects
    ip daddr @localhost4 jump redirects
  }}
  chain to_gateway {{
    meta l4proto {{ tcp, udp }} th dport 53 accept
    icmp type echo-request limit rate 1000/second accept
    icmpv6 type echo-request limit rate 1000/second accept
  }}
  chain in {{
    type filter hook input priority 0; policy drop;
    iif "lo" accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} ip6 hoplimit 255 accept
    ct state established,related accept
    ip saddr {HOST4} iifname "{HOST_LINK}" ip daddr {gateway4} goto to_gateway
    ip6 saddr {HOST6} iifname "{HOST_LINK}" ip6 daddr {gateway6} goto to_gateway
    iifname != "{BRIDGE}" drop
    ct status dnat accept
    jump to_gateway
    goto d_host
  }}
  chain through {{
    type filter hook forward priority 0; policy drop;
    ip daddr @localhost4 goto d_host
    iifname "{BRIDGE}" oifname "{UPLINK}" accept
    iifname "{UPLINK}" oifname "{BRIDGE}" ct state established,related accept
    iifname "{HOST_LINK}" oifname "{BRIDGE}" ip saddr {HOST4} accept
    iifname "{HOST_LINK}" oifname "{BRIDGE}" ip6 saddr {HOST6} accept
    iifname "{BRIDGE}" oifname "{HOST_LINK}" ct direction reply ct state established,related accept
  }}
  chain out {{
    type filter hook output priority 0; policy accept;
    oifname "{UPLINK}" ct state new drop
    oifname != "{BRIDGE}" accept
    ip saddr {gateway4} accept
    ip6 saddr {gateway6} accept
    meta l4proto != {{ tcp, udp }} accept
    # A forwarder stands for a client: for anybody but a neighbour, or what is nobody.
    ip saddr {{ {SPECIAL4} }} drop
    ip6 saddr {{ {SPECIAL6} }} drop
    ip saddr {{ {METADATA4} }} drop
    ip6 saddr {METADATA6} drop
    ip saddr {subnet4} drop
    ip6 saddr {subnet6} drop
    ip saddr @others4 drop
    ip6 saddr @others6 drop
    ct state new ct mark set {ANSWER:#x}
  }}
  chain behind_the_host {{
    type nat hook postrouting priority 100; policy accept;
    oifname "{UPLINK}" masquerade
  }}
}}
"#
    );
}

/// What rules let a container do beyond its own network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Outside {
    /// Everything that the network's mode lets out.
    #[default]
    Everything,
    /// These addresses, on all ports or one, and what is pinned.
    Only(Vec<(IpNet, Option<u16>)>),
}

/// The elements of a container, each with its set; they are added and deleted as they stand.
fn elements(member: &Member) -> Vec<(&'static str, String, String)> {
    let Member { tap, mark, mac, ipv4, ipv6 } = member;
    let local = link_local(*mac);
    let hex = mac.0.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let bits = |address: Ipv6Addr| format!("{:#034x}", address.to_bits());
    let (global_bits, local_bits) = (bits(*ipv6), bits(local));
    let mut list = vec![
        ("bridge", "own4".to_owned(), format!("\"{tap}\" . {mac} . {ipv4}")),
        (
            "bridge",
            "own6".to_owned(),
            format!("\"{tap}\" . {mac} . {ipv6}, \"{tap}\" . {mac} . {local}"),
        ),
        (
            "bridge",
            "nd_target".to_owned(),
            format!("\"{tap}\" . {mac} . {global_bits}, \"{tap}\" . {mac} . {local_bits}"),
        ),
        (
            "bridge",
            "nd_option".to_owned(),
            format!("\"{tap}\" . 0x0101{hex}, \"{tap}\" . 0x0201{hex}"),
        ),
        ("bridge", "mac4".to_owned(), format!("{ipv4} : {mac}")),
        ("bridge", "nd_mac".to_owned(), format!("{global_bits} : {mac}, {local_bits} : {mac}")),
        ("bridge", "marks".to_owned(), format!("\"{tap}\" : {mark:#x}")),
    ];
    for reason in BRIDGE_REASONS {
        list.push(("bridge", format!("n_{reason}"), format!("\"{tap}\"")));
    }
    for reason in ROUTE_REASONS {
        list.push(("inet", format!("n_{reason}"), format!("{mark:#x}")));
    }
    list
}

/// Adds a container. On one that is there already, with the same addresses, it replaces the rest.
pub(super) fn attach(member: &Member, outside: &Outside) -> String {
    let mut text = String::new();
    for (family, set, element) in elements(member) {
        let _ = writeln!(text, "add element {family} {TABLE} {set} {{ {element} }}");
    }
    let Member { tap, mark, .. } = member;
    let verdict = match outside {
        Outside::Everything => "accept".to_owned(),
        Outside::Only(list) => {
            only(&mut text, tap, list);
            format!("goto e_{tap}")
        }
    };
    let _ = writeln!(text, "add element inet {TABLE} egress {{ {mark:#x} : {verdict} }}");
    text
}

/// The chain of a container that may reach a few destinations only.
fn only(text: &mut String, tap: &str, list: &[(IpNet, Option<u16>)]) {
    let _ = writeln!(text, "add chain inet {TABLE} e_{tap}\nflush chain inet {TABLE} e_{tap}");
    let mut rule = |rule: String| {
        let _ = writeln!(text, "add rule inet {TABLE} e_{tap} {rule}");
    };
    let mut ports: Vec<Option<u16>> = list.iter().map(|(_, port)| *port).collect();
    ports.sort_unstable();
    ports.dedup();
    for port in ports {
        let nets: Vec<IpNet> =
            list.iter().filter(|(_, p)| *p == port).map(|(net, _)| net.trunc()).collect();
        // Sets of ranges don't take ranges that overlap.
        let nets = IpNet::aggregate(&nets);
        let port = port
            .map(|port| format!("meta l4proto {{ tcp, udp }} th dport {port} "))
            .unwrap_or_default();
        for (family, v4) in [("ip", true), ("ip6", false)] {
            let nets: Vec<String> = nets
                .iter()
                .filter(|net| matches!(net, IpNet::V4(_)) == v4)
                .map(|net| net.to_string())
                .collect();
            if !nets.is_empty() {
                rule(format!("{port}{family} daddr {{ {} }} accept", nets.join(", ")));
            }
        }
    }
    for (family, kind) in [("ip", "4"), ("ip6", "6")] {
        rule(format!("{family} daddr @p{kind}_{tap} accept"));
        rule(format!("{family} daddr . meta l4proto . th dport @q{kind}_{tap} accept"));
    }
    rule("goto d_egress".to_owned());
    // Sets come before the rules that name them.
    let mut sets = String::new();
    for (kind, address) in [("4", "ipv4_addr"), ("6", "ipv6_addr")] {
        let _ = writeln!(
            sets,
            "add set inet {TABLE} p{kind}_{tap} {{ type {address}; flags timeout; }}\n\
             add set inet {TABLE} q{kind}_{tap} \
             {{ type {address} . inet_proto . inet_service; flags timeout; }}"
        );
    }
    text.insert_str(0, &sets);
}

/// Takes a container back, whether all of it is there or not.
pub(super) fn detach(member: &Member, redirects: &[Redirect]) -> String {
    let mut text = String::new();
    let mut take = |family: &str, set: &str, element: &str| {
        let _ = writeln!(
            text,
            "add element {family} {TABLE} {set} {{ {element} }}\n\
             delete element {family} {TABLE} {set} {{ {element} }}"
        );
    };
    for (family, set, element) in elements(member) {
        take(family, &set, &element);
    }
    for redirect in redirects {
        let (set, element) = redirect.element(member.mark);
        take("inet", &set, &element);
    }
    text
}

/// The second half of [`detach`], for what only some containers have.
pub(super) fn detach_outside(member: &Member, outside: &Outside) -> String {
    let Member { tap, mark, .. } = member;
    let mut text = String::new();
    match outside {
        Outside::Everything => {
            let _ = writeln!(
                text,
                "add element inet {TABLE} egress {{ {mark:#x} : accept }}\n\
                 delete element inet {TABLE} egress {{ {mark:#x} }}"
            );
        }
        Outside::Only(_) => {
            let _ = writeln!(
                text,
                "add chain inet {TABLE} e_{tap}\n\
                 add element inet {TABLE} egress {{ {mark:#x} : goto e_{tap} }}\n\
                 delete element inet {TABLE} egress {{ {mark:#x} }}\n\
                 flush chain inet {TABLE} e_{tap}\ndelete chain inet {TABLE} e_{tap}"
            );
            for (kind, address) in [("4", "ipv4_addr"), ("6", "ipv6_addr")] {
                let _ = writeln!(
                    text,
                    "add set inet {TABLE} p{kind}_{tap} {{ type {address}; flags timeout; }}\n\
                     delete set inet {TABLE} p{kind}_{tap}\n\
                     add set inet {TABLE} q{kind}_{tap} \
                     {{ type {address} . inet_proto . inet_service; flags timeout; }}\n\
                     delete set inet {TABLE} q{kind}_{tap}"
                );
            }
        }
    }
    text
}

/// A port of the gateway, or all of them, that leads to a forwarder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Redirect {
    pub(super) protocol: Protocol,
    /// `None`: all.
    pub(super) port: Option<u16>,
    pub(super) to: u16,
}

impl Redirect {
    fn element(&self, mark: u32) -> (String, String) {
        let Redirect { protocol, port, to } = self;
        match port {
            // Ranges would be one map for both; some versions of nft can't delete them again.
            Some(port) => (format!("host_{protocol}"), format!("{mark:#x} . {port} : {to}")),
            None => (format!("host_all_{protocol}"), format!("{mark:#x} : {to}")),
        }
    }
}

/// In place of a container's redirects.
pub(super) fn redirect(member: &Member, old: &[Redirect], new: &[Redirect]) -> String {
    let mut text = String::new();
    for redirect in old {
        let (set, element) = redirect.element(member.mark);
        let _ = writeln!(text, "delete element inet {TABLE} {set} {{ {element} }}");
    }
    for redirect in new {
        let (set, element) = redirect.element(member.mark);
        let _ = writeln!(text, "add element inet {TABLE} {set} {{ {element} }}");
    }
    text
}

/// One address that a container may reach for a while.
pub(super) struct PinElement {
    pub(super) address: std::net::IpAddr,
    /// `None`: everything there.
    pub(super) port: Option<u16>,
    pub(super) seconds: u64,
}

/// Adds pins, or gives those there a new end.
pub(super) fn pin(tap: &str, pins: &[PinElement]) -> String {
    let mut text = String::new();
    for PinElement { address, port, seconds } in pins {
        let kind = if address.is_ipv4() { "4" } else { "6" };
        let (set, keys) = match port {
            None => (format!("p{kind}_{tap}"), vec![address.to_string()]),
            Some(port) => (
                format!("q{kind}_{tap}"),
                vec![format!("{address} . tcp . {port}"), format!("{address} . udp . {port}")],
            ),
        };
        for key in keys {
            // An element's end can't be moved: it is made anew. It exists for sure after the first
            // line, so that the second can't fail.
            let _ = writeln!(
                text,
                "add element inet {TABLE} {set} {{ {key} timeout {seconds}s }}\n\
                 delete element inet {TABLE} {set} {{ {key} }}\n\
                 add element inet {TABLE} {set} {{ {key} timeout {seconds}s }}"
            );
        }
    }
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

/// Stands for destinations that were read back from the kernel only as being few: equal to no list
/// that anybody asks for (a port on no address).
pub(super) const UNKNOWN: [(IpNet, Option<u16>); 1] =
    [(IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 32)), Some(0))];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_follows_from_an_ethernet_address() {
        let address = link_local(Mac([0x02, 0x11, 0x22, 0x33, 0x44, 0x55]));
        assert_eq!(address.to_string(), "fe80::11:22ff:fe33:4455");
    }

    #[test]
    fn what_is_added_is_taken_back() {
        let member = Member {
            tap: "t1".to_owned(),
            mark: 7,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            ipv4: Ipv4Addr::new(192, 168, 64, 2),
            ipv6: "fd00::2".parse().expect("an address"),
        };
        let redirects = [Redirect { protocol: Protocol::Tcp, port: Some(80), to: 4000 }];
        let nets = vec![("10.0.0.0/8".parse().expect("a net"), Some(443))];
        for outside in [Outside::Everything, Outside::Only(nets)] {
            let added = attach(&member, &outside) + &redirect(&member, &[], &redirects);
            let taken = detach(&member, &redirects) + &detach_outside(&member, &outside);
            for line in added.lines().filter(|line| line.starts_with("add element")) {
                // The key; of maps the value too, where it isn't a verdict.
                let element = line.replacen("add", "delete", 1);
                let element = element.replace(" : accept", "").replace(" : goto e_t1", "");
                assert!(taken.contains(&element), "{element}");
            }
            for line in added.lines().filter(|line| line.starts_with("add set")) {
                let name = line.split(' ').nth(4).expect("a name");
                assert!(taken.contains(&format!("delete set inet {TABLE} {name}")), "{line}");
            }
        }
    }

    #[test]
    fn sets_of_addresses_have_no_overlaps() {
        let nets = ["10.0.0.0/8", "10.1.0.0/16", "fd00::/16", "fd00::1/128"]
            .map(|net| net.parse().expect("a net"));
        let text = replace("host", &nets);
        assert!(text.contains("host4 { 10.0.0.0/8 }") && text.contains("host6 { fd00::/16 }"));
    }
}
