//! Who may write to a block volume now.
//!
//! ```text
//! start ─► claim ─► VM (its helper holds a lock on the file) ─► the machine is gone
//!            │  the machine is known: it stands for the claim
//!            └► another container writes, or would read what this one writes: refused
//! --rm ──► the container is gone ─► a claim that leaves ─► the machine is gone
//!            └► the next start waits for that
//! ```
//! Two kernels that write one ext4 destroy it, and one that reads what another writes sees
//! nonsense. Containers that run say by themselves what they have, so a service that was killed
//! knows it again from its containers; the helpers' locks hold even when it is wrong.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use container_api::types::ContainerConfig;
use container_api::{ApiError, ErrorCode};
use tokio::time::timeout;

use crate::container::Container;
use crate::engine::Engine;
use crate::helper::END_DEADLINE;

/// How long a VM whose container is gone may take to write its volumes out.
pub const LEAVE_LIMIT: Duration = Duration::from_secs(40);

/// What is claimed.
#[derive(Clone, Debug)]
pub struct Claimed {
    id: String,
    uses: Vec<(String, bool)>,
    /// The container is gone, its VM not yet.
    leaves: bool,
    /// Another for each claim.
    number: u64,
}

/// A claim; what it holds is given back on drop.
#[derive(Debug)]
pub struct Claim {
    engine: Arc<Engine>,
    number: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.engine.claims().retain(|claimed| claimed.number != self.number);
        self.engine.volumes.freed.notify_waiters();
    }
}

/// Who has a volume that somebody else wants.
struct Clash {
    other: String,
    volume: String,
    leaves: bool,
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
    pub async fn claim_volumes(
        self: &Arc<Self>,
        container: &Container,
    ) -> container_api::Result<Option<Claim>> {
        let mine = uses(&container.config);
        if mine.is_empty() {
            return Ok(None);
        }
        loop {
            let freed = self.volumes.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            let Clash { other, volume, leaves } = match self.try_claim(container.id(), &mine) {
                Ok(claim) => return Ok(Some(claim)),
                Err(clash) => clash,
            };
            let refused = || {
                let message = format!(
                    "volume '{volume}' is in use by container '{other}': a block volume has one \
                     writer, or several readers"
                );
                ApiError::new(ErrorCode::InUse, message)
            };
            if leaves {
                timeout(LEAVE_LIMIT, freed).await.map_err(|_| refused())?;
                continue;
            }
            // The VM of one that has ended is on its way out.
            let leaving = self.find(&other).ok().filter(|other| !other.live().life.is_active());
            let Some(leaving) = leaving.filter(|other| other.live().machine.is_some()) else {
                return Err(refused());
            };
            let gone = leaving.until(|live| live.machine.is_none() || live.life.is_active());
            timeout(END_DEADLINE * 3, gone).await.map_err(|_| refused())?;
        }
    }

    /// The claim of a container that is taken off the list while its VM is still there; `None` when
    /// it has no volumes.
    pub fn claim_to_leave(self: &Arc<Self>, container: &Container) -> Option<Claim> {
        let uses = uses(&container.config);
        (!uses.is_empty()).then(|| self.put_claim(&mut self.claims(), container.id(), uses, true))
    }

    fn put_claim(
        self: &Arc<Self>,
        claims: &mut Vec<Claimed>,
        id: &str,
        uses: Vec<(String, bool)>,
        leaves: bool,
    ) -> Claim {
        let number = claims.iter().map(|claimed| claimed.number + 1).max().unwrap_or(0);
        claims.push(Claimed { id: id.to_owned(), uses, leaves, number });
        Claim { engine: self.clone(), number }
    }

    /// Claims all, or says who has which.
    fn try_claim(self: &Arc<Self>, id: &str, mine: &[(String, bool)]) -> Result<Claim, Clash> {
        let mut claims = self.claims();
        let running = self.containers().into_iter().filter(|container| {
            let live = container.live();
            live.life.is_active() || live.machine.is_some_and(|machine| !machine.maintenance)
        });
        let running = running.map(|c| (c.id().to_owned(), uses(&c.config), false));
        let claimed = claims.iter().map(|c| (c.id.clone(), c.uses.clone(), c.leaves));
        // One that leaves may have had the same name.
        let mut others = running.chain(claimed).filter(|(other, _, leaves)| other != id || *leaves);
        let clash = others.find_map(|(other, uses, leaves)| {
            let volume = conflict(mine, &uses)?.to_owned();
            Some(Clash { other, volume, leaves })
        });
        drop(others);
        match clash {
            Some(clash) => Err(clash),
            None => Ok(self.put_claim(&mut claims, id, mine.to_vec(), false)),
        }
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
