//! A VM that is made ahead and waits to become a container's.
//!
//! ```text
//! restored ─► set up ─► waits ──WarmUp──► throwaway containers, the NIC up meanwhile ─► waits
//!                         └──Adopt──► life::run_adopted ◄──────────Adopt──────────────────┘
//! ```
//! Where one start follows the other there is no time to make a spare warm: it is worth the way to
//! its agent's answer then.
//!
//! The first throwaway containers have volumes, behind the slots that are empty again afterwards.
//! Nothing of a container is known before; [`Found`] is given away by then, so nothing of the spare
//! is left after. A spare that fails before it is taken just ends; one that fails later is a
//! container that failed.

mod door;
pub mod state;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use container_api::paths::{AppRoot, container_files as names};
use container_api::runtime::VmSpec;
use container_api::types::{ExitRecord, VmOrigin};
use container_api::{ApiError, ErrorCode};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use vminitd_protocol::REQUEST_TIMEOUT;
use vminitd_protocol::message::Call;

use crate::boot::{self, Found, NotFound, Patience, Search, Way};
use crate::console::BootLog;
use crate::container::Container;
use crate::directory::{self, Lock, Log, read_json};
use crate::disks::{Disks, Images};
use crate::guest::{Guest, GuestEvent};
use crate::hypervisor::{ExtraNic, Hypervisor, Qemu, Vm};
use crate::port::{self, Wishes};
use crate::process::{self, Rest};
use crate::timeline::Timeline;
use crate::vm::{self, Blueprint};
use crate::{exit, helper, life, network, service, setup, throwaway};

use door::{Adoption, Door, Task};

/// Makes a spare in `directory`, serves it, and then the container that it becomes. Blocks. `taps`
/// has that of its NIC, if it is to have one that leads somewhere later.
///
/// # Errors
/// When it can't be made.
pub fn run(directory: &Path, taps: Vec<OwnedFd>) -> Result<()> {
    let directory = std::path::absolute(directory)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let lock = directory::lock(&directory)?;
    let log = Log::begin(&directory)?;
    helper::raise_descriptor_limit();
    exit::clear(&directory).context("removing the old exit record")?;
    let serve = async {
        let spec: VmSpec = read_json(&directory, names::VM_SPEC)?;
        let jail = vm::jail(spec.allow_missing.clone(), spec.jail_uid)?;
        let blueprint = Blueprint::new(spec, jail, None)?.with_taps(taps)?;
        let images = images(&directory, &blueprint).await;
        let home = Home { directory: directory.clone(), lock: Some(lock), log: Some(log), images };
        serve(home, &Qemu, blueprint, Patience::default()).await
    };
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(serve);
    let rests = outcome.inspect_err(|error| helper::give_reason(&directory, error))?;
    process::leave_behind(rests)
}

/// The images of the app root that `directory` is in. Without them each is mounted when it is
/// needed.
async fn images(directory: &Path, blueprint: &Blueprint) -> Option<Images> {
    let root = AppRoot::resolve(directory.parent()?.parent()).ok()?;
    let images = Images::mount(blueprint.jail(), &root.images()).await;
    images.inspect_err(|error| tracing::warn!(error = format!("{error:#}"), "no images")).ok()
}

/// Where a spare lives before it is taken.
#[derive(Debug)]
pub struct Home {
    /// Its directory.
    pub directory: PathBuf,
    /// That directory's lock.
    pub lock: Option<Lock>,
    /// The process's log, which moves with it.
    pub log: Option<Log>,
    /// What images may come from.
    pub images: Option<Images>,
}

/// A container that a spare becomes.
struct Heir {
    container: Arc<Container>,
    listener: UnixListener,
    disks: Disks,
    nics: Vec<ExtraNic>,
    /// Held as long as the container is served.
    _lock: Lock,
}

/// [`run`] with any hypervisor. Returns what clients of the container have not read.
///
/// # Errors
/// When the socket can't be bound.
pub async fn serve<H: Hypervisor>(
    home: Home,
    hypervisor: &H,
    mut blueprint: Blueprint,
    patience: Patience,
) -> Result<Vec<Rest>> {
    let listener = helper::bind(&home.directory)?;
    let (port, mut wishes) = port::port();
    let (door, arriving) = Door::new(port);
    let connections = watch::Sender::new(0usize);
    let accept = tokio::spawn(service::accept(door.clone(), listener, connections.clone()));
    let signals = tokio::spawn(heed_signals(door.clone())).abort_handle();
    let restored = restore(&home, hypervisor, &blueprint, patience, &door).await;
    blueprint.release_taps();
    let outcome = match restored {
        Ok(spare) => wait(spare, &door, &mut wishes, arriving, &blueprint).await,
        Err(record) => Outcome::Over(record),
    };
    match outcome {
        Outcome::Taken(spare, adoption) => {
            let tasks = Tasks { accept: accept.abort_handle(), signals, connections };
            take(*spare, adoption, home, blueprint, tasks).await
        }
        Outcome::Over(record) => {
            door.give_up();
            tracing::info!(reason = record.reason, "the spare ends");
            if let Err(error) = exit::write(&home.directory, &record, false) {
                tracing::error!(%error, "the exit record can't be written");
            }
            door.over(record);
            closed(&connections).await;
            accept.abort();
            signals.abort();
            let _ = std::fs::remove_file(home.directory.join(names::SOCKET));
            Ok(Vec::new())
        }
    }
}

/// What serves the spare until it is a container's.
struct Tasks {
    accept: AbortHandle,
    signals: AbortHandle,
    connections: watch::Sender<usize>,
}

/// Lets callers read their answers.
async fn closed(connections: &watch::Sender<usize>) {
    let mut connections = connections.subscribe();
    let closed = connections.wait_for(|n| *n == 0);
    let _ = tokio::time::timeout(helper::CLOSE_LIMIT, closed).await;
}

enum Outcome<V> {
    Taken(Box<Found<V>>, Adoption),
    Over(ExitRecord),
}

/// Restores the VM and sets it up.
async fn restore<H: Hypervisor>(
    home: &Home,
    hypervisor: &H,
    blueprint: &Blueprint,
    patience: Patience,
    door: &Door,
) -> Result<Found<H::Vm>, ExitRecord> {
    let search = Search {
        hypervisor,
        blueprint,
        patience,
        boot_log: BootLog::create(&home.directory),
        timeline: &Timeline::new(0),
        cancelled: async || door.given_up().await,
        started: |pid| door.vm_started(pid),
    };
    let mut found = search.find(Way::Restore).await.map_err(|not_found| match not_found {
        NotFound::Failed(record) => record,
        NotFound::Cancelled => given_up(),
    })?;
    let Found { vm, guest, boot_log, .. } = &found;
    let set_up = async {
        guest.control.command(setup::set_up(&[])?, REQUEST_TIMEOUT).await?;
        Ok::<_, anyhow::Error>(())
    };
    let failed = tokio::select! {
        biased;
        record = ended(door, vm, boot_log) => Some(record),
        set_up = set_up => set_up.err().map(|error| exit::failure(format!("{error:#}"))),
    };
    if let Some(record) = failed {
        boot::end(vm).await;
        return Err(record);
    }
    found.origin = VmOrigin::Spare;
    Ok(found)
}

/// Waits until the spare is to end, or its VM has ended.
async fn ended<V: Vm>(door: &Door, vm: &V, boot_log: &BootLog) -> ExitRecord {
    tokio::select! {
        biased;
        () = door.given_up() => given_up(),
        exit = vm.ended() => exit::of_vm(&exit, &boot_log.tail(), true, 0),
    }
}

fn given_up() -> ExitRecord {
    exit::killed("the spare was given up")
}

/// Has the guest go through what a start goes through.
async fn warm_up<V: Vm>(
    vm: &V,
    guest: &Guest,
    events: &mut Receiver<GuestEvent>,
    blueprint: &Blueprint,
) -> Result<()> {
    let [up, down] = network::warm_up().map(|call| blueprint.has_nic().then_some(call));
    let ask = async |call: Option<Call>| match call {
        Some(call) => guest.control.command(call, REQUEST_TIMEOUT).await,
        None => Ok(()),
    };
    // Up for as long as a container's: a kernel has things to do of a NIC that it does later.
    ask(up).await?;
    rehearse(vm, guest, events, blueprint).await?;
    ask(down).await?;
    Ok(())
}

/// Runs the throwaway containers, on the volumes of the spare's specification. Nothing is left
/// behind the slots.
async fn rehearse<V: Vm>(
    vm: &V,
    guest: &Guest,
    events: &mut Receiver<GuestEvent>,
    blueprint: &Blueprint,
) -> Result<()> {
    let mut slots = Vec::new();
    if let Some(volumes) = Disks::of_volumes(blueprint.spec())? {
        slots = volumes.places();
        volumes.swap(vm).await.context("the throwaway container's volumes")?;
    }
    throwaway::run(guest, events, throwaway::Work::Nothing, &slots).await?;
    if !slots.is_empty() {
        vm.swap_disks(slots.into_iter().map(|slot| (slot, None)).collect()).await?;
        vm.release_swapped().await?;
    }
    Ok(())
}

/// Waits until somebody takes the spare or it ends; makes it warm meanwhile when asked to.
async fn wait<V: Vm>(
    mut spare: Found<V>,
    door: &Door,
    wishes: &mut Wishes,
    mut arriving: Receiver<Task>,
    blueprint: &Blueprint,
) -> Outcome<V> {
    let Found { vm, guest, events, boot_log, .. } = &mut spare;
    let ended = async {
        tokio::select! {
            biased;
            record = ended(door, vm, boot_log) => record,
            () = wishes.fulfil(vm) => exit::failure("the spare's port is lost"),
        }
    };
    let life = async {
        loop {
            let task = tokio::select! {
                biased;
                task = arriving.recv() => task,
                reason = lost(events) => {
                    let reason = format!("the guest's channel was lost: {reason}");
                    return Err(exit::failure(reason));
                }
            };
            match task {
                Some(Task::Adopt(adoption)) => return Ok(adoption),
                Some(Task::WarmUp(answer)) => {
                    let warmed = warm_up(vm, guest, events, blueprint).await;
                    if let Err(error) = warmed {
                        let record = exit::failure(format!("{error:#}"));
                        let error = ApiError::new(ErrorCode::Unavailable, record.reason.clone());
                        let _ = answer.send(Err(error));
                        return Err(record);
                    }
                    door.done();
                    tracing::info!("the spare is warm");
                    let _ = answer.send(Ok(()));
                }
                None => return Err(exit::failure("the spare's door is lost")),
            }
        }
    };
    door.done();
    tracing::info!("the spare waits");
    let record = tokio::select! {
        biased;
        adoption = life => match adoption {
            Ok(adoption) => return Outcome::Taken(Box::new(spare), adoption),
            Err(record) => record,
        },
        record = ended => record,
    };
    door.give_up();
    boot::end(&spare.vm).await;
    Outcome::Over(record)
}

/// Waits until the guest's channel is lost. A guest without a container has nothing to tell.
async fn lost(events: &mut Receiver<GuestEvent>) -> String {
    loop {
        match events.recv().await {
            Some(GuestEvent::Lost(reason)) => return reason,
            Some(_) => {}
            None => return "it was closed".into(),
        }
    }
}

/// Becomes the container, and serves it to its end.
async fn take<V: Vm>(
    spare: Found<V>,
    adoption: Adoption,
    home: Home,
    blueprint: Blueprint,
    tasks: Tasks,
) -> Result<Vec<Rest>> {
    let Adoption { directory, taps, began_ns, answer } = adoption;
    let heir = match inherit(&directory, taps, began_ns, &home, &blueprint) {
        Ok(heir) => heir,
        Err(error) => {
            // Nothing of the container has happened; the spare is used up.
            let reason = format!("the spare VM can't become the container: {error:#}");
            boot::end(&spare.vm).await;
            // Whoever hears of it finds nobody here any more.
            let _ = std::fs::remove_file(home.directory.join(names::SOCKET));
            let _ = answer.send(Err(ApiError::new(ErrorCode::Unavailable, reason.clone())));
            closed(&tasks.connections).await;
            bail!(reason);
        }
    };
    tasks.signals.abort();
    let _ = answer.send(Ok(()));
    let Heir { container, listener, disks, nics, _lock } = heir;
    container.timeline.phase("adopted");
    let leave = async {
        // The answer is under way by now; nobody else comes this way.
        tasks.accept.abort();
        let _ = std::fs::remove_file(home.directory.join(names::SOCKET));
        drop(home.lock);
    };
    let life = async {
        let (_, ()) = tokio::join!(leave, life::run_adopted(&container, spare, disks, nics));
    };
    Ok(helper::serve_life(&container, listener, life).await)
}

/// Takes the container's directory over, and opens its disks.
fn inherit(
    directory: &Path,
    taps: Vec<OwnedFd>,
    began_ns: u64,
    home: &Home,
    blueprint: &Blueprint,
) -> Result<Heir> {
    let lock = directory::lock(directory)?;
    let spec: VmSpec = read_json(directory, names::VM_SPEC)?;
    fits(&spec, blueprint.spec())?;
    let nics = nics(&spec, taps, blueprint.tapped())?;
    exit::clear(directory).context("removing the old exit record")?;
    let jail = blueprint.jail().clone();
    let disks = Disks::open(&spec, home.images.as_ref(), jail)?;
    let container = helper::container(directory, spec, Timeline::new(began_ns))?;
    if let Some(log) = &home.log {
        log.move_to(directory)?;
    }
    let listener = helper::bind(directory)?;
    Ok(Heir { container, listener, disks, nics, _lock: lock })
}

/// A container gets the VM that it was to have, or none.
fn fits(wanted: &VmSpec, have: &VmSpec) -> Result<()> {
    let shape = |spec: &VmSpec| {
        let machine = (spec.resources, spec.nic, spec.accelerator, spec.virtualization);
        (machine, spec.jail_uid, spec.template.clone())
    };
    if shape(wanted) == shape(have) { Ok(()) } else { Err(anyhow!("its VM is of another shape")) }
}

/// The NICs that the container has beyond those of the spare.
fn nics(wanted: &VmSpec, taps: Vec<OwnedFd>, tapped: usize) -> Result<Vec<ExtraNic>> {
    let interfaces = wanted.network.as_ref().map_or(&[][..], |network| &network.interfaces);
    // The NIC of a spare need not be used.
    let (count, given) = (interfaces.len(), taps.len());
    if count == 0 && given == 0 {
        return Ok(Vec::new());
    }
    if tapped == 0 || count != tapped + given {
        bail!("it has {count} network interfaces, but its VM has {tapped} taps and gets {given}");
    }
    let further = interfaces[tapped..].iter().zip(taps);
    Ok(further.map(|(interface, tap)| ExtraNic { mac: interface.mac_address, tap }).collect())
}

/// SIGTERM and SIGINT end a spare.
async fn heed_signals(door: Arc<Door>) {
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    door.give_up();
}
