//! `manifest.json`: the index of `docker save`.

use std::collections::BTreeMap;

use container_rootfs::Compression;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::oci::{CONFIG, Descriptor, LAYER, MANIFEST, MAX_LAYERS, Manifest};
use crate::store::Lease;

/// One image of the archive. Paths are of files in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Entry {
    pub config: String,
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    pub layers: Vec<String>,
}

/// Parses the file.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Entry>> {
    serde_json::from_slice(bytes).map_err(|e| Error::malformed("manifest.json", e.to_string()))
}

/// A file of the archive that became a blob.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    pub digest: Digest,
    pub size: u64,
    pub compression: Compression,
}

/// Makes an OCI manifest for one image of the archive and stores it.
pub(super) fn manifest(
    entry: &Entry,
    find: &impl Fn(&str) -> Option<Stored>,
    lease: &Lease,
) -> Result<Descriptor> {
    let missing =
        |path: &str| Error::malformed("docker archive", format!("the file {path} is missing"));
    let config = find(&entry.config).ok_or_else(|| missing(&entry.config))?;
    let diff_ids = lease.store().config(config.digest)?.diff_ids(&entry.config)?;
    if entry.layers.len() > MAX_LAYERS {
        return Err(Error::malformed("docker archive", "more than 512 layers"));
    }
    if diff_ids.len() != entry.layers.len() {
        let problem = format!("{} layers, but {} diff_ids", entry.layers.len(), diff_ids.len());
        return Err(Error::malformed("docker archive", problem));
    }
    let mut layers = Vec::new();
    for path in &entry.layers {
        let stored = find(path).ok_or_else(|| missing(path))?;
        let suffix = match stored.compression {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        };
        layers.push(descriptor(format!("{LAYER}{suffix}"), stored.digest, stored.size));
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST.into(),
        config: descriptor(CONFIG.into(), config.digest, config.size),
        layers,
    };
    let bytes = serde_json::to_vec(&manifest)
        .map_err(|e| Error::malformed("docker archive", e.to_string()))?;
    Ok(descriptor(MANIFEST.into(), lease.put(&bytes)?, bytes.len() as u64))
}

fn descriptor(media_type: String, digest: Digest, size: u64) -> Descriptor {
    let digest = digest.to_string();
    Descriptor { media_type, digest, size, platform: None, annotations: BTreeMap::new() }
}

/// The names that `manifest.json` has for the image whose manifest is `manifest`.
pub(super) fn names_of(entries: &[Entry], manifest: &Manifest) -> Vec<String> {
    let wanted = manifest.config.digest().map(|d| d.hex()).unwrap_or_default();
    let same = |entry: &&Entry| {
        let file = entry.config.rsplit('/').next().unwrap_or_default();
        file.trim_end_matches(".json") == wanted
    };
    let tags = entries.iter().filter(same).filter_map(|e| e.repo_tags.clone());
    tags.flatten().collect()
}

/// What `save` writes for programs that know this form alone.
pub(super) fn entry(manifest: &Manifest, names: Vec<String>) -> Result<Entry> {
    let path = |d: &Descriptor| Ok(format!("blobs/sha256/{}", d.digest()?.hex()));
    Ok(Entry {
        config: path(&manifest.config)?,
        repo_tags: Some(names),
        layers: manifest.layers.iter().map(path).collect::<Result<_>>()?,
    })
}
