//! Volumes: data that outlives containers.
//!
//! ```text
//! volumes/.new-<name>-…  being made; never used, removed at the next start
//! volumes/<name>/        volume.json, and disk.img (block) or data/ (shared)
//! volumes/.gone-<n>-…    being removed
//! ```
//! The directories are all that is remembered. A volume that a container is configured with is in
//! use, whether that runs or not ([`crate::engine::Engine::volume_users`]); who may write to it
//! now is in [`claim`].

mod claim;
mod copy;
mod mounts;
mod options;
mod requests;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use container_api::mounts::{Volume, VolumeKind};
use container_api::paths::AppRoot;
use container_api::types::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex as AsyncMutex, Notify};

use crate::directory::{GONE, NEW, Staged, allocated, read_json, set_aside, write_json};

pub use claim::{Claim, LEAVE_LIMIT};
pub use mounts::{Made, names};
pub use requests::no_volume;

/// What is kept of a volume.
const RECORD: &str = "volume.json";
/// The disk of a block volume.
const DISK: &str = "disk.img";
/// The directory of a shared one.
const DATA: &str = "data";

/// A volume as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Its name.
    pub name: String,
    /// How it is kept.
    #[serde(rename = "type")]
    pub kind: VolumeKind,
    /// What its file system holds, of a block volume.
    pub size_in_bytes: Option<u64>,
    labels: BTreeMap<String, String>,
    options: BTreeMap<String, String>,
    /// Made for a container that named none.
    pub anonymous: bool,
    creation_date: Timestamp,
}

/// All volumes of an installation.
#[derive(Debug)]
pub struct Volumes {
    root: AppRoot,
    records: Mutex<BTreeMap<String, Record>>,
    /// Held while volumes are made and removed, and while a container says which it uses.
    pub turn: AsyncMutex<()>,
    /// What starts under way have claimed.
    claims: Mutex<Vec<claim::Claimed>>,
    /// A claim was given back.
    freed: Notify,
}

impl Volumes {
    /// Knows none yet.
    pub fn new(root: &AppRoot) -> Volumes {
        Volumes {
            root: root.clone(),
            records: Mutex::default(),
            turn: AsyncMutex::new(()),
            claims: Mutex::default(),
            freed: Notify::new(),
        }
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns what is there; says what is to be removed.
    pub fn load(&self) -> io::Result<Vec<PathBuf>> {
        let mut leftovers = Vec::new();
        for entry in fs::read_dir(self.root.volumes())? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with(NEW) || name.starts_with(GONE) {
                leftovers.push(path);
                continue;
            }
            match read_json::<Record>(&path.join(RECORD)) {
                Ok(record) if record.name == name && options::check_name(name).is_ok() => {
                    self.records().insert(record.name.clone(), record);
                }
                other => {
                    let error = other.err().map(|error| error.to_string());
                    tracing::error!(path = %path.display(), error, "not a volume: left alone");
                }
            }
        }
        Ok(leftovers)
    }

    /// The volume of this name.
    pub fn find(&self, name: &str) -> Option<Record> {
        self.records().get(name).cloned()
    }

    /// All volumes, by name.
    pub fn all(&self) -> Vec<Record> {
        self.records().values().cloned().collect()
    }

    fn directory(&self, name: &str) -> PathBuf {
        self.root.volumes().join(name)
    }

    /// The file of a block volume, the directory of a shared one.
    pub fn source(&self, record: &Record) -> PathBuf {
        let directory = self.directory(&record.name);
        match record.kind {
            VolumeKind::Block => directory.join(DISK),
            VolumeKind::Shared => directory.join(DATA),
        }
    }

    /// Bytes on the host's disk.
    pub fn allocated(&self, record: &Record) -> u64 {
        allocated(&self.directory(&record.name))
    }

    /// As it is shown.
    fn show(&self, record: &Record, users: &[(String, String)]) -> Volume {
        let used_by = users.iter().filter(|(volume, _)| *volume == record.name);
        Volume {
            name: record.name.clone(),
            kind: record.kind,
            source: self.source(record),
            format: match record.kind {
                VolumeKind::Block => "ext4".into(),
                VolumeKind::Shared => "virtiofs".into(),
            },
            size_in_bytes: record.size_in_bytes,
            allocated_in_bytes: self.allocated(record),
            labels: record.labels.clone(),
            options: record.options.clone(),
            anonymous: record.anonymous,
            creation_date: record.creation_date,
            used_by: used_by.map(|(_, container)| container.clone()).collect(),
        }
    }

    /// Begins a volume's directory.
    fn stage(&self, record: &Record) -> io::Result<Staged> {
        let staged = Staged::begin(&self.root.volumes(), &record.name)?;
        write_json(staged.path(), RECORD, record)?;
        if record.kind == VolumeKind::Shared {
            DirBuilder::new().mode(0o755).create(staged.path().join(DATA))?;
        }
        Ok(staged)
    }

    /// Gives a finished one its name.
    fn commit(&self, staged: Staged, record: Record) -> io::Result<()> {
        fs::File::open(staged.path())?.sync_all()?;
        staged.commit()?;
        fs::File::open(self.root.volumes())?.sync_all()?;
        self.records().insert(record.name.clone(), record);
        Ok(())
    }

    /// Takes a volume out of sight; what remains is to [`crate::directory::remove_tree`] the answer.
    fn set_aside(&self, name: &str) -> io::Result<PathBuf> {
        let gone = set_aside(&self.root.volumes(), name)?.ok_or(io::ErrorKind::NotFound)?;
        self.records().remove(name);
        Ok(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::remove_tree;
    use container_api::mounts::VolumeOptions;

    #[test]
    fn a_volume_appears_whole_and_goes_whole() {
        let directory = tempfile::tempdir().unwrap();
        let root = AppRoot::resolve(Some(directory.path())).unwrap();
        fs::create_dir(root.volumes()).unwrap();
        let volumes = Volumes::new(&root);
        let options = VolumeOptions { name: "data".into(), ..VolumeOptions::default() };
        let (record, _) = options::record(&options).unwrap();
        drop(volumes.stage(&record).unwrap());
        assert_eq!(fs::read_dir(root.volumes()).unwrap().count(), 0);
        let staged = volumes.stage(&record).unwrap();
        assert!(volumes.find("data").is_none());
        volumes.commit(staged, record.clone()).unwrap();
        let again = volumes.stage(&record).unwrap();
        let error = volumes.commit(again, record.clone()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        fs::create_dir(root.volumes().join(".new-x")).unwrap();
        fs::create_dir(root.volumes().join("strange")).unwrap();
        let anew = Volumes::new(&root);
        assert_eq!(anew.load().unwrap(), [root.volumes().join(".new-x")]);
        assert_eq!(anew.all(), [record]);
        assert!(remove_tree(&anew.set_aside("data").unwrap()).unwrap() > 0);
        assert!(anew.find("data").is_none() && !root.volumes().join("data").exists());
    }
}
