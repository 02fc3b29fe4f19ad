//! What rules and resolvers have denied: shown by `network inspect`, and told to the audit trail by
//! container, once a second while there is something new.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use container_api::Result;
use container_api::audit::observed::{Observation, Outbox, What};
use container_api::network::Dropped;
use tokio::sync::Mutex;

use super::core::{Core, named};
use super::kernel::Kernel;
use super::names;
use super::records::Record;
use super::state::{Net, locked};
use crate::wire::{Refused, ResolverRequest};

/// Why a question for a name is counted as dropped.
const REFUSED_NAME: &str = "name";
/// What every guest's kernel sends by itself, to look for routers and neighbours: of no account to
/// the trail.
const ORDINARY: [&str; 1] = ["broadcast"];
/// Between two looks while nothing is denied: a look starts a program in each network.
const QUIET: Duration = Duration::from_secs(5);
/// Between two looks while something is.
const BUSY: Duration = Duration::from_secs(1);

/// What the trail has been told.
#[derive(Debug)]
pub struct Denied {
    outbox: Outbox,
    /// By network.
    seen: Mutex<BTreeMap<String, Counters>>,
}

/// Packets by container and reason.
type Counters = BTreeMap<(String, String), u64>;

impl Denied {
    /// Nothing so far.
    pub fn new(outbox: Outbox) -> Denied {
        Denied { outbox, seen: Mutex::default() }
    }
}

/// What was told when the counter stood at `before`, and it stands at `now`: a smaller one counts
/// anew.
fn new_since(before: Option<u64>, now: u64) -> u64 {
    now - before.filter(|before| *before <= now).unwrap_or(0)
}

impl<K: Kernel> Core<K> {
    /// What the rules and the resolver of a network have refused.
    pub(super) async fn dropped(&self, net: &Net) -> Result<(Vec<Dropped>, Vec<Refused>)> {
        let name = &net.config.id;
        let resolver = match &*net.up.lock().await {
            Some(up) => up.resolver.clone(),
            None => return Ok(Default::default()),
        };
        let mut dropped = self.kernel.dropped(name).await.map_err(|e| named(e, name))?;
        let refused: Vec<Refused> = resolver.call(&ResolverRequest::Refused, &[]).await?;
        dropped.extend(refused.iter().filter(|refused| refused.questions > 0).map(|refused| {
            Dropped {
                container: Some(refused.container.clone()),
                reason: REFUSED_NAME.into(),
                packets: refused.questions,
            }
        }));
        Ok((dropped, refused))
    }

    /// Tells the trail what was denied on these networks since the last look; true when there was
    /// something.
    pub(super) async fn note_denied(&self, nets: &[Arc<Net>]) -> bool {
        let mut seen = self.denied.seen.lock().await;
        let mut found = BTreeMap::new();
        for net in nets.iter().filter(|net| locked(&net.activity).up) {
            let name = &net.config.id;
            let (dropped, refused) = match self.dropped(net).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::debug!(network = name, %error, "what was denied is not known");
                    continue;
                }
            };
            let mut now = Counters::new();
            let before = seen.remove(name).unwrap_or_default();
            for Dropped { container, reason, packets } in dropped {
                let Some(container) = container else { continue };
                if ORDINARY.contains(&reason.as_str()) {
                    continue;
                }
                let key = (container.clone(), reason.clone());
                let new = new_since(before.get(&key).copied(), packets);
                now.insert(key, packets);
                if new == 0 {
                    continue;
                }
                let observation = found
                    .entry(container.clone())
                    .or_insert_with(|| Observation::new(&container, What::DeniedPackets));
                observation.count(&reason, new);
                let of_container = refused.iter().filter(|refused| refused.container == container);
                if reason == REFUSED_NAME {
                    // A guest has chosen them. The newest are the last ones.
                    let asked = of_container.flat_map(|refused| refused.names.iter().rev());
                    asked.for_each(|asked| observation.detail(&names::shown(asked)));
                }
            }
            seen.insert(name.clone(), now);
        }
        drop(seen);
        let told = match found.is_empty() {
            true => self.denied.outbox.flush(),
            false => found.values().try_for_each(|found| self.denied.outbox.note(found)),
        };
        if let Err(error) = told {
            tracing::warn!(%error, "the audit trail is not told yet what was denied");
        }
        !found.is_empty()
    }

    /// The last look at a container that leaves: its counters go with it.
    pub(super) async fn note_last_denied(&self, record: &Record) {
        self.note_denied(&self.nets(record).unwrap_or_default()).await;
    }

    /// Forgets a container's counters: the next of that name counts from nothing.
    pub(super) async fn forget_denied(&self, container: &str) {
        for counters in self.denied.seen.lock().await.values_mut() {
            counters.retain(|(of, _), _| of != container);
        }
    }
}

/// Looks for ever.
pub async fn watch<K: Kernel>(core: Arc<Core<K>>) {
    loop {
        let used: Vec<Arc<Net>> = {
            let state = locked(&core.state);
            let used = |net: &&Arc<Net>| state.on(&net.config.id).next().is_some();
            state.networks.values().filter(used).cloned().collect()
        };
        let busy = core.note_denied(&used).await;
        tokio::time::sleep(if busy { BUSY } else { QUIET }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_grow_or_begin_anew() {
        assert_eq!(new_since(None, 3), 3);
        assert_eq!(new_since(Some(3), 3), 0);
        assert_eq!(new_since(Some(3), 10), 7);
        assert_eq!(new_since(Some(10), 4), 4);
    }
}
