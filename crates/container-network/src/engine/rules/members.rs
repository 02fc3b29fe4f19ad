//! A container's part in the rules: elements of sets and maps, and a chain where it may reach few
//! destinations only.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use container_api::network::Protocol;
use ipnet::{IpNet, Ipv4Net};

use super::{BRIDGE_REASONS, Member, ROUTE_REASONS, TABLE, link_local};

/// What rules let a container do beyond its own network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::engine) enum Outside {
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
pub(in crate::engine) fn attach(member: &Member, outside: &Outside) -> String {
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
pub(in crate::engine) fn detach(member: &Member, redirects: &[Redirect]) -> String {
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
pub(in crate::engine) fn detach_outside(member: &Member, outside: &Outside) -> String {
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
pub(in crate::engine) struct Redirect {
    pub(in crate::engine) protocol: Protocol,
    /// `None`: all.
    pub(in crate::engine) port: Option<u16>,
    pub(in crate::engine) to: u16,
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
pub(in crate::engine) fn redirect(member: &Member, old: &[Redirect], new: &[Redirect]) -> String {
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
pub(in crate::engine) struct PinElement {
    pub(in crate::engine) address: std::net::IpAddr,
    /// `None`: everything there.
    pub(in crate::engine) port: Option<u16>,
    pub(in crate::engine) seconds: u64,
}

/// Adds pins, or gives those there a new end.
pub(in crate::engine) fn pin(tap: &str, pins: &[PinElement]) -> String {
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

/// Stands for destinations that were read back from the kernel only as being few: equal to no list
/// that anybody asks for (a port on no address).
pub(in crate::engine) const UNKNOWN: [(IpNet, Option<u16>); 1] =
    [(IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 32)), Some(0))];

#[cfg(test)]
mod tests {
    use container_api::network::Mac;

    use super::*;

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
}
