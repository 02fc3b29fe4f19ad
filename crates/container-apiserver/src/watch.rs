//! One task per VM: from the helper's start to the moment when nothing of it is left.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use container_api::runtime::{INIT_PROCESS, Request};
use container_api::types::{ExitRecord, Timestamp};
use container_api::{ApiError, ErrorCode, Result};

use crate::container::{Container, Machine};
use crate::directory::{remove_tree, set_aside};
use crate::engine::Engine;
use crate::helper::{END_DEADLINE, forget_socket, left_record};
use crate::lifecycle::Event;
use crate::volumes::LEAVE_LIMIT;

/// Exit code of every failure of ours.
const FAILURE: u8 = 125;

/// An end that nobody has recorded.
pub fn lost(reason: impl Into<String>) -> ExitRecord {
    ExitRecord {
        exit_code: FAILURE,
        signal: None,
        out_of_memory: false,
        stop_requested: false,
        out_of_memory_kills: Vec::new(),
        reason: reason.into(),
        exited_date: Timestamp::now(),
    }
}

/// Watches a VM to its end. Whoever waits for the container learns of its end as soon as the
/// helper knows; the helper's process may take a moment longer.
pub async fn watch(engine: Arc<Engine>, container: Arc<Container>, machine: Arc<Machine>) {
    let directory = engine.directory(&container);
    let told = tokio::select! {
        record = exit_of(&machine) => Some(record),
        () = machine.helper.handle.ended() => None,
    };
    if let Some(record) = told.filter(|_| !machine.is_abandoned()) {
        finish(&engine, &container, &machine, record).await;
        return;
    }
    let how = machine.helper.end_within(END_DEADLINE).await;
    end_hypervisor(&machine).await;
    if machine.is_abandoned() {
        engine.networks.detach(container.id()).await;
        forget_socket(&directory);
        container.update(|live| live.machine = None);
        engine.apply(&container, Event::Abandoned);
        if container.config.auto_remove
            && let Err(error) = engine.remove(&container).await
        {
            tracing::error!(container = container.id(), %error, "a container stays");
        }
        return;
    }
    let record = left_record(&directory).unwrap_or_else(|| {
        let how = how.map_or_else(|| " unexpectedly".into(), |how| format!(": {how}"));
        lost(format!("the container's helper ended{how}"))
    });
    finish(&engine, &container, &machine, record).await;
}

/// Records the end, then sees the last of the VM.
async fn finish(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    machine: &Machine,
    mut record: ExitRecord,
) {
    record.reason = container_api::escape::escape(&record.reason).into_owned();
    record.stop_requested = container.restarts().asked;
    tracing::info!(
        container = container.id(),
        exit_code = record.exit_code,
        reason = record.reason,
        "a container has ended"
    );
    let mut aside = None;
    let ended = record.clone();
    // The VM of one with volumes may still unmount them.
    let claim = container.config.auto_remove.then(|| engine.claim_to_leave(container)).flatten();
    let patience = if claim.is_some() { LEAVE_LIMIT } else { END_DEADLINE };
    if container.config.auto_remove {
        aside = engine.withdraw(container, Some(record)).unwrap_or_else(|error| {
            tracing::error!(container = container.id(), %error, "a container can't be removed");
            None
        });
    } else {
        engine.apply(container, Event::Ended(record));
    }
    machine.helper.end_within(patience).await;
    end_hypervisor(machine).await;
    drop(claim);
    engine.networks.detach(container.id()).await;
    if !container.live().removed {
        forget_socket(&engine.directory(container));
    }
    container.update(|live| live.machine = None);
    if !container.live().removed {
        engine.write_down(container);
        engine.restart_later(container, &ended);
    }
    // The helper had its files open until now.
    if let Some(path) = aside
        && let Err(error) = remove_aside(path).await
    {
        tracing::error!(container = container.id(), %error, "files of a container stay");
    }
    engine.remove_own_volumes(container).await;
}

/// The hypervisor dies with its helper, its parent; this makes sure.
pub async fn end_hypervisor(machine: &Machine) {
    if let Some(hypervisor) = machine.hypervisor.get()
        && tokio::time::timeout(Duration::from_millis(500), hypervisor.ended()).await.is_err()
    {
        tracing::warn!(pid = hypervisor.identity().pid, "a hypervisor outlived its helper");
        hypervisor.kill();
    }
}

/// What the helper says about the first process's end; pends when it can't be asked any more.
async fn exit_of(machine: &Machine) -> ExitRecord {
    let request = Request::Wait { process_id: INIT_PROCESS.into() };
    loop {
        let answer: Result<ExitRecord> = machine.helper.call(&request, &[], None).await;
        match answer {
            Ok(record) => return record,
            Err(error) => {
                // It ends just now, or its queue is full: the process's own end is watched too.
                if error.code != ErrorCode::Disconnected {
                    tracing::warn!(%error, "a helper was asked in vain for its container's end");
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

impl Engine {
    /// Takes a container away that has ended or never run: its directory at once out of sight, its
    /// row, then from the list. Callers that ask for `exit` a moment later are still told. The
    /// answer is what [`remove_aside`] has to remove.
    fn withdraw(
        &self,
        container: &Arc<Container>,
        exit: Option<ExitRecord>,
    ) -> Result<Option<PathBuf>> {
        let aside = set_aside(&self.root.containers(), container.id())?;
        if let Err(error) = self.store.remove(container.id(), exit.as_ref()) {
            // The next start of this service finds a row without a directory, and removes it.
            let error = ApiError::from(error);
            tracing::error!(container = container.id(), %error, "a row stays");
        }
        self.forget(container);
        container.update(|live| {
            if let Some(exit) = exit {
                live.life.apply(Event::Ended(exit));
            }
            live.removed = true;
        });
        Ok(aside)
    }

    /// Removes a container that has ended or never run; the bytes of disk that came back.
    pub async fn remove(&self, container: &Arc<Container>) -> Result<u64> {
        let aside = self.withdraw(container, None)?;
        self.remove_own_volumes(container).await;
        match aside {
            Some(path) => remove_aside(path).await,
            None => Ok(0),
        }
    }

    /// Removes the volumes that were made for a container which removed itself.
    async fn remove_own_volumes(&self, container: &Container) {
        let config = &container.config;
        if config.auto_remove && container.live().removed {
            let own = config.mounts.iter().filter(|mount| mount.anonymous);
            let own: Vec<_> =
                own.map(|mount| mount.source.to_string_lossy().into_owned()).collect();
            self.remove_anonymous(&own).await;
        }
    }
}

async fn remove_aside(path: PathBuf) -> Result<u64> {
    let freed = tokio::task::spawn_blocking(move || remove_tree(&path)).await;
    Ok(freed.map_err(|e| ApiError::internal(e.to_string()))??)
}
