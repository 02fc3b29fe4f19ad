//! Namespaces, bridges, taps, rules and uplinks: what the kernel is told.
//!
//! Each network has a thread that lives in its namespace and does everything there
//! ([`namespace::Worker`] with a [`network::Network`]). Taps that wait for a network are in one of
//! these or in one more ([`parking`]). The process itself stays in the host's network namespace, where an uplink's `pasta` is
//! started and the host's addresses are watched.
//!
//! ```text
//!  VM ─ tap ┐                        ┌ uplink ─ pasta ─ the host's sockets
//!  VM ─ tap ┴ br0 ─ rules, routing ──┤
//!            (gateway)               └ host0 ══ ctrXXXXXXXX on the host (as root only)
//! ```
//! What a namespace holds says all about its containers: taps carry their ids, the rules' sets
//! their addresses. A new service reads it back.

mod counts;
mod host;
mod keeper;
mod namespace;
mod netlink;
mod network;
mod nft;
mod parking;
mod ports;
mod rules;
mod surroundings;
mod survey;
mod tap;
mod uplink;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use container_api::error::{ApiError, ErrorCode, Result};
use container_api::network::{Attachment, DEFAULT_NETWORK, Egress, HostAccess, NetworkConfig};
use ipnet::IpNet;
use tokio::sync::watch;

use self::keeper::{Keeper, Keeping};
use self::namespace::{Privilege, Worker, failed};
use self::netlink::Netlink;
use self::network::Network;
use self::parking::Parking;
pub use self::survey::Survey;

/// A network as its namespace is made.
#[derive(Clone, Debug)]
pub struct NetworkPlan {
    /// Its configuration.
    pub config: NetworkConfig,
    /// The subnets of all our networks; its own among them does no harm.
    pub others: Vec<IpNet>,
    /// Addresses that stand for the host's loopback where it may be reached.
    pub localhost: Vec<Ipv4Addr>,
}

/// A container on a network.
#[derive(Clone, Debug)]
pub struct Port {
    /// A tap made ahead by [`Engine::park`].
    pub tap: Option<String>,
    /// Addresses and names.
    pub attachment: Attachment,
    /// The rules that apply to it: what every one of them allows.
    pub egress: Vec<Egress>,
    /// What of the host it may reach; the network's included.
    pub host_access: HostAccess,
}

/// Duplicates of the namespaces that keep a network alive.
#[derive(Debug)]
pub struct Handles {
    /// The network's namespace.
    pub network: OwnedFd,
    /// The user namespace that owns it, where it isn't the service's first one.
    pub user: Option<OwnedFd>,
}

/// What configures the kernel. Clones are the same engine.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("privilege", &self.inner.privilege).finish_non_exhaustive()
    }
}

struct Inner {
    privilege: Privilege,
    run: PathBuf,
    /// Found at the start.
    nft: OnceLock<PathBuf>,
    /// The host's own network, asked within its namespace.
    host: Mutex<Netlink>,
    state: watch::Sender<host::State>,
    addresses: watch::Sender<Vec<IpAddr>>,
    networks: Mutex<BTreeMap<String, Up>>,
    /// One network comes up or goes at a time.
    changing: tokio::sync::Mutex<()>,
    parking: Parking,
}

/// A network that is up.
struct Up {
    worker: Worker<Network>,
    namespace: OwnedFd,
    subnets: [IpNet; 2],
    link: Option<host::Link>,
    uplink: Option<Keeper>,
}

impl Engine {
    /// Makes or joins (`user` of a survivor) the user namespace. To be called before the process
    /// has a second thread, within the host's network namespace. `run` is the folder where it
    /// notes its uplinks' processes, to find them again.
    pub fn enter(user: Option<BorrowedFd<'_>>, run: &Path) -> Result<Engine> {
        let privilege = namespace::enter(user)?;
        let host = Netlink::open().map_err(failed("cannot ask for the host's addresses"))?;
        Ok(Engine {
            inner: Arc::new(Inner {
                privilege,
                run: run.to_owned(),
                nft: OnceLock::new(),
                host: Mutex::new(host),
                state: watch::Sender::default(),
                addresses: watch::Sender::default(),
                networks: Mutex::default(),
                changing: tokio::sync::Mutex::default(),
                parking: Parking::default(),
            }),
        })
    }

    /// Begins to work; within a tokio runtime. [`Engine::host_addresses`] is current from here on.
    pub async fn start(&self) -> Result<()> {
        let inner = &self.inner;
        let nft = nft::find("nft", "nftables")?;
        if !Path::new("/proc/sys/net/ipv6").exists() {
            let message = "networks need a kernel that speaks IPv6, if only within the machine: \
                           boot without ipv6.disable=1 (a host that only has no IPv6 addresses \
                           is no obstacle)";
            return Err(ApiError::new(ErrorCode::Unavailable, message));
        }
        let _ = inner.nft.set(nft);
        // Before the first look, so that no change is missed.
        let changes = host::Changes::open().map_err(failed("cannot watch the host's addresses"))?;
        inner.look()?;
        tokio::spawn(surroundings::follow(changes, Arc::downgrade(inner)));
        Ok(())
    }

    /// Brings a network up: in `existing`, the namespace of a survivor, as it was left, else anew.
    /// On a network that is up it updates the other networks' subnets.
    pub async fn create(&self, plan: &NetworkPlan, existing: Option<OwnedFd>) -> Result<()> {
        let _guard = self.inner.changing.lock().await;
        let name = &plan.config.id;
        let up = self.inner.worker(name).ok();
        if up.is_none() {
            self.bring_up(plan, existing)
                .await
                .map_err(|error| error.context(format!("cannot bring up network {name}")))?;
            if name == DEFAULT_NETWORK {
                let engine = self.clone();
                tokio::spawn(async move { engine.gather().await });
            }
        }
        let mut others = plan.others.clone();
        for up in lock(&self.inner.networks).values() {
            others.extend(up.subnets);
        }
        others.sort_unstable();
        others.dedup();
        for (name, worker) in self.inner.workers() {
            let others = others.clone();
            let told = worker.run(move |network| network.set_others(&others)).await;
            told.map_err(|error| error.context(format!("cannot update network {name}")))?;
        }
        Ok(())
    }

    async fn bring_up(&self, plan: &NetworkPlan, existing: Option<OwnedFd>) -> Result<()> {
        let inner = &self.inner;
        let name = plan.config.id.clone();
        let leads_out = plan.config.mode == container_api::network::Mode::Nat;
        let pasta = leads_out.then(|| nft::find("pasta", "passt")).transpose()?;
        let nft = inner.nft()?;
        let survives = existing.is_some();
        let used = inner.state.borrow().clone();
        let (plan_there, own) = (plan.clone(), used.own.clone());
        let worker = Worker::start(&name, existing, move || {
            Network::prepare(&plan_there, nft, &own, survives)
        })
        .await?;
        let namespace = worker.run(|_| namespace::current_network()).await?;
        let link = match inner.privilege {
            Privilege::Root if leads_out => Some(self.join(plan, &worker, &namespace).await?),
            _ => None,
        };
        let for_uplink = uplink::duplicate(&namespace)?;
        let subnets = [plan.config.ipv4_subnet.into(), plan.config.ipv6_subnet.into()];
        let mut up = Up { worker: worker.clone(), namespace, subnets, link, uplink: None };
        if let Some(pasta) = pasta {
            up.uplink = Some(self.keep_uplink(plan, pasta, worker.clone(), for_uplink).await);
        }
        lock(&inner.networks).insert(name, up);
        // The host may have changed meanwhile.
        let now = inner.state.borrow().own.clone();
        if now != used.own {
            worker.run(move |network| network.set_host(&now)).await?;
        }
        Ok(())
    }

    /// The link to the host: the one that is there, or a new one.
    async fn join(
        &self,
        plan: &NetworkPlan,
        worker: &Worker<Network>,
        namespace: &OwnedFd,
    ) -> Result<host::Link> {
        let there = worker
            .run(|network| {
                let link = network.netlink.link(rules::HOST_LINK);
                link.map_err(failed("cannot look for the link to the host"))
            })
            .await?;
        let inner = &self.inner;
        if let Some(peer) = there.and_then(|link| link.peer)
            && let Some(link) = host::find(&mut lock(&inner.host), peer)?
        {
            return Ok(link);
        }
        let nft = inner.nft()?;
        // An earlier namespace of this network's may live on with a VM, and its route be in the way.
        inner.part_strays(|network| network != plan.config.id)?;
        let (link, mac) =
            host::join(&mut lock(&inner.host), &nft, &inner.run, &plan.config, namespace.as_fd())?;
        let joined = worker.run(move |network| host::join_inside(&mut network.netlink, mac)).await;
        if let Err(error) = joined {
            let _ = host::part(&mut lock(&inner.host), &nft, &link);
            return Err(error);
        }
        Ok(link)
    }

    /// Starts the uplink's task and waits until it has tried once.
    async fn keep_uplink(
        &self,
        plan: &NetworkPlan,
        pasta: PathBuf,
        worker: Worker<Network>,
        namespace: OwnedFd,
    ) -> Keeper {
        let (stop, stopped) = watch::channel(false);
        let (tried, first) = tokio::sync::oneshot::channel();
        let keeping = Keeping {
            pasta,
            run: self.inner.run.clone(),
            network: plan.config.id.clone(),
            mtu: plan.config.mtu,
            privilege: self.inner.privilege,
            worker,
            namespace,
            host: self.inner.state.subscribe(),
            stopped,
            tried: Some(tried),
        };
        let task = tokio::spawn(keeping.keep());
        let _ = tokio::time::timeout(Duration::from_secs(3), first).await;
        Keeper { stop, task }
    }

    /// Ends a network with all that is in it. One that isn't up is no error.
    pub async fn remove(&self, network: &str) -> Result<()> {
        let _guard = self.inner.changing.lock().await;
        self.take_down(network).await
    }

    async fn take_down(&self, network: &str) -> Result<()> {
        let inner = &self.inner;
        self.clear_taps(network).await;
        let Some(mut up) = lock(&inner.networks).remove(network) else { return Ok(()) };
        if let Some(keeper) = up.uplink.take() {
            let _ = keeper.stop.send(true);
            let _ = tokio::time::timeout(Duration::from_secs(5), keeper.task).await;
        }
        let parted = match &up.link {
            Some(link) => host::part(&mut lock(&inner.host), &inner.nft()?, link),
            None => Ok(()),
        };
        let dismantled = up.worker.run(Network::dismantle).await;
        let result = parted.and(dismantled);
        result.map_err(|error| error.context(format!("cannot remove network {network}")))
    }

    /// What keeps a network alive, for the processes that outlive the service.
    pub fn handles(&self, network: &str) -> Result<Handles> {
        let networks = lock(&self.inner.networks);
        let up = networks.get(network).ok_or_else(|| not_up(network))?;
        let user = match self.inner.privilege {
            Privilege::Root => None,
            Privilege::User => Some(
                File::open("/proc/self/ns/user")
                    .map_err(failed("cannot open the user namespace"))?
                    .into(),
            ),
        };
        Ok(Handles { network: uplink::duplicate(&up.namespace)?, user })
    }

    /// The host's own addresses, on all interfaces, as they change.
    pub fn host_addresses(&self) -> watch::Receiver<Vec<IpAddr>> {
        self.inner.addresses.subscribe()
    }

    /// Ends what an earlier service has left of networks that aren't up: uplinks, links to the host.
    pub async fn tidy(&self) -> Result<()> {
        let _guard = self.inner.changing.lock().await;
        self.inner.end_strays()
    }

    /// Removes everything that it made, and what an earlier service has left.
    pub async fn shutdown(&self) -> Result<()> {
        let _guard = self.inner.changing.lock().await;
        let names: Vec<String> = lock(&self.inner.networks).keys().cloned().collect();
        let mut result = Ok(());
        for name in names {
            result = result.and(self.take_down(&name).await);
        }
        result.and(self.inner.end_strays())
    }
}

fn not_up(network: &str) -> ApiError {
    ApiError::new(ErrorCode::InvalidState, format!("network {network} is not up"))
}

/// What a poisoned lock guards is replaced as a whole, so it is as good as ever.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Inner {
    fn nft(&self) -> Result<PathBuf> {
        let not_started = || ApiError::internal("the engine has not been started");
        self.nft.get().cloned().ok_or_else(not_started)
    }

    fn worker(&self, network: &str) -> Result<Worker<Network>> {
        let networks = lock(&self.networks);
        networks.get(network).map(|up| up.worker.clone()).ok_or_else(|| not_up(network))
    }

    fn workers(&self) -> Vec<(String, Worker<Network>)> {
        let networks = lock(&self.networks);
        networks.iter().map(|(name, up)| (name.clone(), up.worker.clone())).collect()
    }
}
