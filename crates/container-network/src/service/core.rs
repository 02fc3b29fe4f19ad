//! The service's parts together, and what is done to a network as a whole.
//!
//! ```text
//! created ──first container──► up ──nobody on it for a while, or delete──► created / gone
//!                              │▲
//!                              └┘ its resolver dies: another one
//! ```
//! [`Net::up`] is held over each of these steps. Who wants a network up reserves its address first:
//! a network that somebody has reserved on is not taken down.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use container_api::network::{DEFAULT_NETWORK, Protocol};
use container_api::{ApiError, ErrorCode, Result};
use tokio::sync::{Mutex as AsyncMutex, MutexGuard, Notify};
use tokio::time::sleep;

use super::carrier::{Carrier, Kind, Spawn};
use super::denied::Denied;
use super::kernel::Kernel;
use super::pins;
use super::records::Records;
use super::residents::{self, Surroundings};
use super::state::{Net, Settings, State, Up, locked};
use crate::engine::NetworkPlan;
use crate::wire::ResolverRequest;

/// The port of name servers.
const DNS_PORT: u16 = 53;
/// How long a network stays up with nobody on it: the next container finds it ready.
pub const LINGER: Duration = Duration::from_secs(120);
/// Between the death of a process and the start of the next one, when they die one after the
/// other.
const BACKOFF: Duration = Duration::from_millis(100);
/// The longest such pause.
const MOST_BACKOFF: Duration = Duration::from_secs(10);
/// A process that has lived so long has not died of its start.
const LIVED: Duration = Duration::from_secs(5);

/// The service.
pub struct Core<K> {
    pub(super) kernel: K,
    pub(super) spawn: Box<dyn Spawn>,
    pub(super) records: Records,
    pub(super) settings: Settings,
    pub(super) state: Mutex<State>,
    /// Held over everything that is done to a container.
    containers: Mutex<HashMap<String, Weak<AsyncMutex<()>>>>,
    /// Processes of containers with ports.
    pub(super) forwarders: Mutex<HashMap<String, Arc<Carrier>>>,
    /// Who answers the host's own questions.
    pub(super) for_host: AsyncMutex<Option<Arc<Carrier>>>,
    /// Held while the default network finds its place and comes up.
    pub(super) rising: AsyncMutex<()>,
    /// Whether VMs wait that will want a network.
    pub(super) parked: AtomicBool,
    /// Which one they will most likely want: the one that was joined last.
    pub(super) likely: Mutex<String>,
    /// What was denied, and is told to the audit trail.
    pub(super) denied: Denied,
    /// The service is to end.
    pub(super) shutdown: Notify,
}

impl<K> std::fmt::Debug for Core<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").finish_non_exhaustive()
    }
}

impl<K: Kernel> Core<K> {
    /// With what the records say.
    pub fn new(
        kernel: K,
        spawn: Box<dyn Spawn>,
        records: Records,
        settings: Settings,
        denied: Denied,
    ) -> Result<Arc<Core<K>>> {
        let mut state = State {
            upstreams: super::upstream::of_host(&settings.resolv_conf),
            domains: records.domains()?,
            ..State::default()
        };
        for config in records.networks()? {
            state.networks.insert(config.id.clone(), Arc::new(Net::new(config)));
        }
        Ok(Arc::new(Core {
            kernel,
            spawn,
            records,
            settings,
            state: Mutex::new(state),
            containers: Mutex::default(),
            forwarders: Mutex::default(),
            for_host: AsyncMutex::default(),
            rising: AsyncMutex::default(),
            parked: AtomicBool::new(false),
            likely: Mutex::new(DEFAULT_NETWORK.to_owned()),
            denied,
            shutdown: Notify::new(),
        }))
    }

    /// The lock of a container.
    pub(super) fn container(&self, id: &str) -> Arc<AsyncMutex<()>> {
        let mut all = locked(&self.containers);
        all.retain(|_, lock| lock.strong_count() > 0);
        let lock = all.get(id).and_then(Weak::upgrade).unwrap_or_default();
        all.insert(id.to_owned(), Arc::downgrade(&lock));
        lock
    }

    /// What all resolvers are told.
    pub(super) fn surroundings(&self) -> Surroundings {
        let state = locked(&self.state);
        let host_names = state.domains.iter().filter(|domain| domain.localhost.is_some());
        Surroundings {
            domain: self.settings.domain.clone(),
            upstreams: state.upstreams.clone(),
            host_addresses: self.kernel.host_addresses().borrow().clone(),
            host_names: host_names.map(|domain| domain.domain.clone()).collect(),
        }
    }

    /// What the engine is told of a network.
    fn plan(&self, net: &Net) -> NetworkPlan {
        let state = locked(&self.state);
        NetworkPlan {
            config: net.config.clone(),
            others: state.subnets(),
            localhost: state.localhost(),
        }
    }

    /// Brings a network up, unless it is: in a survivor's namespace or a new one.
    pub async fn bring_up(
        self: &Arc<Self>,
        net: &Arc<Net>,
        existing: Option<OwnedFd>,
    ) -> Result<()> {
        let mut up = net.up.lock().await;
        if up.is_some() {
            return Ok(());
        }
        let name = &net.config.id;
        if !locked(&self.state).networks.get(name).is_some_and(|now| Arc::ptr_eq(now, net)) {
            let message = format!("network '{name}' was changed meanwhile");
            return Err(ApiError::new(ErrorCode::InvalidState, message));
        }
        let adopted = existing.is_some();
        self.kernel.create(&self.plan(net), existing).await.map_err(|e| named(e, name))?;
        let survivor = match adopted {
            true => Carrier::find(&self.records.run(), Kind::Resolver, name).await,
            false => None,
        };
        let resolver = match survivor {
            Some(resolver) => Ok(resolver),
            None => self.start_resolver(net).await,
        };
        let begun = match resolver {
            Ok(resolver) => self.begin(net, resolver, &mut up).await,
            Err(error) => Err(error),
        };
        if let Err(error) = begun {
            *up = None;
            // A survivor's namespace has containers in it; another attempt may work.
            if !adopted && let Err(error) = self.kernel.remove(name).await {
                tracing::error!(network = name, %error, "a network that did not come up");
            }
            return Err(named(error, name));
        }
        net.set_up(true);
        tracing::info!(network = name, adopted, "a network is up");
        drop(up);
        self.tell_others(net).await;
        Ok(())
    }

    async fn start_resolver(&self, net: &Net) -> Result<Carrier> {
        let (config, name) = (&net.config, &net.config.id);
        let mut sockets = Vec::new();
        for gateway in [config.ipv4_gateway.into(), config.ipv6_gateway.into()] {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                let address = SocketAddr::new(gateway, DNS_PORT);
                sockets.push(self.kernel.listen(name, protocol, address).await?);
            }
        }
        let handles = self.kernel.handles(name)?;
        let run = self.records.run();
        Carrier::start(&*self.spawn, &run, Kind::Resolver, name, handles, sockets)
    }

    /// Tells a resolver all, and watches over it from then on.
    async fn begin(
        self: &Arc<Self>,
        net: &Arc<Net>,
        resolver: Carrier,
        up: &mut MutexGuard<'_, Option<Up>>,
    ) -> Result<()> {
        let resolver = Arc::new(resolver);
        **up = Some(Up { resolver: resolver.clone(), configured: 0 });
        if let Err(error) = self.configure_locked(net, &mut *up).await {
            resolver.end().await;
            return Err(error);
        }
        tokio::spawn(pins::carry(self.clone(), net.clone(), resolver.clone()));
        tokio::spawn(self.clone().watch(net.clone(), resolver));
        Ok(())
    }

    /// Tells a network's resolver what it does not know yet. Nothing while the network is down.
    pub async fn configure(&self, net: &Net) -> Result<()> {
        self.configure_locked(net, &mut *net.up.lock().await).await
    }

    async fn configure_locked(&self, net: &Net, up: &mut Option<Up>) -> Result<()> {
        let Some(up) = up else { return Ok(()) };
        let version = net.version.load(Ordering::SeqCst);
        if up.configured >= version {
            return Ok(());
        }
        let around = self.surroundings();
        let config = {
            let state = locked(&self.state);
            let find = |name: &str| state.networks.get(name).map(|net| &net.config);
            residents::resolver(&net.config, &state.records(), find, &around)
        };
        up.resolver.call::<_, ()>(&ResolverRequest::Configure(config), &[]).await?;
        up.configured = version;
        Ok(())
    }

    /// Tells all resolvers what has changed around them.
    pub async fn configure_all(&self) {
        let all: Vec<Arc<Net>> = locked(&self.state).networks.values().cloned().collect();
        for net in all {
            net.touch();
            if let Err(error) = self.configure(&net).await {
                tracing::warn!(network = net.config.id, %error, "a resolver was not told");
            }
        }
    }

    /// Lets the rules of the other networks know the subnet of a new one.
    async fn tell_others(&self, new: &Net) {
        let all: Vec<Arc<Net>> = locked(&self.state).networks.values().cloned().collect();
        for net in all.iter().filter(|net| net.config.id != new.config.id) {
            let up = net.up.lock().await;
            if up.is_some()
                && let Err(error) = self.kernel.create(&self.plan(net), None).await
            {
                tracing::error!(network = net.config.id, %error, "a network's rules are old");
            }
        }
    }

    /// Starts another resolver when this one dies.
    async fn watch(self: Arc<Self>, net: Arc<Net>, first: Arc<Carrier>) {
        let name = &net.config.id;
        let (mut resolver, mut pause, mut begun) = (first, BACKOFF, Instant::now());
        loop {
            resolver.ended().await;
            if begun.elapsed() < LIVED {
                sleep(pause).await;
                pause = (pause * 2).min(MOST_BACKOFF);
            } else {
                pause = BACKOFF;
            }
            begun = Instant::now();
            let mut up = net.up.lock().await;
            match &*up {
                Some(up) if Arc::ptr_eq(&up.resolver, &resolver) => {}
                _ => return,
            }
            tracing::warn!(network = name, "the resolver has died");
            match self.start_resolver(&net).await {
                Ok(next) => {
                    let next = Arc::new(next);
                    *up = Some(Up { resolver: next.clone(), configured: 0 });
                    if let Err(error) = self.configure_locked(&net, &mut up).await {
                        tracing::error!(network = name, %error, "a new resolver was not told");
                    }
                    tokio::spawn(pins::carry(self.clone(), net.clone(), next.clone()));
                    resolver = next;
                }
                Err(error) => tracing::error!(network = name, %error, "no new resolver"),
            }
        }
    }

    /// Takes a network down when nobody is on it; says whether it is down.
    pub async fn take_down(&self, net: &Net) -> Result<bool> {
        let mut up = net.up.lock().await;
        let name = &net.config.id;
        if locked(&self.state).on(name).next().is_some() {
            return Ok(false);
        }
        if let Some(Up { resolver, .. }) = up.take() {
            net.set_up(false);
            resolver.end().await;
            self.kernel.remove(name).await.map_err(|e| named(e, name))?;
            tracing::info!(network = name, "a network is down");
        }
        Ok(true)
    }

    /// Takes down what nobody has used for so long.
    pub async fn tidy(&self, linger: Duration) {
        let all: Vec<Arc<Net>> = locked(&self.state).networks.values().cloned().collect();
        for net in all {
            let activity = *locked(&net.activity);
            let idle = activity.idle_since.is_none_or(|since| since.elapsed() >= linger);
            // A VM that waits has no network yet, and will want one of these at once.
            let may = net.config.id == DEFAULT_NETWORK || net.config.id == *locked(&self.likely);
            let awaited = may && self.parked.load(Ordering::SeqCst);
            if activity.up
                && idle
                && !awaited
                && let Err(error) = self.take_down(&net).await
            {
                tracing::error!(network = net.config.id, %error, "taking a network down");
            }
        }
    }
}

/// Names the network in an error.
pub fn named(error: ApiError, network: &str) -> ApiError {
    error.context(format!("network '{network}'"))
}
