//! `start`: typed steps from a directory to a running program.
//!
//! ```text
//! ready to start? ─► Plan (kernel, shape) ─► Machine (spare, template or cold) ─► program runs
//!                                              ▲                      │
//!                                              └── the next slower ───┘ no VM came of it
//! ```
//! A failure before there is a machine leaves the container as it was. After that its end is the
//! business of [`crate::watch`], whatever goes wrong here.

use std::sync::Arc;
use std::time::Duration;

use container_api::runtime::{BOOT_DEADLINE, CALL_DEADLINE, Request, State};
use container_api::types::{Status, Timestamp, VmOrigin};
use container_api::varlink::Responder;
use container_api::{ApiError, ErrorCode, Result, trace};
use tokio::time::timeout;

use crate::attachment::Attachment;
use crate::container::{Container, Machine};
use crate::engine::Engine;
use crate::helper::END_DEADLINE;
use crate::launch::Plan;
use crate::lifecycle::Event;
use crate::process::{Handle, Identity};
use crate::spare::Order;
use crate::{starts, watch};

/// How long a program is left alone that has just begun.
const BEGINNING: Duration = Duration::from_millis(100);
/// For one attached start.
const START_DEADLINE: Duration = BOOT_DEADLINE.saturating_add(CALL_DEADLINE);

/// Who wants a start.
#[derive(Clone, Copy, Debug)]
pub enum Caller<'a> {
    /// Somebody who may go away before it is done.
    Someone(&'a Responder),
    /// The service itself.
    Nobody,
}

impl Caller<'_> {
    /// Resolves when the caller has gone away.
    async fn gone(self) {
        match self {
            Caller::Someone(responder) => responder.hung_up().await,
            Caller::Nobody => std::future::pending().await,
        }
    }
}

impl Engine {
    /// Starts a container and waits until its program runs. When the caller goes away before that,
    /// the start is given up.
    pub async fn start(
        self: &Arc<Self>,
        container: &Arc<Container>,
        attachment: Attachment,
        caller: Caller<'_>,
    ) -> Result<()> {
        let begun = trace::now_ns();
        attachment.told(container.take_creation());
        let _turn = self.turn(container).await?;
        self.at_rest(container).await?;
        if let Caller::Someone(_) = caller {
            container.begin_anew();
        }
        // Counted from here on, until it runs and is counted as one that does.
        let _admission = match self.admit(container).await {
            Ok(admission) => admission,
            Err(error) => return Err(self.not_launched(container, error).await?),
        };
        let under_way = self.starts.begin();
        let plan = async {
            let claim = self.claim_volumes(container).await?;
            self.still_virtualized(container).await?;
            Ok((claim, self.plan(container).await?))
        };
        // Until the container is known to run, or not to.
        let (_claim, plan) = match plan.await {
            Ok(plan) => plan,
            Err(error) => return Err(self.not_launched(container, error).await?),
        };
        attachment.span("plan", begun);
        let mut spares = true;
        loop {
            let machine = match self.launch(container, &plan, spares, &attachment).await {
                Ok(machine) => machine,
                Err(error) => return Err(self.not_launched(container, error).await?),
            };
            let asked = trace::now_ns();
            let outcome = self.ask_to_start(container, &machine, &attachment, caller).await;
            attachment.span("helper starts the program", asked);
            if let Err(error) = &outcome
                && self.try_again(container, &machine, error)
            {
                spares = false;
                end_machine(&machine).await;
                self.networks.detach(container.id()).await;
                continue;
            }
            machine.release_template();
            tokio::spawn(watch::watch(self.clone(), container.clone(), machine.clone()));
            return match outcome {
                Ok(()) => {
                    self.apply(container, Event::Started(Timestamp::now()));
                    self.used(&plan);
                    tokio::spawn(let_it_begin(container.clone(), under_way));
                    tokio::spawn(learn(self.clone(), container.clone(), machine));
                    attachment.span("start", begun);
                    Ok(())
                }
                Err(error) => Err(self.start_failed(container, &machine, error).await),
            };
        }
    }

    /// What to tell the caller when there is no VM; a container that removes itself does so.
    async fn not_launched(&self, container: &Arc<Container>, error: ApiError) -> Result<ApiError> {
        // Nothing of an attempt is left, and nothing has happened to the container.
        let machine = container.update(|live| live.machine.take());
        if machine.is_some() {
            self.apply(container, Event::Abandoned);
        }
        if container.config.auto_remove {
            self.remove(container).await?;
        }
        Ok(error)
    }

    async fn ask_to_start(
        &self,
        container: &Container,
        machine: &Machine,
        attachment: &Attachment,
        caller: Caller<'_>,
    ) -> Result<()> {
        let request = Request::Start {
            stdio: attachment.stdio,
            size: attachment.size,
            trace: attachment.is_traced(),
        };
        let fds = attachment.borrowed();
        let call = machine.helper.call::<()>(&request, &fds, Some(START_DEADLINE));
        tokio::select! {
            outcome = call => outcome,
            () = caller.gone() => self.give_up(container, machine).await,
        }
    }

    /// Whether a start that failed with `error` should be tried again: when a spare's VM came to
    /// nothing. Where a template can't be restored the helper boots by itself.
    fn try_again(&self, container: &Container, machine: &Machine, error: &ApiError) -> bool {
        let no_vm = matches!(error.code, ErrorCode::Unavailable | ErrorCode::Disconnected);
        let wanted = container.live().life.status == Status::Starting && !machine.is_abandoned();
        let again = machine.origin() == Some(VmOrigin::Spare) && no_vm && wanted;
        if again {
            tracing::warn!(container = container.id(), %error, "a spare came to nothing");
        }
        again
    }

    /// Waits for a helper that is on its way out, and refuses a container that runs.
    pub async fn at_rest(&self, container: &Container) -> Result<()> {
        let live = container.live();
        if live.life.is_active() {
            let message = format!("container '{}' is {}", container.id(), live.life.status);
            return Err(ApiError::new(ErrorCode::InvalidState, message));
        }
        timeout(END_DEADLINE * 3, container.until(|live| live.machine.is_none()))
            .await
            .map(drop)
            .map_err(|_| {
                let message = format!("the last VM of '{}' does not end", container.id());
                ApiError::new(ErrorCode::Timeout, message)
            })
    }

    /// A start has gone well: what makes the next one of its kind faster is asked for.
    fn used(&self, plan: &Plan) {
        if let Some(shape) = &plan.shape {
            self.templates.want(shape, &plan.kernel);
            let (shape, kernel) = (shape.clone(), plan.kernel.clone());
            self.spares.used(Order { shape, kernel, mappable: plan.has_shares() }, 0);
        }
    }

    /// The caller has gone. A program that runs by now goes on; else nothing has happened.
    async fn give_up(&self, container: &Container, machine: &Machine) -> Result<()> {
        let state: Result<State> =
            machine.helper.call(&Request::State, &[], Some(END_DEADLINE)).await;
        if state.is_ok_and(|state| state.started_date.is_some()) {
            return Ok(());
        }
        tracing::info!(container = container.id(), "a start is given up: its caller has gone");
        machine.abandon(true);
        match machine.helper.call::<()>(&Request::Abort, &[], Some(END_DEADLINE)).await {
            Ok(()) => {}
            // It has started this very moment.
            Err(error) if error.code == ErrorCode::InvalidState => {
                machine.abandon(false);
                return Ok(());
            }
            Err(_) => machine.helper.handle.kill(),
        }
        Err(ApiError::new(ErrorCode::Cancelled, "the start was given up"))
    }

    /// Sees to the end of a helper that could not start the program; what to tell the caller.
    async fn start_failed(
        &self,
        container: &Container,
        machine: &Arc<Machine>,
        error: ApiError,
    ) -> ApiError {
        let over = |live: &crate::container::Live| {
            !live.machine.as_ref().is_some_and(|m| Arc::ptr_eq(m, machine))
        };
        if timeout(END_DEADLINE, container.until(over)).await.is_err() {
            machine.helper.handle.kill();
            let _ = timeout(END_DEADLINE, container.until(over)).await;
        }
        let reason = container.live().life.exit.map(|exit| exit.reason);
        match (error.code, reason) {
            (ErrorCode::Disconnected, Some(reason)) => {
                let message = format!("the VM ended while it started: {reason}");
                ApiError::new(ErrorCode::Unavailable, message)
            }
            _ => error,
        }
    }
}

/// A start is under way until its program has had a moment, or has ended and its VM is gone: short
/// programs are not disturbed by what is prepared for the next.
async fn let_it_begin(container: Arc<Container>, _under_way: starts::Start) {
    let over = container.until(|live| live.machine.is_none());
    let _ = timeout(BEGINNING, over).await;
}

/// Ends a VM that came to nothing.
async fn end_machine(machine: &Machine) {
    machine.helper.handle.kill();
    machine.helper.end_within(END_DEADLINE).await;
    watch::end_hypervisor(machine).await;
}

/// Asks the helper which process the hypervisor is, and takes hold of it; and how the VM came to be
/// in the end.
pub async fn learn(engine: Arc<Engine>, container: Arc<Container>, machine: Arc<Machine>) {
    if machine.hypervisor.get().is_some() {
        return;
    }
    let state: Result<State> = machine.helper.call(&Request::State, &[], Some(CALL_DEADLINE)).await;
    let Ok(state) = state else { return };
    let pid = state.hypervisor_pid;
    let handle = pid.and_then(|pid| Handle::open(Identity::of(pid).ok()?).ok()?);
    if let Some(handle) = handle {
        let _ = machine.hypervisor.set(handle);
    }
    let (before, now) = (machine.origin(), state.vm_origin);
    if now.is_none() || now == before {
        return;
    }
    machine.set_origin(now);
    engine.write_down(&container);
    if let (Some(VmOrigin::Template), Some(template)) = (before, &machine.template) {
        engine.templates.distrust(template, &format!("container '{}' had to boot", container.id()));
    }
}

/// Whether something can be asked of the container's program.
pub fn running(container: &Container) -> Result<Arc<Machine>> {
    let live = container.live();
    let ready = matches!(live.life.status, Status::Running | Status::Stopping);
    live.machine.filter(|_| ready).ok_or_else(|| {
        let message =
            format!("container '{}' is {}, not running", container.id(), live.life.status);
        ApiError::new(ErrorCode::InvalidState, message)
    })
}
