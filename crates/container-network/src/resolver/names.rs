//! What a network's resolver knows by itself, and what becomes of every other question.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use container_api::network::HostAccess;
use hickory_proto::rr::rdata::PTR;
use hickory_proto::rr::{Name, RData, RecordType};

use super::guest::Guest;
use super::policy::{self, Verdict};
use crate::wire::{Resident, ResolverConfig};

/// The host, as containers call it.
const HOST_NAMES: [&str; 2] = ["host.container.internal", "host.docker.internal"];
/// Zones of names that mean nothing outside; children and the zones themselves.
const LOCAL_ZONES: [&str; 4] = ["container.internal", "docker.internal", "invalid", "onion"];

/// What becomes of a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// We know the name: these records of it, none if it has none of that type.
    Known(Vec<RData>),
    /// We know that there is no such name.
    Unknown,
    /// There may be one, but not for whoever asks: they hear that there is none.
    Refused,
    /// Not answered, nor asked for anywhere.
    Unwilling,
    /// To be asked for outside. Addresses alone where rules restrict the ports.
    Ask(Verdict),
}

/// Who asks.
#[derive(Clone, Debug)]
pub enum Asker {
    /// A container.
    Container(Arc<Known>),
    /// The host itself, or a domain's resolver there.
    Host,
}

/// A container as it is looked up by its address.
#[derive(Debug)]
pub struct Known {
    /// What we were told.
    pub resident: Resident,
    /// What it has done.
    pub guest: Arc<Guest>,
}

/// All names of a network; replaced as a whole.
#[derive(Debug, Default)]
pub struct Names {
    /// What it was made from, without the containers.
    pub config: ResolverConfig,
    containers: Vec<Arc<Known>>,
    by_address: HashMap<IpAddr, usize>,
    by_name: HashMap<String, Vec<usize>>,
    domains: Vec<String>,
}

impl Names {
    /// Indexes a configuration; `guest` finds what containers have done before.
    pub fn new(mut config: ResolverConfig, guest: impl Fn(&str) -> Arc<Guest>) -> Names {
        let mut domains: Vec<String> =
            config.domain.iter().chain(&config.host_domains).map(|d| canonical(d)).collect();
        domains.retain(|domain| !domain.is_empty());
        let mut names = Names { domains, ..Names::default() };
        for mut resident in std::mem::take(&mut config.containers) {
            let at = names.containers.len();
            for address in addresses(&resident) {
                names.by_address.insert(address, at);
            }
            resident.names = resident.names.iter().map(|name| canonical(name)).collect();
            for name in &resident.names {
                let long = names.domains.iter().map(|domain| format!("{name}.{domain}"));
                for name in long.chain([name.clone()]) {
                    let holders = names.by_name.entry(name).or_default();
                    if holders.last() != Some(&at) {
                        holders.push(at);
                    }
                }
            }
            let guest = guest(&resident.container);
            names.containers.push(Arc::new(Known { resident, guest }));
        }
        config.host_names = config.host_names.iter().map(|name| canonical(name)).collect();
        names.config = config;
        names
    }

    /// Who asks from an address; `None`: nobody we know.
    pub fn asker(&self, from: IpAddr) -> Option<Asker> {
        match self.config.host_domains.is_empty() {
            true => self.at(from.to_canonical()).cloned().map(Asker::Container),
            false => Some(Asker::Host),
        }
    }

    /// Whose address it is.
    fn at(&self, address: IpAddr) -> Option<&Arc<Known>> {
        self.by_address.get(&address).map(|at| &self.containers[*at])
    }

    /// All containers.
    pub fn containers(&self) -> &[Arc<Known>] {
        &self.containers
    }

    /// What becomes of a question for `name` (as [`text`] writes it).
    pub fn decide(&self, asker: &Asker, name: &str, kind: RecordType) -> Decision {
        if let Some(known) = self.known(asker, name) {
            return Decision::Known(known.into_iter().filter_map(|a| data(a, kind)).collect());
        }
        if let Some(address) = reverse(name)
            && let Some(decision) = self.reverse(asker, address, kind)
        {
            return decision;
        }
        let ours = self.domains.iter().map(String::as_str).chain(LOCAL_ZONES);
        if ours.into_iter().any(|zone| is_below(name, zone) || name == zone)
            || (self.by_name.contains_key(name) && !is_host(asker))
            || self.config.host_names.iter().any(|host| host == name)
        {
            return Decision::Unknown;
        }
        match asker {
            Asker::Host => Decision::Unwilling,
            Asker::Container(known) => self.outside(&known.resident, name, kind),
        }
    }

    fn outside(&self, resident: &Resident, name: &str, kind: RecordType) -> Decision {
        // A name of one label is a container's that is not here; outside it would only be told.
        let addresses = matches!(kind, RecordType::A | RecordType::AAAA);
        if addresses && !name.contains('.') {
            return Decision::Unknown;
        }
        if self.config.upstreams.is_empty() {
            return Decision::Refused;
        }
        match policy::judge(name, &resident.egress) {
            Verdict::Refused => Decision::Refused,
            Verdict::Named(_) if !addresses => Decision::Known(Vec::new()),
            verdict => Decision::Ask(verdict),
        }
    }

    /// The addresses of a name that the asker may know.
    fn known(&self, asker: &Asker, name: &str) -> Option<Vec<IpAddr>> {
        if name == "localhost" || is_below(name, "localhost") {
            return Some(loopback());
        }
        let holders = self.by_name.get(name).map(Vec::as_slice).unwrap_or_default();
        let found: Vec<IpAddr> = holders
            .iter()
            .map(|at| &self.containers[*at].resident)
            // The host knows names below the domains alone.
            .filter(|other| sees(asker, other) && (self.below_domain(name) || !is_host(asker)))
            .flat_map(addresses)
            .collect();
        if !found.is_empty() {
            return Some(found);
        }
        if let Asker::Container(me) = asker {
            let found = self.elsewhere(&me.resident, name);
            if !found.is_empty() {
                return Some(found);
            }
        }
        let more = self.config.host_names.iter().any(|host| host == name);
        match asker {
            Asker::Host => more.then(loopback),
            Asker::Container(known) if reaches_host(&known.resident) => {
                (more || HOST_NAMES.contains(&name)).then(|| self.config.gateways.clone())
            }
            Asker::Container(_) => None,
        }
    }

    /// The addresses of a name on the asker's other networks.
    fn elsewhere(&self, me: &Resident, name: &str) -> Vec<IpAddr> {
        let parents = self.domains.iter().filter_map(|domain| name.strip_suffix(domain.as_str()));
        let short = parents.filter_map(|short| short.strip_suffix('.')).next().unwrap_or(name);
        let others = me.elsewhere.iter().filter(|other| other.names.iter().any(|n| n == short));
        others.flat_map(|other| pair(other.ipv4, other.ipv6)).collect()
    }

    /// The name of an address; `None`: not one of ours.
    fn reverse(&self, asker: &Asker, address: IpAddr, kind: RecordType) -> Option<Decision> {
        let name = match self.at(address) {
            Some(other) if sees(asker, &other.resident) => {
                other.resident.names.first().map(|name| self.in_domain(name))
            }
            Some(_) => None,
            None => match asker {
                Asker::Container(me) if self.config.gateways.contains(&address) => {
                    reaches_host(&me.resident).then(|| HOST_NAMES[0].to_owned())
                }
                Asker::Container(me) => match elsewhere_at(&me.resident, address) {
                    Some(name) => Some(self.in_domain(name)),
                    None if self.config.subnets.iter().any(|net| net.contains(&address)) => None,
                    None => return None,
                },
                Asker::Host => return None,
            },
        };
        let Some(name) = name.and_then(|name| Name::from_ascii(format!("{name}.")).ok()) else {
            return Some(Decision::Unknown);
        };
        Some(Decision::Known(match kind {
            RecordType::PTR => vec![RData::PTR(PTR(name))],
            _ => Vec::new(),
        }))
    }

    fn in_domain(&self, name: &str) -> String {
        match self.domains.first() {
            Some(domain) => format!("{name}.{domain}"),
            None => name.to_owned(),
        }
    }

    fn below_domain(&self, name: &str) -> bool {
        self.domains.iter().any(|domain| is_below(name, domain))
    }
}

fn loopback() -> Vec<IpAddr> {
    vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
}

fn is_host(asker: &Asker) -> bool {
    matches!(asker, Asker::Host)
}

fn sees(asker: &Asker, other: &Resident) -> bool {
    match asker {
        Asker::Host => true,
        Asker::Container(me) => {
            me.resident.sees_neighbours || me.resident.container == other.container
        }
    }
}

fn reaches_host(resident: &Resident) -> bool {
    resident.host_access != HostAccess::Denied
}

fn addresses(resident: &Resident) -> impl Iterator<Item = IpAddr> + use<> {
    pair(resident.ipv4, resident.ipv6)
}

fn pair(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> impl Iterator<Item = IpAddr> {
    v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6))
}

fn elsewhere_at(me: &Resident, address: IpAddr) -> Option<&str> {
    let mut others = me.elsewhere.iter();
    let other = others.find(|other| pair(other.ipv4, other.ipv6).any(|a| a == address))?;
    other.names.first().map(String::as_str)
}

fn data(address: IpAddr, kind: RecordType) -> Option<RData> {
    match (address, kind) {
        (IpAddr::V4(address), RecordType::A) => Some(RData::A(address.into())),
        (IpAddr::V6(address), RecordType::AAAA) => Some(RData::AAAA(address.into())),
        _ => None,
    }
}

fn is_below(name: &str, zone: &str) -> bool {
    name.strip_suffix(zone).is_some_and(|rest| rest.ends_with('.'))
}

fn canonical(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// A name as we look it up: lower case, without the last dot, odd bytes escaped.
pub fn text(name: &Name) -> String {
    let mut text = name.to_ascii();
    if text.ends_with('.') {
        text.pop();
    }
    text.make_ascii_lowercase();
    text
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for in full.
fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut labels = rest.split('.');
        for octet in octets.iter_mut().rev() {
            *octet = labels.next().filter(|l| l.len() <= 3)?.parse().ok()?;
        }
        return labels.next().is_none().then(|| Ipv4Addr::from(octets).into());
    }
    let rest = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0u128;
    let mut labels = rest.split('.');
    for digit in 0..32 {
        let label = labels.next().filter(|l| l.len() == 1)?;
        bits |= u128::from(u8::from_str_radix(label, 16).ok()?) << (4 * digit);
    }
    labels.next().is_none().then(|| Ipv6Addr::from(bits).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Elsewhere;
    use container_api::network::{Egress, Target};
    use proptest::prelude::*;

    fn resident(name: &str, last: u8) -> Resident {
        Resident {
            container: format!("id-{name}"),
            names: vec![format!("id-{name}"), name.into()],
            ipv4: Some(Ipv4Addr::new(192, 168, 64, last)),
            ipv6: Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into())),
            sees_neighbours: true,
            ..Resident::default()
        }
    }

    fn names(change: impl FnOnce(&mut ResolverConfig)) -> Names {
        let mut config = ResolverConfig {
            network: "n".into(),
            gateways: vec!["192.168.64.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            domain: Some("test".into()),
            upstreams: vec!["192.0.2.53:53".parse().unwrap()],
            containers: vec![resident("web", 2), resident("db", 3)],
            subnets: vec!["192.168.64.0/24".parse().unwrap()],
            ..ResolverConfig::default()
        };
        change(&mut config);
        Names::new(config, |_| Arc::default())
    }

    fn ask(names: &Names, last: u8, name: &str, kind: RecordType) -> Decision {
        let asker = match last {
            0 => Asker::Host,
            _ => names.asker(Ipv4Addr::new(192, 168, 64, last).into()).unwrap(),
        };
        names.decide(&asker, name, kind)
    }

    fn a(last: u8) -> Decision {
        Decision::Known(vec![RData::A(Ipv4Addr::new(192, 168, 64, last).into())])
    }

    fn ptr(name: &str) -> Decision {
        Decision::Known(vec![RData::PTR(PTR(Name::from_ascii(name).unwrap()))])
    }

    #[test]
    fn containers_have_names() {
        let names = names(|_| ());
        for name in ["db", "id-db", "db.test", "id-db.test"] {
            assert_eq!(ask(&names, 2, name, RecordType::A), a(3), "{name}");
        }
        let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3).into();
        let answer = Decision::Known(vec![RData::AAAA(v6)]);
        assert_eq!(ask(&names, 2, "db", RecordType::AAAA), answer);
        assert_eq!(ask(&names, 2, "db", RecordType::TXT), Decision::Known(vec![]));
        for name in ["nobody", "nobody.test", "test", "host.container.internal", "x.onion"] {
            assert_eq!(ask(&names, 2, name, RecordType::A), Decision::Unknown, "{name}");
        }
        let open = Decision::Ask(Verdict::Open);
        assert_eq!(ask(&names, 2, "example.com", RecordType::MX), open);
        assert_eq!(ask(&names, 2, "com", RecordType::NS), open);
    }

    #[test]
    fn addresses_have_names() {
        let names = names(|_| ());
        let v6 = format!("3.{}d.f.ip6.arpa", "0.".repeat(29));
        assert_eq!(
            ask(&names, 2, "3.64.168.192.in-addr.arpa", RecordType::PTR),
            ptr("id-db.test.")
        );
        assert_eq!(ask(&names, 2, &v6, RecordType::PTR), ptr("id-db.test."));
        for nobody in ["9.64.168.192.in-addr.arpa", "1.64.168.192.in-addr.arpa"] {
            assert_eq!(ask(&names, 2, nobody, RecordType::PTR), Decision::Unknown, "{nobody}");
        }
        let outside = ask(&names, 2, "9.65.168.192.in-addr.arpa", RecordType::PTR);
        assert_eq!(outside, Decision::Ask(Verdict::Open));
    }

    #[test]
    fn who_may_not_see_its_neighbours_knows_itself_alone() {
        let names = names(|config| config.containers[0].sees_neighbours = false);
        assert_eq!(ask(&names, 2, "web", RecordType::A), a(2));
        assert_eq!(ask(&names, 2, "db", RecordType::A), Decision::Unknown);
        assert_eq!(ask(&names, 2, "db.test", RecordType::A), Decision::Unknown);
        let reverse = ask(&names, 2, "3.64.168.192.in-addr.arpa", RecordType::PTR);
        assert_eq!(reverse, Decision::Unknown);
    }

    #[test]
    fn names_of_other_networks_are_known_to_those_on_them() {
        let names = names(|config| {
            config.containers[0].elsewhere = vec![Elsewhere {
                names: vec!["far".into()],
                ipv4: Some(Ipv4Addr::new(192, 168, 65, 9)),
                ipv6: None,
            }];
        });
        let far = Decision::Known(vec![RData::A(Ipv4Addr::new(192, 168, 65, 9).into())]);
        for name in ["far", "far.test"] {
            assert_eq!(ask(&names, 2, name, RecordType::A), far, "{name}");
            assert_eq!(ask(&names, 3, name, RecordType::A), Decision::Unknown, "{name}");
        }
        let reverse = "9.65.168.192.in-addr.arpa";
        assert_eq!(ask(&names, 2, reverse, RecordType::PTR), ptr("far.test."));
        assert_eq!(ask(&names, 3, reverse, RecordType::PTR), Decision::Ask(Verdict::Open));
    }

    #[test]
    fn the_host_is_known_to_those_who_reach_it() {
        let names = names(|config| {
            config.containers[0].host_access = HostAccess::Ports(vec![80]);
            config.host_names = vec!["host.test".into()];
        });
        for name in HOST_NAMES.into_iter().chain(["host.test"]) {
            assert_eq!(ask(&names, 2, name, RecordType::A), a(1), "{name}");
            assert_eq!(ask(&names, 3, name, RecordType::A), Decision::Unknown, "{name}");
        }
        let gateway = ask(&names, 2, "1.64.168.192.in-addr.arpa", RecordType::PTR);
        assert_eq!(gateway, ptr("host.container.internal."));
    }

    #[test]
    fn the_host_asks_for_domains_alone() {
        let names = names(|config| {
            config.domain = None;
            config.host_domains = vec!["test".into(), "more.example.".into()];
            config.host_names = vec!["host.test".into()];
        });
        assert!(matches!(names.asker(Ipv4Addr::LOCALHOST.into()), Some(Asker::Host)));
        assert_eq!(ask(&names, 0, "db.test", RecordType::A), a(3));
        assert_eq!(ask(&names, 0, "db.more.example", RecordType::A), a(3));
        let loopback = Decision::Known(vec![RData::A(Ipv4Addr::LOCALHOST.into())]);
        assert_eq!(ask(&names, 0, "host.test", RecordType::A), loopback);
        let reverse = ask(&names, 0, "3.64.168.192.in-addr.arpa", RecordType::PTR);
        assert_eq!(reverse, ptr("id-db.test."));
        assert_eq!(ask(&names, 0, "nobody.test", RecordType::A), Decision::Unknown);
        for name in ["db", "example.com", "9.64.168.192.in-addr.arpa"] {
            assert_eq!(ask(&names, 0, name, RecordType::A), Decision::Unwilling, "{name}");
        }
    }

    #[test]
    fn rules_refuse_names() {
        let only = vec![Target::Host { name: "example.com".into(), port: Some(443) }];
        let names = names(|config| config.containers[0].egress = vec![Egress::Only(only)]);
        let ports = Decision::Ask(Verdict::Named(vec![443]));
        assert_eq!(ask(&names, 2, "example.com", RecordType::A), ports);
        assert_eq!(ask(&names, 2, "example.com", RecordType::TXT), Decision::Known(vec![]));
        for name in ["www.example.com", "8.8.8.8.in-addr.arpa"] {
            assert_eq!(ask(&names, 2, name, RecordType::A), Decision::Refused);
            assert_eq!(ask(&names, 2, name, RecordType::TXT), Decision::Refused);
        }
        assert_eq!(ask(&names, 2, "db", RecordType::A), a(3));
    }

    #[test]
    fn nothing_leaves_a_network_without_upstreams() {
        let names = names(|config| config.upstreams.clear());
        for kind in [RecordType::A, RecordType::TXT, RecordType::NULL] {
            assert_eq!(ask(&names, 2, "data.example.com", kind), Decision::Refused);
        }
    }

    proptest! {
        #[test]
        fn reverse_names_stand_for_their_address(address: IpAddr) {
            let name = text(&Name::from(address));
            prop_assert_eq!(reverse(&name), Some(address));
        }

        #[test]
        fn no_name_confuses(name in ".{0,80}", last in 0u8..4) {
            let names = names(|config| config.containers[0].sees_neighbours = false);
            if last != 1 {
                ask(&names, last, &name, RecordType::A);
                ask(&names, last, &format!("{name}.in-addr.arpa"), RecordType::PTR);
                ask(&names, last, &format!("{name}.ip6.arpa"), RecordType::PTR);
            }
        }
    }
}
