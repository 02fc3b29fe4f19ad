//! What the service knows: networks, who is on them, and what is up.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use container_api::network::{Attachment, DnsDomain, Mode, NetworkConfig};
use container_api::{ApiError, ErrorCode, Result};
use ipnet::IpNet;

use super::allocate::{Cursor, Used};
use super::carrier::Carrier;
use super::records::Record;
use super::subnet::Taken;
use super::{check, residents};

/// What the configuration says.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where a network leads that was made without a word on it.
    pub mode: Mode,
    /// Where a port is published that names no address.
    pub publish_address: Vec<IpAddr>,
    /// Prefixes of automatic subnets.
    pub pool: Vec<IpNet>,
    /// Names also resolve below this domain.
    pub domain: Option<String>,
    /// The host's list of resolvers.
    pub resolv_conf: PathBuf,
    /// The directory of the host's own resolver's configuration.
    pub etc: PathBuf,
    /// There where systemd's resolver runs.
    pub resolved: PathBuf,
}

/// A network while the service runs.
#[derive(Debug)]
pub struct Net {
    /// What it is.
    pub config: NetworkConfig,
    /// What it has while it is up. Held over everything that brings it up, down, or tells its
    /// resolver something.
    pub up: tokio::sync::Mutex<Option<Up>>,
    /// Grows with everything that its resolver has to know.
    pub version: AtomicU64,
    /// Where the search for a free address begins.
    pub cursor: Mutex<Cursor>,
    /// Whether it is up, and since when nobody is on it.
    pub activity: Mutex<Activity>,
}

/// See [`Net::activity`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Activity {
    /// Whether its namespace is there.
    pub up: bool,
    /// When the last container left, or it came up.
    pub idle_since: Option<Instant>,
}

/// What a network has while it is up.
#[derive(Debug)]
pub struct Up {
    /// Who answers for names.
    pub resolver: Arc<Carrier>,
    /// The version that it knows.
    pub configured: u64,
}

impl Net {
    /// One that is not up.
    pub fn new(config: NetworkConfig) -> Net {
        Net {
            config,
            up: tokio::sync::Mutex::new(None),
            version: AtomicU64::new(1),
            cursor: Mutex::default(),
            activity: Mutex::default(),
        }
    }

    /// Its resolver has to know something new.
    pub fn touch(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// Somebody came or left.
    pub fn used(&self) {
        locked(&self.activity).idle_since = Some(Instant::now());
    }

    /// It is up now, or not any more.
    pub fn set_up(&self, up: bool) {
        *locked(&self.activity) = Activity { up, idle_since: Some(Instant::now()) };
    }
}

/// What changes.
#[derive(Debug, Default)]
pub struct State {
    /// All networks.
    pub networks: BTreeMap<String, Arc<Net>>,
    /// All attached containers, and those that are just being attached.
    pub attached: BTreeMap<String, Record>,
    /// The domains of `system dns`.
    pub domains: Vec<DnsDomain>,
    /// The host's resolvers.
    pub upstreams: Vec<SocketAddr>,
    /// The number of the last attachment.
    pub sequence: u64,
}

impl State {
    /// A network.
    pub fn network(&self, name: &str) -> Result<Arc<Net>> {
        self.networks.get(name).cloned().ok_or_else(|| check::no_network(name))
    }

    /// What a new network must keep away from; `host` are the host's routes.
    pub fn taken(&self, host: Vec<IpNet>) -> Taken {
        let networks = self.networks.values().flat_map(|net| {
            let config = &net.config;
            [
                (config.id.clone(), IpNet::V4(config.ipv4_subnet)),
                (config.id.clone(), IpNet::V6(config.ipv6_subnet)),
            ]
        });
        Taken { networks: networks.collect(), host }
    }

    /// The subnets of all networks.
    pub fn subnets(&self) -> Vec<IpNet> {
        self.taken(Vec::new()).networks.into_iter().map(|(_, net)| net).collect()
    }

    /// The addresses that stand for the host's loopback in containers.
    pub fn localhost(&self) -> Vec<Ipv4Addr> {
        let mut addresses: Vec<_> = self.domains.iter().filter_map(|d| d.localhost).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// The containers in the order in which they came.
    pub fn records(&self) -> Vec<&Record> {
        let mut records: Vec<&Record> = self.attached.values().collect();
        records.sort_by_key(|record| record.sequence);
        records
    }

    /// Who is on a network.
    pub fn on<'a>(
        &'a self,
        network: &'a str,
    ) -> impl Iterator<Item = (&'a Record, &'a Attachment)> {
        self.attached.values().filter_map(move |record| {
            let own = record.attachments.iter().find(|own| own.network == network)?;
            Some((record, own))
        })
    }

    /// What is in use on a network.
    pub fn used(&self, network: &str) -> Used {
        let mut used = Used::default();
        for (record, own) in self.on(network) {
            let owner = || record.container.clone();
            used.addresses.push((own.ipv4_address.addr().into(), owner()));
            used.addresses.push((own.ipv6_address.addr().into(), owner()));
            used.macs.push((own.mac_address, owner()));
        }
        used
    }

    /// Refuses names on a network that are somebody else's.
    pub fn check_names(&self, network: &str, names: &[String]) -> Result<()> {
        for (record, own) in self.on(network) {
            if let Some(name) = residents::claims(record, own).find(|name| names.contains(name)) {
                let owner = &record.container;
                let message =
                    format!("name '{name}' on network '{network}' is container '{owner}''s");
                return Err(ApiError::new(ErrorCode::AlreadyExists, message));
            }
        }
        Ok(())
    }
}

/// The guard; what a panicking thread has left is as good as anything here.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
