//! Networks as they are made, listed and removed.

use std::sync::Arc;

use container_api::network::{CreateNetwork, DEFAULT_NETWORK, Dropped, Network, NetworkConfig};
use container_api::types::Timestamp;
use container_api::{ApiError, ErrorCode, Result};
use ipnet::IpNet;

use super::core::Core;
use super::kernel::Kernel;
use super::state::{Net, State, locked};
use super::{allocate, attach, check, names, routes, subnet};

/// MTU of NICs when nothing is said.
const MTU: u32 = 1500;
/// How often the default network looks for a place in a row.
const MOVES: usize = 8;
/// Most networks.
const MAX_NETWORKS: usize = 1024;
/// Most labels of one network, and the bytes of one.
const MAX_LABELS: (usize, usize) = (128, 4096);

impl<K: Kernel> Core<K> {
    /// Makes the default network where there is none, and lets one that nobody uses follow the
    /// configuration: nobody has chosen where it leads.
    pub fn ensure_default(&self) -> Result<()> {
        let mut state = locked(&self.state);
        let Some(net) = state.networks.get(DEFAULT_NETWORK) else {
            let request =
                CreateNetwork { name: DEFAULT_NETWORK.into(), ..CreateNetwork::default() };
            let config = self.plan_network(&state, &request)?;
            return self.add(&mut state, config).map(drop);
        };
        let mut config = net.config.clone();
        if config.mode == self.settings.mode {
            return Ok(());
        }
        if state.on(DEFAULT_NETWORK).next().is_some() || locked(&net.activity).up {
            tracing::warn!(mode = %config.mode, "the default network is in use and stays as it is");
            return Ok(());
        }
        config.mode = self.settings.mode;
        self.add(&mut state, config).map(drop)
    }

    /// Brings the default network up, unless it is, in subnets that are nobody else's: nobody has
    /// chosen them, so it moves when the host has one of them by now. Another installation may be
    /// quicker between the look and the route; then it moves again.
    pub(super) async fn raise_default(self: &Arc<Self>) -> Result<()> {
        let _one = self.rising.lock().await;
        let mut avoid: Vec<IpNet> = Vec::new();
        for left in (0..MOVES).rev() {
            let net = self.settle_default(&avoid).await?;
            match self.bring_up(&net, None).await {
                Err(error) if error.code == ErrorCode::AlreadyExists && left > 0 => {
                    tracing::warn!(%error, "the default network moves");
                    avoid.extend(subnets(&net.config));
                }
                other => return other,
            }
        }
        Ok(())
    }

    /// Moves the default network where it has to, while it is down and nobody is on it.
    async fn settle_default(&self, avoid: &[IpNet]) -> Result<Arc<Net>> {
        let net = locked(&self.state).network(DEFAULT_NETWORK)?;
        let up = net.up.lock().await;
        if up.is_some() || self.placed(&net, avoid)?.is_none() {
            drop(up);
            return Ok(net);
        }
        // It may be a link of ours that has outlived a service.
        self.kernel.tidy().await?;
        let Some(config) = self.placed(&net, avoid)? else {
            drop(up);
            return Ok(net);
        };
        let mut state = locked(&self.state);
        if state.on(DEFAULT_NETWORK).next().is_some() {
            drop(up);
            return Ok(net.clone());
        }
        tracing::info!(target: "audit", network = config.id, ipv4 = %config.ipv4_subnet,
            ipv6 = %config.ipv6_subnet, "the default network has moved: its subnet was taken");
        self.add(&mut state, config)
    }

    /// The default network with other subnets for those that are taken; `None`: none is.
    fn placed(&self, net: &Net, avoid: &[IpNet]) -> Result<Option<NetworkConfig>> {
        let mut host = self.routes_of_host()?;
        host.extend(avoid);
        let mut taken = locked(&self.state).taken(host);
        // It is down: a route to its subnet is somebody else's.
        taken.networks.retain(|(name, _)| name != DEFAULT_NETWORK);
        let mut config = net.config.clone();
        if subnet::check_v4(config.ipv4_subnet, &taken).is_err() {
            config.ipv4_subnet = subnet::choose_v4(&self.settings.pool, &taken)?;
        }
        if subnet::check_v6(config.ipv6_subnet, &taken).is_err() {
            config.ipv6_subnet = subnet::choose_v6(&self.settings.pool, &taken, attach::random)?;
        }
        if subnets(&config) == subnets(&net.config) {
            return Ok(None);
        }
        (config.ipv4_gateway, config.ipv6_gateway) =
            allocate::gateways(config.ipv4_subnet, config.ipv6_subnet);
        Ok(Some(config))
    }

    fn routes_of_host(&self) -> Result<Vec<IpNet>> {
        routes::of_host().map_err(|e| ApiError::from(e).context("reading the host's routes"))
    }

    /// See [`container_api::network::Request::Create`].
    pub fn create(&self, request: &CreateNetwork) -> Result<Network> {
        names::check_network(&request.name)?;
        let mut state = locked(&self.state);
        if state.networks.contains_key(&request.name) {
            let message = format!("network '{}' already exists", request.name);
            return Err(ApiError::new(ErrorCode::AlreadyExists, message));
        }
        if state.networks.len() >= MAX_NETWORKS {
            let message = format!("there are {MAX_NETWORKS} networks already");
            return Err(ApiError::new(ErrorCode::ResourceExhausted, message));
        }
        let config = self.plan_network(&state, request)?;
        let net = self.add(&mut state, config)?;
        tracing::info!(target: "audit", network = net.config.id, mode = %net.config.mode,
            ipv4 = %net.config.ipv4_subnet, ipv6 = %net.config.ipv6_subnet, "a network was made");
        Ok(shown(&net, &state, Vec::new()))
    }

    fn add(&self, state: &mut State, config: NetworkConfig) -> Result<Arc<Net>> {
        self.records.keep_network(&config)?;
        let net = Arc::new(Net::new(config));
        state.networks.insert(net.config.id.clone(), net.clone());
        Ok(net)
    }

    fn plan_network(&self, state: &State, request: &CreateNetwork) -> Result<NetworkConfig> {
        check::egress(&request.egress)?;
        check::host_access(&request.host_access)?;
        let mtu = request.mtu.unwrap_or(MTU);
        check::mtu(mtu)?;
        let (most, longest) = MAX_LABELS;
        let long =
            |(key, value): (&String, &String)| key.is_empty() || key.len() + value.len() > longest;
        if request.labels.len() > most || request.labels.iter().any(long) {
            let message = format!("at most {most} labels of {longest} bytes, each with a name");
            return Err(ApiError::invalid(message));
        }
        let taken = state.taken(self.routes_of_host()?);
        let ipv4_subnet = match request.subnet {
            Some(net) => subnet::check_v4(net, &taken)?,
            None => subnet::choose_v4(&self.settings.pool, &taken)?,
        };
        let ipv6_subnet = match request.subnet_v6 {
            Some(net) => subnet::check_v6(net, &taken)?,
            None => subnet::choose_v6(&self.settings.pool, &taken, attach::random)?,
        };
        let (ipv4_gateway, ipv6_gateway) = allocate::gateways(ipv4_subnet, ipv6_subnet);
        Ok(NetworkConfig {
            id: request.name.clone(),
            mode: request.mode.unwrap_or(self.settings.mode),
            ipv4_subnet,
            ipv4_gateway,
            ipv6_subnet,
            ipv6_gateway,
            isolated: request.isolated,
            mtu,
            egress: request.egress.clone(),
            host_access: request.host_access.clone(),
            labels: request.labels.clone(),
            creation_date: Timestamp::now(),
        })
    }

    /// See [`container_api::network::Request::Delete`].
    pub async fn delete(&self, names: &[String], in_use: &[String]) -> Result<Vec<String>> {
        let nets = {
            let mut state = locked(&self.state);
            let mut nets: Vec<Arc<Net>> = Vec::new();
            for name in names {
                let net = state.network(name)?;
                if name == DEFAULT_NETWORK {
                    return Err(ApiError::invalid("the default network can't be deleted"));
                }
                refuse_used(&state, name, in_use)?;
                if !nets.iter().any(|other| other.config.id == *name) {
                    nets.push(net);
                }
            }
            self.unlist(&mut state, &nets)?;
            nets
        };
        self.end_networks(&nets).await
    }

    /// See [`container_api::network::Request::Prune`].
    pub async fn prune(&self, in_use: &[String]) -> Result<Vec<String>> {
        let nets = {
            let mut state = locked(&self.state);
            let unused = |name: &str| refuse_used(&state, name, in_use).is_ok();
            let nets = state
                .networks
                .values()
                .filter(|net| net.config.id != DEFAULT_NETWORK && unused(&net.config.id));
            let nets: Vec<Arc<Net>> = nets.cloned().collect();
            self.unlist(&mut state, &nets)?;
            nets
        };
        self.end_networks(&nets).await
    }

    /// From here on nobody comes to them.
    fn unlist(&self, state: &mut State, nets: &[Arc<Net>]) -> Result<()> {
        for net in nets {
            self.records.forget_network(&net.config.id)?;
            state.networks.remove(&net.config.id);
        }
        Ok(())
    }

    async fn end_networks(&self, nets: &[Arc<Net>]) -> Result<Vec<String>> {
        let mut failed = None;
        for net in nets {
            let name = &net.config.id;
            match self.take_down(net).await {
                Ok(_) => tracing::info!(target: "audit", network = name, "a network was removed"),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(nets.iter().map(|net| net.config.id.clone()).collect()),
        }
    }

    /// See [`container_api::network::Request::List`]. What was dropped is asked for only of
    /// networks that are named.
    pub async fn list(&self, names: &[String]) -> Result<Vec<Network>> {
        let mut nets: Vec<Arc<Net>> = {
            let state = locked(&self.state);
            match names.is_empty() {
                true => state.networks.values().cloned().collect(),
                false => names.iter().map(|name| state.network(name)).collect::<Result<_>>()?,
            }
        };
        nets.sort_by(|a, b| a.config.id.cmp(&b.config.id));
        nets.dedup_by(|a, b| a.config.id == b.config.id);
        let mut found = Vec::new();
        for net in nets {
            let dropped = match names.is_empty() {
                true => Vec::new(),
                false => self.dropped(&net).await?.0,
            };
            found.push(shown(&net, &locked(&self.state), dropped));
        }
        Ok(found)
    }
}

fn subnets(config: &NetworkConfig) -> [IpNet; 2] {
    [config.ipv4_subnet.into(), config.ipv6_subnet.into()]
}

fn refuse_used(state: &State, name: &str, in_use: &[String]) -> Result<()> {
    let user = state.on(name).next().map(|(record, _)| record.container.clone());
    let what = match user {
        Some(container) => format!("container '{container}' is on it"),
        None if in_use.iter().any(|used| used == name) => "a stopped container needs it".into(),
        None => return Ok(()),
    };
    Err(ApiError::new(ErrorCode::InUse, format!("network '{name}' is in use: {what}")))
}

fn shown(net: &Net, state: &State, dropped: Vec<Dropped>) -> Network {
    let name = &net.config.id;
    let mut attachments: Vec<_> =
        state.on(name).map(|(record, own)| (record.sequence, own)).collect();
    attachments.sort_by_key(|(sequence, _)| *sequence);
    Network {
        id: name.clone(),
        configuration: net.config.clone(),
        state: if locked(&net.activity).up { "running" } else { "created" }.into(),
        attachments: attachments.into_iter().map(|(_, own)| own.clone()).collect(),
        dropped,
    }
}
