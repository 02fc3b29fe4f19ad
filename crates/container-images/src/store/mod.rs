//! The content store: blobs by digest, names for some of them, disks made of others.
//!
//! ```text
//! images/
//!   index.json                   names → descriptors; replaced as a whole, in one step
//!   content/blobs/sha256/<hex>   complete and verified; never changed
//!   content/ingest/              what is being written: tmp-* (nameless), sha256-<hex>.part (resumable)
//!   erofs/<manifest hex>.erofs   disks; being made: .tmp-*
//!   empty-upper.ext4             the empty writable disk
//! ```
//!
//! A file gets its final name only when its bytes are on the disk, so a process that dies at any
//! time leaves nothing that looks finished and is not. [`Store::open`] removes what it left.
//!
//! Removal walks from the names, from what containers use and from *leases*: digests that a running
//! operation has written or relies on ([`Lease`]).

mod blobs;
mod garbage;
mod names;
mod whole;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use blobs::{Ingest, Partial};
pub use garbage::Swept;

use crate::digest::Digest;
use crate::error::{Error, Result, io_error};
use crate::oci::{ConfigFile, Document, MAX_CONFIG, MAX_MANIFEST};
use names::Names;

/// How long a partial download may lie before a start of the service removes it.
const PARTIAL_AGE: Duration = Duration::from_secs(24 * 3600);

/// The store in one app root.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    names: Mutex<Names>,
    /// How often each digest is leased. Also held by removal from its first look to its last.
    leases: Mutex<HashMap<Digest, usize>>,
}

/// Locks that are never held over anything that can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Opens the store in `root` (the app root's `images`), making it when it is new, and removes
    /// what killed processes left. The caller holds the lock that says nobody else uses it.
    pub fn open(root: &Path) -> Result<Store> {
        for directory in ["content/blobs/sha256", "content/ingest", "erofs"] {
            let path = root.join(directory);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(io_error("creating", &path))?;
        }
        let names = Names::load(root)?;
        let store = Store {
            root: root.to_owned(),
            names: Mutex::new(names),
            leases: Mutex::new(HashMap::new()),
        };
        store.remove_unfinished()?;
        Ok(store)
    }

    /// The directory of all of it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("content/blobs/sha256")
    }

    fn ingests(&self) -> PathBuf {
        self.root.join("content/ingest")
    }

    /// Where disks are.
    pub fn disks(&self) -> PathBuf {
        self.root.join("erofs")
    }

    /// The disk of a manifest, made or not.
    pub fn disk(&self, manifest: Digest) -> PathBuf {
        self.disks().join(format!("{}.erofs", manifest.hex()))
    }

    /// Where the blob is, when it is here.
    pub fn blob(&self, digest: Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// Whether the blob is here, with this size when one is given.
    pub fn has(&self, digest: Digest, size: Option<u64>) -> bool {
        fs::metadata(self.blob(digest)).is_ok_and(|m| size.is_none_or(|size| m.len() == size))
    }

    /// The blob's bytes, at most `limit`.
    pub fn read(&self, digest: Digest, limit: u64) -> Result<Vec<u8>> {
        let path = self.blob(digest);
        let file = fs::File::open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::NoBlob(digest),
            _ => Error::Io { operation: "reading", path: path.clone(), source },
        })?;
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(io_error("reading", &path))?;
        match bytes.len() as u64 > limit {
            true => Err(Error::malformed(digest.to_string(), "too large for a document")),
            false => Ok(bytes),
        }
    }

    /// The index or manifest.
    pub(crate) fn document(&self, digest: Digest) -> Result<Document> {
        Document::parse(&digest.to_string(), &self.read(digest, MAX_MANIFEST)?)
    }

    /// The image configuration.
    pub(crate) fn config(&self, digest: Digest) -> Result<ConfigFile> {
        ConfigFile::parse(&digest.to_string(), &self.read(digest, MAX_CONFIG)?)
    }

    fn remove_unfinished(&self) -> Result<()> {
        let remove = |directory: PathBuf, stale: &dyn Fn(&str, &fs::Metadata) -> bool| {
            let failed = |e| io_error("cleaning", &directory)(e);
            for entry in fs::read_dir(&directory).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let metadata = entry.metadata().map_err(failed)?;
                if stale(&entry.file_name().to_string_lossy(), &metadata) {
                    fs::remove_file(entry.path()).map_err(failed)?;
                }
            }
            Ok(())
        };
        let is_old = |m: &fs::Metadata| {
            m.modified().ok().and_then(|t| t.elapsed().ok()).is_some_and(|age| age > PARTIAL_AGE)
        };
        remove(self.ingests(), &|name, m| !name.ends_with(".part") || is_old(m))?;
        remove(self.disks(), &|name, _| name.starts_with('.'))?;
        remove(self.root.clone(), &|name, m| m.is_file() && name.starts_with(".tmp-"))
    }

    /// A lease that holds nothing yet.
    pub fn lease(self: &Arc<Self>) -> Lease {
        Lease { store: self.clone(), held: Mutex::new(Vec::new()), fresh: Mutex::new(Vec::new()) }
    }
}

/// Keeps content from being removed while an operation relies on it.
#[derive(Debug)]
pub struct Lease {
    store: Arc<Store>,
    held: Mutex<Vec<Digest>>,
    fresh: Mutex<Vec<Digest>>,
}

impl Lease {
    /// Whose lease it is.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Holds a digest, whether its blob is here yet or not.
    pub fn hold(&self, digest: Digest) {
        *lock(&self.store.leases).entry(digest).or_default() += 1;
        lock(&self.held).push(digest);
    }

    /// Notes that the operation has brought this blob.
    fn brought(&self, digest: Digest) {
        lock(&self.fresh).push(digest);
    }

    /// Ends the lease: of what the operation has brought goes what nothing else holds. After a
    /// success that is what it did not name, after a failure all.
    pub fn settle(self) -> Result<()> {
        let fresh = std::mem::take(&mut *lock(&self.fresh));
        let store = self.store.clone();
        drop(self);
        store.remove_unheld(&fresh)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut leases = lock(&self.store.leases);
        for digest in lock(&self.held).drain(..) {
            if let Some(count) = leases.get_mut(&digest) {
                *count -= 1;
                if *count == 0 {
                    leases.remove(&digest);
                }
            }
        }
    }
}

/// Bytes that a file takes on the disk.
pub fn allocated(metadata: &fs::Metadata) -> u64 {
    metadata.blocks() * 512
}

pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    fs::File::open(path).and_then(|d| d.sync_all()).map_err(io_error("syncing", path))
}
