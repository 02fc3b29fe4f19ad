//! The host around the networks: its addresses as they change, and what earlier services have left.

use std::sync::Weak;

use container_api::error::Result;

use super::namespace::{Privilege, failed};
use super::{Inner, host, lock, uplink};

impl Inner {
    pub(super) fn end_strays(&self) -> Result<()> {
        let up: Vec<String> = lock(&self.networks).keys().cloned().collect();
        for network in uplink::noted(&self.run) {
            if !up.contains(&network) {
                if let Some(process) = uplink::find(&self.run, &network) {
                    tracing::info!(network, "an uplink that nobody needs ends");
                    process.kill();
                }
                uplink::forget(&self.run, &network);
            }
        }
        self.part_strays(|network| up.iter().any(|up| up == network))
    }

    /// Removes the host's links to namespaces of networks that `keep` doesn't name, and the rules
    /// of links that are gone.
    pub(super) fn part_strays(&self, keep: impl Fn(&str) -> bool) -> Result<()> {
        if self.privilege != Privilege::Root {
            return Ok(());
        }
        let (nft, mut host) = (self.nft()?, lock(&self.host));
        for link in host::strays(&mut host, &self.run, keep)? {
            host::part(&mut host, &nft, &link)?;
        }
        host::tidy(&mut host, &nft)
    }

    /// Reads the host's addresses. Answer: whether they have changed.
    pub(super) fn look(&self) -> Result<bool> {
        let state = host::State::read(&mut lock(&self.host))
            .map_err(failed("cannot read the host's addresses"))?;
        let addresses = state.addresses();
        self.addresses.send_if_modified(|old| {
            let changed = *old != addresses;
            *old = addresses;
            changed
        });
        let mut other_own = false;
        self.state.send_if_modified(|old| {
            other_own = old.own != state.own;
            let changed = *old != state;
            *old = state;
            changed
        });
        Ok(other_own)
    }
}

/// Tells the networks of the host's addresses as they change.
pub(super) async fn follow(mut changes: host::Changes, inner: Weak<Inner>) {
    loop {
        if let Err(error) = changes.next().await {
            tracing::error!(%error, "the host's addresses can't be watched any more");
            return;
        }
        let Some(inner) = inner.upgrade() else { return };
        match inner.look() {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) => {
                tracing::error!(%error, "the host's addresses can't be read");
                continue;
            }
        }
        let own = inner.state.borrow().own.clone();
        for (network, worker) in inner.workers() {
            let own = own.clone();
            if let Err(error) = worker.run(move |network| network.set_host(&own)).await {
                tracing::error!(%error, network, "a network doesn't know the host's addresses");
            }
        }
    }
}
