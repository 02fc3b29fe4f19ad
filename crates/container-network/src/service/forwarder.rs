//! The forwarder of a container: which sockets it gets, and where they lead.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use container_api::network::{Attachment, HostAccess, Protocol};
use container_api::varlink::MAX_FDS;
use container_api::{ApiError, Result};
use rustix::net::getsockname;
use tokio::time::sleep;

use super::carrier::{Carrier, Kind};
use super::core::Core;
use super::kernel::Kernel;
use super::ports::{self, Bound};
use super::records::{Record, Redirect, joined};
use super::state::locked;
use crate::wire::{ForwarderConfig, ForwarderRequest, Route, Side};

/// How often a port is looked for that is free for both families.
const TRIES: usize = 16;
/// Between the death of a forwarder and the next one.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest such pause.
const MOST_PAUSE: Duration = Duration::from_secs(10);
/// A process that has lived so long has not died of its start.
const LIVED: Duration = Duration::from_secs(5);

/// Where packets for the host are to be led, by network.
pub type Redirects = BTreeMap<String, Redirect>;

/// Starts one when the container has ports or may reach the host. Answer: where packets for the
/// host are to be led, if anywhere.
pub async fn start<K: Kernel>(
    core: &Arc<Core<K>>,
    record: &Record,
    bound: Vec<Bound>,
) -> Result<Option<Redirects>> {
    let access = access(core, record);
    if bound.is_empty() && access.is_empty() {
        return Ok(None);
    }
    let Some(first) = record.attachments.first() else { return Ok(None) };
    let mut routes: Vec<(Route, OwnedFd)> =
        bound.into_iter().map(|bound| published(first, bound)).collect();
    let mut redirects = Redirects::new();
    for (attachment, access) in &access {
        let redirect = host_routes(core, attachment, access, &mut routes).await?;
        redirects.insert(attachment.network.clone(), redirect);
    }
    let handles = core.kernel.handles(&first.network)?;
    let name = &record.container;
    let run = core.records.run();
    let carrier = Carrier::start(&*core.spawn, &run, Kind::Forwarder, name, handles, Vec::new())?;
    if let Err(error) = configure(&carrier, name, routes).await {
        carrier.end().await;
        return Err(error);
    }
    keep(core, name, carrier);
    Ok(Some(redirects).filter(|redirects| !redirects.is_empty()))
}

/// Remembers a forwarder, and watches over it.
pub fn keep<K: Kernel>(core: &Arc<Core<K>>, container: &str, carrier: Carrier) {
    let carrier = Arc::new(carrier);
    locked(&core.forwarders).insert(container.to_owned(), carrier.clone());
    tokio::spawn(watch(core.clone(), container.to_owned(), carrier));
}

/// Ends a container's forwarder, if it has one.
pub async fn end<K: Kernel>(core: &Core<K>, container: &str) {
    let carrier = locked(&core.forwarders).remove(container);
    if let Some(carrier) = carrier {
        carrier.end().await;
    }
}

async fn configure(
    carrier: &Carrier,
    container: &str,
    routes: Vec<(Route, OwnedFd)>,
) -> Result<()> {
    let mut routes = routes.into_iter().peekable();
    let mut first = true;
    // A forwarder without routes is told so.
    while first || routes.peek().is_some() {
        let (part, fds): (Vec<Route>, Vec<OwnedFd>) = routes.by_ref().take(MAX_FDS).unzip();
        let config = ForwarderConfig { container: container.to_owned(), routes: part };
        let request = match first {
            true => ForwarderRequest::Configure(config),
            false => ForwarderRequest::Add(config),
        };
        carrier.call::<_, ()>(&request, &fds).await?;
        first = false;
    }
    Ok(())
}

/// A published port leads to the container's address of the same family, so that its own can be
/// kept where that is possible. A program that listens on the other family alone is found too; with
/// UDP nobody says that nobody listens, and IPv4 is what every program listens on.
fn published(attachment: &Attachment, bound: Bound) -> (Route, OwnedFd) {
    let Bound { port, socket } = bound;
    let v4 = SocketAddr::new(attachment.ipv4_address.addr().into(), port.container_port);
    let v6 = SocketAddr::new(attachment.ipv6_address.addr().into(), port.container_port);
    let (target, fallback) = match (port.protocol, port.host) {
        (Protocol::Udp, _) => (v4, None),
        (Protocol::Tcp, SocketAddr::V4(_)) => (v4, Some(v6)),
        (Protocol::Tcp, SocketAddr::V6(_)) => (v6, Some(v4)),
    };
    let (listens, protocol) = (Side::Host, port.protocol);
    // Without a default route the container's answers would not find back.
    let keep_client = attachment.default_route;
    (Route { protocol, listens, target, fallback, ports: Vec::new(), keep_client }, socket)
}

/// Whether a container has one.
pub fn is_wanted<K: Kernel>(core: &Core<K>, record: &Record) -> bool {
    !record.attachments.is_empty() && (!record.ports.is_empty() || !access(core, record).is_empty())
}

/// The attachments on which the host may be reached, and what of it.
fn access<'a, K: Kernel>(core: &Core<K>, record: &'a Record) -> Vec<(&'a Attachment, HostAccess)> {
    let state = locked(&core.state);
    let of = |own: &'a Attachment| {
        let net = state.networks.get(&own.network)?;
        let access = joined(&net.config.host_access, &record.options.host_access);
        (access != HostAccess::Denied).then_some((own, access))
    };
    record.attachments.iter().filter_map(of).collect()
}

/// Sockets in the network that lead to the host's loopback address.
async fn host_routes<K: Kernel>(
    core: &Core<K>,
    attachment: &Attachment,
    access: &HostAccess,
    routes: &mut Vec<(Route, OwnedFd)>,
) -> Result<Redirect> {
    let ports = match access {
        HostAccess::Ports(ports) => ports.clone(),
        HostAccess::All | HostAccess::Denied => Vec::new(),
    };
    let host = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let (tcp, sockets) = listen_both(core, attachment, Protocol::Tcp).await?;
    for socket in sockets {
        let route = Route {
            protocol: Protocol::Tcp,
            listens: Side::Container,
            target: host(0),
            fallback: Some(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 0)),
            ports: ports.clone(),
            keep_client: false,
        };
        routes.push((route, socket));
    }
    // With all ports there are none of UDP: each needs sockets of its own.
    let mut udp = BTreeMap::new();
    for port in ports {
        let (listens, sockets) = listen_both(core, attachment, Protocol::Udp).await?;
        udp.insert(port, listens);
        let (protocol, target) = (Protocol::Udp, host(port));
        let route = Route {
            protocol,
            listens: Side::Container,
            target,
            fallback: None,
            ports: Vec::new(),
            keep_client: false,
        };
        routes.extend(sockets.map(|socket| (route.clone(), socket)));
    }
    Ok(Redirect { tcp, udp })
}

/// A free port of the gateway, the same for both families.
async fn listen_both<K: Kernel>(
    core: &Core<K>,
    attachment: &Attachment,
    protocol: Protocol,
) -> Result<(u16, [OwnedFd; 2])> {
    let network = &attachment.network;
    let (v4, v6) = (IpAddr::V4(attachment.ipv4_gateway), IpAddr::V6(attachment.ipv6_gateway));
    let mut last = None;
    for _ in 0..TRIES {
        let first = core.kernel.listen(network, protocol, SocketAddr::new(v4, 0)).await?;
        let address = getsockname(&first).and_then(SocketAddr::try_from);
        let port = address.map_err(std::io::Error::from)?.port();
        match core.kernel.listen(network, protocol, SocketAddr::new(v6, port)).await {
            Ok(second) => return Ok((port, [first, second])),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| ApiError::internal("no port was tried")))
}

/// Starts another one when it dies, on the same ports. Boxed: it keeps watching what it has
/// started.
fn watch<K: Kernel>(
    core: Arc<Core<K>>,
    container: String,
    carrier: Arc<Carrier>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let begun = Instant::now();
        carrier.ended().await;
        let mut pause = PAUSE;
        if begun.elapsed() < LIVED {
            sleep(PAUSE * 10).await;
        }
        loop {
            let lock = core.container(&container);
            let _one = lock.lock().await;
            let current = locked(&core.forwarders).get(&container).cloned();
            if !current.is_some_and(|current| Arc::ptr_eq(&current, &carrier)) {
                return;
            }
            tracing::warn!(container, "the forwarder has died");
            match again(&core, &container).await {
                Ok(()) => return,
                Err(error) => tracing::error!(container, %error, "no new forwarder"),
            }
            drop(_one);
            sleep(pause).await;
            pause = (pause * 2).min(MOST_PAUSE);
        }
    })
}

/// A forwarder in place of one that is gone.
pub async fn again<K: Kernel>(core: &Arc<Core<K>>, container: &str) -> Result<()> {
    let record = locked(&core.state).attached.get(container).cloned();
    let Some(record) = record else { return Ok(()) };
    let bound = ports::bind_again(&record.ports)?;
    match start(core, &record, bound).await? {
        Some(redirects) => core.redirect(&record, redirects).await,
        None => Ok(()),
    }
}
