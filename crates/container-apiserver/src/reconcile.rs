//! The start of the service: what is there, compared with what was recorded.
//!
//! | found | done |
//! |---|---|
//! | `.new-…`, `.gone-…` | removed |
//! | a directory that says otherwise than its row | set right |
//! | a row without a directory | the row is removed: it was being created or deleted |
//! | a directory without a row | taken in when its files say what it is (the database was lost or is older: power loss), else set aside |
//! | a helper that runs its program | taken over |
//! | a helper that does not answer, of a program that ran | taken over as it was |
//! | a helper that was there to copy files | killed; the container is as it was |
//! | any other helper | killed; nothing has happened to the container |
//! | a container that was active, without a helper | its exit record, or one that says what went down |
//!
//! Running it twice changes nothing more.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use container_api::paths::{AppRoot, container_files};
use container_api::runtime::{Phase, Request, State};
use container_api::types::{ContainerConfig, Status, Timestamp};
use container_api::{ErrorCode, Result};
use tokio::task::JoinSet;

use crate::archive;
use crate::container::{Container, Machine};
use crate::directory::{self, GONE, NEW};
use crate::engine::Engine;
use crate::helper::{Helper, forget_socket, left_record};
use crate::lifecycle::{Event, Life};
use crate::process::boot_id;
use crate::start::learn;
use crate::store::{Record, Store};
use crate::watch;

/// A helper that runs answers at once; the service starts when all have, or after this.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Opens the database; a damaged one is set aside, and the directories stand in for it.
pub fn open_store(root: &AppRoot) -> Result<Store> {
    let path = root.database();
    match Store::open(&path) {
        Err(error) if error.is_damage() => {
            let aside = path.with_extension(format!("damaged-{}", Timestamp::now()));
            tracing::error!(
                aside = %aside.display(),
                "the database is damaged: it is set aside, and made anew from the directories"
            );
            std::fs::rename(&path, aside)?;
            for suffix in ["db-wal", "db-shm"] {
                let _ = std::fs::remove_file(path.with_extension(suffix));
            }
            Ok(Store::open(&path)?)
        }
        other => Ok(other?),
    }
}

/// Makes the engine's containers what they are.
pub async fn reconcile(engine: &Arc<Engine>) -> Result<()> {
    let (mut leftovers, mut directories) = scan(&engine.root)?;
    leftovers.extend(engine.volumes.load()?);
    let (records, unreadable) = engine.store.load()?;
    let mut boots = Vec::new();
    for record in records {
        let id = record.config.id.clone();
        if !directories.remove(&id) {
            tracing::warn!(container = id, "a container without a directory is forgotten");
            engine.store.remove(&id, None)?;
            continue;
        }
        set_right(&engine.root, &record);
        boots.push((record.runtime.clone(), engine.add(Container::new(record))));
    }
    for id in unreadable {
        engine.store.remove(&id, None)?;
    }
    for id in directories {
        if let Some(record) = adopt(&engine.root, &id)? {
            engine.store.put(&record)?;
            boots.push((None, engine.add(Container::new(record))));
        }
    }
    let mut tasks = JoinSet::new();
    for (runtime, container) in boots {
        let engine = engine.clone();
        tasks.spawn(async move { settle(&engine, &container, runtime.as_ref()).await });
    }
    tasks.join_all().await;
    tokio::task::spawn_blocking(move || clean(leftovers));
    Ok(())
}

/// Directories to remove, and names of containers.
fn scan(root: &AppRoot) -> io::Result<(Vec<PathBuf>, BTreeSet<String>)> {
    let (mut leftovers, mut ids) = (Vec::new(), BTreeSet::new());
    for entry in std::fs::read_dir(root.containers())? {
        let entry = entry?;
        match entry.file_name().into_string() {
            Ok(name) if name.starts_with(NEW) || name.starts_with(GONE) => {
                leftovers.push(entry.path());
            }
            Ok(name) if crate::validate::name::check(&name).is_ok() => _ = ids.insert(name),
            _ => tracing::warn!(path = %entry.path().display(), "not a container: left alone"),
        }
    }
    Ok((leftovers, ids))
}

fn clean(leftovers: Vec<PathBuf>) {
    for path in leftovers {
        if let Err(error) = directory::remove_tree(&path) {
            tracing::warn!(path = %path.display(), %error, "a leftover stays");
        }
    }
}

/// A record for a directory that has no row; `None` when the directory can't be a container.
fn adopt(root: &AppRoot, id: &str) -> io::Result<Option<Record>> {
    let path = root.container(id);
    let mut life = Life::new();
    if let Some(exit) = left_record(&path) {
        life.apply(Event::Launch);
        life.apply(Event::Ended(exit));
    }
    match directory::read(&path) {
        Ok((config, image)) if config.id == id => {
            tracing::warn!(container = id, "a container without a row is taken in");
            Ok(Some(Record { config, image, life, runtime: None }))
        }
        Err(e) if !is_content(&e) => Err(e),
        _ => {
            tracing::error!(container = id, "a directory without a configuration is set aside");
            set_aside(root, &path, id)?;
            Ok(None)
        }
    }
}

/// The row counts: a service that was killed while it renamed a container has left another name in
/// the directory.
fn set_right(root: &AppRoot, record: &Record) {
    let path = root.container(&record.config.id);
    let is_other = |config: &ContainerConfig| *config != record.config;
    if directory::read(&path).is_ok_and(|(config, _)| is_other(&config)) {
        let id = &record.config.id;
        tracing::warn!(
            container = id,
            "its directory says otherwise than its row, and is set right"
        );
        if let Err(error) = directory::write_json(&path, container_files::CONFIG, &record.config) {
            tracing::error!(container = id, %error, "its directory is not set right");
        }
    }
}

/// Whether an error is about what a file holds, not about reading it.
fn is_content(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
    )
}

/// Somebody's data may be in it: it is kept under a name that is no container's.
fn set_aside(root: &AppRoot, path: &Path, id: &str) -> io::Result<()> {
    let aside = root.containers().join(format!(".damaged-{id}-{}", Timestamp::now()));
    std::fs::rename(path, aside)
}

/// Finds out what has become of one container.
async fn settle(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    runtime: Option<&crate::store::Runtime>,
) {
    let path = engine.directory(container);
    let helper = Helper::find(&path, runtime).unwrap_or_else(|error| {
        tracing::error!(container = container.id(), %error, "looking for a helper");
        None
    });
    if helper.is_none() {
        forget_socket(&path);
    }
    match helper {
        Some(helper) => take_over(engine, container, helper, path, runtime).await,
        None if container.live().life.is_active() => {
            let went_down = match runtime {
                Some(runtime) if runtime.boot_id != boot_id() => "the host went down while it ran",
                _ => "its helper ended while no service ran",
            };
            let mut exit = left_record(&path).unwrap_or_else(|| watch::lost(went_down));
            exit.stop_requested = container.live().life.status == Status::Stopping;
            tracing::warn!(container = container.id(), reason = exit.reason, "it has ended");
            engine.apply(container, Event::Ended(exit));
            if container.config.auto_remove
                && let Err(error) = engine.remove(container).await
            {
                tracing::error!(container = container.id(), %error, "a container stays");
            }
        }
        None => {}
    }
}

/// Goes on with a helper that outlived the last service.
async fn take_over(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    helper: Helper,
    path: PathBuf,
    recorded: Option<&crate::store::Runtime>,
) {
    let pid = helper.handle.identity().pid;
    container.restarts().asked = container.live().life.status == Status::Stopping;
    let state: Result<State> = helper.call(&Request::State, &[], Some(ANSWER_DEADLINE)).await;
    let machine = Arc::new(Machine::found(helper, &path, &engine.jail_uids, recorded));
    if machine.maintenance {
        // Whoever wanted files copied has gone; to the container nothing has happened.
        tracing::warn!(container = container.id(), pid, "a VM that copied files is ended");
        container.update(|live| live.machine = Some(machine.clone()));
        let (engine, container) = (engine.clone(), container.clone());
        tokio::spawn(async move { archive::end(engine, container, machine).await });
        return;
    }
    if !container.config.network.networks.is_empty() {
        engine.networks.found(container.id());
    }
    container.update(|live| {
        live.machine = Some(machine.clone());
        // Its row may be older than the helper.
        live.life.apply(Event::Launch);
    });
    match state {
        Ok(state) if matches!(state.phase, Phase::Running | Phase::Stopping) => {
            tracing::info!(container = container.id(), pid, "a running container is taken over");
            let started = state.started_date.unwrap_or_else(Timestamp::now);
            container.update(|live| live.life.apply(Event::Started(started)));
            tokio::spawn(learn(engine.clone(), container.clone(), machine.clone()));
        }
        Ok(state) if state.phase == Phase::Ended => {}
        // Busy, or stopped by a debugger: no reason to end a program that runs.
        Err(error)
            if error.code == ErrorCode::Timeout && container.live().life.started.is_some() =>
        {
            tracing::warn!(container = container.id(), pid, "taken over, but it does not answer");
        }
        other => {
            tracing::warn!(
                container = container.id(),
                pid,
                state = ?other.map(|state| state.phase),
                "a helper that runs no program is killed"
            );
            if container.live().life.started.is_none() {
                machine.abandon(true);
            }
            machine.helper.handle.kill();
        }
    }
    engine.write_down(container);
    tokio::spawn(watch::watch(engine.clone(), container.clone(), machine));
}
