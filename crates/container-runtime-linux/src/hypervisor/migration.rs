//! A VM's device state, out of it and back. The RAM is not part of it: both
//! sides map one file.

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::time::Duration;

use serde_json::json;

use super::error::{Error, Phase, shown};
use super::qmp::Qmp;
use super::qmp_commands as qmp;
use super::{REQUEST_DEADLINE, START_DEADLINE};

/// The longest that writing a state may take; it has less than a megabyte.
const SAVE_DEADLINE: Duration = Duration::from_secs(30);

/// The name under which QEMU keeps the descriptor.
const STATE: &str = "state";

fn without_ram() -> qmp::MigrateSetCapabilities {
    let on = |capability| json!({ "capability": capability, "state": true });
    qmp::MigrateSetCapabilities { capabilities: vec![on("x-ignore-shared"), on("events")] }
}

/// Has a new QEMU take the state from its descriptor of this number; the guest
/// then runs. Nothing is waited for in between.
pub async fn restore(qmp: &Qmp, state: RawFd) -> Result<(), Error> {
    // Its announcement would carry the template's hardware address.
    let silent = qmp::MigrateSetParameters { announce_rounds: 0 };
    let incoming = qmp::MigrateIncoming { uri: format!("fd:{state}") };
    let restore = async {
        let negotiated = qmp.send(&qmp::Capabilities {}, None).await?;
        let set = qmp.send(&without_ram(), None).await?;
        let silenced = qmp.send(&silent, None).await?;
        let loading = qmp.send(&incoming, None).await?;
        negotiated.answer().await?;
        set.answer().await?;
        silenced.answer().await?;
        loading.answer().await?;
        // QEMU ends when it can't load the state.
        qmp.migrated().await?;
        // It was saved while paused.
        qmp.execute(&qmp::Cont {}, REQUEST_DEADLINE).await.map(drop)
    };
    tokio::time::timeout(START_DEADLINE, restore).await.unwrap_or_else(|_| {
        Err(Error::TimedOut {
            phase: Phase::Greet,
            operation: "restoring the VM".into(),
            limit: START_DEADLINE,
        })
    })
}

/// Writes the state of a paused VM to a file.
pub async fn save(qmp: &Qmp, state: &OwnedFd) -> Result<(), Error> {
    qmp.execute(&without_ram(), REQUEST_DEADLINE).await?;
    let name = qmp::GetFd { fdname: STATE.into() };
    qmp.execute_with(&name, Some(state.as_fd()), REQUEST_DEADLINE).await?;
    let migrate = qmp::Migrate { uri: format!("fd:{STATE}") };
    qmp.execute(&migrate, REQUEST_DEADLINE).await?;
    let written = tokio::time::timeout(SAVE_DEADLINE, written(qmp)).await;
    written.unwrap_or_else(|_| {
        Err(Error::TimedOut {
            phase: Phase::Running,
            operation: "writing the VM's state".into(),
            limit: SAVE_DEADLINE,
        })
    })
}

async fn written(qmp: &Qmp) -> Result<(), Error> {
    if qmp.migrated().await? {
        return Ok(());
    }
    let migration = qmp.execute(&qmp::QueryMigrate {}, REQUEST_DEADLINE).await?;
    let reason = migration.error_desc.unwrap_or_else(|| "no reason given".into());
    Err(Error::Refused { command: "migrate", description: shown(&reason, 1024) })
}
