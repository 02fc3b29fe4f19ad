//! One helper's process: takes the container's directory over, serves it, and leaves.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use container_api::output_log::LogLimits;
use container_api::paths::container_files as names;
use container_api::runtime::VmSpec;
use container_api::socket;
use nix::sys::signal::Signal;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::boot::Patience;
use crate::container::{Container, Manner};
use crate::directory::{self, Log, read_json};
use crate::hypervisor::{Hypervisor, Qemu};
use crate::output::OutputLog;
use crate::process::{self, Rest};
use crate::service::{self, Door};
use crate::state::State;
use crate::timeline::Timeline;
use crate::vm::Blueprint;
use crate::{exit, life};

pub use crate::vm::jail;

/// How long calls may take to be answered after the end.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long the first start is waited for when there is no VM any more.
const ASK_LIMIT: Duration = Duration::from_secs(1);
const ASK_STEP: Duration = Duration::from_millis(10);
/// How long the callers may take to close their connections.
pub const CLOSE_LIMIT: Duration = Duration::from_millis(300);
/// How long a VM without a program stays that nobody is connected to.
const ABSENCE_LIMIT: Duration = Duration::from_secs(30);
/// Between the signal and the kill, when the helper itself is told to end.
const TERM_GRACE: Duration = Duration::from_secs(10);

/// Runs the container in `directory` until it has ended. Blocks. `taps` are its NICs', `began_ns`
/// is when this process began.
///
/// # Errors
/// When the directory can't be taken over. Everything later is in the exit record.
pub fn run(directory: &Path, taps: Vec<OwnedFd>, began_ns: u64) -> Result<()> {
    let directory = std::path::absolute(directory)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let lock = directory::lock(&directory)?;
    Log::begin(&directory)?;
    raise_descriptor_limit();
    exit::clear(&directory).context("removing the old exit record")?;
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(serve(&directory, taps, began_ns));
    let rests = outcome.inspect_err(|error| give_reason(&directory, error))?;
    // Unlocked before a process may be left behind that holds the same file.
    drop(lock);
    process::leave_behind(rests)
}

/// Notes why nothing could be run.
pub fn give_reason(directory: &Path, error: &anyhow::Error) {
    let reason = format!("{error:#}");
    tracing::error!(reason, "nothing can be run");
    if let Err(error) = exit::write(directory, &exit::failure(reason), true) {
        tracing::error!(%error, "the exit record can't be written");
    }
}

/// Every client of every process has up to three descriptors here.
pub fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    const WANTED: u64 = 8192;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < WANTED
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, WANTED.min(hard), hard)
    {
        tracing::warn!(%error, "the limit on descriptors stays at {soft}");
    }
}

async fn serve(directory: &Path, taps: Vec<OwnedFd>, began_ns: u64) -> Result<Vec<Rest>> {
    let spec: VmSpec = read_json(directory, names::VM_SPEC)?;
    let jail = jail(spec.allow_missing.clone(), spec.jail_uid)?;
    let blueprint = Blueprint::new(spec.clone(), jail, None)?.with_taps(taps)?;
    let container = container(directory, spec, Timeline::new(began_ns))?;
    serve_container(&container, &Qemu, blueprint, Patience::default()).await
}

/// The container that a directory describes; `spec` is its `vm.json`.
///
/// # Errors
/// When its configuration can't be read.
pub fn container(directory: &Path, spec: VmSpec, timeline: Timeline) -> Result<Arc<Container>> {
    let config = read_json(directory, names::CONFIG)?;
    let limits = LogLimits { max_size: spec.log_max_size, max_files: spec.log_max_files };
    let log = OutputLog::open(&directory.join(names::OUTPUT), limits);
    Ok(Container::new(directory.to_owned(), config, spec, log, timeline))
}

/// Makes the socket in a directory.
///
/// # Errors
/// When it can't be bound.
pub fn bind(directory: &Path) -> Result<UnixListener> {
    let listener = socket::bind(directory, names::SOCKET).context("binding the socket")?;
    Ok(UnixListener::from_std(listener)?)
}

/// Serves a container on its socket while it lives. Returns what clients have not read.
///
/// # Errors
/// When the socket can't be bound.
pub async fn serve_container<H: Hypervisor>(
    container: &Arc<Container>,
    hypervisor: &H,
    blueprint: Blueprint,
    patience: Patience,
) -> Result<Vec<Rest>> {
    let listener = bind(&container.directory)?;
    let life = life::run(container, hypervisor, blueprint, patience);
    Ok(serve_life(container, listener, life).await)
}

/// Serves a container while its life lasts. Returns what clients have not read.
pub async fn serve_life(
    container: &Arc<Container>,
    listener: UnixListener,
    life: impl Future<Output = ()>,
) -> Vec<Rest> {
    let door = Door::new(container.clone());
    let connections = watch::Sender::new(0usize);
    let accept = tokio::spawn(service::accept(door.clone(), listener, connections.clone()));
    let signals = tokio::spawn(heed_signals(container.clone()));
    let absence = container
        .spec
        .maintenance
        .then(|| tokio::spawn(heed_absence(container.clone(), connections.subscribe())));

    life.await;

    // A start that is on its way is told why there is nothing to start.
    let asked = async {
        while !container.asked() {
            tokio::time::sleep(ASK_STEP).await;
        }
    };
    let _ = tokio::time::timeout(ASK_LIMIT, asked).await;
    let _ = tokio::time::timeout(ANSWER_LIMIT, door.idle()).await;
    accept.abort();
    signals.abort();
    if let Some(absence) = absence {
        absence.abort();
    }
    let mut connections = connections.subscribe();
    let _ = tokio::time::timeout(CLOSE_LIMIT, connections.wait_for(|n| *n == 0)).await;
    let _ = std::fs::remove_file(container.directory.join(names::SOCKET));
    container.alive().iter().flat_map(|process| process.take_rests()).collect()
}

/// A VM that is there to copy files ends when nobody is connected: its service has died.
async fn heed_absence(container: Arc<Container>, mut connections: watch::Receiver<usize>) {
    loop {
        if connections.wait_for(|n| *n == 0).await.is_err() {
            return;
        }
        let back = connections.wait_for(|n| *n > 0);
        if tokio::time::timeout(ABSENCE_LIMIT, back).await.is_err() {
            container.conclude(exit::failure("nobody copies files any more"), Manner::Kill);
            return;
        }
    }
}

/// SIGTERM and SIGINT end the container in order, as `stop` does; a second one at once.
async fn heed_signals(container: Arc<Container>) {
    let (Ok(mut term), Ok(mut int), Ok(mut hup)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
        signal(SignalKind::hangup()),
    ) else {
        return;
    };
    let mut asked = false;
    loop {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            _ = hup.recv() => continue,
        }
        tracing::info!("told to end");
        let running = matches!(container.state(), State::Running | State::Stopping);
        if asked || !running {
            container.conclude(exit::killed("the helper was told to end"), Manner::Kill);
            continue;
        }
        asked = true;
        let stop_signal = Signal::from_str(&container.config.stop_signal);
        let stop_signal = stop_signal.unwrap_or(Signal::SIGTERM) as i32;
        let container = container.clone();
        tokio::spawn(async move { container.stop(stop_signal, TERM_GRACE).await });
    }
}
