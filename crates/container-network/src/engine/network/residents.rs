//! The containers of a network: their taps, neighbours and elements of the rules.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use container_api::error::{ApiError, ErrorCode, Result};
use container_api::network::{Attachment, Dropped, HostAccess, Protocol};
use netlink_packet_route::link::LinkAttribute;

use super::outside::outside;
use super::{ALIAS, Network};
use crate::engine::namespace::failed;
use crate::engine::rules::{self, Member, Outside, PinElement, Redirect};
use crate::engine::{Port, counts, netlink, nft, tap};
use crate::wire;

/// A container that is attached.
#[derive(Debug)]
pub(super) struct Resident {
    pub(super) member: Member,
    pub(super) outside: Outside,
    pub(super) host_access: HostAccess,
    pub(super) redirects: Vec<Redirect>,
    /// When which pin ends.
    pub(super) pins: BTreeMap<(IpAddr, Option<u16>), Instant>,
}

impl Network {
    /// Puts a container here, with a tap that is in this namespace or is made.
    pub(in crate::engine) fn attach(&mut self, port: &Port) -> Result<Option<OwnedFd>> {
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
    pub(in crate::engine) fn adopt(&mut self, port: &Port) -> Result<bool> {
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

    /// Who is here.
    pub(in crate::engine) fn containers(&self) -> Vec<String> {
        self.residents.keys().cloned().collect()
    }

    pub(in crate::engine) fn detach(&mut self, container: &str) -> Result<()> {
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

    pub(super) fn forget_neighbours(&mut self, member: &Member) {
        let addresses =
            [member.ipv4.into(), member.ipv6.into(), rules::link_local(member.mac).into()];
        let changes = addresses
            .into_iter()
            .map(|address| netlink::remove_neighbour(self.bridge, address, member.mac))
            .collect();
        let _ = self.netlink.apply(changes);
    }

    pub(in crate::engine) fn pin(&mut self, pin: &wire::Pin) -> Result<()> {
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

    pub(in crate::engine) fn host_redirect(
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

    pub(in crate::engine) fn dropped(&mut self) -> Result<Vec<Dropped>> {
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
    pub(in crate::engine) fn traffic(&mut self, container: &str) -> Result<Option<(u64, u64)>> {
        let Some(resident) = self.residents.get(container) else { return Ok(None) };
        let link = self
            .netlink
            .link(&resident.member.tap)
            .map_err(failed(format!("cannot read the traffic of {container}")))?;
        // What the tap has received, the container has sent.
        Ok(link.map(|link| (link.sent, link.received)))
    }
}
