//! `delete` and `prune`.

use std::sync::Arc;
use std::time::Duration;

use container_api::apiserver::PrunedContainers;
use container_api::types::Status;
use container_api::{ApiError, ErrorCode, Result};
use tokio::time::timeout;

use crate::container::Container;
use crate::engine::Engine;
use crate::helper::END_DEADLINE;

impl Engine {
    /// Removes a container; with `force` one that runs is killed first.
    pub async fn delete(&self, container: &Arc<Container>, force: bool) -> Result<u64> {
        if force {
            // Not in turn: a start that hangs holds the turn, and this ends it.
            self.kill(container).await?;
        }
        if container.live().removed && force {
            return Ok(0);
        }
        let _turn = self.turn(container).await?;
        let live = container.live();
        if live.life.is_idle() {
            container.ask_to_end();
        }
        if live.life.is_active() {
            let message = format!(
                "container '{}' is {}: stop it first, or use --force",
                container.id(),
                live.life.status
            );
            return Err(ApiError::new(ErrorCode::InvalidState, message));
        }
        // Its helper may still be on its way out of the directory.
        let left = container.until(|live| live.machine.is_none());
        if timeout(END_DEADLINE * 3, left).await.is_err() {
            tracing::warn!(container = container.id(), "a helper outlives its container");
        }
        self.remove(container).await
    }

    /// Removes all containers that are stopped.
    pub async fn prune(&self) -> Result<PrunedContainers> {
        let mut pruned = PrunedContainers::default();
        for container in self.containers() {
            if container.live().life.status != Status::Stopped {
                continue;
            }
            match self.delete(&container, false).await {
                Ok(freed) => {
                    pruned.ids.push(container.id().to_owned());
                    pruned.reclaimed += freed;
                }
                // Somebody has started or removed it in the meantime.
                Err(e) if matches!(e.code, ErrorCode::InvalidState | ErrorCode::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pruned)
    }

    /// Stops all containers at once, each within `patience`, and sees the last of their VMs.
    pub async fn stop_all(self: &Arc<Self>, patience: Duration) -> Result<()> {
        let mut tasks = tokio::task::JoinSet::new();
        for container in self.containers() {
            let engine = self.clone();
            tasks.spawn(async move {
                let stopped = engine.end_with_service(&container, patience).await;
                let left = container.until(|live| live.machine.is_none());
                let _ = timeout(END_DEADLINE * 3, left).await;
                stopped.map_err(|e| e.context(container.id()))
            });
        }
        let mut outcome = Ok(());
        while let Some(stopped) = tasks.join_next().await {
            let stopped = stopped.unwrap_or_else(|e| Err(ApiError::internal(e.to_string())));
            outcome = outcome.and(stopped);
        }
        outcome
    }
}
