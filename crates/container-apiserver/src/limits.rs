//! What containers may have together: `[limits]` in the configuration, and what the host has.
//!
//! ```text
//! create ──► each alone within the limits? disk left? ──► made
//! start  ──► host short of memory? all together within the limits? disk left? ──► a VM
//! ```
//! Refusals name the limit. What runs already is never ended for a limit's sake.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use container_api::apiserver::CreateOptions;
use container_api::config::LimitsConfig;
use container_api::types::Resources;
use container_api::{ApiError, ErrorCode, Result};

use crate::container::Container;
use crate::engine::Engine;
use crate::{merge, pressure};

/// Containers that are being started, and what they will have.
#[derive(Clone, Debug, Default)]
pub struct Admissions(Arc<Mutex<BTreeMap<String, Resources>>>);

impl Admissions {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Resources>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A start that counts; on drop it no longer does.
#[derive(Debug)]
pub struct Admission {
    all: Admissions,
    id: String,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.all.lock().remove(&self.id);
    }
}

/// What a container has that runs.
fn in_use(container: &Container) -> Option<Resources> {
    let live = container.live();
    let machine = live.machine.filter(|_| live.life.is_active())?;
    Some(machine.limits().unwrap_or(container.config.resources))
}

/// Whether one more fits beside what runs.
fn fits(limits: &LimitsConfig, running: &[Resources], one: Resources) -> Result<()> {
    let full = |what: String| {
        let message = format!("{what}: stop a container, or raise it in the configuration");
        Err(ApiError::new(ErrorCode::ResourceExhausted, message))
    };
    if let Some(most) = limits.containers
        && running.len() >= most as usize
    {
        return full(format!("limits.containers = {most}, and {} run", running.len()));
    }
    let cpus: u64 = running.iter().map(|r| u64::from(r.cpus)).sum();
    if let Some(most) = limits.cpus
        && cpus + u64::from(one.cpus) > u64::from(most)
    {
        return full(format!(
            "limits.cpus = {most}, of which {cpus} are in use and {} are asked for",
            one.cpus
        ));
    }
    let memory: u64 = running.iter().map(|r| r.memory_in_bytes).sum();
    if let Some(most) = limits.memory_in_bytes()?
        && memory.saturating_add(one.memory_in_bytes) > most
    {
        return full(format!(
            "limits.memory is {} MiB, of which {} are in use and {} are asked for",
            most >> 20,
            memory >> 20,
            one.memory_in_bytes >> 20
        ));
    }
    Ok(())
}

impl Engine {
    /// Refuses a container that could never be started.
    ///
    /// # Errors
    /// `ResourceExhausted` when it has to wait for room, `InvalidArgument` when it asks for more
    /// than all may have.
    pub async fn check_limits(self: &Arc<Self>, options: &CreateOptions) -> Result<()> {
        let limits = &self.config.limits;
        if let (Some(most), Some(asked)) = (limits.processes, options.pids_limit)
            && asked > most
        {
            let message = format!("--pids-limit {asked} is more than limits.processes = {most}");
            return Err(ApiError::invalid(message));
        }
        let one = merge::resources(options, &self.config.container)?;
        if fits(limits, &[], one).is_err() {
            let message = format!(
                "{} CPUs and {} MiB of memory are more than [limits] gives to all containers",
                one.cpus,
                one.memory_in_bytes >> 20
            );
            return Err(ApiError::invalid(message));
        }
        self.disk_left().await
    }

    /// Counts a container that is about to start.
    ///
    /// # Errors
    /// `ResourceExhausted` where a limit or the host's memory is reached.
    pub async fn admit(self: &Arc<Self>, container: &Container) -> Result<Admission> {
        if let Some(short) = pressure::out_of_memory() {
            let message = format!("{short}: stop something first");
            return Err(ApiError::new(ErrorCode::ResourceExhausted, message));
        }
        self.disk_left().await?;
        let limits = &self.config.limits;
        let (id, config) = (container.id(), &container.config);
        if let Some(most) = limits.processes
            && config.pids_limit.is_none_or(|pids| pids > most)
        {
            let message = format!(
                "container '{id}' is from before limits.processes = {most}: create it anew"
            );
            return Err(ApiError::new(ErrorCode::ResourceExhausted, message));
        }
        let mut admitted = self.admissions.lock();
        let mut all = admitted.clone();
        for other in self.containers() {
            if let Some(resources) = in_use(&other) {
                all.insert(other.id().to_owned(), resources);
            }
        }
        all.remove(id);
        let running: Vec<Resources> = all.into_values().collect();
        fits(limits, &running, config.resources)?;
        admitted.insert(id.to_owned(), config.resources);
        Ok(Admission { all: self.admissions.clone(), id: id.to_owned() })
    }

    /// Whether running containers may have other resources.
    ///
    /// # Errors
    /// As [`Engine::admit`].
    pub fn check_update(&self, container: &Container, wanted: Resources) -> Result<()> {
        let others = self.containers();
        let others = others.iter().filter(|other| other.id() != container.id());
        let running: Vec<Resources> = others.filter_map(|other| in_use(other)).collect();
        // It runs already: their number does not change.
        let limits = LimitsConfig { containers: None, ..self.config.limits.clone() };
        fits(&limits, &running, wanted)
    }

    /// Whether `limits.disk` is not reached yet.
    ///
    /// # Errors
    /// `ResourceExhausted` with what is taken.
    pub async fn disk_left(self: &Arc<Self>) -> Result<()> {
        let Some(most) = self.config.limits.disk_in_bytes()? else { return Ok(()) };
        let engine = self.clone();
        let taken = tokio::task::spawn_blocking(move || engine.disk_taken())
            .await
            .map_err(|e| ApiError::internal(e.to_string()))?;
        if taken < most {
            return Ok(());
        }
        let message = format!(
            "limits.disk is {} MiB, and containers and volumes take {}: remove some \
             (`container system df` shows them)",
            most >> 20,
            taken >> 20
        );
        Err(ApiError::new(ErrorCode::ResourceExhausted, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_beside_what_runs() {
        let one = Resources { cpus: 2, memory_in_bytes: 1 << 30 };
        let limits = LimitsConfig {
            containers: Some(3),
            cpus: Some(6),
            memory: Some("3g".into()),
            ..LimitsConfig::default()
        };
        fits(&limits, &[one; 2], one).unwrap();
        let refused = |limits: &LimitsConfig| fits(limits, &[one; 3], one).unwrap_err().message;
        assert!(refused(&limits).contains("limits.containers = 3, and 3 run"));
        let limits = LimitsConfig { containers: None, ..limits };
        assert!(refused(&limits).contains("limits.cpus = 6, of which 6 are in use"));
        let limits = LimitsConfig { cpus: None, ..limits };
        assert!(refused(&limits).contains("3072 MiB, of which 3072 are in use and 1024"));
        let limits = LimitsConfig { memory: None, ..limits };
        fits(&limits, &[one; 1000], one).unwrap();
    }
}
