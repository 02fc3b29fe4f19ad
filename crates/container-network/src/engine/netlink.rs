//! What the kernel is told of links, addresses, neighbours and routes, over one socket of the
//! namespace where it was opened.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use container_api::network::Mac;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// A change, to be sent with others.
pub(super) type Change = (RouteNetlinkMessage, u16);

const MAKE: u16 = NLM_F_CREATE | NLM_F_EXCL;
const SET: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// A socket that asks.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens it in the calling thread's namespace.
    pub(super) fn open() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Strict: a dump of one table is asked of the kernel, not filtered here. Old kernels lack it.
        let _ = socket.set_netlink_get_strict_chk(true);
        let _ = socket.set_cap_ack(true);
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Makes changes, in order, in one go. The error is the first one's; those after a failed one
    /// have been tried as well.
    pub(super) fn apply(&mut self, changes: Vec<Change>) -> io::Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let first = self.sequence.wrapping_add(1);
        let count = changes.len();
        let mut bytes = Vec::with_capacity(128 * count);
        for (message, flags) in changes {
            self.push(&mut bytes, message, NLM_F_REQUEST | NLM_F_ACK | flags);
        }
        self.socket.send(&bytes, 0)?;
        let mut error = None;
        let mut acknowledged = 0;
        while acknowledged < count {
            self.receive(|header, payload| {
                if header.sequence_number.wrapping_sub(first) as usize >= count {
                    return; // of an exchange that failed
                }
                if let NetlinkPayload::Error(answer) = payload {
                    acknowledged += 1;
                    if answer.code.is_some() && error.is_none() {
                        error = Some(answer.to_io());
                    }
                }
            })?;
        }
        error.map_or(Ok(()), Err)
    }

    /// Asks for what there is.
    fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.ask(message, NLM_F_REQUEST | NLM_F_DUMP)
    }

    fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut bytes = Vec::new();
        self.push(&mut bytes, message, flags);
        self.socket.send(&bytes, 0)?;
        let sequence = self.sequence;
        let (mut found, mut done, mut error) = (Vec::new(), false, None);
        while !done {
            self.receive(|header, payload| {
                if header.sequence_number != sequence {
                    return;
                }
                match payload {
                    NetlinkPayload::InnerMessage(inner) => {
                        found.push(inner);
                        done |= flags & NLM_F_DUMP == 0;
                    }
                    NetlinkPayload::Done(_) => done = true,
                    NetlinkPayload::Error(answer) => {
                        done = true;
                        error = answer.code.is_some().then(|| answer.to_io());
                    }
                    _ => {}
                }
            })?;
        }
        error.map_or(Ok(found), Err)
    }

    fn push(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
    }

    fn receive(
        &mut self,
        mut each: impl FnMut(NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>),
    ) -> io::Result<()> {
        let (bytes, _) = self.socket.recv_from_full()?;
        let mut rest = &bytes[..];
        while rest.len() >= 16 {
            // The length of a message that can't be parsed still leads to the next one.
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            if length < 16 || length > rest.len() {
                return Err(io::Error::from(io::ErrorKind::InvalidData));
            }
            if let Ok(message) = NetlinkMessage::deserialize(&rest[..length]) {
                each(message.header, message.payload);
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
        Ok(())
    }

    /// All links.
    pub(super) fn links(&mut self) -> io::Result<Vec<Link>> {
        let answers = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(answers.into_iter().filter_map(Link::from_message).collect())
    }

    /// The link of that name, if there is one.
    pub(super) fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.ask(RouteNetlinkMessage::GetLink(message), NLM_F_REQUEST) {
            Ok(answers) => Ok(answers.into_iter().find_map(Link::from_message)),
            Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Routes of all families.
    pub(super) fn routes(&mut self) -> io::Result<Vec<RouteMessage>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            for answer in self.dump(RouteNetlinkMessage::GetRoute(message))? {
                if let RouteNetlinkMessage::NewRoute(route) = answer {
                    routes.push(route);
                }
            }
        }
        Ok(routes)
    }
}

/// What is known of a link.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) alias: Option<String>,
    pub(super) mac: Option<Mac>,
    /// The other end's index in its own namespace (of a veth).
    pub(super) peer: Option<u32>,
    pub(super) received: u64,
    pub(super) sent: u64,
}

impl Link {
    fn from_message(message: RouteNetlinkMessage) -> Option<Link> {
        let RouteNetlinkMessage::NewLink(message) = message else { return None };
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            alias: None,
            mac: None,
            peer: None,
            received: 0,
            sent: 0,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
                LinkAttribute::Link(peer) => link.peer = Some(peer),
                LinkAttribute::Stats64(stats) => {
                    (link.received, link.sent) = (stats.rx_bytes, stats.tx_bytes);
                }
                _ => {}
            }
        }
        Some(link)
    }
}

fn link(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

/// Makes a bridge: no spanning tree, no snooping.
pub(super) fn make_bridge(name: &str, mac: Mac, mtu: u32) -> Change {
    let settings = vec![
        InfoBridge::ForwardDelay(0),
        InfoBridge::MulticastSnooping(false),
        InfoBridge::MulticastQuerier(false),
        InfoBridge::AgeingTime(0),
    ];
    let attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(settings)),
        ]),
    ];
    (RouteNetlinkMessage::NewLink(link(0, attributes)), MAKE)
}

/// Makes a pair of links, the second one in another namespace.
pub(super) fn make_veth(
    name: &str,
    mac: Mac,
    peer: &str,
    peer_mac: Mac,
    peer_namespace: BorrowedFd<'_>,
) -> Change {
    let other = link(
        0,
        vec![
            LinkAttribute::IfName(peer.to_owned()),
            LinkAttribute::Address(peer_mac.0.to_vec()),
            LinkAttribute::NetNsFd(peer_namespace.as_raw_fd()),
        ],
    );
    let attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]),
    ];
    (RouteNetlinkMessage::NewLink(link(0, attributes)), MAKE)
}

/// Switches a link on.
pub(super) fn up(index: u32) -> Change {
    let mut message = link(index, Vec::new());
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    (RouteNetlinkMessage::SetLink(message), 0)
}

/// Sets attributes of a link.
pub(super) fn set_link(index: u32, attributes: Vec<LinkAttribute>) -> Change {
    (RouteNetlinkMessage::SetLink(link(index, attributes)), 0)
}

/// Removes a link.
pub(super) fn remove_link(index: u32) -> Change {
    (RouteNetlinkMessage::DelLink(link(index, Vec::new())), 0)
}

/// Makes a link of a bridge's a port that learns and floods nothing.
pub(super) fn quiet_port(index: u32, isolated: bool) -> Change {
    let settings = vec![
        InfoBridgePort::Learning(false),
        InfoBridgePort::UnicastFlood(false),
        InfoBridgePort::MulticastFlood(false),
        InfoBridgePort::BroadcastFlood(false),
        InfoBridgePort::Guard(true),
        InfoBridgePort::Protect(true),
        InfoBridgePort::Isolated(isolated),
    ];
    let attributes = vec![LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(settings)),
    ])];
    (RouteNetlinkMessage::NewLink(link(index, attributes)), 0)
}

/// An address on a link, usable at once.
pub(super) fn address(index: u32, address: IpAddr, prefix: u8) -> Change {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = prefix;
    message.header.family = family(address);
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
        AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Permanent),
    ];
    (RouteNetlinkMessage::NewAddress(message), SET)
}

/// A neighbour that is never asked for.
pub(super) fn neighbour(index: u32, address: IpAddr, mac: Mac) -> Change {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    let destination = match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(destination),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    (RouteNetlinkMessage::NewNeighbour(message), SET)
}

/// Takes one back.
pub(super) fn remove_neighbour(index: u32, address: IpAddr, mac: Mac) -> Change {
    match neighbour(index, address, mac) {
        (RouteNetlinkMessage::NewNeighbour(message), _) => {
            (RouteNetlinkMessage::DelNeighbour(message), 0)
        }
        other => other,
    }
}

/// An entry of a bridge's table: this address is behind that port.
pub(super) fn forwarding(index: u32, mac: Mac) -> Change {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    // NUD_NOARP: static, not the bridge's own.
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
    (RouteNetlinkMessage::NewNeighbour(message), SET)
}

/// A route.
pub(super) struct Route {
    pub(super) destination: IpAddr,
    pub(super) prefix: u8,
    pub(super) link: u32,
    pub(super) gateway: Option<IpAddr>,
    pub(super) source: Option<IpAddr>,
}

/// Adds a route; one that is there is left alone, and an error.
pub(super) fn route(route: &Route) -> Change {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.destination);
    message.header.destination_prefix_length = route.prefix;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = match route.gateway {
        Some(_) => RouteScope::Universe,
        None => RouteScope::Link,
    };
    if route.prefix > 0 {
        message.attributes.push(RouteAttribute::Destination(route.destination.into()));
    }
    message.attributes.push(RouteAttribute::Oif(route.link));
    if let Some(gateway) = route.gateway {
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
        message.header.flags = netlink_packet_route::route::RouteFlags::Onlink;
    }
    if let Some(source) = route.source {
        message.attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    (RouteNetlinkMessage::NewRoute(message), MAKE)
}

/// Has packets with this mark be the namespace's own, whatever address they go to: a rule and a
/// table of its own for each family. Both are an error where they are there.
pub(super) fn keep_marked(mark: u32, table: u8, loopback: u32) -> Vec<Change> {
    let mut changes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut rule = RuleMessage::default();
        rule.header.family = family;
        rule.header.table = table;
        rule.header.action = RuleAction::ToTable;
        rule.attributes = vec![RuleAttribute::FwMark(mark), RuleAttribute::FwMask(u32::MAX)];
        changes.push((RouteNetlinkMessage::NewRule(rule), MAKE));
        let mut route = RouteMessage::default();
        route.header.address_family = family;
        route.header.table = table;
        route.header.protocol = RouteProtocol::Static;
        route.header.kind = RouteType::Local;
        route.header.scope = RouteScope::Host;
        route.attributes.push(RouteAttribute::Oif(loopback));
        changes.push((RouteNetlinkMessage::NewRoute(route), MAKE));
    }
    changes
}

/// The address in an attribute of a route.
pub(super) fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
