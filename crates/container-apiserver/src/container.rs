//! One container in memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as SyncMutex, MutexGuard, OnceLock, PoisonError};

use container_api::network::Attached;
use container_api::types::{Accelerator, ContainerConfig, ContainerSnapshot, Resources, VmOrigin};
use tokio::sync::{Mutex, watch};

use crate::helper::Helper;
use crate::jail_uid::JailUid;
use crate::lifecycle::Life;
use crate::process::Handle;
use crate::restart::Restarts;
use crate::store::{ImageDisk, Record, Runtime};
use crate::template::Acquired;

/// The VM of a container, as far as this service sees it.
#[derive(Debug)]
pub struct Machine {
    /// Its helper.
    pub helper: Helper,
    /// What runs the guest's code.
    pub accelerator: Option<Accelerator>,
    /// Host user id of its jail (when this service is root).
    pub uid: JailUid,
    /// How it came to be; `None` when that is not known any more.
    pub origin: SyncMutex<Option<VmOrigin>>,
    /// The key of the template that it comes from.
    pub template: Option<String>,
    /// Keeps that template's files until the helper has opened them.
    pub hold: SyncMutex<Option<Acquired>>,
    /// The limits in force, when `update` changed them.
    pub limits: SyncMutex<Option<Resources>>,
    /// The hypervisor, once the helper has said which process that is.
    pub hypervisor: OnceLock<Handle>,
    /// Its networks.
    pub network: Option<Attached>,
    /// No program runs in it: it is there to copy files.
    pub maintenance: bool,
    /// Set when nobody wants the VM any more before its program was started.
    pub abandoned: AtomicBool,
}

impl Machine {
    /// As it is recorded.
    pub fn runtime(&self) -> Runtime {
        Runtime {
            origin: self.origin(),
            resources: self.limits(),
            network: self.network.clone(),
            ..Runtime::now(self.helper.handle.identity())
        }
    }

    /// How it came to be.
    pub fn origin(&self) -> Option<VmOrigin> {
        *self.origin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how it came to be.
    pub fn set_origin(&self, origin: Option<VmOrigin>) {
        *self.origin.lock().unwrap_or_else(PoisonError::into_inner) = origin;
    }

    /// The limits in force, when `update` changed them.
    pub fn limits(&self) -> Option<Resources> {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its files are open: they need not be kept any more.
    pub fn release_template(&self) {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Notes new limits.
    pub fn set_limits(&self, limits: Resources) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = Some(limits);
    }

    /// Nothing has happened to the container: the VM's end is no end of the container.
    pub fn abandon(&self, abandoned: bool) {
        self.abandoned.store(abandoned, Ordering::Relaxed);
    }

    /// What [`Machine::abandon`] said last.
    pub fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }
}

/// What changes about a container.
#[derive(Clone, Debug)]
pub struct Live {
    /// Where it is in its life.
    pub life: Life,
    /// Its VM. Stays a moment longer than the life is active: until the helper's end was seen.
    pub machine: Option<Arc<Machine>>,
    /// It is gone; whoever waits for it should stop.
    pub removed: bool,
}

/// One container.
#[derive(Debug)]
pub struct Container {
    /// What was asked for.
    pub config: ContainerConfig,
    /// Its image.
    pub image: ImageDisk,
    /// Held by whatever starts or removes it: one at a time.
    pub operation: Mutex<()>,
    /// What its creation took, for the trace of its first start: names, beginnings and ends.
    pub creation: SyncMutex<Vec<(&'static str, u64, u64)>>,
    restarts: SyncMutex<Restarts>,
    live: watch::Sender<Live>,
}

impl Container {
    /// A container as recorded, without a VM.
    pub fn new(record: Record) -> Container {
        let live = Live { life: record.life, machine: None, removed: false };
        Container {
            config: record.config,
            image: record.image,
            operation: Mutex::new(()),
            creation: SyncMutex::default(),
            restarts: SyncMutex::default(),
            live: watch::Sender::new(live),
        }
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.config.id
    }

    /// Where it is now.
    pub fn live(&self) -> Live {
        self.live.borrow().clone()
    }

    /// Changes it and wakes whoever waits for it.
    pub fn update<T>(&self, change: impl FnOnce(&mut Live) -> T) -> T {
        let mut result = None;
        self.live.send_modify(|live| result = Some(change(live)));
        result.expect("the change was made")
    }

    /// Waits until `condition` holds, and says what holds then.
    pub async fn until(&self, condition: impl FnMut(&Live) -> bool) -> Live {
        let mut receiver = self.live.subscribe();
        // The sender lives as long as `self`.
        receiver.wait_for(condition).await.expect("the sender lives").clone()
    }

    /// What its creation took; told once.
    pub fn take_creation(&self) -> Vec<(&'static str, u64, u64)> {
        std::mem::take(&mut *self.creation.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is kept of its restarts.
    pub fn restarts(&self) -> MutexGuard<'_, Restarts> {
        self.restarts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The row that says how it is now.
    pub fn record(&self) -> Record {
        let live = self.live.borrow();
        Record {
            config: self.config.clone(),
            image: self.image.clone(),
            life: live.life.clone(),
            runtime: live.machine.as_ref().map(|machine| machine.runtime()),
        }
    }

    /// As `list` and `inspect` show it.
    pub fn snapshot(&self) -> ContainerSnapshot {
        let live = self.live.borrow();
        let machine = live.machine.as_ref().filter(|_| live.life.is_active());
        let network = machine.and_then(|machine| machine.network.as_ref());
        let kills = live.life.exit.as_ref().map(|exit| exit.out_of_memory_kills.clone());
        ContainerSnapshot {
            configuration: self.config.clone(),
            status: live.life.status,
            started_date: live.life.started,
            exit: live.life.exit.clone(),
            out_of_memory_kills: kills.unwrap_or_default(),
            restart_count: self.restarts().count,
            current_resources: machine.and_then(|m| m.limits()),
            vm_origin: machine.and_then(|m| m.origin()),
            networks: network.map(|network| network.attachments.clone()).unwrap_or_default(),
            ports: network.map(|network| network.ports.clone()).unwrap_or_default(),
            accelerator: machine.and_then(|m| m.accelerator),
            runtime_pid: machine.map(|m| m.helper.handle.identity().pid),
            hypervisor_pid: machine.and_then(|m| m.hypervisor.get()).map(|h| h.identity().pid),
            posture: None,
        }
    }
}
