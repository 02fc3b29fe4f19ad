//! Templates, spares and volumes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

use container_api::Result;
use container_api::escape::escape;
use container_api::invariants::Findings;
use container_api::mounts::VolumeKind;
use container_api::paths::DISK_LEN;

use crate::engine::Engine;
use crate::template;

/// Templates and spares are those recorded.
pub fn templates(engine: &Engine) -> Result<Findings> {
    let mut findings = Findings::default();
    let root = engine.templates.root();
    let known: BTreeSet<String> = engine.templates.keys().into_iter().collect();
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            let wrong = || format!("templates/{} is not known", escape(&name));
            findings.look((!known.contains(&name)).then(wrong));
        }
    }
    for key in &known {
        findings.look(match template::disk::read(&root.join(key)) {
            Ok(found) if found.shape.key == *key => None,
            Ok(found) => Some(format!("template {key} is {} by its files", found.shape.key)),
            Err(fault) => Some(format!("template {key}: {fault}")),
        });
    }
    let (directories, being_made) = engine.spares.directories();
    let mut others = 0;
    for entry in fs::read_dir(engine.root.spares())? {
        let path = entry?.path();
        if directories.contains(&path) {
            continue;
        }
        others += 1;
        // The one that is being made has a name that only its maker knows.
        if others > usize::from(being_made) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            findings.look(Some(format!("spares/{} is no spare's", escape(&name))));
        }
    }
    for directory in &directories {
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        findings
            .look((!directory.exists()).then(|| format!("the directory of spare {name} is gone")));
    }
    for pid in engine.spares.dead() {
        findings.look(Some(format!("a spare is kept whose process {pid} has ended")));
    }
    Ok(findings)
}

/// Volumes are whole, and only who runs holds them.
pub fn volumes(engine: &Engine) -> Result<Findings> {
    let mut findings = Findings::default();
    let locks = Locks::read();
    let records = engine.volumes.all();
    for entry in fs::read_dir(engine.root.volumes())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let known = records.iter().any(|record| record.name == name);
        let wrong = || format!("volumes/{} is no volume", escape(&name));
        findings.look((!known && !name.starts_with('.')).then(wrong));
    }
    for record in &records {
        let (name, source) = (&record.name, engine.volumes.source(record));
        let found = match fs::metadata(&source) {
            Ok(found) => found,
            Err(error) => {
                findings.look(Some(format!("volume '{name}': {error}")));
                continue;
            }
        };
        let is_whole = match record.kind {
            VolumeKind::Block => found.is_file() && found.len() == DISK_LEN,
            VolumeKind::Shared => found.is_dir(),
        };
        let wrong = || format!("volume '{name}' is not what it was made: {} bytes", found.len());
        findings.look((!is_whole).then(wrong));
        if let Some(pid) = locks.holder(found.dev(), found.ino())
            && !is_used(engine, name)
        {
            findings.look(Some(format!(
                "process {pid} holds volume '{name}', for no container that runs"
            )));
        }
    }
    Ok(findings)
}

fn is_used(engine: &Engine, volume: &str) -> bool {
    engine.containers().iter().any(|container| {
        let live = container.live();
        let runs = live.life.is_active() || live.machine.is_some();
        runs && crate::volumes::names(&container.config).iter().any(|name| name == volume)
    })
}

/// Whole-file locks of this host (`/proc/locks`). Asked for like this, a lock is not in the way of
/// whoever takes it, as an attempt to take it would be.
struct Locks(String);

impl Locks {
    fn read() -> Locks {
        Locks(fs::read_to_string("/proc/locks").unwrap_or_default())
    }

    /// The process that has locked a file.
    fn holder(&self, device: u64, inode: u64) -> Option<i32> {
        use rustix::fs::{major, minor};
        let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
        self.0.lines().find_map(|line| {
            // 1: FLOCK  ADVISORY  WRITE 708 fd:01:131 0 EOF
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let at = words.iter().position(|word| *word == file)?;
            (words.contains(&"FLOCK")).then(|| words.get(at.checked_sub(1)?)?.parse().ok())?
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FlockOperation, flock};

    #[test]
    fn who_has_locked_a_file_is_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let found = file.as_file().metadata().unwrap();
        assert_eq!(Locks::read().holder(found.dev(), found.ino()), None);
        flock(file.as_file(), FlockOperation::NonBlockingLockExclusive).unwrap();
        let own = std::process::id() as i32;
        assert_eq!(Locks::read().holder(found.dev(), found.ino()), Some(own));
        assert_eq!(Locks("garbage\n1: FLOCK\n\n".into()).holder(1, 1), None);
    }
}
