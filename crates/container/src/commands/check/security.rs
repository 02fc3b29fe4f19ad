//! `system check --security`: attacks on the running installation.
//!
//! ```text
//!        ┌─► two containers, one with all capabilities ─► attacks from within, limits ─┐
//! image ─┤                                                                              ├─►
//!        └─► hostile agents, each in a VM of its own ─► given up by the host ───────────┘
//!    ─► a jail of a hypervisor with the probe in it, another user, templates, the trail ─► rows
//! ```
//! Whatever happens, what was made is removed.

use std::fs::File;
use std::path::Path;

use container_api::config::Config;
use container_api::posture::LayerState;
use container_api::runtime::TemplateManifest;
use container_api::types::ContainerSnapshot;
use container_api::{ErrorCode, audit, paths, ram};

use super::guest::Guests;
use super::stage::{Stage, unavailable};
use super::{Row, Verdict, agent, guest, jail};
use crate::attach::signals::Signals;
use crate::failure::{Failure, Outcome};
use crate::session::Session;

/// Layers of a hypervisor that posture tells, and what a row says of each.
const LAYERS: &[(&str, &str)] = &[
    ("user", "it has a user namespace of its own"),
    ("mount", "it has a mount namespace of its own"),
    ("pid", "it has a pid namespace of its own"),
    ("net", "it has a net namespace of its own"),
    ("ipc", "it has an ipc namespace of its own"),
    ("uts", "it has a uts namespace of its own"),
    ("cgroup", "it has a cgroup namespace of its own"),
    ("uid", "it is not root on the host"),
    ("capabilities", "it has no capability"),
    ("no-new-privileges", "it can gain none"),
    ("seccomp", "its system calls are filtered twice"),
];

/// All rows, in the order in which they were run.
pub async fn rows(session: &Session) -> Outcome<Vec<Row>> {
    // So that there is something to attack.
    session.connect_or_start().await?;
    let stage = Stage::new(session)?;
    let mut signals = Signals::ending().map_err(|e| Failure::io("taking signals", e))?;
    let rows = tokio::select! {
        rows = attack(&stage) => rows,
        signal = signals.next() => Err(Failure::interrupted(signal)),
    };
    // Another signal ends this at once; a later check removes what stays then.
    let cleared = tokio::select! {
        cleared = stage.clear() => cleared,
        signal = signals.next() => return Err(Failure::interrupted(signal)),
    };
    let mut rows = rows?;
    let evidence = cleared.map(|()| "containers, network and image of this check".into());
    rows.push(Row::of("check", "nothing of it is left", evidence));
    rows.push(trail(session));
    Ok(rows)
}

async fn attack(stage: &Stage<'_>) -> Outcome<Vec<Row>> {
    let file = paths::config_file(stage.session.root()).map_err(container_api::ApiError::from)?;
    let allowed = Config::load(&file)?.security.allow_missing;
    stage.load().await.map_err(|why| unavailable("the image of the check", &why))?;
    // Those wait for the host to give them up most of their time.
    let (ends, (mut rows, guests)) = tokio::join!(agent::attack(stage), from_within(stage));
    let attacked = match &guests {
        Ok(guests) => stage.session.connect()?.inspect(&guests.attacker).await.ok(),
        Err(_) => None,
    };
    rows.extend(hypervisor(attacked.as_ref()));
    rows.extend(jail::attacks(stage, attacked.as_ref(), &allowed).await);
    rows.extend(agent::rows(stage, ends, guests.as_ref().ok()).await);
    rows.push(templates(stage.session.root().templates()).await);
    Ok(rows)
}

async fn from_within(stage: &Stage<'_>) -> (Vec<Row>, Result<Guests, String>) {
    let guests = guest::start(stage).await;
    (guest::attacks(stage, &guests).await, guests)
}

/// What the kernel says of the hypervisor of a container that was just attacked.
fn hypervisor(container: Option<&ContainerSnapshot>) -> Vec<Row> {
    let posture = container.and_then(|container| container.posture.as_ref());
    let row = |(name, check): &(&str, &'static str)| {
        let layer = posture.and_then(|p| p.jail.iter().find(|layer| layer.name == *name));
        let (result, evidence) = match layer {
            None => (Verdict::NotRun, "no VM runs whose hypervisor could be looked at".into()),
            Some(layer) => {
                let result = match layer.state {
                    LayerState::Held => Verdict::Pass,
                    LayerState::Missing => Verdict::Fail,
                    LayerState::AllowedMissing => Verdict::AllowedMissing,
                    LayerState::Unread => Verdict::NotRun,
                };
                (result, layer.evidence.clone())
            }
        };
        Row { area: "hypervisor", check, result, evidence }
    };
    LAYERS.iter().map(row).collect()
}

/// Templates, which all VMs have restored from: as they were saved.
async fn templates(folder: std::path::PathBuf) -> Row {
    let (area, check) = ("templates", "no VM has changed them");
    let compare = tokio::task::spawn_blocking(move || compare(&folder));
    match compare.await.unwrap_or_else(|e| Err(e.to_string())) {
        Ok(0) => Row::not_run(area, check, "there is no template".into()),
        Ok(count) => {
            Row::of(area, check, Ok(format!("{count} with the digests of when they were saved")))
        }
        Err(why) => Row::of(area, check, Err(why)),
    }
}

fn compare(folder: &Path) -> Result<usize, String> {
    let mut count = 0;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let place = entry.path();
        let files = paths::template_files::MANIFEST;
        // A folder without it is none yet, or none any more.
        let Ok(manifest) = std::fs::read(place.join(files)) else { continue };
        let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", place.display());
        let manifest: TemplateManifest =
            serde_json::from_slice(&manifest).map_err(|e| failed(&e))?;
        let opened = File::open(place.join(paths::template_files::RAM));
        let (digest, _) = match opened.and_then(|file| ram::digest(&file)) {
            Ok(digest) => digest,
            // Templates come and go.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(&error)),
        };
        if digest != manifest.ram_digest {
            return Err(failed(&"its RAM is not what was saved"));
        }
        count += 1;
    }
    Ok(count)
}

fn trail(session: &Session) -> Row {
    let folder = session.root().audit();
    let (area, check) = ("audit", "the trail is whole");
    if !folder.exists() {
        return Row::not_run(area, check, "nothing has been recorded yet".into());
    }
    match audit::verify(&folder, &[]) {
        Ok(verified) => {
            let evidence =
                format!("records {} to {} are a chain", verified.first, verified.head.sequence);
            Row::of(area, check, Ok(evidence))
        }
        Err(error) if error.code == ErrorCode::PermissionDenied => {
            Row::not_run(area, check, error.message)
        }
        Err(error) => Row::of(area, check, Err(error.message)),
    }
}

#[cfg(test)]
mod tests {
    use container_api::types::Timestamp;

    use super::*;

    #[test]
    fn without_a_vm_no_layer_is_green() {
        let rows = hypervisor(None);
        assert_eq!(rows.len(), LAYERS.len());
        assert!(rows.iter().all(|row| row.result == Verdict::NotRun));
    }

    #[test]
    fn a_template_that_was_changed_is_found() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(compare(folder.path()), Ok(0));
        let place = folder.path().join("key");
        std::fs::create_dir(&place).unwrap();
        let memory = place.join(paths::template_files::RAM);
        std::fs::write(&memory, [1; 8192]).unwrap();
        let (ram_digest, _) = ram::digest(&File::open(&memory).unwrap()).unwrap();
        let manifest = TemplateManifest {
            ram_len: 8192,
            ram_digest,
            state_digest: String::new(),
            created_date: Timestamp::now(),
        };
        let manifest = serde_json::to_vec(&manifest).unwrap();
        std::fs::write(place.join(paths::template_files::MANIFEST), manifest).unwrap();
        assert_eq!(compare(folder.path()), Ok(1));
        std::fs::write(&memory, [2; 8192]).unwrap();
        assert!(compare(folder.path()).unwrap_err().contains("not what was saved"));
    }
}
