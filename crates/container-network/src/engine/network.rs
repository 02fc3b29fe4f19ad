//! One network: the state of the thread that lives in its namespace.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use container_api::error::{ApiError, ErrorCode, Result};
use container_api::network::{
    Attachment, Dropped, Egress, HostAccess, Mac, NetworkConfig, Protocol,
};
use ipnet::IpNet;
use netlink_packet_route::link::LinkAttribute;

use super::namespace::{failed, sysctl, sysctl_where_present};
use super::netlink::{self, Netlink};
use super::rules::{self, BRIDGE, Member, Outside, PinElement, Redirect};
use super::{NetworkPlan, Port, counts, nft, tap};
use crate::wire;

/// What a tap's alias begins with; the container's id follows.
pub(super) const ALIAS: &str = "container ";

/// The routing table of [`keep_answers`].
const ANSWERS: u8 = 100;

/// A container that is attached.
#[derive(Debug)]
struct Resident {
    member: Member,
    outside: Outside,
    host_access: HostAccess,
    redirects: Vec<Redirect>,
    /// When which pin ends.
    pins: BTreeMap<(IpAddr, Option<u16>), Instant>,
}

/// See the module.
pub(super) struct Network {
    pub(super) config: NetworkConfig,
    pub(super) netlink: Netlink,
    nft: PathBuf,
    bridge: u32,
    residents: BTreeMap<String, Resident>,
    /// The subnets of our other networks.
    others: Vec<IpNet>,
}

impl Network {
    /// Makes everything that a network has without containers, or takes it over.
    pub(super) fn prepare(
        plan: &NetworkPlan,
        nft: PathBuf,
        host: &[IpNet],
        existing: bool,
    ) -> Result<Network> {
        let config = plan.config.clone();
        let name = config.id.clone();
        let mut netlink =
            Netlink::open().map_err(failed(format!("cannot configure network {name}")))?;
        settings()?;
        let bridge = match netlink.link(BRIDGE).map_err(failed("cannot look for the bridge"))? {
            Some(link) => link,
            None => make_bridge(&mut netlink, &config)
                .map_err(failed(format!("cannot make the bridge of network {name}")))?,
        };
        keep_answers(&mut netlink)
            .map_err(failed(format!("cannot route answers of network {name}")))?;
        let mac = bridge.mac.ok_or_else(|| ApiError::internal("the bridge has no address"))?;
        let mut network = Network {
            config,
            netlink,
            nft,
            bridge: bridge.index,
            residents: BTreeMap::new(),
            others: Vec::new(),
        };
        let mut text = String::new();
        if !existing || !network.has_rules()? {
            text = rules::base(&network.base(mac));
        } else {
            network.take_over()?;
        }
        text.push_str(&rules::replace("host", host));
        network.others = network.without_own(&plan.others);
        text.push_str(&rules::replace("others", &network.others));
        text.push_str(&rules::localhost(&plan.localhost));
        nft::apply(&network.nft, &text)?;
        Ok(network)
    }

    fn base(&self, bridge_mac: Mac) -> rules::Base {
        rules::Base {
            mode: self.config.mode,
            isolated: self.config.isolated,
            bridge_mac,
            gateway4: self.config.ipv4_gateway,
            gateway6: self.config.ipv6_gateway,
            subnet4: self.config.ipv4_subnet,
            subnet6: self.config.ipv6_subnet,
            connections: connections(),
        }
    }

    fn has_rules(&self) -> Result<bool> {
        for family in ["bridge", "inet"] {
            let table = nft::list(&self.nft, family, rules::TABLE)?;
            if !counts::has_chain(&table, rules::EDITION) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Learns who is here from the kernel, and removes what those left that are gone.
    fn take_over(&mut self) -> Result<()> {
        let bridge = nft::list(&self.nft, "bridge", rules::TABLE)?;
        let inet = nft::list(&self.nft, "inet", rules::TABLE)?;
        let links = self.netlink.links().map_err(failed("cannot list the network's links"))?;
        let now = Instant::now();
        // Redirects are made again when their forwarder is known.
        let mut text = ["host_tcp", "host_udp", "host_all_tcp"]
            .map(|map| format!("flush map inet {} {map}\n", rules::TABLE))
            .concat();
        let mut gone = Vec::new();
        for (member, outside) in counts::members(&bridge, &inet) {
            let link = links.iter().find(|l| l.name == member.tap && l.index == member.mark);
            let container =
                link.and_then(|l| l.alias.as_deref()).and_then(|alias| alias.strip_prefix(ALIAS));
            match container {
                Some(container) => {
                    let resident = Resident {
                        pins: counts::pins(&inet, &member.tap)
                            .into_iter()
                            .map(|(key, seconds)| (key, now + Duration::from_secs(seconds)))
                            .collect(),
                        member,
                        outside,
                        host_access: HostAccess::Denied,
                        redirects: Vec::new(),
                    };
                    self.residents.insert(container.to_owned(), resident);
                }
                None => {
                    text.push_str(&rules::detach(&member, &[]));
                    text.push_str(&rules::detach_outside(&member, &outside));
                    gone.push(member);
                }
            }
        }
        nft::apply(&self.nft, &text)?;
        for member in gone {
            self.forget_neighbours(&member);
        }
        // A tap without rules can't be used; its container is attached again.
        let known: Vec<&str> =
            self.residents.values().map(|resident| resident.member.tap.as_str()).collect();
        let stray = links
            .iter()
            .filter(|l| l.alias.as_deref().is_some_and(|alias| alias.starts_with(ALIAS)))
            .filter(|l| !known.contains(&l.name.as_str()));
        let changes = stray.map(|link| netlink::remove_link(link.index)).collect();
        self.netlink.apply(changes).map_err(failed("cannot remove a tap that nobody has"))
    }

    fn without_own(&self, others: &[IpNet]) -> Vec<IpNet> {
        let own = [self.config.ipv4_subnet.into(), self.config.ipv6_subnet.into()];
        others.iter().copied().filter(|net| !own.contains(net)).collect()
    }

    /// Replaces the host's addresses.
    pub(super) fn set_host(&mut self, host: &[IpNet]) -> Result<()> {
        nft::apply(&self.nft, &rules::replace("host", host))
    }

    /// Replaces the addresses that stand for the host's loopback.
    pub(super) fn set_localhost(&mut self, addresses: &[Ipv4Addr]) -> Result<()> {
        nft::apply(&self.nft, &rules::localhost(addresses))
    }

    /// Replaces the subnets of our other networks.
    pub(super) fn set_others(&mut self, others: &[IpNet]) -> Result<()> {
        let others = self.without_own(others);
        if others == self.others {
            return Ok(());
        }
        nft::apply(&self.nft, &rules::replace("others", &others))?;
        self.others = others;
        Ok(())
    }

    /// Puts a container here, with a tap that is in this namespace or is made.
    pub(super) fn attach(&mut self, port: &Port) -> Result<Option<OwnedFd>> {
        let attachment = &port.attachment;
        let container = attachment.container.as_str();
        let result = self.vacant(attachment).and_then(|()| self.attach_new(port));
        if result.is_err()
            && let Some(tap) = &port.tap
            && let Ok(Some(link)) = self.netlink.link(tap)
        {
            let _ = self.netlink.apply(vec![netlink::remove_link(link.index)]);
        }
        result.map_err(|error| {
            error.context(format!("cannot attach {container} to network {}", self.config.id))
        })
    }

    fn vacant(&self, new: &Attachment) -> Result<()> {
        if new.mac_address.0[0] & 1 != 0 || new.mac_address.0 == [0; 6] {
            let message = format!("{} is no single NIC's address", new.mac_address);
            return Err(ApiError::invalid(message));
        }
        let taken = |what: String| Err(ApiError::new(ErrorCode::AlreadyExists, what));
        if self.residents.contains_key(&new.container) {
            return taken("it is attached already".to_owned());
        }
        for (container, Resident { member, .. }) in &self.residents {
            let what = if member.ipv4 == new.ipv4_address.addr() {
                member.ipv4.to_string()
            } else if member.ipv6 == new.ipv6_address.addr() {
                member.ipv6.to_string()
            } else if member.mac == new.mac_address {
                member.mac.to_string()
            } else {
                continue;
            };
            return taken(format!("{container} has {what}"));
        }
        Ok(())
    }

    fn attach_new(&mut self, port: &Port) -> Result<Option<OwnedFd>> {
        let (name, descriptor) = match &port.tap {
            Some(name) => (name.clone(), None),
            None => {
                let name = tap::name()?;
                let descriptor = tap::make(&name)?;
                (name, Some(descriptor))
            }
        };
        let link = self
            .netlink
            .link(&name)
            .map_err(failed(format!("cannot find tap {name}")))?
            .filter(|link| link.alias.is_none() && name.starts_with(tap::PREFIX))
            .ok_or_else(|| ApiError::not_found(format!("tap {name} doesn't wait any more")))?;
        let member = Member {
            tap: name,
            mark: link.index,
            mac: port.attachment.mac_address,
            ipv4: port.attachment.ipv4_address.addr(),
            ipv6: port.attachment.ipv6_address.addr(),
        };
        let outside = outside(&port.egress);
        nft::apply(&self.nft, &rules::attach(&member, &outside))?;
        if let Err(error) = self.plug(&member, &port.attachment) {
            let _ = self.take_back(&member, &outside, &[]);
            return Err(failed("cannot put its tap on the bridge")(error));
        }
        let resident = Resident {
            member,
            outside,
            host_access: port.host_access.clone(),
            redirects: Vec::new(),
            pins: BTreeMap::new(),
        };
        self.residents.insert(port.attachment.container.clone(), resident);
        Ok(descriptor)
    }

    fn plug(&mut self, member: &Member, attachment: &Attachment) -> io::Result<()> {
        let Member { mark: index, mac, ipv4, ipv6, .. } = *member;
        let attributes = vec![
            LinkAttribute::IfAlias(format!("{ALIAS}{}", attachment.container)),
            LinkAttribute::Mtu(attachment.mtu),
            LinkAttribute::Controller(self.bridge),
        ];
        self.netlink.apply(vec![
            netlink::set_link(index, attributes),
            netlink::quiet_port(index, self.config.isolated),
            netlink::forwarding(index, mac),
            netlink::neighbour(self.bridge, ipv4.into(), mac),
            netlink::neighbour(self.bridge, ipv6.into(), mac),
            netlink::neighbour(self.bridge, rules::link_local(mac).into(), mac),
            netlink::up(index),
        ])
    }

    /// Makes the rules of a container that is here already what `port` says.
    pub(super) fn adopt(&mut self, port: &Port) -> Result<bool> {
        let new = &port.attachment;
        let Some(resident) = self.residents.get_mut(&new.container) else { return Ok(false) };
        let member = &resident.member;
        let same = member.ipv4 == new.ipv4_address.addr()
            && member.ipv6 == new.ipv6_address.addr()
            && member.mac == new.mac_address;
        if !same {
            return Ok(false);
        }
        let outside = outside(&port.egress);
        if outside != resident.outside {
            // The kernel tells only that there are few destinations; pins stay.
            let few = |outside: &Outside| matches!(outside, Outside::Only(_));
            let mut text = rules::attach(member, &outside);
            if few(&outside) != few(&resident.outside) {
                text.insert_str(0, &rules::detach_outside(member, &resident.outside));
                resident.pins.clear();
            }
            nft::apply(&self.nft, &text)?;
            resident.outside = outside;
        }
        resident.host_access = port.host_access.clone();
        Ok(true)
    }

    /// The program that knows the rules.
    pub(super) fn nft(&self) -> &Path {
        &self.nft
    }

    /// Who is here.
    pub(super) fn containers(&self) -> Vec<String> {
        self.residents.keys().cloned().collect()
    }

    pub(super) fn detach(&mut self, container: &str) -> Result<()> {
        let Some(resident) = self.residents.get(container) else { return Ok(()) };
        let (member, outside) = (resident.member.clone(), resident.outside.clone());
        let redirects = resident.redirects.clone();
        self.take_back(&member, &outside, &redirects).map_err(|error| {
            error.context(format!("cannot detach {container} from network {}", self.config.id))
        })?;
        self.residents.remove(container);
        Ok(())
    }

    /// The tap goes first: what has no port needs no rules.
    fn take_back(&mut self, member: &Member, outside: &Outside, old: &[Redirect]) -> Result<()> {
        if let Ok(Some(link)) = self.netlink.link(&member.tap) {
            let removed = self.netlink.apply(vec![netlink::remove_link(link.index)]);
            removed.map_err(failed(format!("cannot remove tap {}", member.tap)))?;
        }
        self.forget_neighbours(member);
        let text = rules::detach(member, old) + &rules::detach_outside(member, outside);
        nft::apply(&self.nft, &text)
    }

    fn forget_neighbours(&mut self, member: &Member) {
        let addresses =
            [member.ipv4.into(), member.ipv6.into(), rules::link_local(member.mac).into()];
        let changes = addresses
            .into_iter()
            .map(|address| netlink::remove_neighbour(self.bridge, address, member.mac))
            .collect();
        let _ = self.netlink.apply(changes);
    }

    pub(super) fn pin(&mut self, pin: &wire::Pin) -> Result<()> {
        let container = &pin.container;
        let resident = self.residents.get_mut(container).ok_or_else(|| {
            ApiError::not_found(format!("{container} is not on network {}", self.config.id))
        })?;
        if resident.outside == Outside::Everything {
            return Ok(());
        }
        let now = Instant::now();
        resident.pins.retain(|_, end| *end > now);
        let end = now + Duration::from_secs(pin.seconds.max(1).into());
        let ports: Vec<Option<u16>> = match pin.ports.as_slice() {
            [] => vec![None],
            ports => ports.iter().copied().map(Some).collect(),
        };
        let mut elements = Vec::new();
        for address in &pin.addresses {
            for port in &ports {
                // Another name may have the address for longer.
                if resident.pins.get(&(*address, *port)).is_none_or(|old| *old < end) {
                    elements.push(PinElement {
                        address: *address,
                        port: *port,
                        seconds: pin.seconds.max(1).into(),
                    });
                }
            }
        }
        if elements.is_empty() {
            return Ok(());
        }
        let text = rules::pin(&resident.member.tap, &elements);
        // An element can run out between two lines of it, on some kernels.
        nft::apply(&self.nft, &text).or_else(|_| nft::apply(&self.nft, &text))?;
        resident.pins.extend(elements.iter().map(|e| ((e.address, e.port), end)));
        Ok(())
    }

    pub(super) fn host_redirect(
        &mut self,
        container: &str,
        tcp: u16,
        udp: &BTreeMap<u16, u16>,
    ) -> Result<()> {
        let resident = self.residents.get_mut(container).ok_or_else(|| {
            ApiError::not_found(format!("{container} is not on network {}", self.config.id))
        })?;
        let ports = match &resident.host_access {
            HostAccess::Denied => Vec::new(),
            HostAccess::All => vec![None],
            HostAccess::Ports(ports) => {
                let mut ports: Vec<u16> = ports.iter().copied().filter(|p| *p > 0).collect();
                ports.sort_unstable();
                ports.dedup();
                ports.into_iter().map(Some).collect()
            }
        };
        let tcp = ports.iter().filter(|_| tcp > 0).map(|port| (Protocol::Tcp, *port, tcp));
        let may = |port: u16| ports.iter().any(|allowed| allowed.is_none_or(|p| p == port));
        let udp = udp.iter().filter(|(port, to)| may(**port) && **to > 0);
        let udp = udp.map(|(port, to)| (Protocol::Udp, Some(*port), *to));
        let redirects: Vec<Redirect> =
            tcp.chain(udp).map(|(protocol, port, to)| Redirect { protocol, port, to }).collect();
        let text = rules::redirect(&resident.member, &resident.redirects, &redirects);
        if !text.is_empty() {
            nft::apply(&self.nft, &text)?;
        }
        resident.redirects = redirects;
        Ok(())
    }

    pub(super) fn dropped(&mut self) -> Result<Vec<Dropped>> {
        let [bridge, inet] = nft::both(&self.nft, rules::TABLE)?;
        let mut dropped = Vec::new();
        for (container, Resident { member, .. }) in &self.residents {
            for (reason, packets) in counts::dropped(&bridge, &inet, member) {
                dropped.push(Dropped { container: Some(container.clone()), reason, packets });
            }
        }
        Ok(dropped)
    }

    /// Bytes that a container has received and sent here.
    pub(super) fn traffic(&mut self, container: &str) -> Result<Option<(u64, u64)>> {
        let Some(resident) = self.residents.get(container) else { return Ok(None) };
        let link = self
            .netlink
            .link(&resident.member.tap)
            .map_err(failed(format!("cannot read the traffic of {container}")))?;
        // What the tap has received, the container has sent.
        Ok(link.map(|link| (link.sent, link.received)))
    }

    /// Removes all that this namespace has, in case that somebody keeps it.
    pub(super) fn dismantle(&mut self) -> Result<()> {
        let links = self.netlink.links().map_err(failed("cannot list the network's links"))?;
        let ours = links.iter().filter(|l| {
            [BRIDGE, rules::UPLINK, rules::HOST_LINK].contains(&l.name.as_str())
                || l.alias.as_deref().is_some_and(|alias| alias.starts_with(ALIAS))
        });
        let changes = ours.map(|link| netlink::remove_link(link.index)).collect();
        self.netlink.apply(changes).map_err(failed("cannot remove the network's links"))?;
        self.residents.clear();
        nft::apply(&self.nft, &rules::nothing())
    }
}

/// How many connections of a container the kernel is to remember: a quarter of its table, or what
/// is plenty.
fn connections() -> u32 {
    let table = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max");
    let table: Option<u32> = table.ok().and_then(|text| text.trim().parse().ok());
    table.map_or(rules::CONNECTIONS, |most| rules::CONNECTIONS.min((most / 4).max(1)))
}

/// What all of these allow.
fn outside(egress: &[Egress]) -> Outside {
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

/// A socket in the calling thread's namespace.
pub(super) fn listen(protocol: Protocol, address: SocketAddr) -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Tcp {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    if protocol == Protocol::Tcp {
        rustix::net::listen(&socket, 4096)?;
    }
    Ok(socket)
}

/// What every namespace of ours has before it has links.
pub(super) fn settings() -> Result<()> {
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

fn make_bridge(netlink: &mut Netlink, config: &NetworkConfig) -> io::Result<netlink::Link> {
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
fn keep_answers(netlink: &mut Netlink) -> io::Result<()> {
    let lo = netlink.link("lo")?.map_or(1, |link| link.index);
    for change in netlink::keep_marked(rules::ANSWER, ANSWERS, lo) {
        match netlink.apply(vec![change]) {
            Err(error) if error.raw_os_error() != Some(nix::libc::EEXIST) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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
