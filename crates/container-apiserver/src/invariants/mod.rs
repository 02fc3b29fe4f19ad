//! What holds whenever nothing is under way, looked at beside whatever is: `system check --state`.
//!
//! ```text
//! look at all ─► nothing wrong: done
//!      └─► pause ─► look again at what seemed wrong ─► what is found every time is reported
//! ```
//! Nothing is repaired. Work that goes on meanwhile changes what is seen from one look to the next,
//! so only what stays the same is believed. What lies in one task's hands (rows, directories, the
//! list of containers) is read without an await in between.
//!
//! - [`containers`]: rows, directories, states.
//! - [`processes`]: who runs.
//! - [`files`]: what is being made and removed.
//! - [`kept`]: templates, spares, volumes.

mod containers;
mod files;
mod kept;
mod processes;

use std::sync::Arc;
use std::time::Duration;

use container_api::invariants::{Checked, Findings, Invariant};
use container_api::{ApiError, Result, audit, images};
use tokio::time::sleep;

use crate::engine::Engine;

/// Between two looks. Together longer than what is removed or ends takes.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

impl Engine {
    /// Looks at every invariant; with `deep` every blob of images is read.
    pub async fn check_state(self: &Arc<Self>, deep: bool) -> Vec<Checked> {
        let mut all = Vec::new();
        for invariant in Invariant::ALL {
            all.push(self.checked(invariant, deep).await);
        }
        for pause in PAUSES {
            if all.iter().all(|checked| checked.findings.violations.is_empty()) {
                break;
            }
            sleep(pause).await;
            for checked in all.iter_mut().filter(|c| !c.findings.violations.is_empty()) {
                let again = self.checked(checked.invariant, deep).await;
                *checked = confirmed(std::mem::take(&mut checked.findings), again);
            }
        }
        all
    }

    async fn checked(self: &Arc<Self>, invariant: Invariant, deep: bool) -> Checked {
        let (findings, not_run) = match self.look(invariant, deep).await {
            Ok(findings) => (findings, None),
            Err(error) => (Findings::default(), Some(error.message)),
        };
        Checked { invariant, findings, not_run }
    }

    async fn look(self: &Arc<Self>, invariant: Invariant, deep: bool) -> Result<Findings> {
        match invariant {
            Invariant::Containers => containers::recorded(self),
            Invariant::States => containers::states(self),
            Invariant::Processes => processes::known(self).await,
            Invariant::Files => files::finished(self),
            Invariant::Images => {
                let request = images::Request::CheckStore { in_use: self.digests_in_use(), deep };
                self.images.call(&request).await
            }
            Invariant::Templates => kept::templates(self),
            Invariant::Volumes => kept::volumes(self),
            Invariant::Networks => self.networks.check_state().await,
            Invariant::Audit => trail(self).await,
        }
    }
}

/// What has been seen before and is seen again.
fn confirmed(before: Findings, mut again: Checked) -> Checked {
    again.findings.violations.retain(|line| before.violations.contains(line));
    again
}

async fn trail(engine: &Engine) -> Result<Findings> {
    let folder = engine.root.audit();
    let verify = tokio::task::spawn_blocking(move || audit::verify(&folder, &[]));
    let verified = verify.await.map_err(|e| ApiError::internal(e.to_string()))?;
    let mut findings = Findings::default();
    match verified {
        Ok(verified) => findings.looked_at = verified.head.sequence + 1 - verified.first,
        Err(error) => findings.look(Some(error.message)),
    }
    Ok(findings)
}

#[cfg(test)]
mod tests;
