//! From start to end of the service's process.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use container_api::audit::observed::Outbox;
use container_api::config::Config;
use container_api::network::SOCKET;
use container_api::paths::AppRoot;
use container_api::{ApiError, Result, serve, socket};
use tokio::time::{MissedTickBehavior, interval};

use super::capabilities;
use super::carrier::{self, Program};
use super::core::{Core, LINGER};
use super::denied::{self, Denied};
use super::kernel::Kernel;
use super::records::Records;
use super::requests::Networks;
use super::state::{Settings, locked};
use super::upstream;
use crate::engine::{Engine, Handles};
use crate::forward::limits;

/// Threads for what blocks: the engine's work, for many containers at a time.
const BLOCKING_THREADS: usize = 64;
/// How long operations may take to end when the service does.
const GRACE: Duration = Duration::from_secs(2);
/// Between two looks at networks that nobody uses.
const TIDY: Duration = Duration::from_secs(20);
/// Between two looks at the host's resolvers. A change of its addresses is a reason to look too.
const UPSTREAMS: Duration = Duration::from_secs(5);

/// The command line of the service.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The installation's directory.
    #[arg(long)]
    app_root: PathBuf,
    /// The configuration file, in place of the installation's or the user's.
    #[arg(long)]
    config: Option<PathBuf>,
    /// A layer of the confinement that may be missing (landlock).
    #[arg(long)]
    allow_missing: Vec<String>,
}

/// Serves the app root until SIGTERM or a shutdown request.
pub fn run(arguments: &Arguments) -> Result<()> {
    let root = AppRoot::resolve(Some(&arguments.app_root))?;
    // Who we are decides on its place, so before we are root of our own namespace.
    let config = match &arguments.config {
        Some(config) => config.clone(),
        None => container_api::paths::config_file(&root)?,
    };
    let config = Config::load(&config)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let records = Records::open(&root.networks())?;
    let _lock = serve::lock(records.directory(), "network.lock", "container-network")?;
    let survivors = survivors(&records.run())?;
    let user = survivors.iter().find_map(|(_, handles)| handles.user.as_ref());
    let engine = Engine::enter(user.map(AsFd::as_fd), &records.run())?;
    capabilities::reduce()
        .map_err(|e| ApiError::from(std::io::Error::from(e)).context("dropping capabilities"))?;
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(Duration::from_secs(5))
        .build()?;
    let mut allow_missing = config.security.allow_missing.clone();
    allow_missing.extend_from_slice(&arguments.allow_missing);
    let outbox = Outbox::new(root.observed());
    let result = runtime.block_on(async {
        engine.start().await?;
        let directory = records.directory().to_owned();
        let spawn = Box::new(Program { directory, allow_missing });
        let core = Core::new(engine, spawn, records, settings(&config), Denied::new(outbox))?;
        work(core, survivors).await
    });
    runtime.shutdown_timeout(GRACE);
    result
}

fn settings(config: &Config) -> Settings {
    Settings {
        mode: config.network.mode,
        publish_address: config.network.publish_address.clone(),
        pool: config.network.pool.clone(),
        domain: config.dns.domain.clone(),
        resolv_conf: "/etc/resolv.conf".into(),
        etc: "/etc".into(),
        resolved: "/run/systemd/resolve".into(),
    }
}

/// Namespaces, sockets and what passes through are descriptors: as many as this user may have.
fn raise_descriptors() {
    if let Err(error) = limits::open_files() {
        tracing::warn!(%error, "the limit on open files stays as it is");
    }
}

/// Asks on a runtime of its own, that has no further thread and goes again: a user namespace can be
/// entered by a process with one thread alone.
fn survivors(run: &Path) -> Result<Vec<(String, Handles)>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(carrier::survivors(run));
    found.map_err(|e| ApiError::from(e).context(format!("reading {}", run.display())))
}

/// Takes over what is there, then answers.
async fn work<K: Kernel>(core: Arc<Core<K>>, survivors: Vec<(String, Handles)>) -> Result<()> {
    core.restore(survivors).await?;
    core.ensure_default()?;
    core.restore_domains().await;
    let listener = socket::bind(core.records.directory(), SOCKET)
        .map_err(|e| ApiError::from(e).context(format!("binding {SOCKET}")))?;
    let chores = [
        tokio::spawn(follow_addresses(core.clone())),
        tokio::spawn(follow_upstreams(core.clone())),
        tokio::spawn(tidy(core.clone())),
        tokio::spawn(denied::watch(core.clone())),
    ];
    let service = Arc::new(Networks(core.clone()));
    let result = serve::until_told(listener, service, &core.shutdown).await;
    chores.iter().for_each(tokio::task::JoinHandle::abort);
    result
}

/// Resolvers drop answers with the host's own addresses.
async fn follow_addresses<K: Kernel>(core: Arc<Core<K>>) {
    let mut addresses = core.kernel.host_addresses();
    while addresses.changed().await.is_ok() {
        core.configure_all().await;
    }
}

async fn follow_upstreams<K: Kernel>(core: Arc<Core<K>>) {
    let mut ticks = interval(UPSTREAMS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let found = upstream::of_host(&core.settings.resolv_conf);
        let changed = {
            let mut state = locked(&core.state);
            let changed = state.upstreams != found;
            state.upstreams = found;
            changed
        };
        if changed {
            core.configure_all().await;
        }
    }
}

async fn tidy<K: Kernel>(core: Arc<Core<K>>) {
    let mut ticks = interval(TIDY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        core.tidy(LINGER).await;
    }
}
