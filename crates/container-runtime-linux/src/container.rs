//! What the tasks of the helper share: the state, the guest, the processes, the verdict.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use container_api::runtime::{INIT_PROCESS, Request, State as ApiState, VmSpec};
use container_api::types::{
    ContainerConfig, ExitRecord, MAX_OUT_OF_MEMORY_KILLS, OutOfMemoryKill, Resources, Timestamp,
    VmOrigin,
};
use container_api::{ApiError, ErrorCode};
use tokio::sync::watch;
use vminitd_protocol::REQUEST_TIMEOUT;
use vminitd_protocol::message::{Call, Reply, Signal};

use crate::guest::{Guest, GuestError};
use crate::output::OutputLog;
use crate::port::{self, Port, Wishes};
use crate::process::Process;
use crate::sockets::Sockets;
use crate::state::{Admission, Event, Machine, State};
use crate::timeline::Timeline;
use crate::{exit, state, volumes};

/// Ended execs whose records are kept for late waiters.
const KEPT_RECORDS: usize = 256;

/// How the VM is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Manner {
    /// The guest unmounts its disks first.
    Orderly,
    /// At once.
    Kill,
}

#[derive(Debug, Default)]
struct Processes {
    alive: BTreeMap<String, Arc<Process>>,
    ended: VecDeque<(String, ExitRecord)>,
}

/// One container and its VM.
#[derive(Debug)]
pub struct Container {
    /// Its directory.
    pub directory: PathBuf,
    /// What it is.
    pub config: ContainerConfig,
    /// What its VM is made of.
    pub spec: VmSpec,
    /// Where its output is kept.
    pub log: Arc<OutputLog>,
    /// The phases of its start.
    pub timeline: Timeline,
    /// The way to its VM.
    pub port: Port,
    /// Its sockets that lead to the host, or from there.
    pub sockets: Sockets,
    /// Held while the limits are changed.
    pub updating: tokio::sync::Mutex<()>,
    wishes: Mutex<Option<Wishes>>,
    resources: Mutex<Resources>,
    machine: Mutex<Machine>,
    state: watch::Sender<State>,
    rooted: watch::Sender<bool>,
    plugged: watch::Sender<bool>,
    guest: OnceLock<Guest>,
    processes: Mutex<Processes>,
    started: OnceLock<Timestamp>,
    /// 0 while there is none.
    hypervisor_pid: AtomicI32,
    origin: OnceLock<VmOrigin>,
    kills: Mutex<VecDeque<OutOfMemoryKill>>,
    verdict: watch::Sender<Option<(ExitRecord, Manner)>>,
    /// The verdict, once everything is over.
    outcome: watch::Sender<Option<ExitRecord>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}

impl Container {
    /// A container whose VM is about to boot.
    pub fn new(
        directory: PathBuf,
        config: ContainerConfig,
        spec: VmSpec,
        log: OutputLog,
        timeline: Timeline,
    ) -> Arc<Container> {
        let machine = Machine::default();
        let (port, wishes) = port::port();
        Arc::new(Container {
            directory,
            timeline,
            port,
            sockets: Sockets::default(),
            updating: tokio::sync::Mutex::default(),
            wishes: Mutex::new(Some(wishes)),
            resources: Mutex::new(config.resources),
            config,
            spec,
            log: Arc::new(log),
            state: watch::Sender::new(machine.state()),
            machine: Mutex::new(machine),
            rooted: watch::Sender::new(false),
            plugged: watch::Sender::new(false),
            guest: OnceLock::new(),
            processes: Mutex::default(),
            started: OnceLock::new(),
            hypervisor_pid: AtomicI32::new(0),
            origin: OnceLock::new(),
            kills: Mutex::default(),
            verdict: watch::Sender::new(None),
            outcome: watch::Sender::new(None),
        })
    }

    /// Admits a request or refuses it, which is audited.
    ///
    /// # Errors
    /// `InvalidState`.
    pub fn admit(&self, request: &Request) -> Result<Admission, ApiError> {
        let mut machine = lock(&self.machine);
        let outcome = machine.admit(request);
        self.state.send_replace(machine.state());
        drop(machine);
        outcome.map_err(|refused| {
            tracing::warn!(target: "audit", request = refused.request, state = ?refused.state, "refused");
            ApiError::new(ErrorCode::InvalidState, refused.to_string())
        })
    }

    /// Moves the state machine.
    pub fn happened(&self, event: Event) {
        let mut machine = lock(&self.machine);
        machine.happened(event);
        self.state.send_replace(machine.state());
    }

    /// The state.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Whether a start or the end was asked for.
    pub fn asked(&self) -> bool {
        lock(&self.machine).asked()
    }

    /// Waits for a state.
    pub async fn state_where(&self, wanted: impl FnMut(&State) -> bool) -> State {
        let mut state = self.state.subscribe();
        // The sender lives as long as `self`.
        state.wait_for(wanted).await.map_or(State::Ended, |state| *state)
    }

    /// The guest has mounted the root.
    pub fn set_rooted(&self) {
        self.rooted.send_replace(true);
    }

    /// Waits until the guest has mounted the root.
    pub async fn rooted(&self) {
        // The sender lives as long as `self`.
        let _ = self.rooted.subscribe().wait_for(|rooted| *rooted).await;
    }

    /// Whether there is something to plug for the container's mounts.
    pub fn has_plugs(&self) -> bool {
        volumes::any_plugged(&self.spec) || !self.spec.shares.is_empty()
    }

    /// The VM has what the container's mounts need.
    pub fn set_plugged(&self) {
        self.plugged.send_replace(true);
    }

    /// Waits until the VM has what the container's mounts need.
    pub async fn plugged(&self) {
        // The sender lives as long as `self`.
        let _ = self.plugged.subscribe().wait_for(|plugged| *plugged).await;
    }

    /// A VM's process exists; it may be another one than before.
    pub fn vm_started(&self, pid: i32) {
        self.hypervisor_pid.store(pid, Ordering::Relaxed);
    }

    /// The VM whose guest answers came to be so.
    pub fn found(&self, origin: VmOrigin) {
        let _ = self.origin.set(origin);
    }

    /// How the VM came to be, once its guest has answered.
    pub fn origin(&self) -> Option<VmOrigin> {
        self.origin.get().copied()
    }

    /// The other end of [`Container::port`], for the one who owns the VM.
    pub fn wishes(&self) -> Option<Wishes> {
        lock(&self.wishes).take()
    }

    /// The limits in force.
    pub fn resources(&self) -> Resources {
        *lock(&self.resources)
    }

    /// Other limits are in force.
    pub fn limited(&self, resources: Resources) {
        *lock(&self.resources) = resources;
    }

    /// The guest takes requests: its root is mounted, or that is under way before them.
    pub fn booted(&self, guest: Guest) {
        let _ = self.guest.set(guest);
        self.happened(Event::Booted);
    }

    /// The program runs.
    pub fn started(&self) {
        let _ = self.started.set(Timestamp::now());
        self.happened(Event::Started);
    }

    /// The guest, once it has booted.
    ///
    /// # Errors
    /// `InvalidState` before.
    pub fn guest(&self) -> Result<&Guest, ApiError> {
        let early = || ApiError::new(ErrorCode::InvalidState, "the guest has not booted");
        self.guest.get().ok_or_else(early)
    }

    /// Asks the guest. One that does not answer has its container ended.
    ///
    /// # Errors
    /// As [`exit::api_error`] says.
    pub async fn ask(&self, call: Call) -> Result<Reply, ApiError> {
        let outcome = self.guest()?.control.call(call, REQUEST_TIMEOUT).await;
        if let Err(error @ (GuestError::Silent { .. } | GuestError::Nonsense { .. })) = &outcome {
            self.conclude(exit::failure(error.to_string()), Manner::Kill);
        }
        outcome.map_err(exit::api_error)
    }

    /// Sends a signal to a process, or with `all` to every process of the container.
    ///
    /// # Errors
    /// `InvalidState` when it has ended.
    pub async fn signal(&self, process_id: &str, signal: i32, all: bool) -> Result<(), ApiError> {
        let signal = u32::try_from(signal).ok().filter(|s| (1..=64).contains(s));
        let signal = signal.ok_or_else(|| ApiError::invalid("signals are numbers from 1 to 64"))?;
        self.ask(Call::Signal(Signal { process: process_id.to_owned(), signal, all }))
            .await
            .map(drop)
    }

    /// The end of the container is known: notes the first verdict, writes the exit record, and
    /// lets the VM be ended in this or a harsher manner.
    pub fn conclude(&self, mut record: ExitRecord, manner: Manner) {
        record.out_of_memory_kills = self.kills();
        let first = self.verdict.send_if_modified(|verdict| match verdict {
            Some((_, old)) if *old < manner => {
                *old = manner;
                false
            }
            Some(_) => false,
            None => {
                *verdict = Some((record, manner));
                true
            }
        });
        if !first {
            return;
        }
        self.happened(Event::Concluded);
        let Some(record) = self.verdict() else { return };
        tracing::info!(code = record.exit_code, reason = record.reason, "ended");
        if let Err(error) = exit::write(&self.directory, &record, !self.config.auto_remove) {
            tracing::error!(%error, "the exit record can't be written");
        }
    }

    /// How the container ends, once that is known.
    pub fn verdict(&self) -> Option<ExitRecord> {
        self.verdict.borrow().as_ref().map(|(record, _)| record.clone())
    }

    /// Waits for the verdict.
    pub async fn concluded(&self) -> (ExitRecord, Manner) {
        let mut verdict = self.verdict.subscribe();
        let lost = || (exit::failure("the helper was lost"), Manner::Kill);
        verdict.wait_for(Option::is_some).await.ok().and_then(|v| v.clone()).unwrap_or_else(lost)
    }

    /// The manner as it stands now: it may have become harsher.
    pub fn manner(&self) -> Manner {
        self.verdict.borrow().as_ref().map_or(Manner::Orderly, |(_, manner)| *manner)
    }

    /// Everything is over: answers all waiters.
    pub fn off(&self, record: ExitRecord) {
        for process in self.alive() {
            process.conclude(exit::killed("the container ended"));
        }
        self.happened(Event::Off);
        self.outcome.send_replace(Some(record));
    }

    /// Waits until everything is over.
    pub async fn outcome(&self) -> ExitRecord {
        let mut outcome = self.outcome.subscribe();
        let lost = || exit::failure("the helper was lost");
        outcome.wait_for(Option::is_some).await.ok().and_then(|o| o.clone()).unwrap_or_else(lost)
    }

    /// Registers a process under a name that no process has had.
    ///
    /// # Errors
    /// `AlreadyExists`.
    pub fn register(&self, process: Arc<Process>) -> Result<(), ApiError> {
        let mut processes = lock(&self.processes);
        let id = process.id.clone();
        let taken = processes.alive.contains_key(&id)
            || processes.ended.iter().any(|(ended, _)| *ended == id);
        if taken {
            let message = format!("a process named {id:?} exists");
            return Err(ApiError::new(ErrorCode::AlreadyExists, message));
        }
        processes.alive.insert(id, process);
        Ok(())
    }

    /// Forgets a process that was never started.
    pub fn forget(&self, id: &str) {
        lock(&self.processes).alive.remove(id);
    }

    /// A process ended: keeps its record for late waiters.
    pub fn retire(&self, id: &str, record: &ExitRecord) {
        let mut processes = lock(&self.processes);
        processes.alive.remove(id);
        processes.ended.push_back((id.to_owned(), record.clone()));
        let excess = processes.ended.len().saturating_sub(KEPT_RECORDS);
        processes.ended.drain(..excess);
    }

    /// A process by name.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn process(&self, id: &str) -> Result<Arc<Process>, ApiError> {
        let found = lock(&self.processes).alive.get(id).cloned();
        found.ok_or_else(|| ApiError::not_found(format!("no process named {id:?} runs")))
    }

    /// The record of a process that has ended.
    pub fn ended_process(&self, id: &str) -> Option<ExitRecord> {
        let processes = lock(&self.processes);
        processes.ended.iter().find(|(ended, _)| ended == id).map(|(_, record)| record.clone())
    }

    /// All processes that have not been retired.
    pub fn alive(&self) -> Vec<Arc<Process>> {
        lock(&self.processes).alive.values().cloned().collect()
    }

    /// The first process, once it was asked for.
    pub fn init(&self) -> Option<Arc<Process>> {
        lock(&self.processes).alive.get(INIT_PROCESS).cloned()
    }

    /// Notes a kill for want of memory.
    pub fn out_of_memory(&self, kill: OutOfMemoryKill) {
        let mut kills = lock(&self.kills);
        kills.push_back(kill);
        let excess = kills.len().saturating_sub(MAX_OUT_OF_MEMORY_KILLS);
        kills.drain(..excess);
    }

    /// Such kills, the newest last.
    pub fn kills(&self) -> Vec<OutOfMemoryKill> {
        lock(&self.kills).iter().cloned().collect()
    }

    /// The memory limit in MiB.
    pub fn memory_mib(&self) -> u64 {
        self.resources().memory_in_bytes >> 20
    }

    /// What [`Request::State`] answers.
    pub fn report(&self) -> ApiState {
        ApiState {
            phase: self.state().phase(),
            started_date: self.started.get().copied(),
            exit: self.verdict(),
            pid: std::process::id() as i32,
            hypervisor_pid: Some(self.hypervisor_pid.load(Ordering::Relaxed))
                .filter(|pid| *pid > 0),
            resources: Some(self.resources()),
            vm_origin: self.origin(),
            out_of_memory_kills: self.kills(),
        }
    }

    /// Ends the first process: a signal, and after `grace` the kill of everything. Returns once
    /// the end is known; what ignores even that is ended with its VM.
    pub async fn stop(&self, signal: i32, grace: Duration) {
        const KILL_LIMIT: Duration = Duration::from_secs(15);
        let polite = async {
            if let Err(error) = self.signal(INIT_PROCESS, signal, false).await {
                tracing::debug!(%error, "stop: the signal was not taken");
            }
            self.concluded().await;
        };
        if tokio::time::timeout(grace, polite).await.is_ok() {
            return;
        }
        // Nobody's full pipe holds the end back.
        for process in self.alive() {
            process.release();
        }
        let kill = async {
            let kill = nix::sys::signal::Signal::SIGKILL as i32;
            if let Err(error) = self.signal(INIT_PROCESS, kill, true).await {
                tracing::warn!(%error, "stop: the kill was not taken");
            }
            self.concluded().await;
        };
        if tokio::time::timeout(KILL_LIMIT, kill).await.is_err() {
            let reason = "killed by SIGKILL with its VM: the guest did not end it";
            self.conclude(exit::killed(reason), Manner::Kill);
        }
    }
}

/// A request's name, for logs.
pub fn request_name(request: &Request) -> &'static str {
    state::name(request)
}
