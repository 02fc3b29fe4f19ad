//! Restart policies: what becomes of a container that has ended.
//!
//! ```text
//! ended ──► asked to end, removed, or the policy says no ──► it stays so
//!   └─────► a pause ──► started ──► (ended …)
//!             │   0.1 s, then twice as long each time, at most a minute;
//!             │   0.1 s again once it has run for ten seconds
//!             └── a stop, a start or a removal by the user ends the pause
//! ```
//! When the service starts, containers that were started before follow their policy too.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use container_api::types::{ExitRecord, RestartPolicy};
use tokio::task::AbortHandle;

use crate::attachment::Attachment;
use crate::backoff::Backoff;
use crate::container::Container;
use crate::engine::Engine;
use crate::start::Caller;

/// The first pause, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// A container that has run for so long did not fail at its start.
const SETTLED: Duration = Duration::from_secs(10);

/// What is kept of a container's restarts, as long as the service runs.
#[derive(Debug, Default)]
pub struct Restarts {
    /// Restarts since the user has started it last.
    pub count: u32,
    /// Somebody has asked for its end since its last start.
    pub asked: bool,
    backoff: Option<Backoff>,
    pending: Option<AbortHandle>,
}

/// Whether a container that ended so is started again.
fn wanted(policy: RestartPolicy, exit: &ExitRecord, count: u32, at_boot: bool) -> bool {
    match policy {
        RestartPolicy::No => false,
        // As Docker: it comes back with the service even when it was stopped.
        RestartPolicy::Always => at_boot || !exit.stop_requested,
        RestartPolicy::UnlessStopped => !exit.stop_requested,
        RestartPolicy::OnFailure { maximum_retries } => {
            let more = maximum_retries == 0 || count < maximum_retries;
            !exit.stop_requested && exit.exit_code != 0 && more
        }
    }
}

impl Container {
    /// Notes that its end is wanted. Whether a restart was pending, which is off then.
    pub fn ask_to_end(&self) -> bool {
        let mut restarts = self.restarts();
        restarts.asked = true;
        restarts.pending.take().map(|pending| pending.abort()).is_some()
    }

    /// Notes that the user starts it.
    pub fn begin_anew(&self) {
        let mut restarts = self.restarts();
        restarts.pending.take().into_iter().for_each(|pending| pending.abort());
        *restarts = Restarts::default();
    }
}

impl Engine {
    /// Starts a container again that has ended so, when its policy wants it.
    pub fn restart_later(self: &Arc<Self>, container: &Arc<Container>, exit: &ExitRecord) {
        let ran = container.live().life.started.map(|started| started.age());
        if ran.is_some_and(|ran| ran >= SETTLED) {
            container.restarts().backoff = None;
        }
        let count = container.restarts().count;
        if wanted(container.config.restart, exit, count, false) {
            self.clone().schedule(container.clone());
        }
    }

    /// Starts the containers whose policy wants them when the service starts.
    pub fn restart_all(self: &Arc<Self>) {
        for container in self.containers() {
            let live = container.live();
            let wanted = |exit| wanted(container.config.restart, exit, 0, true);
            if live.machine.is_none() && live.life.exit.as_ref().is_some_and(wanted) {
                self.clone().schedule(container);
            }
        }
    }

    fn schedule(self: Arc<Self>, container: Arc<Container>) {
        if self.stopping.load(Ordering::Relaxed) || container.live().removed {
            return;
        }
        let pause = {
            let mut restarts = container.restarts();
            let backoff = Backoff::after(restarts.backoff, PAUSES.0, PAUSES.1);
            restarts.backoff = Some(backoff);
            backoff.pause()
        };
        tracing::info!(container = container.id(), ?pause, "a restart is due");
        let theirs = container.clone();
        let task = tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            // From here on the start is one like any other.
            if container.restarts().pending.take().is_some() {
                tokio::spawn(self.restart(container.clone()));
            }
        });
        theirs.restarts().pending = Some(task.abort_handle());
    }

    async fn restart(self: Arc<Self>, container: Arc<Container>) {
        if self.stopping.load(Ordering::Relaxed) {
            return;
        }
        container.restarts().count += 1;
        let started = self.start(&container, Attachment::nothing(), Caller::Nobody).await;
        let Err(error) = started else { return };
        tracing::warn!(container = container.id(), %error, "a restart failed");
        let live = container.live();
        // A VM that came to nothing has its own end, which was seen to.
        let asked = container.restarts().asked;
        if live.life.is_idle() && live.machine.is_none() && !asked && !live.removed {
            let again = live.life.exit.as_ref().is_none_or(|exit| {
                wanted(container.config.restart, exit, container.restarts().count, false)
            });
            let pending = container.restarts().pending.is_some();
            if again && !pending {
                self.schedule(container);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::lost;

    #[test]
    fn policies_are_dockers() {
        let exit = |code: u8, asked: bool| ExitRecord {
            exit_code: code,
            stop_requested: asked,
            ..lost("it ended")
        };
        let on_failure = RestartPolicy::OnFailure { maximum_retries: 2 };
        let rows = [
            (RestartPolicy::No, exit(1, false), 0, false, false),
            (RestartPolicy::Always, exit(0, false), 9, false, true),
            (RestartPolicy::Always, exit(0, true), 0, false, false),
            (RestartPolicy::Always, exit(0, true), 0, true, true),
            (RestartPolicy::UnlessStopped, exit(0, false), 0, false, true),
            (RestartPolicy::UnlessStopped, exit(0, true), 0, true, false),
            (on_failure, exit(1, false), 1, false, true),
            (on_failure, exit(1, false), 2, false, false),
            (on_failure, exit(0, false), 0, false, false),
            (on_failure, exit(1, true), 0, true, false),
        ];
        for (policy, exit, count, at_boot, expected) in rows {
            assert_eq!(wanted(policy, &exit, count, at_boot), expected, "{policy:?} {exit:?}");
        }
    }
}
