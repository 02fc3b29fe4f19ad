//! Whether the store holds what it should, asked while others use it.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use container_api::escape::escape;
use container_api::invariants::Findings;
use container_api::paths::DISK_LEN;

use super::garbage::each_file;
use super::{Store, allocated, lock};
use crate::digest::{Digest, Hasher};
use crate::error::Result;
use crate::oci::Document;

/// Where an EROFS superblock says that it is one, in bytes, and what it says there.
const EROFS_MAGIC: (u64, [u8; 4]) = (1024, [0xe2, 0xe1, 0xf5, 0xe0]);
/// How files are named that are being written.
const UNFINISHED: [&str; 2] = ["tmp-", ".tmp-"];

impl Store {
    /// Compares the store with its names and with what containers use (indexes and manifests): the
    /// presence and size of every blob, with `deep` also its digest.
    ///
    /// # Errors
    /// When a directory of the store can't be read.
    pub fn check(&self, in_use: &[Digest], deep: bool) -> Result<Findings> {
        let mut findings = Findings::default();
        for (name, descriptor) in self.names() {
            findings.look(match self.variants(&descriptor) {
                Ok(variants) if variants.iter().any(|variant| variant.is_complete()) => None,
                Ok(_) => Some(format!("image {}: no platform of it is here whole", escape(&name))),
                Err(error) => Some(format!("image {}: {error}", escape(&name))),
            });
        }
        for digest in in_use {
            findings.look(self.missing_for_container(*digest));
        }
        self.check_blobs(deep, &mut findings)?;
        self.check_disks(&mut findings)?;
        self.check_unfinished(&mut findings)?;
        self.remark_unheld(in_use, &mut findings)?;
        Ok(findings)
    }

    /// What is missing of an index or a manifest that a container uses.
    fn missing_for_container(&self, digest: Digest) -> Option<String> {
        let what = format!("{digest}, which a container uses");
        match self.document(digest) {
            Ok(Document::Index(_)) => None,
            Ok(Document::Manifest(manifest)) => {
                let mut blobs = manifest.layers.iter().chain([&manifest.config]);
                let missing = blobs
                    .find(|blob| !blob.digest().is_ok_and(|d| self.has(d, Some(blob.size))))?;
                Some(format!("{what}: blob {} is missing or short", escape(&missing.digest)))
            }
            Err(error) => Some(format!("{what}: {error}")),
        }
    }

    fn check_blobs(&self, deep: bool, findings: &mut Findings) -> Result<()> {
        let directory = self.blobs();
        let mut blobs = Vec::new();
        each_file(&directory, |name, _| {
            match Digest::from_hex(name) {
                Some(digest) => blobs.push(digest),
                None => findings.look(Some(format!("{} is no blob", shown(&directory, name)))),
            }
            Ok(())
        })?;
        for digest in blobs {
            let wrong = match deep.then(|| digest_of(&self.blob(digest))) {
                None => None,
                Some(Ok(actual)) if actual == digest => None,
                Some(Ok(actual)) => Some(format!("blob {digest} has the digest {actual}")),
                // Removed meanwhile.
                Some(Err(e)) if e.kind() == io::ErrorKind::NotFound => None,
                Some(Err(e)) => Some(format!("blob {digest}: {e}")),
            };
            findings.look(wrong);
        }
        Ok(())
    }

    fn check_disks(&self, findings: &mut Findings) -> Result<()> {
        let directory = self.disks();
        each_file(&directory, |name, metadata| {
            if name.starts_with('.') {
                return Ok(());
            }
            let path = shown(&directory, name);
            let is_named = name.strip_suffix(".erofs").and_then(Digest::from_hex).is_some();
            let mut magic = [0; EROFS_MAGIC.1.len()];
            let read = File::open(directory.join(name))
                .and_then(|file| file.read_exact_at(&mut magic, EROFS_MAGIC.0));
            findings.look(match read {
                _ if !is_named => Some(format!("{path} is no disk of an image")),
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Ok(()) if magic == EROFS_MAGIC.1 && metadata.len() == DISK_LEN => None,
                _ => {
                    Some(format!("{path} is no whole EROFS image: delete the image, pull it anew"))
                }
            });
            Ok(())
        })
    }

    /// What is being written belongs to an operation, and operations hold leases.
    fn check_unfinished(&self, findings: &mut Findings) -> Result<()> {
        let mut unfinished = Vec::new();
        for directory in [self.ingests(), self.disks(), self.root.clone()] {
            each_file(&directory, |name, metadata| {
                if metadata.is_file() && UNFINISHED.iter().any(|prefix| name.starts_with(prefix)) {
                    unfinished.push(shown(&directory, name));
                }
                Ok(())
            })?;
        }
        let busy = !lock(&self.leases).is_empty();
        for path in unfinished {
            findings.look((!busy).then(|| format!("{path} was left by an operation that is over")));
        }
        Ok(())
    }

    /// Blobs without a name are no fault: downloads that were cut go on from them.
    fn remark_unheld(&self, in_use: &[Digest], findings: &mut Findings) -> Result<()> {
        let leased: HashSet<Digest> = lock(&self.leases).keys().copied().collect();
        let names = self.names();
        let named = names.values().filter_map(|descriptor| descriptor.digest.parse().ok());
        let held = self.reachable(named.chain(in_use.iter().copied()).chain(leased));
        let (mut count, mut bytes) = (0_u64, 0);
        for (directory, prefix, suffix) in [
            (self.blobs(), "", ""),
            (self.disks(), "", ".erofs"),
            (self.ingests(), "sha256-", ".part"),
        ] {
            each_file(&directory, |name, metadata| {
                let digits = name.strip_prefix(prefix).and_then(|name| name.strip_suffix(suffix));
                if digits.and_then(Digest::from_hex).is_some_and(|digest| !held.contains(&digest)) {
                    count += 1;
                    bytes += allocated(metadata);
                }
                Ok(())
            })?;
        }
        if count > 0 {
            let mib = bytes.div_ceil(1 << 20);
            findings.remarks.push(format!(
                "{count} files ({mib} MiB) that no image needs: 'image prune' removes them"
            ));
        }
        Ok(())
    }
}

fn shown(directory: &Path, name: &str) -> String {
    escape(&directory.join(name).to_string_lossy()).into_owned()
}

fn digest_of(path: &Path) -> io::Result<Digest> {
    let mut hasher = Hasher::default();
    let mut file = io::BufReader::with_capacity(256 << 10, File::open(path)?);
    io::copy(&mut file, &mut hasher)?;
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use container_api::types::Descriptor;

    use super::*;

    fn manifest(config: Digest, config_size: usize, layer: Digest, layer_size: usize) -> String {
        let part = |kind: &str, digest: Digest, size: usize| {
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":{size}}}"#
            )
        };
        format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
            part("config.v1+json", config, config_size),
            part("layer.v1.tar", layer, layer_size),
        )
    }

    /// A store with one image; its layer's digest and its manifest's.
    fn store(root: &Path) -> (Arc<Store>, Digest, Digest) {
        let store = Arc::new(Store::open(root).unwrap());
        let lease = store.lease();
        let layer = lease.put(b"layer").unwrap();
        let config =
            br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        let config_digest = lease.put(config).unwrap();
        let manifest = manifest(config_digest, config.len(), layer, 5);
        let digest = lease.put(manifest.as_bytes()).unwrap();
        let descriptor = Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            digest: digest.to_string(),
            size: manifest.len() as u64,
        };
        store
            .change_names(|names| _ = names.insert("docker.io/library/x:latest".into(), descriptor))
            .unwrap();
        lease.settle().unwrap();
        (store, layer, digest)
    }

    #[test]
    fn a_whole_store_is_told_from_a_damaged_one() {
        let directory = tempfile::tempdir().unwrap();
        let (store, layer, manifest) = store(directory.path());
        let check = |deep| store.check(&[manifest], deep).unwrap();
        let whole = check(true);
        assert_eq!((whole.violations.len(), whole.remarks.len()), (0, 0), "{whole:?}");
        assert!(whole.looked_at >= 5, "{whole:?}");

        // A flipped bit is found by its digest alone.
        fs::write(store.blob(layer), b"lbyer").unwrap();
        assert_eq!(check(false).violations, [""; 0]);
        let found = check(true).violations;
        assert!(
            matches!(found.as_slice(), [line] if line.contains(&layer.to_string())),
            "{found:?}"
        );
        // A short one by its size, for the image and for the container.
        fs::write(store.blob(layer), b"l").unwrap();
        let found = check(false).violations;
        assert_eq!(found.len(), 2, "{found:?}");
        fs::remove_file(store.blob(manifest)).unwrap();
        assert_eq!(check(false).violations.len(), 2);
    }

    #[test]
    fn leftovers_are_told_from_what_is_being_written() {
        let directory = tempfile::tempdir().unwrap();
        let (store, ..) = store(directory.path());
        let lease = store.lease();
        let ingest = lease.ingest().unwrap();
        lease.hold(Digest::of(b"to come"));
        assert_eq!(store.check(&[], false).unwrap().violations, [""; 0]);
        drop(ingest);
        drop(lease);
        fs::write(store.ingests().join("tmp-left"), "x").unwrap();
        fs::write(store.disks().join(format!("{}.erofs", Digest::of(b"d").hex())), "x").unwrap();
        fs::write(store.blobs().join("strange\n"), "x").unwrap();
        let found = store.check(&[], false).unwrap();
        assert_eq!(found.violations.len(), 3, "{found:?}");
        assert!(found.violations.iter().all(|line| !line.contains('\n')), "{found:?}");
        assert_eq!(found.remarks.len(), 1, "{found:?}");
    }
}
