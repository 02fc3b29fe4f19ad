//! What the service asks of the kernel: the engine's interface, so that tests can stand in for it.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use container_api::Result;
use container_api::network::{Dropped, Protocol, Traffic};
use tokio::sync::watch;

use crate::engine::{Engine, Handles, NetworkPlan, Port, Survey};
use crate::wire::Pin;

/// [`Engine`], whose methods say more.
#[allow(missing_docs)]
pub trait Kernel: Send + Sync + 'static {
    fn create(
        &self,
        plan: &NetworkPlan,
        existing: Option<OwnedFd>,
    ) -> impl Future<Output = Result<()>> + Send;
    fn remove(&self, network: &str) -> impl Future<Output = Result<()>> + Send;
    fn park(&self, likely: &str) -> impl Future<Output = Result<(String, OwnedFd)>> + Send;
    fn attach(
        &self,
        network: &str,
        port: &Port,
    ) -> impl Future<Output = Result<Option<OwnedFd>>> + Send;
    fn adopt(&self, network: &str, port: &Port) -> impl Future<Output = Result<bool>> + Send;
    fn detach(&self, network: &str, container: &str) -> impl Future<Output = Result<()>> + Send;
    fn pin(&self, network: &str, pin: &Pin) -> impl Future<Output = Result<()>> + Send;
    fn host_redirect(
        &self,
        network: &str,
        container: &str,
        tcp: u16,
        udp: &BTreeMap<u16, u16>,
    ) -> impl Future<Output = Result<()>> + Send;
    fn localhost(&self, addresses: &[Ipv4Addr]) -> impl Future<Output = Result<()>> + Send;
    fn listen(
        &self,
        network: &str,
        protocol: Protocol,
        address: SocketAddr,
    ) -> impl Future<Output = Result<OwnedFd>> + Send;
    fn handles(&self, network: &str) -> Result<Handles>;
    fn dropped(&self, network: &str) -> impl Future<Output = Result<Vec<Dropped>>> + Send;
    fn survey(&self, network: &str) -> impl Future<Output = Result<Option<Survey>>> + Send;
    fn leftovers(&self) -> impl Future<Output = Result<Vec<String>>> + Send;
    fn traffic(&self, container: &str) -> impl Future<Output = Result<Traffic>> + Send;
    fn host_addresses(&self) -> watch::Receiver<Vec<IpAddr>>;
    fn tidy(&self) -> impl Future<Output = Result<()>> + Send;
    fn shutdown(&self) -> impl Future<Output = Result<()>> + Send;
}

impl Kernel for Engine {
    async fn create(&self, plan: &NetworkPlan, existing: Option<OwnedFd>) -> Result<()> {
        Engine::create(self, plan, existing).await
    }

    async fn remove(&self, network: &str) -> Result<()> {
        Engine::remove(self, network).await
    }

    async fn park(&self, likely: &str) -> Result<(String, OwnedFd)> {
        Engine::park(self, likely).await
    }

    async fn attach(&self, network: &str, port: &Port) -> Result<Option<OwnedFd>> {
        Engine::attach(self, network, port).await
    }

    async fn adopt(&self, network: &str, port: &Port) -> Result<bool> {
        Engine::adopt(self, network, port).await
    }

    async fn detach(&self, network: &str, container: &str) -> Result<()> {
        Engine::detach(self, network, container).await
    }

    async fn pin(&self, network: &str, pin: &Pin) -> Result<()> {
        Engine::pin(self, network, pin).await
    }

    async fn host_redirect(
        &self,
        network: &str,
        container: &str,
        tcp: u16,
        udp: &BTreeMap<u16, u16>,
    ) -> Result<()> {
        Engine::host_redirect(self, network, container, tcp, udp).await
    }

    async fn localhost(&self, addresses: &[Ipv4Addr]) -> Result<()> {
        Engine::localhost(self, addresses).await
    }

    async fn listen(
        &self,
        network: &str,
        protocol: Protocol,
        address: SocketAddr,
    ) -> Result<OwnedFd> {
        Engine::listen(self, network, protocol, address).await
    }

    fn handles(&self, network: &str) -> Result<Handles> {
        Engine::handles(self, network)
    }

    async fn dropped(&self, network: &str) -> Result<Vec<Dropped>> {
        Engine::dropped(self, network).await
    }

    async fn survey(&self, network: &str) -> Result<Option<Survey>> {
        Engine::survey(self, network).await
    }

    async fn leftovers(&self) -> Result<Vec<String>> {
        Engine::leftovers(self).await
    }

    async fn traffic(&self, container: &str) -> Result<Traffic> {
        Engine::traffic(self, container).await
    }

    fn host_addresses(&self) -> watch::Receiver<Vec<IpAddr>> {
        Engine::host_addresses(self)
    }

    async fn tidy(&self) -> Result<()> {
        Engine::tidy(self).await
    }

    async fn shutdown(&self) -> Result<()> {
        Engine::shutdown(self).await
    }
}
