//! Containers on networks that are up, by way of the threads that live there.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use container_api::error::Result;
use container_api::network::{Dropped, Protocol, Traffic};

use super::namespace::{self, failed};
use super::network::Network;
use super::{Engine, Port};
use crate::wire;

impl Engine {
    /// Puts a container on a network, all or nothing: its tap (the parked one, else a new one,
    /// whose descriptor is the answer), neighbours and rules. When it fails, the parked tap is gone
    /// too.
    pub async fn attach(&self, network: &str, port: &Port) -> Result<Option<OwnedFd>> {
        let worker = self.inner.worker(network)?;
        if let Some(tap) = &port.tap {
            self.unpark(tap, network).await?;
        }
        let port = port.clone();
        worker.run(move |network| network.attach(&port)).await
    }

    /// Takes over a container that a survivor's namespace already has: makes its rules what `port`
    /// says and remembers it. Answer: whether its tap was there; if not, nothing is done.
    pub async fn adopt(&self, network: &str, port: &Port) -> Result<bool> {
        let port = port.clone();
        self.inner.worker(network)?.run(move |network| network.adopt(&port)).await
    }

    /// The containers on a network, those of a survivor's namespace included.
    pub async fn containers(&self, network: &str) -> Result<Vec<String>> {
        self.inner.worker(network)?.run(|network| Ok(network.containers())).await
    }

    /// Takes a container off a network, its tap too. One that isn't there is no error.
    pub async fn detach(&self, network: &str, container: &str) -> Result<()> {
        let Ok(worker) = self.inner.worker(network) else { return Ok(()) };
        let container = container.to_owned();
        worker.run(move |network| network.detach(&container)).await
    }

    /// Lets a container reach the addresses of a name, for a while.
    pub async fn pin(&self, network: &str, pin: &wire::Pin) -> Result<()> {
        let pin = pin.clone();
        self.inner.worker(network)?.run(move |network| network.pin(&pin)).await
    }

    /// Where packets of a container to the host's ports (its [`Port::host_access`]) at the gateway
    /// go: ports of the namespace where a forwarder listens (on the gateway's addresses or any).
    /// TCP port 0 leads nowhere. Nobody can ask which port a redirected datagram was sent to, so
    /// UDP has a forwarder's port for each of the host's.
    pub async fn host_redirect(
        &self,
        network: &str,
        container: &str,
        tcp_port: u16,
        udp_ports: &BTreeMap<u16, u16>,
    ) -> Result<()> {
        let (container, udp_ports) = (container.to_owned(), udp_ports.clone());
        let worker = self.inner.worker(network)?;
        worker.run(move |network| network.host_redirect(&container, tcp_port, &udp_ports)).await
    }

    /// Replaces [`super::NetworkPlan::localhost`] of all networks that are up.
    pub async fn localhost(&self, addresses: &[Ipv4Addr]) -> Result<()> {
        for (name, worker) in self.inner.workers() {
            let addresses = addresses.to_vec();
            let told = worker.run(move |network| network.set_localhost(&addresses)).await;
            told.map_err(|error| error.context(format!("cannot update network {name}")))?;
        }
        Ok(())
    }

    /// A socket in a network's namespace, bound; for TCP it listens.
    pub async fn listen(
        &self,
        network: &str,
        protocol: Protocol,
        address: SocketAddr,
    ) -> Result<OwnedFd> {
        let what = format!("cannot listen on {address}/{protocol} in network {network}");
        let worker = self.inner.worker(network)?;
        worker.run(move |_| namespace::listen(protocol, address).map_err(failed(what))).await
    }

    /// What a network's rules have dropped.
    pub async fn dropped(&self, network: &str) -> Result<Vec<Dropped>> {
        self.inner.worker(network)?.run(Network::dropped).await
    }

    /// Bytes of a container's NICs on all its networks.
    pub async fn traffic(&self, container: &str) -> Result<Traffic> {
        let mut traffic = Traffic::default();
        for (_, worker) in self.inner.workers() {
            let container = container.to_owned();
            if let Some((rx, tx)) = worker.run(move |n| n.traffic(&container)).await? {
                traffic.rx_bytes += rx;
                traffic.tx_bytes += tx;
            }
        }
        Ok(traffic)
    }
}
