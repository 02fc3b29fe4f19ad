//! Whether what is recorded, what the kernel has and what runs are the same. Asked beside
//! everything else: whoever asks looks again before believing that something is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use container_api::Result;
use container_api::invariants::Findings;

use super::carrier::{Carrier, Kind, title};
use super::core::Core;
use super::dns;
use super::forwarder;
use super::kernel::Kernel;
use super::records::Record;
use super::state::{Net, locked};
use crate::engine::Survey;

impl<K: Kernel> Core<K> {
    /// See [`container_api::network::Request::CheckState`].
    pub async fn check_state(&self, alive: &[String]) -> Result<Findings> {
        let mut findings = Findings::default();
        let (nets, records): (Vec<Arc<Net>>, Vec<Record>) = {
            let state = locked(&self.state);
            (state.networks.values().cloned().collect(), state.attached.values().cloned().collect())
        };
        leases(&records, alive, &mut findings);
        self.check_records(&records, &mut findings)?;
        let mut resolvers = Vec::new();
        for net in &nets {
            let name = &net.config.id;
            let resolver = net.up.lock().await.as_ref().map(|up| up.resolver.clone());
            let survey = self.kernel.survey(name).await?;
            let own: BTreeMap<&str, [IpAddr; 2]> = records
                .iter()
                .flat_map(|record| &record.attachments)
                .filter(|own| own.network == *name)
                .map(|own| {
                    let (v4, v6) = (own.ipv4_address.addr().into(), own.ipv6_address.addr().into());
                    (own.container.as_str(), [v4, v6])
                })
                .collect();
            match (&survey, resolver.is_some() || !own.is_empty()) {
                (Some(survey), _) => compare(name, &own, survey, &mut findings),
                (None, true) => {
                    findings.look(Some(format!("network '{name}' is in use, and not up")));
                }
                (None, false) => findings.look(None),
            }
            resolvers.extend(resolver);
        }
        for leftover in self.kernel.leftovers().await? {
            findings.look(Some(leftover));
        }
        self.check_carriers(&records, resolvers, &mut findings).await?;
        Ok(findings)
    }

    /// Files, and the records in memory.
    fn check_records(&self, records: &[Record], findings: &mut Findings) -> Result<()> {
        let kept = self.records.attached()?;
        let find = |all: &[Record], id: &str| all.iter().find(|r| r.container == id).cloned();
        for record in records {
            let same = find(&kept, &record.container).is_some_and(|kept| kept == *record);
            let wrong =
                || format!("the record of container '{}' is not on the disk", record.container);
            findings.look((!same).then(wrong));
        }
        for record in kept.iter().filter(|kept| find(records, &kept.container).is_none()) {
            let id = &record.container;
            findings.look(Some(format!(
                "a record of container '{id}' is on the disk, which is on no network"
            )));
        }
        for path in self.records.unfinished()? {
            findings.look(Some(format!("{} was not finished", path.display())));
        }
        Ok(())
    }

    /// The processes that carry traffic, and their sockets.
    async fn check_carriers(
        &self,
        records: &[Record],
        resolvers: Vec<Arc<Carrier>>,
        findings: &mut Findings,
    ) -> Result<()> {
        let forwarders = locked(&self.forwarders).clone();
        for record in records {
            let (id, there) = (&record.container, forwarders.contains_key(&record.container));
            findings.look(match (forwarder::is_wanted(self, record), there) {
                (true, false) => Some(format!("the ports of container '{id}' have no forwarder")),
                (false, true) => Some(format!("container '{id}' has a forwarder, and no ports")),
                _ => None,
            });
        }
        for id in forwarders.keys() {
            let known = records.iter().any(|record| record.container == *id);
            let wrong =
                || format!("a forwarder is kept of container '{id}', which is on no network");
            findings.look((!known).then(wrong));
        }
        let for_host = self.for_host.lock().await.clone();
        let all: Vec<Arc<Carrier>> =
            forwarders.into_values().chain(resolvers).chain(for_host).collect();
        for carrier in &all {
            let wrong = || format!("the process behind {} has ended", carrier.socket());
            findings.look(carrier.has_ended().then(wrong));
        }
        let known: BTreeSet<&str> = all.iter().map(|carrier| carrier.socket()).collect();
        for entry in std::fs::read_dir(self.records.run())? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            if Kind::of_socket(&name).is_some() && name != Kind::Resolver.socket(dns::NAME) {
                let wrong = || format!("socket networks/run/{name} has no owner");
                findings.look((!known.contains(name.as_str())).then(wrong));
            }
        }
        let known: BTreeSet<i32> = all.iter().filter_map(|carrier| carrier.pid()).collect();
        for pid in titled(&title(self.records.directory())) {
            let wrong = || format!("process {pid} carries traffic of no network or container");
            findings.look((!known.contains(&pid)).then(wrong));
        }
        Ok(())
    }
}

/// Addresses are of containers that live, and of one each.
fn leases(records: &[Record], alive: &[String], findings: &mut Findings) {
    let mut owners: BTreeMap<(&str, IpAddr), &str> = BTreeMap::new();
    for record in records {
        let id = &record.container;
        let leased = || {
            let of = |own: &container_api::network::Attachment| own.ipv4_address.addr().to_string();
            record.attachments.iter().map(of).collect::<Vec<_>>().join(", ")
        };
        let wrong = || format!("{} leased to container '{id}', which has no VM", leased());
        findings.look((!alive.contains(id)).then(wrong));
        for own in &record.attachments {
            for address in [own.ipv4_address.addr().into(), own.ipv6_address.addr().into()] {
                if let Some(other) = owners.insert((&own.network, address), id) {
                    findings.look(Some(format!("{address} is leased to '{other}' and '{id}'")));
                }
            }
        }
    }
}

/// What the kernel has of a network, and what it should have.
fn compare(
    network: &str,
    own: &BTreeMap<&str, [IpAddr; 2]>,
    survey: &Survey,
    findings: &mut Findings,
) {
    let on = format!("on network '{network}'");
    for (container, addresses) in own {
        let tap = survey.taps.iter().find(|(_, owner)| owner == container).map(|(tap, _)| tap);
        findings.look(match tap.map(|tap| (tap, survey.rules.get(tap))) {
            None => Some(format!("container '{container}' has no tap {on}")),
            Some((tap, None)) => {
                Some(format!("tap {tap} of container '{container}' has no rules {on}"))
            }
            Some((_, Some(rules))) if rules == addresses => None,
            Some((tap, _)) => {
                Some(format!("the rules of tap {tap} {on} are not for container '{container}'"))
            }
        });
    }
    for (tap, container) in &survey.taps {
        let wrong = || format!("tap {tap} {on} is of container '{container}', which is not on it");
        findings.look((!own.contains_key(container.as_str())).then(wrong));
    }
    for tap in survey.rules.keys().filter(|tap| !survey.taps.contains_key(*tap)) {
        findings.look(Some(format!("there are rules {on} for tap {tap}, which is gone")));
    }
    for tap in &survey.strays {
        findings.look(Some(format!("tap {tap} {on} is nobody's")));
    }
}

/// Processes that are called so.
fn titled(title: &std::ffi::OsStr) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_titled = |pid: &i32| {
        // Of one that has ended, nothing is there to be read.
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|b| *b == 0).next() == Some(title.as_encoded_bytes())
    };
    pids.filter(is_titled).collect()
}
