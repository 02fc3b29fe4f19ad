//! Memory while containers run: given back when the host is short of it, and watched in each.
//!
//! ```text
//! host short of memory ──► spares given up (spare::keeper)
//!                     └──► every guest gives back what it can do without, at most once a while
//! still short ──► no new starts (limits)
//! a container at PERCENT of its limit for DURATION ──► logged ──► restarted, where it asks for it
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use container_api::Result;
use container_api::config::LimitsConfig;
use container_api::runtime::{CALL_DEADLINE, Request, Usage};
use container_api::types::{MemoryShare, Status};
use tokio::time::sleep;

use crate::attachment::Attachment;
use crate::container::{Container, Machine};
use crate::engine::Engine;
use crate::pressure;
use crate::start::Caller;

/// Between two looks.
const STEP: Duration = Duration::from_secs(5);
/// Looks at a container that is only warned about: one of so many. Each wakes its guest.
const SELDOM: u64 = 6;
/// Guests that have given back are left alone for so long.
const REST: Duration = Duration::from_secs(30);
/// For the program to end before it is restarted.
const PATIENCE: Duration = Duration::from_secs(10);

/// Since when containers hold too much memory.
#[derive(Debug, Default)]
struct Watched {
    since: HashMap<String, Since>,
}

#[derive(Clone, Copy, Debug)]
struct Since {
    warned: Option<Instant>,
    restart: Option<Instant>,
    logged: bool,
}

/// What is to be done about a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Verdict {
    log: bool,
    restart: bool,
}

impl Watched {
    /// Judges one look at a container.
    fn look(
        &mut self,
        id: &str,
        percent: u64,
        warning: MemoryShare,
        restart: Option<MemoryShare>,
        now: Instant,
    ) -> Verdict {
        let none = Since { warned: None, restart: None, logged: false };
        let since = self.since.entry(id.to_owned()).or_insert(none);
        let step = |share: MemoryShare, since: &mut Option<Instant>| {
            if percent < u64::from(share.percent) {
                *since = None;
                return false;
            }
            let begun = *since.get_or_insert(now);
            now.duration_since(begun) >= Duration::from_secs(share.seconds)
        };
        let long = step(warning, &mut since.warned);
        let too_long = restart.is_some_and(|share| step(share, &mut since.restart));
        let log = (long && !since.logged) || too_long;
        since.logged = long;
        if too_long {
            self.since.remove(id);
        }
        Verdict { log, restart: too_long }
    }
}

/// Watches; never ends.
pub async fn run(engine: Arc<Engine>) {
    let mut watched = Watched::default();
    let mut relieved: Option<Instant> = None;
    for turn in 0_u64.. {
        sleep(STEP).await;
        engine.write_again();
        let running = running(&engine);
        watched.since.retain(|id, _| running.iter().any(|(container, _)| container.id() == id));
        if let Some(short) = pressure::short_of_memory()
            && relieved.is_none_or(|last| last.elapsed() >= REST)
        {
            relieved = Some(Instant::now());
            tracing::warn!(containers = running.len(), "{short}: guests give back what they can");
            relieve(&running).await;
        }
        let wanted =
            |container: &Container| turn % SELDOM == 0 || container.config.restart_memory.is_some();
        let looked_at = running.iter().filter(|(container, _)| wanted(container));
        look(&engine, looked_at, &mut watched).await;
    }
}

fn running(engine: &Engine) -> Vec<(Arc<Container>, Arc<Machine>)> {
    let containers = engine.containers().into_iter();
    let running = containers.filter_map(|container| {
        let live = container.live();
        let machine = live.machine.filter(|_| live.life.status == Status::Running)?;
        Some((container, machine))
    });
    running.collect()
}

async fn relieve(running: &[(Arc<Container>, Arc<Machine>)]) {
    // One after the other: each costs processor time, which is short as well then.
    for (container, machine) in running {
        let asked = machine.helper.call::<()>(&Request::Reclaim, &[], Some(CALL_DEADLINE)).await;
        if let Err(error) = asked {
            tracing::debug!(container = container.id(), %error, "a guest gave nothing back");
        }
    }
}

async fn look(
    engine: &Arc<Engine>,
    running: impl Iterator<Item = &(Arc<Container>, Arc<Machine>)>,
    watched: &mut Watched,
) {
    let limits: &LimitsConfig = &engine.config.limits;
    let Ok(warning) = limits.memory_warning() else { return };
    for (container, machine) in running {
        let usage: Result<Usage> =
            machine.helper.call(&Request::Stats, &[], Some(CALL_DEADLINE)).await;
        let Ok(usage) = usage else { continue };
        let percent = usage.memory_bytes.saturating_mul(100) / usage.memory_limit_bytes.max(1);
        let restart = container.config.restart_memory;
        let verdict = watched.look(container.id(), percent, warning, restart, Instant::now());
        if verdict.log {
            let limit_mib = usage.memory_limit_bytes >> 20;
            tracing::warn!(container = container.id(), percent, limit_mib, "memory is nearly full");
        }
        if verdict.restart {
            tokio::spawn(restart_full(engine.clone(), container.clone()));
        }
    }
}

/// Restarts a container that holds too much memory, unless somebody else does something with it.
async fn restart_full(engine: Arc<Engine>, container: Arc<Container>) {
    tracing::warn!(container = container.id(), "restarted: it holds too much memory");
    let again = async {
        engine.end_with_service(&container, PATIENCE).await?;
        if container.restarts().asked || container.live().removed {
            return Ok(());
        }
        engine.start(&container, Attachment::nothing(), Caller::Nobody).await
    };
    let outcome: Result<()> = again.await;
    if let Err(error) = outcome {
        tracing::warn!(container = container.id(), %error, "a restart for memory failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_for_too_long() {
        let (mut watched, begun) = (Watched::default(), Instant::now());
        let warning = MemoryShare { percent: 90, seconds: 10 };
        let restart = Some(MemoryShare { percent: 95, seconds: 20 });
        let mut at = |seconds, percent| {
            let now = begun + Duration::from_secs(seconds);
            let verdict = watched.look("c", percent, warning, restart, now);
            (verdict.log, verdict.restart)
        };
        assert_eq!(at(0, 92), (false, false));
        assert_eq!(at(9, 96), (false, false));
        assert_eq!(at(10, 96), (true, false));
        assert_eq!(at(15, 96), (false, false), "said once");
        assert_eq!(at(20, 94), (false, false), "a break");
        assert_eq!(at(25, 96), (false, false));
        assert_eq!(at(44, 96), (false, false));
        assert_eq!(at(45, 96), (true, true));
        assert_eq!(at(46, 96), (false, false), "counted anew");
    }
}
