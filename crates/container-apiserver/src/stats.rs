//! `stats` and `update`: what containers use, and what they may.

use std::sync::Arc;
use std::time::Duration;

use container_api::runtime::{CALL_DEADLINE, Request, State, Usage};
use container_api::types::{ContainerSnapshot, ContainerStats, Resources, Status};
use container_api::{ApiError, Result, trace};
use tokio::task::JoinSet;

use crate::container::{Container, Machine};
use crate::engine::Engine;
use crate::posture;
use crate::start::running;
use crate::validate::resources::Host;

/// For one container's numbers; within the caller's deadline.
const STATS_DEADLINE: Duration = Duration::from_secs(10);
/// For what `inspect` asks a helper.
const STATE_DEADLINE: Duration = Duration::from_secs(2);

impl Engine {
    /// What the named containers use; without names, all that run.
    pub async fn stats(self: &Arc<Self>, ids: &[String]) -> Result<Vec<ContainerStats>> {
        let containers = match ids.is_empty() {
            true => self.containers(),
            false => ids.iter().map(|id| self.find(id)).collect::<Result<_>>()?,
        };
        let mut tasks = JoinSet::new();
        for (place, container) in containers.into_iter().enumerate() {
            let machine = match running(&container) {
                Ok(machine) => machine,
                Err(_) if ids.is_empty() => continue,
                Err(error) => return Err(error),
            };
            let engine = self.clone();
            tasks.spawn(async move {
                let (row, traffic) = tokio::join!(
                    stats_of(&container, &machine),
                    engine.networks.traffic(container.id())
                );
                let row = row.map(|row| ContainerStats {
                    network_rx_bytes: traffic.map(|traffic| traffic.rx_bytes),
                    network_tx_bytes: traffic.map(|traffic| traffic.tx_bytes),
                    ..row
                });
                (place, row)
            });
        }
        let mut rows = Vec::new();
        while let Some(joined) = tasks.join_next().await {
            let (place, row) = joined.map_err(|e| ApiError::internal(e.to_string()))?;
            match row {
                Ok(row) => rows.push((place, row)),
                // It has ended in the meantime, mostly.
                Err(error) if ids.is_empty() => tracing::debug!(%error, "a container is left out"),
                Err(error) => return Err(error),
            }
        }
        rows.sort_by_key(|(place, _)| *place);
        Ok(rows.into_iter().map(|(_, row)| row).collect())
    }

    /// Changes the limits of a running container until it ends.
    pub async fn update(
        &self,
        container: &Container,
        cpus: Option<u32>,
        memory_in_bytes: Option<u64>,
    ) -> Result<()> {
        if cpus.is_none() && memory_in_bytes.is_none() {
            return Err(ApiError::invalid("nothing to change: name --cpus or --memory"));
        }
        let machine = running(container)?;
        let now = machine.limits().unwrap_or(container.config.resources);
        let cpus = cpus.unwrap_or(now.cpus);
        let wanted = Host::this().check(cpus, memory_in_bytes.unwrap_or(now.memory_in_bytes))?;
        self.check_update(container, wanted)?;
        let request = Request::Update { resources: wanted };
        machine.helper.call::<()>(&request, &[], Some(CALL_DEADLINE)).await?;
        machine.set_limits(wanted);
        self.write_down(container);
        Ok(())
    }

    /// A container as `inspect` shows it, with what only its helper knows, and its posture.
    pub async fn inspect(&self, container: &Container) -> ContainerSnapshot {
        let machine = container.live().machine;
        let mut snapshot = match &machine {
            None => container.snapshot(),
            Some(machine) => self.inspect_running(container, machine).await,
        };
        let directory = self.root.container(container.id());
        let hypervisor = machine.as_ref().and_then(|machine| machine.hypervisor.get());
        snapshot.posture = Some(Box::new(posture::of(&snapshot, hypervisor, &directory)));
        snapshot
    }

    async fn inspect_running(&self, container: &Container, machine: &Machine) -> ContainerSnapshot {
        let state: Result<State> =
            machine.helper.call(&Request::State, &[], Some(STATE_DEADLINE)).await;
        let mut snapshot = container.snapshot();
        let runs = matches!(snapshot.status, Status::Running | Status::Stopping);
        if let (Ok(state), true) = (state, runs) {
            snapshot.out_of_memory_kills = state.out_of_memory_kills;
            for kill in &mut snapshot.out_of_memory_kills {
                // The guest has chosen these words.
                for text in [&mut kill.process, &mut kill.message] {
                    *text = container_api::escape::escape(text).into_owned();
                }
            }
            snapshot.vm_origin = state.vm_origin.or(snapshot.vm_origin);
        }
        snapshot
    }
}

async fn stats_of(container: &Arc<Container>, machine: &Machine) -> Result<ContainerStats> {
    let usage: Usage = machine
        .helper
        .call(&Request::Stats, &[], Some(STATS_DEADLINE))
        .await
        .map_err(|error| error.context(container.id()))?;
    let Resources { memory_in_bytes, .. } = machine.limits().unwrap_or(container.config.resources);
    let limit = Some(usage.memory_limit_bytes).filter(|limit| *limit > 0);
    Ok(ContainerStats {
        id: container.id().to_owned(),
        memory_usage_bytes: usage.memory_bytes,
        memory_limit_bytes: limit.unwrap_or(memory_in_bytes),
        host_memory_bytes: usage.host_memory_bytes,
        cpu_usage_usec: usage.cpu_usec,
        sampled_at_ns: trace::now_ns(),
        network_rx_bytes: None,
        network_tx_bytes: None,
        block_read_bytes: usage.block_read_bytes,
        block_write_bytes: usage.block_written_bytes,
        num_processes: usage.pids,
    })
}
