//! Namespaces, bridges, taps, rules and uplinks: what the kernel is told.
//!
//! Each network has a thread that lives in its namespace and does everything there
//! ([`namespace::Worker`] with a [`network::Network`]); one more has the taps that wait for a
//! network. The process itself stays in the host's network namespace, where an uplink's `pasta` is
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
mod rules;
mod survey;
mod tap;
mod uplink;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use container_api::error::{ApiError, ErrorCode, Result};
use container_api::network::{
    Attachment, DEFAULT_NETWORK, Dropped, Egress, HostAccess, NetworkConfig, Protocol, Traffic,
};
use ipnet::IpNet;
use tokio::sync::watch;

use self::keeper::{Keeper, Keeping};
use self::namespace::{Privilege, Worker, failed};
use self::netlink::Netlink;
use self::network::Network;
use self::parking::Parking;
pub use self::survey::Survey;
use crate::wire;

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
        tokio::spawn(follow(changes, Arc::downgrade(inner)));
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

    /// Replaces [`NetworkPlan::localhost`] of all networks that are up.
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
        worker.run(move |_| network::listen(protocol, address).map_err(failed(what))).await
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

    fn end_strays(&self) -> Result<()> {
        let up: Vec<String> = lock(&self.networks).keys().cloned().collect();
        for network in uplink::noted(&self.run) {
            if !up.contains(&network) {
                if let Some(process) = uplink::find(&self.run, &network) {
                    tracing::info!(network, "an uplink that nobody needs ends");
                    process.kill();
                }
                uplink::forget(&self.run, &network);
            }
        }
        self.part_strays(|network| up.iter().any(|up| up == network))
    }

    /// Removes the host's links to namespaces of networks that `keep` doesn't name, and the rules
    /// of links that are gone.
    fn part_strays(&self, keep: impl Fn(&str) -> bool) -> Result<()> {
        if self.privilege != Privilege::Root {
            return Ok(());
        }
        let (nft, mut host) = (self.nft()?, lock(&self.host));
        for link in host::strays(&mut host, &self.run, keep)? {
            host::part(&mut host, &nft, &link)?;
        }
        host::tidy(&mut host, &nft)
    }

    /// Reads the host's addresses. Answer: whether they have changed.
    fn look(&self) -> Result<bool> {
        let state = host::State::read(&mut lock(&self.host))
            .map_err(failed("cannot read the host's addresses"))?;
        let addresses = state.addresses();
        self.addresses.send_if_modified(|old| {
            let changed = *old != addresses;
            *old = addresses;
            changed
        });
        let mut other_own = false;
        self.state.send_if_modified(|old| {
            other_own = old.own != state.own;
            let changed = *old != state;
            *old = state;
            changed
        });
        Ok(other_own)
    }
}

/// Tells the networks of the host's addresses as they change.
async fn follow(mut changes: host::Changes, inner: Weak<Inner>) {
    loop {
        if let Err(error) = changes.next().await {
            tracing::error!(%error, "the host's addresses can't be watched any more");
            return;
        }
        let Some(inner) = inner.upgrade() else { return };
        match inner.look() {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) => {
                tracing::error!(%error, "the host's addresses can't be read");
                continue;
            }
        }
        let own = inner.state.borrow().own.clone();
        for (network, worker) in inner.workers() {
            let own = own.clone();
            if let Err(error) = worker.run(move |network| network.set_host(&own)).await {
                tracing::error!(%error, network, "a network doesn't know the host's addresses");
            }
        }
    }
}
