//! The life of a VM, from its start to its end, in typed phases.
//!
//! ```text
//! boot::find ──► Found ──► Machine ──set up──► program ──┐
//!   │      spare ──┘          │ VM dies, guest lost        │ first process ends, Stop, Abort
//!   ▼                         ▼                            ▼
//!   └─────────────────► verdict (exit.json) ──► output taken ──► VM ended ──► output delivered ──► off
//! ```
//! A spare's VM gets the container's disks while it is set up, any VM the volumes that it has slots
//! for; the root is mounted after both.
//! Further NICs are plugged meanwhile into a VM that was restored; its guest waits for them.
//! With `--rm` the VM is killed before its output is delivered, and awaited after `off`; one with
//! volumes is ended in order after `off`.
//!
//! Exactly one verdict is reached ([`Container::conclude`]); whoever reaches it, the rest happens
//! here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use container_api::runtime::INIT_PROCESS;
use container_api::trace::now_ns;
use container_api::types::{ExitRecord, VmOrigin};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use vminitd_protocol::message::{
    BootLogRequest, Call, LoadDrivers, ProcessExited, Reply, Shutdown,
};
use vminitd_protocol::{POWER_OFF_TIMEOUT, REQUEST_TIMEOUT};

use crate::boot::{self, Found, LAST_WORDS_LIMIT, LOST_LIMIT, NotFound, Patience, Search, Way};
use crate::console::BootLog;
use crate::container::{Container, Manner};
use crate::disks::Disks;
use crate::guest::{Guest, GuestError, GuestEvent};
use crate::hypervisor::{ExtraNic, Hypervisor, Vm, VmExit};
use crate::port::Wishes;
use crate::state::State;
use crate::vm::Blueprint;
use crate::{exit, idle, limits, network, setup, shares, sockets, spec, vm, volumes};

/// After the start of the program: when the rest of the drivers and the kernel's log are seen to,
/// so that it does not compete with the program's first steps.
const LATER: Duration = Duration::from_secs(2);
/// How long a guest that is about to go may take to tell its kernel's log.
const LAST_BOOT_LOG_LIMIT: Duration = Duration::from_secs(5);
/// Kills for want of memory that are logged; a guest may tell of any number.
const TOLD_KILLS: u32 = 16;

/// Runs a container's VM; returns when it is gone and the output is delivered. Must be called on
/// the main thread, which the VM does not outlive.
pub async fn run<H: Hypervisor>(
    container: &Arc<Container>,
    hypervisor: &H,
    mut blueprint: Blueprint,
    patience: Patience,
) {
    let search = Search {
        hypervisor,
        blueprint: &blueprint,
        patience,
        boot_log: BootLog::create(&container.directory),
        timeline: &container.timeline,
        cancelled: async || drop(container.concluded().await),
        started: |pid| container.vm_started(pid),
    };
    container.timeline.phase("helper started");
    let volumes = match Disks::of_volumes(&container.spec) {
        Ok(volumes) => volumes,
        Err(error) => {
            let reason = format!("a volume can't be used: {error:#}");
            container.conclude(exit::failure(reason), Manner::Kill);
            let (record, _) = container.concluded().await;
            return container.off(record);
        }
    };
    let found = search.find(Way::Any).await;
    let nics = blueprint.release_taps();
    match found {
        Ok(found) => {
            // One that was booted has them.
            let nics = if found.origin == VmOrigin::Template { nics } else { Vec::new() };
            let (swapped, ready) = oneshot::channel();
            let ready = volumes.is_some().then_some(ready);
            let swap = volumes.map(|volumes| (volumes, swapped));
            Machine::new(container, found, ready).live(swap, nics).await;
        }
        Err(NotFound::Cancelled) => {
            let (record, _) = container.concluded().await;
            container.off(record);
        }
        Err(NotFound::Failed(record)) => {
            container.conclude(record, Manner::Kill);
            let (record, _) = container.concluded().await;
            container.off(record);
        }
    }
}

/// As [`run`], with the VM of a spare, which gets the container's disks and further NICs first.
pub async fn run_adopted<V: Vm>(
    container: &Arc<Container>,
    spare: Found<V>,
    disks: Disks,
    nics: Vec<ExtraNic>,
) {
    container.vm_started(spare.vm.pid());
    spare.boot_log.move_to(&container.directory);
    let (swapped, ready) = oneshot::channel();
    Machine::new(container, spare, Some(ready)).live(Some((disks, swapped)), nics).await;
}

/// A VM that runs, and its guest.
struct Machine<'a, V> {
    container: &'a Arc<Container>,
    vm: V,
    boot_log: Arc<BootLog>,
    console: JoinHandle<()>,
    guest: JoinHandle<()>,
    wishes: Option<Wishes>,
}

impl<'a, V: Vm> Machine<'a, V> {
    /// The root is mounted once `disks` says so; without it at once.
    fn new(
        container: &'a Arc<Container>,
        found: Found<V>,
        disks: Option<oneshot::Receiver<()>>,
    ) -> Machine<'a, V> {
        let Found { vm, origin, guest, events, boot_log, console } = found;
        container.found(origin);
        let accompany = accompany(container.clone(), guest, events, boot_log.clone(), disks);
        let guest = tokio::spawn(accompany);
        Machine { container, vm, boot_log, console, guest, wishes: container.wishes() }
    }

    async fn live(mut self, swap: Option<(Disks, oneshot::Sender<()>)>, nics: Vec<ExtraNic>) {
        let (container, vm, boot_log) = (self.container, &self.vm, &self.boot_log);
        let serve = async {
            let swap = async {
                if let Some((disks, swapped)) = swap {
                    swap_disks(container, vm, disks, swapped).await;
                }
            };
            tokio::join!(swap, plug_nics(container, vm, nics), plug_mounts(container, vm));
            let wishes = async {
                match &mut self.wishes {
                    Some(wishes) => wishes.fulfil(vm).await,
                    None => std::future::pending().await,
                }
            };
            tokio::join!(release_swapped(container, vm), wishes, idle::trim(vm));
        };
        tokio::select! {
            biased;
            _ = container.concluded() => {}
            exit = vm.ended() => died(container, &exit, boot_log, &mut self.console).await,
            () = serve => {}
        }
        // Whoever still wants something of the VM is told that it is gone.
        self.wishes = None;
        self.container.timeline.phase("program ran");
        self.take_output().await;
        // Nobody will look for what `--rm` leaves behind: whoever waits need not wait for the
        // kernel to take a killed VM's memory apart, nor for volumes to be unmounted.
        let alone = self.container.config.auto_remove;
        // Another process than the first has its output from a guest that ends in order.
        let orderly = self.container.manner() == Manner::Orderly;
        let later = alone && orderly && self.container.alive().len() <= 1;
        let mut end = Instant::now();
        if !later {
            self.end_vm().await;
            self.guest.abort();
        }
        if !alone {
            self.gone(end).await;
        }
        for process in self.container.alive() {
            process.collect().await;
        }
        self.container.log.finish();
        if let Some(init) = self.container.init() {
            init.delivered().await;
        }
        self.container.timeline.phase("output delivered");
        let (record, _) = self.container.concluded().await;
        self.container.off(record);
        if later {
            end = Instant::now();
            self.end_vm().await;
            self.guest.abort();
        }
        if alone {
            self.gone(end).await;
        }
    }

    async fn gone(&self, since: Instant) {
        boot::gone(&self.vm, since).await;
        self.container.timeline.phase("VM gone");
    }

    /// Takes what the first process has written out of the guest, unless the VM is to go at once.
    async fn take_output(&self) {
        let Some(init) = self.container.init() else { return };
        if init.exit().is_none() && self.container.manner() == Manner::Kill {
            return;
        }
        init.collect().await;
    }

    async fn end_vm(&self) {
        if self.container.manner() == Manner::Orderly
            && let Err(error) = self.power_off().await
        {
            tracing::warn!(%error, "the guest did not power off in order");
        }
        self.vm.kill();
    }

    /// Lets the guest unmount and waits for the end of the VM.
    async fn power_off(&self) -> Result<(), GuestError> {
        let Ok(guest) = self.container.guest() else { return Ok(()) };
        let off = async {
            fetch_boot_log(guest, &self.boot_log, LAST_BOOT_LOG_LIMIT).await;
            let asked = guest.control.command(Call::Shutdown(Shutdown {}), POWER_OFF_TIMEOUT).await;
            match &asked {
                // A guest that is off already closes its channel too, but is gone soon.
                Err(GuestError::Lost(_)) => {
                    let _ = tokio::time::timeout(LOST_LIMIT, self.vm.ended()).await;
                }
                Err(_) => {}
                // All is unmounted. The rest of the guest's way out is code that an emulator would
                // have to translate for this once.
                Ok(()) => {
                    let _ = self.vm.quit().await;
                    drop(self.vm.ended().await);
                }
            }
            asked
        };
        tokio::select! {
            outcome = tokio::time::timeout(POWER_OFF_TIMEOUT, off) => outcome.unwrap_or(
                Err(GuestError::Silent { call: "shut down", limit: POWER_OFF_TIMEOUT }),
            ),
            // The VM may also die meanwhile, or somebody lose patience.
            _ = self.vm.ended() => Ok(()),
        }
    }
}

/// Says why the VM has died by itself.
async fn died(
    container: &Container,
    exit: &VmExit,
    boot_log: &BootLog,
    console: &mut JoinHandle<()>,
) {
    let _ = tokio::time::timeout(LAST_WORDS_LIMIT, console).await;
    let memory = container.spec.resources.memory_in_bytes >> 20;
    let record = exit::of_vm(exit, &boot_log.tail(), container.guest().is_ok(), memory);
    tracing::warn!(%exit, "the VM died");
    container.conclude(record, Manner::Kill);
}

/// Puts the container's disks behind the VM's. A failure ends the container.
async fn swap_disks<V: Vm>(
    container: &Container,
    vm: &V,
    disks: Disks,
    swapped: oneshot::Sender<()>,
) {
    let began_ns = now_ns();
    match disks.swap(vm).await {
        Ok(()) => {
            container.timeline.span("disks swapped", began_ns);
            let _ = swapped.send(());
        }
        Err(error) => {
            let reason = format!("the VM did not take the container's disks: {error:#}");
            container.conclude(exit::failure(reason), Manner::Kill);
        }
    }
}

/// Closes the disks that the VM had before, once the program's first steps are done.
async fn release_swapped<V: Vm>(container: &Container, vm: &V) {
    if runs_for_a_while(container).await
        && let Err(error) = vm.release_swapped().await
    {
        tracing::warn!(%error, "the VM keeps files open that it does not use");
    }
}

/// Gives a VM that runs further NICs. A failure ends the container.
async fn plug_nics<V: Vm>(container: &Container, vm: &V, nics: Vec<ExtraNic>) {
    for nic in nics {
        let (began_ns, mac) = (now_ns(), nic.mac);
        if let Err(error) = vm.plug_nic(nic).await {
            let why = exit::chain(&error);
            let reason = format!("the VM did not take the network interface {mac}: {why}");
            return container.conclude(exit::failure(reason), Manner::Kill);
        }
        container.timeline.span("NIC plugged", began_ns);
    }
}

/// Gives a VM that runs the volumes that it has no slots for, and its shares. Not while its guest
/// mounts the root: emulated processors that find a device and mount at the same moment do not
/// always meet again.
async fn plug_mounts<V: Vm>(container: &Arc<Container>, vm: &V) {
    if !container.has_plugs() {
        return;
    }
    container.rooted().await;
    plug_volumes(container, vm).await;
    share(container, vm).await;
    container.set_plugged();
}

/// Plugs volumes. A failure ends the container.
async fn plug_volumes<V: Vm>(container: &Container, vm: &V) {
    let spec = &container.spec;
    if !volumes::any_plugged(spec) {
        return;
    }
    let began_ns = now_ns();
    let plugged = async {
        let jail = vm::jail(spec.allow_missing.clone(), spec.jail_uid)?;
        volumes::plug(vm, spec, &jail).await
    };
    match plugged.await {
        Ok(()) => container.timeline.span("volumes plugged", began_ns),
        Err(error) => {
            let reason = format!("the VM did not take a volume: {error:#}");
            container.conclude(exit::failure(reason), Manner::Kill);
        }
    }
}

/// Serves the container's shares to its VM. A failure ends the container.
async fn share<V: Vm>(container: &Arc<Container>, vm: &V) {
    if container.spec.shares.is_empty() {
        return;
    }
    let began_ns = now_ns();
    match shares::serve(vm, container).await {
        Ok(()) => container.timeline.span("shares plugged", began_ns),
        Err(error) => {
            let reason = format!("the bind mounts can't be served: {error:#}");
            container.conclude(exit::failure(reason), Manner::Kill);
        }
    }
}

/// Sets the guest up and listens to it until its channel is lost.
async fn accompany(
    container: Arc<Container>,
    guest: Guest,
    events: mpsc::Receiver<GuestEvent>,
    boot_log: Arc<BootLog>,
    disks: Option<oneshot::Receiver<()>>,
) {
    let lost = match set_up(&container, &guest, disks).await {
        Ok(()) => {
            let later = later(&container, &guest, &boot_log);
            let listen = listen(&container, events);
            let ((), lost) = tokio::join!(later, listen);
            lost
        }
        Err(error @ GuestError::Lost(_)) => error.to_string(),
        Err(error) => {
            let reason = format!("the guest could not be set up: {}", exit::chain(&error));
            return container.conclude(exit::failure(reason), Manner::Kill);
        }
    };
    tokio::time::sleep(LOST_LIMIT).await;
    container.conclude(exit::failure(lost), Manner::Kill);
}

/// Gives the guest entropy and the time, and has it set up its NICs and mount its root. A start need not wait for the
/// answers: the guest carries out in order.
async fn set_up(
    container: &Container,
    guest: &Guest,
    disks: Option<oneshot::Receiver<()>>,
) -> Result<(), GuestError> {
    let began_ns = now_ns();
    let entropy = async {
        guest.control.command(setup::set_up(&[])?, REQUEST_TIMEOUT).await?;
        container.timeline.span("guest set up", began_ns);
        Ok(())
    };
    let network = async {
        let call = network::configure(container.spec.network.as_ref());
        let Some(call) = call else { return Ok(()) };
        guest.control.command(call, REQUEST_TIMEOUT).await?;
        container.timeline.span("network set up", began_ns);
        Ok(())
    };
    // A restored guest has them.
    let drivers = async {
        let virtualization = container.spec.virtualization;
        let wanted = virtualization || !container.spec.shares.is_empty();
        if !wanted || container.origin() != Some(VmOrigin::Cold) {
            return Ok(());
        }
        let call = Call::LoadDrivers(LoadDrivers { virtualization });
        guest.control.command(call, REQUEST_TIMEOUT).await.map(drop)
    };
    let root = async {
        if let Some(disks) = disks
            && disks.await.is_err()
        {
            // The container ends, and whoever ended it has said why.
            return std::future::pending().await;
        }
        let began_ns = now_ns();
        let volumes = match container.spec.maintenance {
            false => spec::in_slots(&container.config.mounts),
            true => Vec::new(),
        };
        let mount = guest.control.command(setup::mount_root(volumes), REQUEST_TIMEOUT);
        if container.has_plugs() {
            mount.await?;
            container.timeline.span("root mounted", began_ns);
            container.set_rooted();
            container.plugged().await;
            container.booted(guest.clone());
            return Ok(());
        }
        // In this order: the request is on its way before anybody can make the next.
        let (mounted, ()) = tokio::join!(mount, async { container.booted(guest.clone()) });
        container.timeline.span("root mounted", began_ns);
        mounted
    };
    // In this order, which is the guest's.
    tokio::try_join!(entropy, drivers, network, root).map(drop)
}

/// Waits until the program has run for [`LATER`]; false when it ended before.
async fn runs_for_a_while(container: &Container) -> bool {
    let runs = |s: &State| !matches!(s, State::Booting { .. } | State::Ready | State::Starting);
    container.state_where(runs).await;
    tokio::time::sleep(LATER).await;
    container.state() == State::Running
}

/// What can wait until the program runs.
async fn later(container: &Container, guest: &Guest, boot_log: &BootLog) {
    if !runs_for_a_while(container).await {
        return;
    }
    // Restored guests have them.
    if container.origin() == Some(VmOrigin::Cold)
        && let Err(error) = limits::load_drivers(container).await
    {
        tracing::warn!(%error, "the guest has not loaded all drivers");
    }
    if let Err(error) = limits::hold(container).await {
        tracing::warn!(%error, "the VM is not held to the container's memory");
    }
    fetch_boot_log(guest, boot_log, REQUEST_TIMEOUT).await;
}

/// Appends the kernel's log to the boot log, once.
async fn fetch_boot_log(guest: &Guest, boot_log: &BootLog, limit: Duration) {
    if !boot_log.begin_fetch() {
        return;
    }
    match guest.control.call(Call::BootLog(BootLogRequest {}), limit).await {
        Ok(Reply::BootLog(log)) => boot_log.write(&log.text),
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "the kernel's log can't be fetched"),
    }
}

/// Handles the guest's events until its channel is lost; returns why that was.
async fn listen(container: &Arc<Container>, mut events: mpsc::Receiver<GuestEvent>) -> String {
    let mut told = 0;
    while let Some(event) = events.recv().await {
        match event {
            GuestEvent::Exited(exited) if exited.process == INIT_PROCESS => {
                init_ended(container, &exited);
            }
            GuestEvent::Exited(exited) => exec_ended(container, exited),
            GuestEvent::OutOfMemory(oom) => {
                let kill = exit::of_kill(&oom, container.resources().memory_in_bytes);
                told += 1;
                if told <= TOLD_KILLS {
                    let (kills, line) = (oom.kills, &kill.message);
                    tracing::warn!(line, kills, "the container ran out of memory");
                }
                container.out_of_memory(kill);
            }
            GuestEvent::SocketConnected(connected) => sockets::accept(container, &connected),
            GuestEvent::Lost(reason) => return GuestError::Lost(reason).to_string(),
        }
    }
    "the guest's channel was lost".into()
}

fn init_ended(container: &Container, exited: &ProcessExited) {
    // A kill that was asked for is none for want of memory, whatever befell others before.
    let asked = container.state() == State::Stopping;
    let out_of_memory = exited.out_of_memory && !asked;
    let record = exit_of(container, &ProcessExited { out_of_memory, ..exited.clone() });
    if let Some(init) = container.init() {
        init.conclude(record.clone());
    }
    // What `--rm` removes need not be unmounted; volumes stay.
    let nothing_stays = container.config.auto_remove && container.spec.volumes.is_empty();
    let manner = if nothing_stays { Manner::Kill } else { Manner::Orderly };
    container.conclude(record, manner);
}

fn exit_of(container: &Container, exited: &ProcessExited) -> ExitRecord {
    let kills = container.kills();
    let victim = kills.last().map(|kill| kill.process.as_str());
    exit::of_process(exited, container.memory_mib(), victim)
}

/// Delivers an exec's output in the background, then answers its waiters.
fn exec_ended(container: &Arc<Container>, exited: ProcessExited) {
    let Ok(process) = container.process(&exited.process) else {
        tracing::debug!(process = exited.process, "an unknown process ended");
        return;
    };
    let record = exit_of(container, &exited);
    let container = container.clone();
    tokio::spawn(async move {
        process.collect().await;
        process.delivered().await;
        container.retire(&process.id, &record);
        process.conclude(record);
    });
}
