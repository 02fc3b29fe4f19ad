//! The chains, without containers.

use std::fmt::Write;

use container_api::network::Mode;

use super::{
    ANSWER, BRIDGE, BRIDGE_REASONS, Base, EDITION, HOST_LINK, HOST4, HOST6, ROUTE_REASONS, TABLE,
    UPLINK,
};

/// Destinations that lead nowhere good: this host, loopback, multicast, reserved; what maps onto
/// IPv4 within IPv6.
const SPECIAL4: &str = "0.0.0.0/8, 127.0.0.0/8, 192.0.0.0/24, 224.0.0.0/4, 240.0.0.0/4";
const SPECIAL6: &str = "::/96, ::ffff:0:0/96, 64:ff9b::/96, 64:ff9b:1::/48, 2002::/16, \
                        2001::/32, fe80::/10, fec0::/10, ff00::/8";
/// Where clouds keep what a machine must not tell its guests.
const METADATA4: &str = "169.254.0.0/16, 168.63.129.16, 100.100.100.200";
const METADATA6: &str = "fd00:ec2::254";

pub(super) fn bridge_table(text: &mut String, base: &Base) {
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

pub(super) fn inet_table(text: &mut String, base: &Base) {
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
