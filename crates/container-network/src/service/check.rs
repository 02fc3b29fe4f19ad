//! What a container may ask for, before anything is done for it.

use std::collections::HashSet;
use std::net::IpAddr;

use container_api::network::{
    ContainerNetwork, DnsOptions, Egress, HostAccess, MAX_ATTACHMENTS, MTU, NetworkChoice,
    NetworkConfig, PublishPort, Target,
};
use container_api::{ApiError, Result};

use super::{allocate, names, subnet};

/// Most published ports of one container, each with its addresses: every one is a descriptor.
pub const MAX_PORTS: usize = 1024;
/// Most aliases on one network.
const MAX_ALIASES: usize = 64;
/// Most destinations in one egress rule.
const MAX_TARGETS: usize = 1024;
/// Most name servers (what C libraries read), search domains and options.
const MAX_DNS: [usize; 3] = [3, 32, 32];

/// Checks all of it against the networks that there are.
pub fn container<'a>(
    options: &ContainerNetwork,
    find: impl Fn(&str) -> Option<&'a NetworkConfig>,
) -> Result<()> {
    let networks = &options.networks;
    if networks.len() > MAX_ATTACHMENTS {
        let message = format!("a container can be on {MAX_ATTACHMENTS} networks at most");
        return Err(ApiError::invalid(message));
    }
    for (at, choice) in networks.iter().enumerate() {
        let name = names::shown(&choice.network);
        if networks[..at].iter().any(|other| other.network == choice.network) {
            return Err(ApiError::invalid(format!("network '{name}' is named twice")));
        }
        let config = find(&choice.network).ok_or_else(|| no_network(&choice.network))?;
        self::choice(choice, config)?;
    }
    if networks.is_empty() && !options.published_ports.is_empty() {
        return Err(ApiError::invalid("a container without a network can't publish ports"));
    }
    ports(&options.published_ports)?;
    dns(&options.dns)?;
    options.egress.as_ref().map_or(Ok(()), egress)?;
    host_access(&options.host_access)
}

/// The error for a network that is not there.
pub fn no_network(name: &str) -> ApiError {
    let name = names::shown(name);
    ApiError::not_found(format!("no network '{name}': see 'container network list'"))
}

fn choice(choice: &NetworkChoice, config: &NetworkConfig) -> Result<()> {
    choice.mac_address.map_or(Ok(()), allocate::check_mac)?;
    if let Some(mtu) = choice.mtu {
        self::mtu(mtu)?;
        if mtu > config.mtu {
            let (network, most) = (&config.id, config.mtu);
            let message = format!("mtu {mtu} is above network '{network}''s: {most}");
            return Err(ApiError::invalid(message));
        }
    }
    let of_family = |v4: bool| choice.addresses.iter().filter(|a| a.is_ipv4() == v4).count();
    if of_family(true) > 1 || of_family(false) > 1 {
        let message = format!("more than one address of a family on network '{}'", config.id);
        return Err(ApiError::invalid(message));
    }
    choice.addresses.iter().try_for_each(|address| allocate::check_fixed(config, *address))?;
    if choice.aliases.len() > MAX_ALIASES {
        let message = format!("{MAX_ALIASES} aliases on network '{}' at most", config.id);
        return Err(ApiError::invalid(message));
    }
    choice.aliases.iter().try_for_each(|alias| names::check_alias(alias).map(drop))
}

/// Checks an MTU.
pub fn mtu(mtu: u32) -> Result<()> {
    match MTU.contains(&mtu) {
        true => Ok(()),
        false => {
            let (least, most) = (MTU.start(), MTU.end());
            Err(ApiError::invalid(format!("mtu {mtu} is not between {least} and {most}")))
        }
    }
}

fn ports(ports: &[PublishPort]) -> Result<()> {
    let mut seen = HashSet::new();
    let mut total = 0;
    for port in ports {
        let (host, inner, count) = (port.host_port, port.container_port, port.count);
        let shown = || format!("published port {host}:{inner}/{} ({count} of them)", port.protocol);
        let beyond = |first: u16| u32::from(first) + u32::from(count) > 65_536;
        if count == 0 || inner == 0 || beyond(inner) || host != 0 && beyond(host) {
            return Err(ApiError::invalid(format!("{}: ports are 1 to 65535", shown())));
        }
        if let Some(address) = port.host_address
            && !(address.is_unspecified() || subnet::is_unicast(address))
        {
            let message = format!("{}: {address} is no address of a host", shown());
            return Err(ApiError::invalid(message));
        }
        total += usize::from(count);
        if total > MAX_PORTS {
            return Err(ApiError::invalid(format!("{MAX_PORTS} published ports at most")));
        }
        let range = if host == 0 { 0..0 } else { 0..count };
        for offset in range {
            if !seen.insert((port.protocol, port.host_address, host + offset)) {
                let message =
                    format!("host port {}/{} is published twice", host + offset, port.protocol);
                return Err(ApiError::invalid(message));
            }
        }
    }
    Ok(())
}

fn dns(dns: &DnsOptions) -> Result<()> {
    let counts = [dns.nameservers.len(), dns.search.len(), dns.options.len()];
    let what = ["name servers", "search domains", "DNS options"];
    for ((count, most), what) in counts.into_iter().zip(MAX_DNS).zip(what) {
        if count > most {
            return Err(ApiError::invalid(format!("{most} {what} at most")));
        }
    }
    for server in &dns.nameservers {
        if !subnet::is_unicast(*server) {
            return Err(ApiError::invalid(format!("{server} is no name server's address")));
        }
    }
    for domain in dns.domain.iter().chain(&dns.search).filter(|domain| *domain != ".") {
        names::check_domain(domain)?;
    }
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_:.".contains(&b);
    match dns.options.iter().find(|o| o.is_empty() || o.len() > 64 || !o.bytes().all(legal)) {
        None => Ok(()),
        Some(option) => {
            Err(ApiError::invalid(format!("invalid DNS option '{}'", names::shown(option))))
        }
    }
}

/// Checks an egress rule.
pub fn egress(egress: &Egress) -> Result<()> {
    let Egress::Only(targets) = egress else { return Ok(()) };
    if targets.len() > MAX_TARGETS {
        return Err(ApiError::invalid(format!("{MAX_TARGETS} allowed destinations at most")));
    }
    targets.iter().try_for_each(target)
}

fn target(target: &Target) -> Result<()> {
    let port = match target {
        Target::Host { name, port } => {
            let plain = name.strip_prefix("*.").unwrap_or(name);
            // An address would be a name that nothing resolves.
            if !names::is_domain(plain) || plain.parse::<IpAddr>().is_ok() {
                let message =
                    format!("'{}' is no host to allow: NAME or *.NAME", names::shown(name));
                return Err(ApiError::invalid(message));
            }
            port
        }
        Target::Cidr { net, port } => {
            if net.addr() != net.network() {
                let meant = net.trunc();
                return Err(ApiError::invalid(format!("{net} has host bits: {meant} is meant")));
            }
            port
        }
    };
    match port {
        Some(0) => Err(ApiError::invalid("port 0 can't be allowed")),
        _ => Ok(()),
    }
}

/// Checks what of the host is to be reached.
pub fn host_access(access: &HostAccess) -> Result<()> {
    match access {
        HostAccess::Ports(ports) if ports.is_empty() || ports.contains(&0) => {
            Err(ApiError::invalid("host access needs ports from 1 to 65535"))
        }
        HostAccess::Ports(ports) if ports.len() > MAX_PORTS => {
            Err(ApiError::invalid(format!("{MAX_PORTS} ports of host access at most")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::tests::network;
    use container_api::network::{Mac, Protocol};

    fn on(network: &str) -> NetworkChoice {
        NetworkChoice { network: network.into(), ..NetworkChoice::default() }
    }

    fn port(host_port: u16, container_port: u16, count: u16) -> PublishPort {
        let protocol = Protocol::Tcp;
        PublishPort { host_address: None, host_port, container_port, count, protocol }
    }

    fn check(change: impl FnOnce(&mut ContainerNetwork)) -> Result<()> {
        let known = network("default", "10.0.0.0/24", "fd00::/64");
        let mut options =
            ContainerNetwork { networks: vec![on("default")], ..ContainerNetwork::default() };
        change(&mut options);
        container(&options, |name| (name == "default").then_some(&known))
    }

    fn refused(reason: &str, change: impl FnOnce(&mut ContainerNetwork)) {
        let error = check(change).expect_err(reason);
        assert!(error.message.contains(reason) && !error.message.contains('\n'), "{error}");
    }

    #[test]
    fn networks() {
        check(|_| ()).unwrap();
        check(|o| o.networks.clear()).unwrap();
        refused("no network 'lost'", |o| o.networks.push(on("lost")));
        refused("named twice", |o| o.networks.push(on("default")));
        refused("5 networks", |o| o.networks = (0..6).map(|i| on(&i.to_string())).collect());
        refused("multicast", |o| o.networks[0].mac_address = Some(Mac([1, 0, 0, 0, 0, 1])));
        refused("not between", |o| o.networks[0].mtu = Some(1279));
        refused("above network", |o| o.networks[0].mtu = Some(9000));
        refused("not in its subnet", |o| {
            o.networks[0].addresses = vec!["10.9.0.1".parse().unwrap()]
        });
        refused("of a family", |o| {
            o.networks[0].addresses = vec!["10.0.0.5".parse().unwrap(), "10.0.0.6".parse().unwrap()]
        });
        refused("invalid alias", |o| o.networks[0].aliases.push("a b".into()));
        refused("the host's", |o| o.networks[0].aliases.push("host.docker.internal".into()));
    }

    #[test]
    fn published_ports() {
        check(|o| o.published_ports = vec![port(8080, 80, 1), port(0, 80, 1), port(0, 80, 1)])
            .unwrap();
        check(|o| o.published_ports = vec![port(65_000, 1, 536)]).unwrap();
        refused("1 to 65535", |o| o.published_ports.push(port(80, 0, 1)));
        refused("1 to 65535", |o| o.published_ports.push(port(80, 80, 0)));
        refused("1 to 65535", |o| o.published_ports.push(port(65_535, 80, 2)));
        refused("1 to 65535", |o| o.published_ports.push(port(80, 65_535, 2)));
        refused("published twice", |o| o.published_ports = vec![port(80, 80, 3), port(82, 82, 1)]);
        refused("1024 published ports", |o| o.published_ports.push(port(1000, 1000, 1025)));
        refused("no address of a host", |o| {
            let host_address = Some("224.0.0.1".parse().unwrap());
            o.published_ports.push(PublishPort { host_address, ..port(80, 80, 1) });
        });
        refused("without a network", |o| {
            o.networks.clear();
            o.published_ports.push(port(80, 80, 1));
        });
    }

    #[test]
    fn names_and_rules() {
        refused("invalid domain", |o| o.dns.search.push("a\nnameserver 1.1.1.1".into()));
        refused("invalid DNS option", |o| o.dns.options.push("ndots:1\nnameserver x".into()));
        refused("no name server's", |o| o.dns.nameservers.push("0.0.0.0".parse().unwrap()));
        refused("3 name servers", |o| o.dns.nameservers = vec!["10.0.0.1".parse().unwrap(); 4]);
        let only = |target| Some(Egress::Only(vec![target]));
        let host = |name: &str| Target::Host { name: name.into(), port: Some(443) };
        let cidr = |net: &str, port| Target::Cidr { net: net.parse().unwrap(), port };
        check(|o| o.egress = only(host("*.example.com"))).unwrap();
        check(|o| o.egress = only(cidr("10.0.0.0/8", None))).unwrap();
        check(|o| o.egress = Some(Egress::Only(vec![]))).unwrap();
        for name in ["", "*", "*.", "a.*.b", "Upper.example", "a b", "1.2.3.4"] {
            refused("no host to allow", |o| o.egress = only(host(name)));
        }
        refused("host bits", |o| o.egress = only(cidr("10.0.0.1/8", None)));
        refused("port 0", |o| o.egress = only(cidr("10.0.0.0/8", Some(0))));
        refused("1 to 65535", |o| o.host_access = HostAccess::Ports(vec![0]));
        refused("1 to 65535", |o| o.host_access = HostAccess::Ports(vec![]));
    }
}
