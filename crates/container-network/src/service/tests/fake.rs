//! A kernel and processes that stand in for the real ones, and remember what they were told.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Mutex};

use container_api::audit::observed::Outbox;
use container_api::network::{Dropped, Mode, Protocol, Traffic};
use container_api::varlink::{Reply, Responder, Service};
use container_api::{ApiError, ErrorCode, Result};
use ipnet::IpNet;
use tokio::sync::{Notify, watch};

use crate::engine::{Handles, NetworkPlan, Port, Survey};
use crate::service::carrier::{Birth, Kind, Spawn};
use crate::service::core::Core;
use crate::service::denied::Denied;
use crate::service::kernel::Kernel;
use crate::service::records::Records;
use crate::service::state::{Settings, locked};
use crate::wire::{
    ForwarderConfig, ForwarderRequest, Pin, Refused, ResolverConfig, ResolverRequest,
};

/// What is in the kernel, and what runs: it outlives the service.
#[derive(Clone, Default)]
pub struct World(Arc<Inner>);

#[derive(Default)]
pub struct Inner {
    pub networks: Mutex<BTreeMap<String, BTreeMap<String, Port>>>,
    pub redirects: Mutex<BTreeSet<(String, String)>>,
    pub pinned: Mutex<Vec<Pin>>,
    pub resolvers: Mutex<BTreeMap<String, ResolverConfig>>,
    pub forwarders: Mutex<BTreeMap<String, ForwarderConfig>>,
    /// Listening sockets of forwarders: they hold the ports.
    held: Mutex<BTreeMap<String, Vec<OwnedFd>>>,
    parked: Mutex<u32>,
    /// Subnets that the host has got routes to, which nobody sees before a network comes up.
    pub taken: Mutex<Vec<IpNet>>,
    /// The operation that fails, once.
    fails: Mutex<Option<&'static str>>,
    /// Pins that resolvers announce.
    pub announce: Mutex<Vec<Pin>>,
    pub confirmed: Notify,
}

impl std::ops::Deref for World {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl World {
    pub fn fail(&self, operation: &'static str) {
        *locked(&self.fails) = Some(operation);
    }

    fn may_fail(&self, operation: &'static str) -> Result<()> {
        let mut fails = locked(&self.fails);
        match *fails == Some(operation) {
            false => Ok(()),
            true => {
                *fails = None;
                Err(ApiError::internal(format!("{operation} fails")))
            }
        }
    }

    /// Whether nothing is left of any container or network.
    pub fn is_empty(&self) -> bool {
        locked(&self.networks).values().all(BTreeMap::is_empty)
            && locked(&self.forwarders).is_empty()
            && locked(&self.held).is_empty()
    }
}

fn any_descriptor() -> Result<OwnedFd> {
    Ok(File::open("/proc/self/ns/net")?.into())
}

impl Kernel for World {
    async fn create(&self, plan: &NetworkPlan, existing: Option<OwnedFd>) -> Result<()> {
        self.may_fail("create")?;
        let own = [plan.config.ipv4_subnet.into(), plan.config.ipv6_subnet.into()];
        if locked(&self.taken).iter().any(|net| own.contains(net)) {
            return Err(ApiError::new(ErrorCode::AlreadyExists, "the host has a route"));
        }
        assert!(plan.others.contains(&plan.config.ipv4_subnet.into()));
        let there = locked(&self.networks).contains_key(&plan.config.id);
        assert!(existing.is_none() || there, "a survivor's namespace was there");
        locked(&self.networks).entry(plan.config.id.clone()).or_default();
        Ok(())
    }

    async fn remove(&self, network: &str) -> Result<()> {
        let removed = locked(&self.networks).remove(network);
        assert!(removed.is_none_or(|ports| ports.is_empty()), "nobody is on it any more");
        Ok(())
    }

    async fn park(&self, likely: &str) -> Result<(String, OwnedFd)> {
        *locked(&self.parked) += 1;
        Ok((format!("spare{}-{likely}", locked(&self.parked)), any_descriptor()?))
    }

    async fn attach(&self, network: &str, port: &Port) -> Result<Option<OwnedFd>> {
        tokio::task::yield_now().await;
        self.may_fail("attach")?;
        let mut networks = locked(&self.networks);
        let ports = networks.get_mut(network).expect("the network is up");
        for other in ports.values() {
            let (a, b) = (&other.attachment, &port.attachment);
            assert!(a.ipv4_address != b.ipv4_address && a.ipv6_address != b.ipv6_address);
            assert!(a.mac_address != b.mac_address);
        }
        assert!(ports.insert(port.attachment.container.clone(), port.clone()).is_none());
        port.tap.is_none().then(any_descriptor).transpose()
    }

    async fn adopt(&self, network: &str, port: &Port) -> Result<bool> {
        let networks = locked(&self.networks);
        Ok(networks.get(network).is_some_and(|p| p.contains_key(&port.attachment.container)))
    }

    async fn detach(&self, network: &str, container: &str) -> Result<()> {
        self.may_fail("detach")?;
        locked(&self.networks).get_mut(network).and_then(|ports| ports.remove(container));
        Ok(())
    }

    async fn pin(&self, _network: &str, pin: &Pin) -> Result<()> {
        self.may_fail("pin")?;
        locked(&self.pinned).push(pin.clone());
        Ok(())
    }

    async fn host_redirect(
        &self,
        network: &str,
        container: &str,
        tcp: u16,
        udp: &BTreeMap<u16, u16>,
    ) -> Result<()> {
        self.may_fail("redirect")?;
        assert!(tcp != 0 && udp.values().all(|port| *port != 0));
        let on = locked(&self.networks).get(network).is_some_and(|p| p.contains_key(container));
        assert!(on, "the container is on the network");
        locked(&self.redirects).insert((network.into(), container.into()));
        Ok(())
    }

    async fn localhost(&self, _: &[Ipv4Addr]) -> Result<()> {
        Ok(())
    }

    async fn listen(&self, _: &str, protocol: Protocol, address: SocketAddr) -> Result<OwnedFd> {
        // The gateways are nobody's here, and port 53 is the host's.
        let ip: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        let port = if address.port() == 53 { 0 } else { address.port() };
        Ok(match protocol {
            Protocol::Tcp => TcpListener::bind((ip, port))?.into(),
            Protocol::Udp => UdpSocket::bind((ip, port))?.into(),
        })
    }

    fn handles(&self, network: &str) -> Result<Handles> {
        assert!(locked(&self.networks).contains_key(network));
        Ok(Handles { network: any_descriptor()?, user: Some(any_descriptor()?) })
    }

    async fn dropped(&self, network: &str) -> Result<Vec<Dropped>> {
        let container = locked(&self.networks).get(network).and_then(|p| p.keys().next().cloned());
        Ok(vec![Dropped { container, reason: "spoofed".into(), packets: 3 }])
    }

    async fn survey(&self, network: &str) -> Result<Option<Survey>> {
        let networks = locked(&self.networks);
        let Some(ports) = networks.get(network) else { return Ok(None) };
        let mut survey = Survey::default();
        for (container, port) in ports {
            let own = &port.attachment;
            let addresses = [own.ipv4_address.addr().into(), own.ipv6_address.addr().into()];
            survey.taps.insert(format!("tap of {container}"), container.clone());
            survey.rules.insert(format!("tap of {container}"), addresses);
        }
        Ok(Some(survey))
    }

    async fn leftovers(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    async fn traffic(&self, _container: &str) -> Result<Traffic> {
        Ok(Traffic { rx_bytes: 1, tx_bytes: 2 })
    }

    fn host_addresses(&self) -> watch::Receiver<Vec<IpAddr>> {
        watch::channel(vec![IpAddr::from([192, 0, 2, 1])]).1
    }

    async fn tidy(&self) -> Result<()> {
        Ok(())
    }

    async fn shutdown(&self) -> Result<()> {
        locked(&self.networks).clear();
        Ok(())
    }
}

impl Spawn for World {
    fn spawn(&self, birth: Birth) -> Result<Option<Child>> {
        self.may_fail("spawn")?;
        let (world, name, ended) = (self.clone(), birth.name, Arc::new(Notify::new()));
        let listener = tokio::net::UnixListener::from_std(birth.control)?;
        match birth.kind {
            Kind::Resolver => {
                assert!(birth.sockets.len() == 4 || name.starts_with('~'));
                let process = Resolver { world, name, ended: ended.clone() };
                tokio::spawn(accept(listener, Arc::new(process), ended));
            }
            Kind::Forwarder => {
                let process = Forwarder { world, name, ended: ended.clone() };
                tokio::spawn(accept(listener, Arc::new(process), ended));
            }
        }
        Ok(None)
    }
}

async fn accept<S: Service>(
    listener: tokio::net::UnixListener,
    service: Arc<S>,
    ended: Arc<Notify>,
) {
    loop {
        tokio::select! {
            () = ended.notified() => return,
            accepted = listener.accept() => {
                let stream = accepted.unwrap().0.into_std().unwrap();
                tokio::spawn(container_api::varlink::serve(service.clone(), stream));
            }
        }
    }
}

struct Resolver {
    world: World,
    name: String,
    ended: Arc<Notify>,
}

impl Service for Resolver {
    type Request = ResolverRequest;

    async fn call(
        &self,
        request: ResolverRequest,
        _: Vec<OwnedFd>,
        responder: &Responder,
    ) -> Result<Reply> {
        match request {
            ResolverRequest::Configure(config) => {
                self.world.may_fail("configure")?;
                locked(&self.world.resolvers).insert(self.name.clone(), config);
                Reply::done()
            }
            ResolverRequest::Pins => {
                let pins: Vec<Pin> = locked(&self.world.announce).drain(..).collect();
                for pin in pins {
                    responder.progress(&pin).await?;
                }
                responder.hung_up().await;
                Reply::done()
            }
            ResolverRequest::Pinned { .. } => {
                self.world.confirmed.notify_one();
                Reply::done()
            }
            ResolverRequest::Namespaces => {
                Reply::with_fds(&(), vec![any_descriptor()?, any_descriptor()?])
            }
            ResolverRequest::Refused => {
                let refused = Refused { container: "web".into(), questions: 2, names: vec![] };
                Reply::new(&vec![refused])
            }
            ResolverRequest::End => {
                locked(&self.world.resolvers).remove(&self.name);
                self.ended.notify_one();
                Reply::done()
            }
        }
    }
}

struct Forwarder {
    world: World,
    name: String,
    ended: Arc<Notify>,
}

impl Service for Forwarder {
    type Request = ForwarderRequest;

    async fn call(
        &self,
        request: ForwarderRequest,
        fds: Vec<OwnedFd>,
        _: &Responder,
    ) -> Result<Reply> {
        let world = &self.world;
        match request {
            ForwarderRequest::Configure(config) | ForwarderRequest::Add(config) => {
                world.may_fail("forward")?;
                assert_eq!(config.routes.len(), fds.len());
                locked(&world.held).entry(self.name.clone()).or_default().extend(fds);
                let mut forwarders = locked(&world.forwarders);
                forwarders.entry(self.name.clone()).or_default().routes.extend(config.routes);
                Reply::done()
            }
            ForwarderRequest::Namespaces => {
                Reply::with_fds(&(), vec![any_descriptor()?, any_descriptor()?])
            }
            ForwarderRequest::Connections => Reply::done(),
            ForwarderRequest::End => {
                locked(&world.forwarders).remove(&self.name);
                locked(&world.held).remove(&self.name);
                self.ended.notify_one();
                Reply::done()
            }
        }
    }
}

/// A service in `directory`, with what it finds there.
pub async fn service(world: &World, directory: &Path) -> Arc<Core<World>> {
    let settings = Settings {
        mode: Mode::Nat,
        publish_address: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        pool: vec!["198.18.64.0/18".parse().unwrap()],
        domain: Some("test".into()),
        resolv_conf: directory.join("resolv.conf"),
        etc: directory.join("etc"),
        resolved: directory.join("resolved"),
    };
    let records = Records::open(directory).unwrap();
    let survivors = crate::service::carrier::survivors(&records.run()).await.unwrap();
    let denied = Denied::new(Outbox::new(directory.join("observed")));
    let (kernel, spawn) = (world.clone(), Box::new(world.clone()));
    let core = Core::new(kernel, spawn, records, settings, denied).unwrap();
    core.restore(survivors).await.unwrap();
    core.ensure_default().unwrap();
    core.restore_domains().await;
    core
}
