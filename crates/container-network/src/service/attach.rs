//! A container's networks: given all together or not at all, and taken back.
//!
//! ```text
//! checked ─► ports bound ─► the default network in its place ─► addresses reserved (recorded) ─► networks up ─► taps, rules
//!        ─► names, forwarder ─► attached
//! ```
//! From the reservation on, a failure takes back what has been done, and a service that comes after
//! a killed one finds the record.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use container_api::network::{
    Attach, Attached, Attachment, DEFAULT_NETWORK, HostAccess, Mac, Mode, NetworkChoice, Parked,
};
use container_api::{ApiError, ErrorCode, Result};
use ipnet::{Ipv4Net, Ipv6Net};
use tokio::sync::Mutex as AsyncMutex;

use super::core::{Core, named};
use super::kernel::Kernel;
use super::ports::{self, Bound};
use super::records::{Record, joined};
use super::state::{Net, locked};
use super::{allocate, check, forwarder, names, residents};

/// Longest id of a container in bytes.
const MAX_ID: usize = 128;

impl<K: Kernel> Core<K> {
    /// See [`container_api::network::Request::Park`].
    pub async fn park(self: &Arc<Self>) -> Result<(Parked, OwnedFd)> {
        let likely = locked(&self.likely).clone();
        let (tap, fd) = self.kernel.park(&likely).await?;
        if !self.parked.swap(true, std::sync::atomic::Ordering::SeqCst) {
            // Whoever takes that VM finds its network up.
            let core = self.clone();
            tokio::spawn(async move {
                if let Err(error) = core.raise_default().await {
                    tracing::warn!(%error, "the default network was not brought up ahead");
                }
            });
        }
        Ok((Parked { tap }, fd))
    }

    /// See [`container_api::network::Request::Attach`].
    pub async fn attach(self: &Arc<Self>, request: Attach) -> Result<(Attached, Vec<OwnedFd>)> {
        check_id(&request.container)?;
        let lock: Arc<AsyncMutex<()>> = self.container(&request.container);
        let _one = lock.lock().await;
        if locked(&self.state).attached.contains_key(&request.container) {
            // Its caller has not heard of it, or its VM has ended.
            self.take_back(&request.container).await?;
        }
        self.check(&request.options)?;
        if request.options.networks.is_empty() {
            return Ok((Attached::default(), Vec::new()));
        }
        let bound =
            ports::bind_all(&request.options.published_ports, &self.settings.publish_address)?;
        if request.options.networks.iter().any(|choice| choice.network == DEFAULT_NETWORK)
            && !self.is_up(DEFAULT_NETWORK)
        {
            self.raise_default().await?;
        }
        let record = self.reserve(&request, &bound)?;
        match self.carry_out(&record, request.parked, bound).await {
            Ok(taps) => {
                if let Some(first) = record.attachments.first() {
                    locked(&self.likely).clone_from(&first.network);
                }
                Ok((self.attached(&record), taps))
            }
            Err(error) => {
                if let Err(after) = self.take_back(&request.container).await {
                    tracing::error!(container = request.container, error = %after, "taking back");
                }
                Err(error)
            }
        }
    }

    /// See [`container_api::network::Request::Check`].
    pub fn check(&self, options: &container_api::network::ContainerNetwork) -> Result<()> {
        let state = locked(&self.state);
        check::container(options, |name| state.networks.get(name).map(|net| &net.config))
    }

    fn is_up(&self, network: &str) -> bool {
        let state = locked(&self.state);
        state.networks.get(network).is_some_and(|net| locked(&net.activity).up)
    }

    /// Chooses addresses and writes down whose they are.
    fn reserve(&self, request: &Attach, bound: &[Bound]) -> Result<Record> {
        let mut state = locked(&self.state);
        let mut attachments: Vec<Attachment> = Vec::new();
        let mut has_route = false;
        for choice in &request.options.networks {
            let net = state.network(&choice.network)?;
            let mut attachment = self.place(&state, &net, choice, request)?;
            if net.config.mode == Mode::Nat && !has_route {
                has_route = true;
                attachment.default_route = true;
            }
            attachments.push(attachment);
        }
        state.sequence += 1;
        let record = Record {
            container: request.container.clone(),
            hostname: request.hostname.clone(),
            options: request.options.clone(),
            attachments,
            ports: bound.iter().map(|bound| bound.port.clone()).collect(),
            redirects: BTreeMap::new(),
            sequence: state.sequence,
        };
        self.records.keep_attached(&record)?;
        state.attached.insert(record.container.clone(), record.clone());
        for attachment in &record.attachments {
            if let Some(net) = state.networks.get(&attachment.network) {
                net.touch();
                net.used();
            }
        }
        Ok(record)
    }

    fn place(
        &self,
        state: &super::state::State,
        net: &Net,
        choice: &NetworkChoice,
        request: &Attach,
    ) -> Result<Attachment> {
        let config = &net.config;
        let used = state.used(&config.id);
        let aliases = choice.aliases.iter().map(|alias| names::check_alias(alias));
        let aliases = aliases.collect::<Result<Vec<_>>>()?;
        let own = names::resolvable(&request.container);
        let all: Vec<String> = own.into_iter().chain(aliases.iter().cloned()).collect();
        state.check_names(&config.id, &all)?;
        let mac: Mac = allocate::mac(&config.id, &used, choice.mac_address, random)?;
        let mut cursor = locked(&net.cursor);
        let (v4, v6) = allocate::addresses(config, &used, &choice.addresses, &mut cursor)?;
        let wrong = |e: ipnet::PrefixLenError| ApiError::internal(e.to_string());
        Ok(Attachment {
            container: request.container.clone(),
            network: config.id.clone(),
            hostname: request.hostname.clone(),
            aliases,
            ipv4_address: Ipv4Net::new(v4, config.ipv4_subnet.prefix_len()).map_err(wrong)?,
            ipv4_gateway: config.ipv4_gateway,
            ipv6_address: Ipv6Net::new(v6, config.ipv6_subnet.prefix_len()).map_err(wrong)?,
            ipv6_gateway: config.ipv6_gateway,
            default_route: false,
            mac_address: mac,
            mtu: choice.mtu.unwrap_or(config.mtu),
        })
    }

    async fn carry_out(
        self: &Arc<Self>,
        record: &Record,
        parked: Option<String>,
        bound: Vec<Bound>,
    ) -> Result<Vec<OwnedFd>> {
        let nets = self.nets(record)?;
        for net in &nets {
            self.bring_up(net, None).await?;
        }
        // What is told to the kernel, to the resolvers and to the forwarder goes side by side.
        let (taps, names, forwards) = tokio::join!(
            self.attach_taps(record, &nets, parked),
            self.tell(&nets),
            forwarder::start(self, record, bound),
        );
        let taps = taps?;
        names?;
        let Some(redirects) = forwards? else { return Ok(taps) };
        self.redirect(record, redirects).await?;
        Ok(taps)
    }

    async fn attach_taps(
        &self,
        record: &Record,
        nets: &[Arc<Net>],
        mut parked: Option<String>,
    ) -> Result<Vec<OwnedFd>> {
        let mut taps = Vec::new();
        for (attachment, net) in record.attachments.iter().zip(nets) {
            let (name, tap) = (&net.config.id, parked.take());
            let port = residents::port(&net.config, record, attachment, tap);
            let was_parked = port.tap.is_some();
            match self.kernel.attach(name, &port).await.map_err(|e| named(e, name))? {
                Some(tap) => taps.push(tap),
                None if was_parked => {}
                None => return Err(named(ApiError::internal("no tap was made"), name)),
            }
        }
        Ok(taps)
    }

    async fn tell(&self, nets: &[Arc<Net>]) -> Result<()> {
        for net in nets {
            self.configure(net).await?;
        }
        self.tell_host().await;
        Ok(())
    }

    /// Leads packets for the host into the forwarder, and remembers where that is.
    pub(super) async fn redirect(
        &self,
        record: &Record,
        redirects: forwarder::Redirects,
    ) -> Result<()> {
        for (network, to) in &redirects {
            self.kernel
                .host_redirect(network, &record.container, to.tcp, &to.udp)
                .await
                .map_err(|e| named(e, network))?;
        }
        let record = {
            let mut state = locked(&self.state);
            let Some(kept) = state.attached.get_mut(&record.container) else { return Ok(()) };
            kept.redirects = redirects;
            kept.clone()
        };
        self.records.keep_attached(&record)
    }

    /// The networks of a container, in its order.
    pub(super) fn nets(&self, record: &Record) -> Result<Vec<Arc<Net>>> {
        let state = locked(&self.state);
        record.attachments.iter().map(|own| state.network(&own.network)).collect()
    }

    fn attached(&self, record: &Record) -> Attached {
        let state = locked(&self.state);
        let with_route = record.attachments.iter().find(|own| own.default_route);
        let resolver = with_route.or_else(|| record.attachments.first());
        let gateway = |own: &Attachment| IpAddr::V4(own.ipv4_gateway);
        let dns = &record.options.dns;
        let nameservers = match dns.nameservers.is_empty() {
            true => resolver.map(gateway).into_iter().collect(),
            false => dns.nameservers.clone(),
        };
        let reaches = |own: &Attachment| {
            state.networks.get(&own.network).is_some_and(|net| {
                joined(&net.config.host_access, &record.options.host_access) != HostAccess::Denied
            })
        };
        Attached {
            attachments: record.attachments.clone(),
            ports: record.ports.clone(),
            nameservers,
            domain: dns.domain.clone().or_else(|| self.settings.domain.clone()),
            host_access: record.attachments.iter().any(reaches),
        }
    }

    /// See [`container_api::network::Request::Detach`].
    pub async fn detach(&self, container: &str) -> Result<()> {
        let lock = self.container(container);
        let _one = lock.lock().await;
        self.take_back(container).await
    }

    /// Everything that a container has, as far as it can be taken back; the record goes when
    /// nothing is left.
    pub(super) async fn take_back(&self, container: &str) -> Result<()> {
        let record = locked(&self.state).attached.get(container).cloned();
        let Some(record) = record else { return Ok(()) };
        // First: its ports are free again.
        forwarder::end(self, container).await;
        self.note_last_denied(&record).await;
        let mut failed = None;
        for attachment in &record.attachments {
            if let Err(error) = self.kernel.detach(&attachment.network, container).await {
                tracing::error!(container, network = attachment.network, %error, "detaching");
                failed = Some(named(error, &attachment.network));
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        self.forget_denied(container).await;
        self.forget(&record)?;
        for net in self.nets(&record).unwrap_or_default() {
            if let Err(error) = self.configure(&net).await {
                tracing::warn!(network = net.config.id, %error, "a resolver was not told");
            }
        }
        self.tell_host().await;
        Ok(())
    }

    /// Forgets a container that has nothing any more.
    pub(super) fn forget(&self, record: &Record) -> Result<()> {
        let mut state = locked(&self.state);
        self.records.forget_attached(&record.container)?;
        state.attached.remove(&record.container);
        let networks = record.attachments.iter().map(|own| &own.network);
        for net in networks.filter_map(|network| state.networks.get(network)) {
            net.touch();
            net.used();
        }
        Ok(())
    }
}

/// The ids that name files and sockets here.
fn check_id(id: &str) -> Result<()> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let first = id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    match first && id.len() <= MAX_ID && id.bytes().all(legal) {
        true => Ok(()),
        false => {
            let message = format!("invalid container id '{}'", names::shown(id));
            Err(ApiError::new(ErrorCode::InvalidArgument, message))
        }
    }
}

/// Random bytes of the kernel.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let n = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(std::io::Error::from)?;
    match n == N {
        true => Ok(bytes),
        false => Err(ApiError::internal("getrandom gave too few bytes")),
    }
}
