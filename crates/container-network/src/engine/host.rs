//! The host's network: its own addresses, and as root the link between it and a network.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::path::Path;

use container_api::error::{ApiError, ErrorCode, Result};
use container_api::network::{Mac, NetworkConfig};
use ipnet::IpNet;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::namespace::{failed, sysctl};
use super::netlink::{self, Netlink, Route};
use super::rules::{HOST_LINK, HOST4, HOST6};
use super::{nft, tap};

/// Table of the addresses that are the host's own.
const LOCAL: u32 = 255;
/// The namespace's addresses on the link to the host.
const INSIDE4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 6);
const INSIDE6: Ipv6Addr = Ipv6Addr::new(0xfd63, 0x6f6e, 0x7461, 0x696e, 0, 0, 0, 6);
/// What our links' names on the host begin with.
const PREFIX: &str = "ctr";
/// What our tables' names on the host begin with; the link's name follows.
const TABLE: &str = "container_";

/// What the host's routes say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// All destinations that are the host itself, or its broadcast addresses.
    pub(super) own: Vec<IpNet>,
    /// Whether IPv4 leads out.
    pub(super) leads4: bool,
    /// Whether IPv6 leads out.
    pub(super) leads6: bool,
}

impl State {
    /// Reads it; in the host's namespace.
    pub(super) fn read(netlink: &mut Netlink) -> io::Result<State> {
        let mut state = State::default();
        for route in netlink.routes()? {
            let length = route.header.destination_prefix_length;
            let v4 = route.header.address_family == netlink_packet_route::AddressFamily::Inet;
            if table(&route) == LOCAL {
                let destination = route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Destination(address) => netlink::route_address(address),
                    _ => None,
                });
                let ours = [RouteType::Local, RouteType::Broadcast, RouteType::Anycast];
                if let Some(net) = destination.and_then(|a| IpNet::new(a, length).ok())
                    && ours.contains(&route.header.kind)
                {
                    state.own.push(net);
                }
            } else if length <= 1 && route.header.kind == RouteType::Unicast {
                // A default route, or a half of one.
                state.leads4 |= v4;
                state.leads6 |= !v4;
            }
        }
        state.own.sort_unstable();
        state.own.dedup();
        Ok(state)
    }

    /// The single addresses among the host's own.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let single = self.own.iter().filter(|net| net.prefix_len() == net.max_prefix_len());
        single.map(IpNet::addr).collect()
    }
}

fn table(route: &RouteMessage) -> u32 {
    let wide = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    wide.unwrap_or(route.header.table.into())
}

/// Hears of every change of the host's addresses and routes.
pub(super) struct Changes(AsyncFd<Socket>);

impl Changes {
    /// Listens; within the host's namespace and a tokio runtime.
    pub(super) fn open() -> io::Result<Changes> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for group in [5, 7, 9, 11] {
            // RTNLGRP_IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        // SAFETY: the socket owns its descriptor and never changes it.
        unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }
            .map(Changes)
            .map_err(|error| error.into_parts().1)
    }

    /// Waits for one or more.
    pub(super) async fn next(&mut self) -> io::Result<()> {
        let mut heard = false;
        let mut buffer = Vec::with_capacity(1 << 16);
        while !heard {
            let mut guard = self.0.readable().await?;
            loop {
                buffer.clear();
                match guard.get_inner().recv(&mut buffer, 0) {
                    Ok(_) => heard = true,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // Too many to keep: all is read again anyway.
                    Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => heard = true,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            guard.clear_ready();
        }
        Ok(())
    }
}

/// The host's end of the link to a network.
#[derive(Clone, Debug)]
pub(super) struct Link {
    name: String,
}

impl Link {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// The alias of a network's link on the host: `run` tells one installation's from another's.
fn alias(run: &Path, network: &str) -> String {
    // FNV-1a: the same in every version of this program.
    let hash = run.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| {
        (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("container {hash:016x} {network}")
}

/// The links of this installation's on the host, without those of networks to `keep`.
pub(super) fn strays(
    host: &mut Netlink,
    run: &Path,
    keep: impl Fn(&str) -> bool,
) -> Result<Vec<Link>> {
    let links = host.links().map_err(failed("cannot list the host's links"))?;
    let ours = alias(run, "");
    let stray = |link: &netlink::Link| {
        let network = link.alias.as_deref().and_then(|alias| alias.strip_prefix(&ours));
        network.is_some_and(|network| !keep(network))
    };
    Ok(links.into_iter().filter(stray).map(|link| Link { name: link.name }).collect())
}

fn mac() -> Result<Mac> {
    let mut bytes = [0; 6];
    tap::getrandom(&mut bytes)?;
    bytes[0] = bytes[0] & 0xfc | 2;
    Ok(Mac(bytes))
}

/// Joins a network's namespace to the host's: a pair of links, a route to the network, and a table
/// of our own that lets nobody be forwarded over it. Answer: the address of the host's end too.
pub(super) fn join(
    host: &mut Netlink,
    nft: &Path,
    run: &Path,
    config: &NetworkConfig,
    namespace: BorrowedFd<'_>,
) -> Result<(Link, Mac)> {
    let mut bytes = [0; 4];
    tap::getrandom(&mut bytes)?;
    let name = format!("{PREFIX}{:08x}", u32::from_ne_bytes(bytes));
    let (outer, inner) = (mac()?, mac()?);
    let link = Link { name: name.clone() };
    let alias = alias(run, &config.id);
    let made = make(host, nft, config, namespace, (&name, &alias), (outer, inner));
    if let Err(error) = made {
        let _ = part(host, nft, &link);
        return Err(error.context(format!("cannot join network {} to the host", config.id)));
    }
    Ok((link, outer))
}

fn make(
    host: &mut Netlink,
    nft: &Path,
    config: &NetworkConfig,
    namespace: BorrowedFd<'_>,
    (name, alias): (&str, &str),
    (outer, inner): (Mac, Mac),
) -> Result<()> {
    let rules = format!(
        "table inet {TABLE}{name} {{\n  chain forward {{\n    \
         type filter hook forward priority -10; policy accept;\n    \
         iifname \"{name}\" drop\n    oifname \"{name}\" drop\n  }}\n}}\n"
    );
    let io = |what: &'static str| failed(format!("{what} {name}"));
    let pair = netlink::make_veth(name, outer, HOST_LINK, inner, namespace);
    host.apply(vec![pair]).map_err(io("cannot make link"))?;
    // In this order: a table without its link is taken for one that was left ([`tidy`]).
    nft::apply(nft, &rules)?;
    let index = index_of(host, name)?;
    sysctl(&[
        (&format!("ipv4/conf/{name}/forwarding"), "0"),
        (&format!("ipv4/conf/{name}/accept_redirects"), "0"),
        (&format!("ipv4/conf/{name}/send_redirects"), "0"),
        (&format!("ipv6/conf/{name}/disable_ipv6"), "0"),
        (&format!("ipv6/conf/{name}/addr_gen_mode"), "1"),
        (&format!("ipv6/conf/{name}/accept_ra"), "0"),
        (&format!("ipv6/conf/{name}/accept_redirects"), "0"),
        (&format!("ipv6/conf/{name}/forwarding"), "0"),
    ])?;
    host.apply(vec![
        // The kernel takes no alias for a link that it is to make.
        netlink::set_link(index, vec![LinkAttribute::IfAlias(alias.to_owned())]),
        netlink::address(index, HOST4.into(), 32),
        netlink::address(index, HOST6.into(), 128),
        netlink::neighbour(index, INSIDE4.into(), inner),
        netlink::neighbour(index, INSIDE6.into(), inner),
        netlink::up(index),
    ])
    .map_err(io("cannot set up link"))?;
    let route = |net: IpNet, gateway: IpAddr, source: IpAddr| {
        netlink::route(&Route {
            destination: net.addr(),
            prefix: net.prefix_len(),
            link: index,
            gateway: Some(gateway),
            source: Some(source),
        })
    };
    host.apply(vec![
        route(config.ipv4_subnet.into(), INSIDE4.into(), HOST4.into()),
        route(config.ipv6_subnet.into(), INSIDE6.into(), HOST6.into()),
    ])
    .map_err(|error| match error.raw_os_error() {
        Some(nix::libc::EEXIST) => taken(config),
        _ => io("cannot add the routes over")(error),
    })
}

/// Somebody else, such as another installation, was quicker.
fn taken(config: &NetworkConfig) -> ApiError {
    let message = format!(
        "the host has a route of its own to {} or {} by now: remove that, or delete the network \
         and create it with another --subnet",
        config.ipv4_subnet, config.ipv6_subnet
    );
    ApiError::new(ErrorCode::AlreadyExists, message)
}

fn index_of(netlink: &mut Netlink, name: &str) -> Result<u32> {
    let link = netlink.link(name).map_err(failed(format!("cannot find link {name}")))?;
    link.map(|link| link.index).ok_or_else(|| ApiError::not_found(format!("link {name} is gone")))
}

/// The namespace's side of [`join`]; there.
pub(super) fn join_inside(inside: &mut Netlink, outer: Mac) -> Result<()> {
    let index = index_of(inside, HOST_LINK)?;
    sysctl(&[(&format!("ipv6/conf/{HOST_LINK}/disable_ipv6"), "0")])?;
    let route = |address: IpAddr| {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        Route { destination: address, prefix, link: index, gateway: None, source: None }
    };
    inside
        .apply(vec![
            netlink::address(index, INSIDE4.into(), 32),
            netlink::address(index, INSIDE6.into(), 128),
            netlink::neighbour(index, HOST4.into(), outer),
            netlink::neighbour(index, HOST6.into(), outer),
            netlink::up(index),
        ])
        .and_then(|()| {
            inside.apply(vec![
                netlink::route(&route(HOST4.into())),
                netlink::route(&route(HOST6.into())),
            ])
        })
        .map_err(failed("cannot set up the link to the host"))
}

/// Finds the host's end again by the index that the namespace's end names.
pub(super) fn find(host: &mut Netlink, index: u32) -> Result<Option<Link>> {
    let links = host.links().map_err(failed("cannot list the host's links"))?;
    let found = links.into_iter().find(|l| l.index == index && l.name.starts_with(PREFIX));
    Ok(found.map(|link| Link { name: link.name }))
}

/// Takes [`join`] back; its routes and addresses go with the link.
pub(super) fn part(host: &mut Netlink, nft: &Path, link: &Link) -> Result<()> {
    let name = &link.name;
    if let Ok(Some(link)) = host.link(name) {
        let removed = host.apply(vec![netlink::remove_link(link.index)]);
        removed.map_err(failed(format!("cannot remove link {name}")))?;
    }
    nft::apply(nft, &format!("table inet {TABLE}{name}\ndelete table inet {TABLE}{name}\n"))
}

/// Removes the tables whose links are gone with their namespaces.
pub(super) fn tidy(host: &mut Netlink, nft: &Path) -> Result<()> {
    let links = host.links().map_err(failed("cannot list the host's links"))?;
    let prefix = format!("{TABLE}{PREFIX}");
    for table in nft::tables(nft, "inet")? {
        let Some(link) = table.strip_prefix(TABLE).filter(|_| table.starts_with(&prefix)) else {
            continue;
        };
        if !links.iter().any(|l| l.name == link) {
            nft::apply(nft, &format!("table inet {table}\ndelete table inet {table}\n"))?;
        }
    }
    Ok(())
}
