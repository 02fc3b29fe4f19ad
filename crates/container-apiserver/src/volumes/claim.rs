//! Who may write to a block volume now.
//!
//! ```text
//! start ─► claim ─► VM (its helper holds a lock on the file) ─► the machine is gone
//!            │  the machine is known: it stands for the claim
//!            └► another container writes, or would read what this one writes: refused
//! ```
//! Two kernels that write one ext4 destroy it, and one that reads what another writes sees
//! nonsense. Containers that run say by themselves what they have, so a service that was killed
//! knows it again from its containers; the helpers' locks hold even when it is wrong.

use std::sync::{Arc, PoisonError};

use container_api::types::ContainerConfig;
use container_api::{ApiError, ErrorCode, Result};
use tokio::time::timeout;

use crate::container::Container;
use crate::engine::Engine;
use crate::helper::END_DEADLINE;

/// What a start has claimed.
#[derive(Clone, Debug)]
pub struct Claimed {
    id: String,
    uses: Vec<(String, bool)>,
}

/// A start's claim; what it holds is given back on drop.
#[derive(Debug)]
pub struct Claim {
    engine: Arc<Engine>,
    id: String,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.engine.claims().retain(|claimed| claimed.id != self.id);
    }
}

/// Block volumes of a container, and whether it writes to them.
fn uses(config: &ContainerConfig) -> Vec<(String, bool)> {
    let disks = config.mounts.iter().filter(|mount| !mount.is_share());
    disks.map(|mount| (mount.source.to_string_lossy().into_owned(), !mount.read_only)).collect()
}

/// The volume that two can't have at once.
fn conflict<'a>(mine: &'a [(String, bool)], theirs: &[(String, bool)]) -> Option<&'a str> {
    let clash = |(name, writes): &&(String, bool)| {
        theirs.iter().any(|(other, they_write)| name == other && (*writes || *they_write))
    };
    mine.iter().find(clash).map(|(name, _)| name.as_str())
}

impl Engine {
    fn claims(&self) -> std::sync::MutexGuard<'_, Vec<Claimed>> {
        self.volumes.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims the block volumes of a container that starts; `None` when it has none.
    pub async fn claim_volumes(self: &Arc<Self>, container: &Container) -> Result<Option<Claim>> {
        let mine = uses(&container.config);
        if mine.is_empty() {
            return Ok(None);
        }
        loop {
            let Some((other, volume)) = self.try_claim(container.id(), &mine) else {
                let (engine, id) = (self.clone(), container.id().to_owned());
                return Ok(Some(Claim { engine, id }));
            };
            let refused = || {
                let message = format!(
                    "volume '{volume}' is in use by container '{other}': a block volume has one \
                     writer, or several readers"
                );
                ApiError::new(ErrorCode::InUse, message)
            };
            // The VM of one that has ended is on its way out.
            let leaving = self.find(&other).ok().filter(|other| !other.live().life.is_active());
            let Some(leaving) = leaving.filter(|other| other.live().machine.is_some()) else {
                return Err(refused());
            };
            let gone = leaving.until(|live| live.machine.is_none() || live.life.is_active());
            timeout(END_DEADLINE * 3, gone).await.map_err(|_| refused())?;
        }
    }

    /// Claims all, or says who has which.
    fn try_claim(&self, id: &str, mine: &[(String, bool)]) -> Option<(String, String)> {
        let mut claims = self.claims();
        let running = self.containers().into_iter().filter(|container| {
            let live = container.live();
            live.life.is_active() || live.machine.is_some_and(|machine| !machine.maintenance)
        });
        let running = running.map(|c| Claimed { id: c.id().to_owned(), uses: uses(&c.config) });
        let mut others = running.chain(claims.iter().cloned()).filter(|other| other.id != id);
        let clash = others.find_map(|other| {
            conflict(mine, &other.uses).map(|volume| (other.id.clone(), volume.to_owned()))
        });
        if clash.is_none() {
            claims.push(Claimed { id: id.to_owned(), uses: mine.to_vec() });
        }
        clash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_writes_or_several_read() {
        let of = |writes| [("a".to_owned(), writes), ("b".to_owned(), false)];
        assert_eq!(conflict(&of(true), &of(true)), Some("a"));
        assert_eq!(conflict(&of(false), &of(true)), Some("a"));
        assert_eq!(conflict(&of(true), &of(false)), Some("a"));
        assert_eq!(conflict(&of(false), &of(false)), None);
        assert_eq!(conflict(&of(true), &[("c".to_owned(), true)]), None);
    }
}
