//! `container system dns`: names of containers on the host.
//!
//! A resolver of its own answers the host at a loopback address ([`ADDRESS`]). Where systemd's
//! resolver runs and we may write its configuration it is told; else the user is told what to do.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use container_api::network::{DnsDomain, DnsRequest, Protocol, PublishPort};
use container_api::varlink::Reply;
use container_api::{ApiError, ErrorCode, Result};
use ipnet::IpNet;

use super::carrier::{Carrier, Kind};
use super::core::Core;
use super::kernel::Kernel;
use super::ports::{self, Bound};
use super::state::locked;
use super::{names, residents};
use crate::engine::Handles;
use crate::wire::ResolverRequest;

/// An address that may stand for the host's loopback in containers: nobody's there.
fn check_localhost(address: Ipv4Addr, subnets: &[IpNet]) -> Result<()> {
    let nobody = !(address.is_unspecified()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast());
    let ours = subnets.iter().find(|net| net.contains(&IpAddr::V4(address)));
    match ours {
        None if nobody => Ok(()),
        Some(net) => Err(ApiError::invalid(format!(
            "--localhost {address}: it is an address of the network {net}; choose one that nobody \
             has, such as 203.0.113.113"
        ))),
        None => Err(ApiError::invalid(format!(
            "--localhost {address}: not an address that a container can send to; choose one that \
             nobody has, such as 203.0.113.113"
        ))),
    }
}

/// Where the host is answered.
const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 2053);
/// Ports tried from there on: another installation may have the first.
const PORTS: u16 = 16;
/// The resolver's name among the networks', none of which can have it.
pub(super) const NAME: &str = "~host";
/// Between two attempts to start it.
const RETRY: Duration = Duration::from_secs(5);
/// Most domains.
const MAX_DOMAINS: usize = 64;

impl<K: Kernel> Core<K> {
    /// See [`container_api::network::Request::Dns`].
    pub async fn dns(self: &Arc<Self>, request: DnsRequest) -> Result<Reply> {
        match request {
            DnsRequest::Create { domain, localhost } => {
                Reply::new(&self.create_domain(&domain, localhost).await?)
            }
            DnsRequest::Delete { domain } => Reply::new(&self.delete_domain(&domain).await?),
            DnsRequest::List => Reply::new(&locked(&self.state).domains),
        }
    }

    async fn create_domain(
        self: &Arc<Self>,
        name: &str,
        localhost: Option<Ipv4Addr>,
    ) -> Result<DnsDomain> {
        let name = names::check_domain(name)?;
        {
            let state = locked(&self.state);
            localhost.map_or(Ok(()), |address| check_localhost(address, &state.subnets()))?;
            if state.domains.iter().any(|domain| domain.domain == name) {
                let message = format!("domain '{name}' already exists");
                return Err(ApiError::new(ErrorCode::AlreadyExists, message));
            }
            if state.domains.len() >= MAX_DOMAINS {
                let message = format!("there are {MAX_DOMAINS} domains already");
                return Err(ApiError::new(ErrorCode::ResourceExhausted, message));
            }
        }
        let server = self.host_server().await?;
        let (installed, advice) = self.install(&name, server);
        let domain = DnsDomain { domain: name, server: Some(server), localhost, installed, advice };
        let domains = {
            let mut state = locked(&self.state);
            state.domains.push(domain.clone());
            state.domains.sort_by(|a, b| a.domain.cmp(&b.domain));
            state.domains.clone()
        };
        self.records.keep_domains(&domains)?;
        self.tell_localhost().await?;
        self.configure_all().await;
        self.tell_host().await;
        Ok(domain)
    }

    async fn delete_domain(self: &Arc<Self>, name: &str) -> Result<()> {
        let name = names::check_domain(name)?;
        let (domain, domains) = {
            let mut state = locked(&self.state);
            let at = state.domains.iter().position(|domain| domain.domain == name);
            let at = at.ok_or_else(|| ApiError::not_found(format!("no domain '{name}'")))?;
            (state.domains.remove(at), state.domains.clone())
        };
        self.records.keep_domains(&domains)?;
        if let Some(file) = domain.installed {
            remove_file(&file)?;
            reload();
        }
        if domains.is_empty()
            && let Some(resolver) = self.for_host.lock().await.take()
        {
            resolver.end().await;
        }
        self.tell_localhost().await?;
        self.configure_all().await;
        self.tell_host().await;
        Ok(())
    }

    /// Tells the networks which addresses stand for the host's loopback.
    async fn tell_localhost(&self) -> Result<()> {
        let addresses = locked(&self.state).localhost();
        self.kernel.localhost(&addresses).await
    }

    /// Where the host's resolver finds us; starts it when it does not run.
    async fn host_server(self: &Arc<Self>) -> Result<SocketAddr> {
        let mut current = self.for_host.lock().await;
        let known = locked(&self.state).domains.iter().find_map(|domain| domain.server);
        if let (Some(server), Some(_)) = (known, &*current) {
            return Ok(server);
        }
        let (server, sockets) = listen(known)?;
        let handles = own_namespace()?;
        let run = self.records.run();
        let resolver = Carrier::start(&*self.spawn, &run, Kind::Resolver, NAME, handles, sockets)?;
        self.watch_host(current.insert(Arc::new(resolver)));
        Ok(server)
    }

    /// Starts another resolver of the host when this one dies.
    fn watch_host(self: &Arc<Self>, resolver: &Arc<Carrier>) {
        let (core, resolver) = (self.clone(), resolver.clone());
        tokio::spawn(async move {
            resolver.ended().await;
            {
                let mut current = core.for_host.lock().await;
                if !current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &resolver)) {
                    return;
                }
                tracing::warn!("the resolver of the host has died");
                *current = None;
            }
            while let Err(error) = core.start_for_host().await {
                tracing::error!(%error, "names do not resolve on the host");
                tokio::time::sleep(RETRY).await;
            }
        });
    }

    /// Brings the resolver of the host up, where there are domains. Boxed: it watches what it has
    /// started, and starts it again.
    fn start_for_host(self: &Arc<Self>) -> Pin<Box<dyn Future<Output = Result<()>> + Send + '_>> {
        Box::pin(async move {
            if !locked(&self.state).domains.is_empty() {
                self.host_server().await?;
                self.tell_host().await;
            }
            Ok(())
        })
    }

    /// After a start of the service: the resolver of the host, where there are domains.
    pub async fn restore_domains(self: &Arc<Self>) {
        let known = !locked(&self.state).domains.is_empty();
        if let Some(survivor) = Carrier::find(&self.records.run(), Kind::Resolver, NAME).await {
            match known {
                true => self.watch_host(self.for_host.lock().await.insert(Arc::new(survivor))),
                false => survivor.end().await,
            }
        }
        if let Err(error) = self.start_for_host().await {
            tracing::error!(%error, "names do not resolve on the host");
        }
    }

    /// Tells the resolver of the host who there is.
    pub(super) async fn tell_host(&self) {
        let current = self.for_host.lock().await;
        let Some(resolver) = &*current else { return };
        let around = self.surroundings();
        let config = {
            let state = locked(&self.state);
            let domains = state.domains.iter().map(|domain| domain.domain.clone());
            residents::for_host(&state.records(), domains.collect(), &around)
        };
        if let Err(error) = resolver.call::<_, ()>(&ResolverRequest::Configure(config), &[]).await {
            tracing::warn!(%error, "the host's resolver was not told");
        }
    }

    /// Tells the host's own resolver where to ask, or the user how.
    fn install(&self, domain: &str, server: SocketAddr) -> (Option<PathBuf>, Option<String>) {
        let directory = self.settings.etc.join("systemd/resolved.conf.d");
        let file = directory.join(format!("container-{domain}.conf"));
        let text = format!("[Resolve]\nDNS={server}\nDomains=~{domain}\n");
        let systemd = self.settings.resolved.exists();
        let attempt = || {
            std::fs::create_dir_all(&directory)?;
            std::fs::write(&file, &text)?;
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644))
        };
        let why = match systemd.then(attempt) {
            Some(Ok(())) => {
                reload();
                return (Some(file), None);
            }
            Some(Err(error)) => format!("{}: {error}", file.display()),
            None => "systemd-resolved does not run here".into(),
        };
        let advice = match systemd {
            true => format!(
                "as root, write these lines to {} and restart systemd-resolved: {}",
                file.display(),
                text.trim_end().replace('\n', ", ")
            ),
            false => format!(
                "let the host's resolver ask {} port {} for '{domain}' (dnsmasq: \
                 server=/{domain}/{}#{})",
                server.ip(),
                server.port(),
                server.ip(),
                server.port()
            ),
        };
        tracing::info!(domain, why, "the host's resolver was not told");
        (None, Some(advice))
    }
}

/// UDP and TCP at the same port of the loopback address: the former one, or the first that is free.
fn listen(known: Option<SocketAddr>) -> Result<(SocketAddr, Vec<OwnedFd>)> {
    let candidates = (0..PORTS).map(|n| SocketAddr::new(ADDRESS.ip(), ADDRESS.port() + n));
    let mut last = None;
    for address in known.into_iter().chain(candidates.filter(|_| known.is_none())) {
        let publish = |protocol| PublishPort {
            host_address: Some(address.ip()),
            host_port: address.port(),
            container_port: address.port(),
            count: 1,
            protocol,
        };
        match ports::bind_all(&[publish(Protocol::Udp), publish(Protocol::Tcp)], &[]) {
            Ok(bound) => {
                return Ok((
                    address,
                    bound.into_iter().map(|Bound { socket, .. }| socket).collect(),
                ));
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| ApiError::internal("no port was tried")))
}

/// It answers in the host's network, where this process is.
fn own_namespace() -> Result<Handles> {
    let network = std::fs::File::open("/proc/thread-self/ns/net")?;
    Ok(Handles { network: network.into(), user: None })
}

fn remove_file(path: &std::path::Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(ApiError::from(e).context(format!("removing {}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Lets systemd's resolver read its configuration; it does so at its next start if not now.
fn reload() {
    let status = Command::new("systemctl")
        .args(["--no-block", "try-reload-or-restart", "systemd-resolved.service"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
        tracing::warn!(?status, "systemd-resolved was not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_stand_for_the_host() {
        let subnets = ["192.168.64.0/24".parse().unwrap()];
        let check = |address: &str| check_localhost(address.parse().unwrap(), &subnets);
        check("203.0.113.113").unwrap();
        for bad in ["127.0.0.1", "0.0.0.0", "224.0.0.1", "169.254.169.254", "255.255.255.255"] {
            assert!(check(bad).unwrap_err().to_string().contains(bad));
        }
        assert!(check("192.168.64.9").unwrap_err().to_string().contains("192.168.64.0/24"));
    }
}
