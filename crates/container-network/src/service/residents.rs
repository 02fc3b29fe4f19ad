//! What a network's resolver is told.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use container_api::network::{Attachment, Mode, NetworkConfig};

use super::names;
use super::records::{Record, joined};
use crate::engine::Port;
use crate::wire::{Elsewhere, Resident, ResolverConfig};

/// What all resolvers are told alike.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Names also resolve below this domain.
    pub domain: Option<String>,
    /// The host's resolvers.
    pub upstreams: Vec<SocketAddr>,
    /// The host's addresses.
    pub host_addresses: Vec<IpAddr>,
    /// Names of the host beside the usual ones.
    pub host_names: Vec<String>,
}

/// All that the resolver of `config` is to know. `records` are in the order of their attachment.
pub fn resolver<'a>(
    config: &NetworkConfig,
    records: &[&Record],
    find: impl Fn(&str) -> Option<&'a NetworkConfig>,
    around: &Surroundings,
) -> ResolverConfig {
    let containers = on(records, &config.id).map(|(record, own, names)| Resident {
        container: record.container.clone(),
        names,
        ipv4: Some(own.ipv4_address.addr()),
        ipv6: Some(own.ipv6_address.addr()),
        egress: egress(config, record),
        host_access: joined(&config.host_access, &record.options.host_access),
        sees_neighbours: !config.isolated,
        elsewhere: elsewhere(record, &config.id, records, &find),
    });
    let upstreams = match config.mode {
        Mode::Nat => around.upstreams.clone(),
        Mode::HostOnly => Vec::new(),
    };
    ResolverConfig {
        network: config.id.clone(),
        gateways: vec![config.ipv4_gateway.into(), config.ipv6_gateway.into()],
        subnets: vec![config.ipv4_subnet.into(), config.ipv6_subnet.into()],
        domain: around.domain.clone(),
        upstreams,
        containers: containers.collect(),
        host_addresses: around.host_addresses.clone(),
        host_names: around.host_names.clone(),
        ..ResolverConfig::default()
    }
}

/// What the resolver that answers the host is to know.
pub fn for_host(
    records: &[&Record],
    domains: Vec<String>,
    around: &Surroundings,
) -> ResolverConfig {
    let containers = records.iter().filter_map(|record| {
        let first = record.attachments.first()?;
        let (_, own, names) =
            on(records, &first.network).find(|(other, ..)| other.container == record.container)?;
        Some(Resident {
            container: record.container.clone(),
            names,
            ipv4: Some(own.ipv4_address.addr()),
            ipv6: Some(own.ipv6_address.addr()),
            ..Resident::default()
        })
    });
    ResolverConfig {
        containers: containers.collect(),
        host_names: around.host_names.clone(),
        host_domains: domains,
        ..ResolverConfig::default()
    }
}

/// The containers on a network with their names there. Ids and aliases are one's own; a host name
/// is a name too where nobody has it: several containers may have the same.
fn on<'a>(
    records: &'a [&'a Record],
    network: &'a str,
) -> impl Iterator<Item = (&'a Record, &'a Attachment, Vec<String>)> + 'a {
    let here = move || {
        records.iter().filter_map(move |record| {
            let own = record.attachments.iter().find(|own| own.network == network)?;
            Some((*record, own))
        })
    };
    let mut claimed: HashSet<String> =
        here().flat_map(|(record, own)| claims(record, own)).collect();
    here().map(move |(record, own)| {
        let mut all: Vec<String> = claims(record, own).collect();
        if let Some(hostname) = names::resolvable(&record.hostname)
            && claimed.insert(hostname.clone())
        {
            all.push(hostname);
        }
        (record, own, all)
    })
}

/// The names that are a container's and nobody else's on a network.
pub fn claims<'a>(
    record: &'a Record,
    attachment: &'a Attachment,
) -> impl Iterator<Item = String> + 'a {
    let id = names::resolvable(&record.container);
    id.into_iter().chain(attachment.aliases.iter().cloned())
}

fn elsewhere<'a>(
    record: &Record,
    here: &str,
    records: &[&Record],
    find: impl Fn(&str) -> Option<&'a NetworkConfig>,
) -> Vec<Elsewhere> {
    let others = record.attachments.iter().map(|own| own.network.as_str());
    let open =
        others.filter(|network| *network != here && find(network).is_some_and(|net| !net.isolated));
    let mut found = Vec::new();
    for network in open {
        for (_, own, names) in on(records, network) {
            found.push(Elsewhere {
                names,
                ipv4: Some(own.ipv4_address.addr()),
                ipv6: Some(own.ipv6_address.addr()),
            });
        }
    }
    found
}

fn egress(config: &NetworkConfig, record: &Record) -> Vec<container_api::network::Egress> {
    std::iter::once(&config.egress).chain(&record.options.egress).cloned().collect()
}

/// What the engine is told of a container.
pub fn port(
    config: &NetworkConfig,
    record: &Record,
    attachment: &Attachment,
    tap: Option<String>,
) -> Port {
    Port {
        tap,
        attachment: attachment.clone(),
        egress: egress(config, record),
        host_access: joined(&config.host_access, &record.options.host_access),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::tests::{network, record};
    use container_api::network::{Egress, HostAccess};

    #[test]
    fn names_are_of_whoever_has_the_better_claim() {
        let net = network("n", "10.0.0.0/24", "fd00::/64");
        let mut web = record("web", &[(&net, 2)]);
        web.hostname = "DB".into();
        let mut db = record("db", &[(&net, 3)]);
        db.hostname = "web".into();
        db.attachments[0].aliases = vec!["sql".into()];
        let mut third = record("third", &[(&net, 4)]);
        third.hostname = "shared".into();
        let mut fourth = record("fourth", &[(&net, 5)]);
        fourth.hostname = "shared".into();
        let records = [&web, &db, &third, &fourth];
        let config = resolver(&net, &records, |_| Some(&net), &Surroundings::default());
        let names: Vec<_> = config.containers.iter().map(|c| c.names.join(" ")).collect();
        assert_eq!(names, ["web", "db sql", "third shared", "fourth"]);
    }

    #[test]
    fn rules_add_up_and_other_networks_are_seen() {
        let mut inner = network("inner", "10.0.0.0/24", "fd00::/64");
        inner.mode = Mode::HostOnly;
        inner.egress = Egress::Only(vec![]);
        let mut outer = network("outer", "10.0.1.0/24", "fd01::/64");
        outer.isolated = true;
        let mut both = record("both", &[(&inner, 2), (&outer, 2)]);
        both.options.egress = Some(Egress::Allow);
        both.options.host_access = HostAccess::All;
        let far = record("far", &[(&outer, 3)]);
        let near = record("near", &[(&inner, 3)]);
        let records = [&both, &far, &near];
        let around = Surroundings {
            upstreams: vec![([127, 0, 0, 53], 53).into()],
            ..Surroundings::default()
        };
        let find = |name: &str| Some(if name == "inner" { &inner } else { &outer });
        let config = resolver(&inner, &records, find, &around);
        assert!(config.upstreams.is_empty(), "nothing leaves a host-only network");
        assert_eq!(config.containers.len(), 2);
        assert_eq!(config.containers[0].egress, [Egress::Only(vec![]), Egress::Allow]);
        assert_eq!(config.containers[0].host_access, HostAccess::All);
        assert!(config.containers[0].elsewhere.is_empty(), "the other one is isolated");
        let config = resolver(&outer, &records, find, &around);
        assert_eq!(config.upstreams.len(), 1);
        assert!(!config.containers[0].sees_neighbours);
        let seen: Vec<_> =
            config.containers[0].elsewhere.iter().map(|e| e.names.join(" ")).collect();
        assert_eq!(seen, ["both", "near"]);
        assert!(config.containers[1].elsewhere.is_empty());
    }
}
