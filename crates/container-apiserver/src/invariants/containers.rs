//! Rows, directories and states of containers. Nothing here awaits: what changes them does so
//! without an await too, so that each look sees one moment.

use std::collections::{BTreeMap, BTreeSet};

use container_api::Result;
use container_api::escape::escape;
use container_api::invariants::Findings;
use container_api::paths::{DISK_LEN, container_files as names};
use container_api::types::Status;

use crate::container::Container;
use crate::directory;
use crate::engine::Engine;
use crate::store::Record;

/// Rows, directories and what is in memory are the same.
pub fn recorded(engine: &Engine) -> Result<Findings> {
    let mut findings = Findings::default();
    let (rows, unreadable) = engine.store.load()?;
    for id in unreadable {
        findings.look(Some(format!("the row of container '{}' can't be read", escape(&id))));
    }
    let rows: BTreeMap<String, Record> =
        rows.into_iter().map(|row| (row.config.id.clone(), row)).collect();
    let containers = engine.containers();
    let known: BTreeSet<&str> = containers.iter().map(|container| container.id()).collect();
    for id in rows.keys().filter(|id| !known.contains(id.as_str())) {
        findings.look(Some(format!("container '{id}' has a row, and is not known")));
    }
    for entry in std::fs::read_dir(engine.root.containers())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !known.contains(name.as_str()) {
            findings
                .look(Some(format!("directory containers/{} is no container's", escape(&name))));
        }
    }
    for container in &containers {
        findings.look(wrong_with(engine, container, rows.get(container.id())));
    }
    Ok(findings)
}

fn wrong_with(engine: &Engine, container: &Container, row: Option<&Record>) -> Option<String> {
    let id = container.id();
    let Some(row) = row else { return Some(format!("container '{id}' has no row in state.db")) };
    let path = engine.directory(container);
    match directory::read(&path) {
        Err(error) => return Some(format!("the directory of container '{id}': {error}")),
        Ok((config, image)) if config != container.config || image != container.image => {
            return Some(format!("container '{id}' is another one in its directory"));
        }
        Ok(_) => {}
    }
    match std::fs::metadata(path.join(names::UPPER)) {
        Err(error) => return Some(format!("the disk of container '{id}': {error}")),
        Ok(found) if found.len() != DISK_LEN => {
            return Some(format!("the disk of container '{id}' is {} bytes long", found.len()));
        }
        Ok(_) => {}
    }
    if !engine.root.path().join(&container.image.disk).exists() {
        return Some(format!("the disk of the image of container '{id}' is gone"));
    }
    let volumes = crate::volumes::names(&container.config);
    if let Some(gone) = volumes.iter().find(|name| engine.volumes.find(name).is_none()) {
        return Some(format!("volume '{gone}' of container '{id}' is gone"));
    }
    let now = container.record();
    if row.life != now.life {
        let (recorded, is) = (row.life.status, now.life.status);
        return Some(format!("container '{id}' is recorded as {recorded}, and is {is}"));
    }
    let process = |record: &Record| record.runtime.as_ref().map(|runtime| runtime.process);
    let is_other = process(row) != process(&now);
    is_other.then(|| format!("another process is recorded as the helper of container '{id}'"))
}

/// States are those of living processes.
pub fn states(engine: &Engine) -> Result<Findings> {
    let mut findings = Findings::default();
    for container in engine.containers() {
        findings.look(untrue_of(&container));
    }
    Ok(findings)
}

fn untrue_of(container: &Container) -> Option<String> {
    let (id, live) = (container.id(), container.live());
    let status = live.life.status;
    let Some(machine) = live.machine else {
        let active = live.life.is_active();
        return active.then(|| format!("container '{id}' is {status}, and has no VM"));
    };
    let helper = &machine.helper.handle;
    if helper.has_ended() {
        let pid = helper.identity().pid;
        return Some(format!("container '{id}' is {status}, and its helper {pid} has ended"));
    }
    if live.life.is_idle() && !machine.maintenance {
        return Some(format!("container '{id}' is {status}, and still has a VM"));
    }
    let hypervisor = machine.hypervisor.get()?;
    let is_gone = status == Status::Running && hypervisor.has_ended();
    let pid = hypervisor.identity().pid;
    is_gone.then(|| format!("container '{id}' is {status}, and its hypervisor {pid} has ended"))
}
