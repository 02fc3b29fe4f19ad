//! After a killed service: what still runs is taken over, what is gone is forgotten.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use container_api::Result;

use super::carrier::{self, Carrier, Kind};
use super::core::Core;
use super::kernel::Kernel;
use super::records::Record;
use super::state::{Net, locked};
use super::{dns, forwarder, residents};
use crate::engine::Handles;

impl<K: Kernel> Core<K> {
    /// Takes over what a former service has left: `survivors` are the sockets that answer, with
    /// the namespaces behind them.
    pub async fn restore(self: &Arc<Self>, survivors: Vec<(String, Handles)>) -> Result<()> {
        let mut records = self.records.attached()?;
        records.sort_by_key(|record| record.sequence);
        let mut spaces: HashMap<String, OwnedFd> = HashMap::new();
        let mut unknown = Vec::new();
        let nets: Vec<Arc<Net>> = locked(&self.state).networks.values().cloned().collect();
        for (socket, handles) in survivors {
            let of_network = nets.iter().find(|n| Kind::Resolver.socket(&n.config.id) == socket);
            let of_record = records.iter().find(|r| Kind::Forwarder.socket(&r.container) == socket);
            let first = of_record.and_then(|record| record.attachments.first());
            let network = of_network.map(|net| &net.config.id).or(first.map(|own| &own.network));
            match network {
                Some(network) => {
                    spaces.entry(network.clone()).or_insert(handles.network);
                }
                // [`Core::restore_domains`] sees to it.
                None if socket == Kind::Resolver.socket(dns::NAME) => {}
                None => unknown.push(socket),
            }
        }
        {
            let mut state = locked(&self.state);
            state.sequence = records.last().map_or(0, |record| record.sequence);
            let known = |record: &Record| {
                record.attachments.iter().all(|own| state.networks.contains_key(&own.network))
            };
            let known: Vec<Record> =
                records.iter().filter(|record| known(record)).cloned().collect();
            state.attached = known.into_iter().map(|r| (r.container.clone(), r)).collect();
        }
        for net in &nets {
            let Some(space) = spaces.remove(&net.config.id) else { continue };
            if let Err(error) = self.bring_up(net, Some(space)).await {
                tracing::error!(network = net.config.id, %error, "a network was not taken over");
            }
        }
        for record in &records {
            if let Err(error) = self.take_over(record).await {
                tracing::error!(container = record.container, %error, "taking a container over");
            }
        }
        for socket in unknown {
            tracing::info!(socket, "a process that nobody needs ends");
            carrier::end_unknown(&self.records.run(), &socket).await;
        }
        self.configure_all().await;
        Ok(())
    }

    /// A container's taps and rules as they are found; without them it is forgotten.
    async fn take_over(self: &Arc<Self>, record: &Record) -> Result<()> {
        let container = &record.container;
        let survivor = Carrier::find(&self.records.run(), Kind::Forwarder, container).await;
        let found = self.adopt(record).await;
        if !matches!(found, Ok(true)) {
            tracing::warn!(container, ?found, "a container has no network any more");
            if let Some(survivor) = survivor {
                survivor.end().await;
            }
            let known = locked(&self.state).attached.contains_key(container);
            return match known {
                true => self.take_back(container).await,
                false => self.forget(record),
            };
        }
        if let Some(survivor) = survivor {
            forwarder::keep(self, container, survivor);
            return self.redirect(record, record.redirects.clone()).await;
        }
        forwarder::again(self, container).await
    }

    async fn adopt(&self, record: &Record) -> Result<bool> {
        for (attachment, net) in record.attachments.iter().zip(self.nets(record)?) {
            if net.up.lock().await.is_none() {
                return Ok(false);
            }
            let port = residents::port(&net.config, record, attachment, None);
            if !self.kernel.adopt(&net.config.id, &port).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// See [`container_api::network::Request::Reconcile`].
    pub async fn reconcile(&self, alive: &[String]) -> Result<()> {
        let gone: Vec<String> = {
            let state = locked(&self.state);
            state.attached.keys().filter(|id| !alive.contains(id)).cloned().collect()
        };
        let mut failed = None;
        for container in gone {
            tracing::info!(container, "a container's networks are taken back");
            if let Err(error) = self.detach(&container).await {
                failed = Some(error);
            }
        }
        self.tidy(Duration::ZERO).await;
        failed.map_or(Ok(()), Err)
    }

    /// Takes everything back that this service and former ones have made.
    pub async fn remove_all(&self) -> Result<()> {
        let mut failed = None;
        let attached: Vec<String> = locked(&self.state).attached.keys().cloned().collect();
        for container in attached {
            if let Err(error) = self.detach(&container).await {
                failed = Some(error);
            }
        }
        self.parked.store(false, std::sync::atomic::Ordering::SeqCst);
        self.tidy(Duration::ZERO).await;
        if let Some(resolver) = self.for_host.lock().await.take() {
            resolver.end().await;
        }
        self.kernel.shutdown().await?;
        failed.map_or(Ok(()), Err)
    }
}
