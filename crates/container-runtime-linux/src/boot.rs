//! From a blueprint to a guest that answers, with as many attempts as its way has.
//!
//! ```text
//! container:  restore ──fails──► boot ──hangs, panics──► boot ──fails──► the reason
//! spare:      restore ──fails──► the reason
//! template:   boot ──fails──► the reason
//! ```
//! Until a guest answers nothing of a container has run, so another VM takes nothing away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use container_api::runtime::BOOT_DEADLINE;
use container_api::types::{ExitRecord, VmOrigin};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::console::{self, BootLog};
use crate::exit;
use crate::guest::{self, Guest, GuestError, GuestEvent};
use crate::hypervisor::{Hypervisor, Vm, VmConfig, VmExit};
use crate::timeline::Timeline;
use crate::vm::Blueprint;

/// How long the process of a killed VM may take to go.
pub const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long a VM whose channel was lost may take to die by itself, for a better reason.
pub const LOST_LIMIT: Duration = Duration::from_secs(2);
/// How long the console of a dead VM is read for its last words.
pub const LAST_WORDS_LIMIT: Duration = Duration::from_millis(200);

/// How a VM may come to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the template if there is one; else, and when that fails, by a boot, twice at most.
    Any,
    /// From the template or not at all.
    Restore,
    /// By one boot.
    BootOnce,
}

/// How long is waited, each time from the beginning of an attempt.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a restored guest's answer.
    pub restore: Duration,
    /// For the first boot, when another may follow. A boot that takes this long hangs.
    pub first_boot: Duration,
    /// For all boots together.
    pub boot: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            restore: Duration::from_secs(8),
            first_boot: Duration::from_secs(20),
            boot: BOOT_DEADLINE,
        }
    }
}

/// A VM whose guest answers.
#[derive(Debug)]
pub struct Found<V> {
    /// The VM.
    pub vm: V,
    /// How it came to be.
    pub origin: VmOrigin,
    /// Its guest.
    pub guest: Guest,
    /// What the guest tells unasked.
    pub events: mpsc::Receiver<GuestEvent>,
    /// What it said on its console.
    pub boot_log: Arc<BootLog>,
    /// The task that reads the console.
    pub console: JoinHandle<()>,
}

/// Why there is no guest.
#[derive(Debug)]
pub enum NotFound {
    /// Every attempt failed; the last one's reason.
    Failed(ExitRecord),
    /// Nobody wants it any more.
    Cancelled,
}

/// Why one attempt failed.
#[derive(Debug)]
enum Failure {
    Cancelled,
    NotMade(String),
    Died(VmExit, String),
    Silent(Duration, String),
    Refused(GuestError),
}

impl Failure {
    fn worth_another_boot(&self) -> bool {
        match self {
            Failure::Silent(..) => true,
            Failure::Died(exit, console) => exit::worth_another_boot(exit, console),
            Failure::Cancelled | Failure::NotMade(_) | Failure::Refused(_) => false,
        }
    }

    fn verdict(self, memory_mib: u64) -> NotFound {
        NotFound::Failed(match self {
            Failure::Cancelled => return NotFound::Cancelled,
            Failure::NotMade(reason) => exit::failure(reason),
            Failure::Died(exit, console) => exit::of_vm(&exit, &console, false, memory_mib),
            Failure::Silent(limit, console) => {
                let last = console.lines().last().unwrap_or_default();
                let limit = limit.as_secs();
                exit::failure(format!(
                    "the guest did not boot within {limit} s (last words: {last:?})"
                ))
            }
            Failure::Refused(error @ GuestError::Lost(_)) => exit::failure(error.to_string()),
            Failure::Refused(error) => {
                exit::failure(format!("the guest could not be set up: {}", exit::chain(&error)))
            }
        })
    }
}

/// Finds guests for one container, spare or template.
#[derive(Debug)]
pub struct Search<'a, H, C, P> {
    /// What starts VMs.
    pub hypervisor: &'a H,
    /// What they are made from.
    pub blueprint: &'a Blueprint,
    /// How long is waited.
    pub patience: Patience,
    /// Where their consoles go.
    pub boot_log: Arc<BootLog>,
    /// Is told the phases.
    pub timeline: &'a Timeline,
    /// Ends when nobody wants the guest any more.
    pub cancelled: C,
    /// Is told each VM's process.
    pub started: P,
}

impl<H: Hypervisor, C: AsyncFn(), P: Fn(i32)> Search<'_, H, C, P> {
    /// Tries until a guest answers or the way has no further attempt. Must be called on the main
    /// thread, which no VM outlives.
    ///
    /// # Errors
    /// [`NotFound`]; no VM is left then.
    pub async fn find(&self, way: Way) -> Result<Found<H::Vm>, NotFound> {
        let memory_mib = self.blueprint.spec().resources.memory_in_bytes >> 20;
        self.attempts(way).await.map_err(|failure| failure.verdict(memory_mib))
    }

    async fn attempts(&self, way: Way) -> Result<Found<H::Vm>, Failure> {
        if way != Way::BootOnce {
            match self.restore().await {
                Ok(Some(found)) => return Ok(found),
                Err(failure @ Failure::Cancelled) => return Err(failure),
                Err(failure) if way == Way::Restore => return Err(failure),
                Ok(None) if way == Way::Restore => {
                    return Err(Failure::NotMade("there is no template to restore".into()));
                }
                Ok(None) => {}
                Err(failure) => {
                    tracing::warn!(?failure, "the template can't be restored: booting instead");
                    self.boot_log.begin_again();
                }
            }
        }
        let began = Instant::now();
        if way == Way::Any {
            let limit = self.patience.first_boot.min(self.patience.boot);
            match self.boot(limit).await {
                Err(failure) if failure.worth_another_boot() => {
                    tracing::warn!(?failure, "the guest does not come up: booting another time");
                    self.boot_log.begin_again();
                }
                outcome => return outcome,
            }
        }
        self.boot(self.patience.boot.saturating_sub(began.elapsed())).await
    }

    async fn restore(&self) -> Result<Option<Found<H::Vm>>, Failure> {
        let config = self.blueprint.restored().map_err(|e| Failure::NotMade(format!("{e:#}")))?;
        let Some(config) = config else { return Ok(None) };
        self.attempt(config, VmOrigin::Template, self.patience.restore).await.map(Some)
    }

    async fn boot(&self, limit: Duration) -> Result<Found<H::Vm>, Failure> {
        let config = self.blueprint.cold().map_err(|e| Failure::NotMade(format!("{e:#}")))?;
        self.attempt(config, VmOrigin::Cold, limit).await
    }

    async fn attempt(
        &self,
        config: VmConfig,
        origin: VmOrigin,
        limit: Duration,
    ) -> Result<Found<H::Vm>, Failure> {
        let began = Instant::now();
        let started = tokio::select! {
            started = self.hypervisor.start(config) => started,
            () = (self.cancelled)() => return Err(Failure::Cancelled),
        };
        let (vm, streams) = started.map_err(|error| Failure::NotMade(exit::chain(&error)))?;
        self.timeline.phase("VM made");
        tracing::info!(?origin, ms = began.elapsed().as_millis() as u64, "the VM runs");
        (self.started)(vm.pid());
        let mut console = tokio::spawn(console::copy(streams.console, self.boot_log.clone()));
        let connect = guest::connect(streams.agent, streams.bulk);
        let connected = tokio::select! {
            biased;
            () = (self.cancelled)() => Err(Failure::Cancelled),
            connected = tokio::time::timeout(limit.saturating_sub(began.elapsed()), connect) => {
                match connected {
                    Ok(Ok(connected)) => Ok(connected),
                    Ok(Err(error)) => Err(self.lost(&vm, &mut console, error).await),
                    Err(_) => Err(Failure::Silent(limit, self.boot_log.tail())),
                }
            }
            exit = vm.ended() => Err(self.died(exit, &mut console).await),
        };
        match connected {
            Ok((guest, events)) => {
                self.timeline.phase("guest answers");
                tracing::info!(ms = began.elapsed().as_millis() as u64, "the guest answers");
                let boot_log = self.boot_log.clone();
                Ok(Found { vm, origin, guest, events, boot_log, console })
            }
            Err(failure) => {
                end(&vm).await;
                Err(failure)
            }
        }
    }

    /// A channel that breaks is mostly that of a VM that dies, which has a better reason.
    async fn lost<V: Vm>(
        &self,
        vm: &V,
        console: &mut JoinHandle<()>,
        error: GuestError,
    ) -> Failure {
        if !matches!(error, GuestError::Lost(_)) {
            return Failure::Refused(error);
        }
        match tokio::time::timeout(LOST_LIMIT, vm.ended()).await {
            Ok(exit) => self.died(exit, console).await,
            Err(_) => Failure::Refused(error),
        }
    }

    async fn died(&self, exit: VmExit, console: &mut JoinHandle<()>) -> Failure {
        let _ = tokio::time::timeout(LAST_WORDS_LIMIT, console).await;
        Failure::Died(exit, self.boot_log.tail())
    }
}

/// Kills a VM and waits until it has gone.
pub async fn end<V: Vm>(vm: &V) {
    let began = Instant::now();
    vm.kill();
    gone(vm, began).await;
}

/// Waits for the end of a VM that was killed or has powered off.
pub async fn gone<V: Vm>(vm: &V, since: Instant) {
    if tokio::time::timeout(KILL_LIMIT, vm.ended()).await.is_err() {
        return tracing::error!("the hypervisor's process does not go");
    }
    tracing::info!(ms = since.elapsed().as_millis() as u64, "the VM has ended");
}
