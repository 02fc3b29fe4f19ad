//! Names of images: one JSON file, replaced as a whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use container_api::types::Descriptor;
use serde::{Deserialize, Serialize};

use super::{Store, lock, sync_directory};
use crate::error::{Error, Result, io_error};

/// The names and what they stand for. The file's form has a version so that a later one can differ.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Names {
    version: u32,
    pub(super) images: BTreeMap<String, Descriptor>,
}

const VERSION: u32 = 1;

fn path(root: &Path) -> PathBuf {
    root.join("index.json")
}

impl Names {
    pub(super) fn load(root: &Path) -> Result<Names> {
        let path = path(root);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(Names { version: VERSION, images: BTreeMap::new() });
            }
            Err(e) => return Err(io_error("reading", path)(e)),
        };
        let what = path.to_string_lossy();
        let names: Names =
            serde_json::from_slice(&bytes).map_err(|e| Error::malformed(&what, e.to_string()))?;
        match names.version {
            VERSION => Ok(names),
            other => Err(Error::unsupported(what, format!("version {other} of the index"))),
        }
    }

    fn save(&self, root: &Path) -> Result<()> {
        let (path, new) = (path(root), root.join(".tmp-index"));
        let write = || -> io::Result<()> {
            let mut options = File::options();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(io_error("writing", &path))?;
        sync_directory(root)
    }
}

impl Store {
    /// All names, sorted.
    pub fn names(&self) -> BTreeMap<String, Descriptor> {
        lock(&self.names).images.clone()
    }

    /// What a name stands for.
    pub fn named(&self, name: &str) -> Option<Descriptor> {
        lock(&self.names).images.get(name).cloned()
    }

    /// Changes the names, durably: on an error nothing has changed.
    pub fn change_names(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Descriptor>),
    ) -> Result<()> {
        let mut names = lock(&self.names);
        let mut new = names.clone();
        change(&mut new.images);
        new.save(&self.root)?;
        *names = new;
        Ok(())
    }
}
