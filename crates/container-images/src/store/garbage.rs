//! Removal of what nothing holds.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use super::{Store, allocated, lock};
use crate::digest::Digest;
use crate::error::{Result, io_error};
use crate::oci::Document;

/// Indexes may hold indexes; deeper than this nobody nests them.
const MAX_DEPTH: usize = 8;

/// What a removal has brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Bytes on the host's disk.
    pub bytes: u64,
    /// Files.
    pub files: u64,
}

impl Store {
    /// Everything that `roots` (indexes, manifests) lead to, themselves included. What is not here
    /// or can't be read leads nowhere.
    pub(crate) fn reachable(&self, roots: impl IntoIterator<Item = Digest>) -> HashSet<Digest> {
        let mut seen = HashSet::new();
        let mut queue: Vec<(Digest, usize)> = roots.into_iter().map(|d| (d, 0)).collect();
        while let Some((digest, depth)) = queue.pop() {
            if !seen.insert(digest) || depth >= MAX_DEPTH {
                continue;
            }
            match self.document(digest) {
                Ok(Document::Index(index)) => {
                    let children = index.manifests.iter().filter_map(|d| d.digest().ok());
                    queue.extend(children.map(|d| (d, depth + 1)));
                }
                Ok(Document::Manifest(manifest)) => {
                    let blobs = manifest.layers.iter().chain([&manifest.config]);
                    seen.extend(blobs.filter_map(|d| d.digest().ok()));
                }
                Err(_) => {}
            }
        }
        seen
    }

    fn named_digests(&self) -> Vec<Digest> {
        lock(&self.names).images.values().filter_map(|d| d.digest.parse().ok()).collect()
    }

    /// Removes blobs, disks and partial downloads that no name, nothing `in_use` and no running
    /// operation leads to.
    pub fn sweep(&self, in_use: &[Digest]) -> Result<Swept> {
        let leases = lock(&self.leases);
        let roots = self.named_digests().into_iter().chain(in_use.iter().copied());
        let held = self.reachable(roots.chain(leases.keys().copied()));
        let mut swept = Swept::default();
        self.sweep_directory(&self.blobs(), &held, Digest::from_hex, &mut swept)?;
        let disk = |name: &str| Digest::from_hex(name.strip_suffix(".erofs")?);
        self.sweep_directory(&self.disks(), &held, disk, &mut swept)?;
        let partial =
            |name: &str| Digest::from_hex(name.strip_prefix("sha256-")?.strip_suffix(".part")?);
        self.sweep_directory(&self.ingests(), &held, partial, &mut swept)?;
        Ok(swept)
    }

    /// Bytes that [`Store::sweep`] would bring; without `named`, when nothing had a name.
    pub fn unheld(&self, named: bool, in_use: &[Digest]) -> Result<u64> {
        let leases = lock(&self.leases);
        let names = if named { self.named_digests() } else { Vec::new() };
        let roots = names.into_iter().chain(in_use.iter().copied());
        let held = self.reachable(roots.chain(leases.keys().copied()));
        let mut bytes = 0;
        for (directory, suffix) in [(self.blobs(), ""), (self.disks(), ".erofs")] {
            each_file(&directory, |name, metadata| {
                let digest = name.strip_suffix(suffix).and_then(Digest::from_hex);
                if digest.is_some_and(|d| !held.contains(&d)) {
                    bytes += allocated(metadata);
                }
                Ok(())
            })?;
        }
        Ok(bytes)
    }

    fn sweep_directory(
        &self,
        directory: &Path,
        held: &HashSet<Digest>,
        digest_of: impl Fn(&str) -> Option<Digest>,
        swept: &mut Swept,
    ) -> Result<()> {
        each_file(directory, |name, metadata| {
            if digest_of(name).is_some_and(|digest| !held.contains(&digest)) {
                fs::remove_file(directory.join(name))?;
                swept.bytes += allocated(metadata);
                swept.files += 1;
            }
            Ok(())
        })
    }

    /// Removes those of `digests` that no name and no running operation leads to.
    pub(super) fn remove_unheld(&self, digests: &[Digest]) -> Result<()> {
        if digests.is_empty() {
            return Ok(());
        }
        let leases = lock(&self.leases);
        let held = self.reachable(self.named_digests().into_iter().chain(leases.keys().copied()));
        for digest in digests.iter().filter(|d| !held.contains(d)) {
            let path = self.blob(*digest);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("removing", path)(e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Bytes on the disk of blobs and of disks.
    pub fn usage(&self) -> Result<(u64, u64)> {
        let sum = |directory: &Path| -> Result<u64> {
            let mut bytes = 0;
            each_file(directory, |_, metadata| {
                bytes += allocated(metadata);
                Ok(())
            })?;
            Ok(bytes)
        };
        Ok((sum(&self.blobs())? + sum(&self.ingests())?, sum(&self.disks())?))
    }
}

/// Calls `f` with name and metadata of each file; files that vanish meanwhile are passed over.
pub(super) fn each_file(
    directory: &Path,
    mut f: impl FnMut(&str, &fs::Metadata) -> io::Result<()>,
) -> Result<()> {
    let mut walk = || -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            f(&entry.file_name().to_string_lossy(), &metadata)?;
        }
        Ok(())
    };
    walk().map_err(io_error("reading", directory))
}
