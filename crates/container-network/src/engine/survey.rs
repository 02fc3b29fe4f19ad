//! What is in the kernel of networks and containers, read without changing it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use container_api::error::Result;

use super::namespace::failed;
use super::network::{ALIAS, Network};
use super::{Engine, counts, host, lock, nft, rules, tap, uplink};

/// What a network's namespace holds of containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Containers by the taps that bear their ids.
    pub taps: BTreeMap<String, String>,
    /// Addresses by the taps that the rules let them pass.
    pub rules: BTreeMap<String, [IpAddr; 2]>,
    /// Taps that are nobody's, though none waits there for a VM.
    pub strays: Vec<String>,
}

impl Engine {
    /// What is in a network's namespace; `None` while it is not up.
    pub async fn survey(&self, network: &str) -> Result<Option<Survey>> {
        let Ok(worker) = self.inner.worker(network) else { return Ok(None) };
        let waiting = self.inner.parking.waiting();
        let survey = worker.run(move |network| network.survey(&waiting)).await;
        survey.map(Some)
    }

    /// What is noted, or on the host, of networks that are not up: a line each.
    pub async fn leftovers(&self) -> Result<Vec<String>> {
        let inner = &self.inner;
        // A network that comes up or goes this moment is neither.
        let _guard = inner.changing.lock().await;
        let up: Vec<String> = lock(&inner.networks).keys().cloned().collect();
        let is_up = |network: &str| up.iter().any(|up| up == network);
        let noted = uplink::noted(&inner.run).into_iter().filter(|network| !is_up(network));
        let mut found: Vec<String> = noted
            .map(|network| format!("an uplink is noted of network '{network}', which is down"))
            .collect();
        if inner.privilege == super::Privilege::Root {
            let strays = host::strays(&mut lock(&inner.host), &inner.run, is_up)?;
            found.extend(
                strays.iter().map(|link| {
                    format!("the host has link {}, whose network is down", link.name())
                }),
            );
        }
        Ok(found)
    }
}

impl Network {
    /// See [`Survey`]; `waiting` are taps that have been made ahead.
    fn survey(&mut self, waiting: &[String]) -> Result<Survey> {
        let links = self.netlink.links().map_err(failed("cannot list the network's links"))?;
        let [bridge, inet] = nft::both(self.nft(), rules::TABLE)?;
        let mut survey = Survey::default();
        for (member, _) in counts::members(&bridge, &inet) {
            survey.rules.insert(member.tap, [member.ipv4.into(), member.ipv6.into()]);
        }
        for link in links {
            let owner = link.alias.as_deref().and_then(|alias| alias.strip_prefix(ALIAS));
            match owner {
                Some(container) => {
                    survey.taps.insert(link.name, container.to_owned());
                }
                None if tap::is_ours(&link.name) && !waiting.contains(&link.name) => {
                    survey.strays.push(link.name);
                }
                None => {}
            }
        }
        Ok(survey)
    }
}
