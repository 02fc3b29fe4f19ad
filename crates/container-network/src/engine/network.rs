//! One network: the state of the thread that lives in its namespace.

mod foundation;
mod outside;
mod residents;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use container_api::error::{ApiError, Result};
use container_api::network::{HostAccess, Mac, NetworkConfig};
use ipnet::IpNet;

pub(super) use self::foundation::settings;
use self::foundation::{connections, keep_answers, make_bridge};
use self::residents::Resident;
use super::namespace::failed;
use super::netlink::{self, Netlink};
use super::rules::{self, BRIDGE};
use super::{NetworkPlan, counts, nft};

/// What a tap's alias begins with; the container's id follows.
pub(super) const ALIAS: &str = "container ";

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

    /// The program that knows the rules.
    pub(super) fn nft(&self) -> &Path {
        &self.nft
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
