//! Writing archives: an OCI layout that `docker load` reads too. The same images give the same
//! bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::sync::Arc;

use container_api::types::Platform;
use serde::Serialize;

use super::docker;
use super::stream::{CallerWriter, archive_error};
use crate::catalog::{Found, Variant};
use crate::digest::Digest;
use crate::error::{Error, Result, io_error};
use crate::meter::Meter;
use crate::oci::{Descriptor, INDEX, MANIFEST, NAME_ANNOTATION, REF_ANNOTATION};
use crate::reference::Reference;
use crate::store::Lease;

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct IndexFile<'a> {
    schema_version: u32,
    media_type: &'a str,
    manifests: Vec<Descriptor>,
}

/// What goes into the archive.
#[derive(Default)]
struct Plan {
    manifests: Vec<Descriptor>,
    /// One entry per image configuration, with all its names.
    docker: Vec<docker::Entry>,
    blobs: BTreeSet<Digest>,
}

/// Writes `images` to `output`, one platform of each or all that are here.
pub fn save(
    images: &[Found],
    platform: Option<&Platform>,
    lease: &Lease,
    meter: &Arc<Meter>,
    output: CallerWriter,
) -> Result<()> {
    let mut plan = Plan::default();
    for image in images {
        plan.add(image, platform, lease)?;
    }
    let mut total = 0;
    for digest in &plan.blobs {
        let path = lease.store().blob(*digest);
        total += std::fs::metadata(&path).map_err(io_error("reading", &path))?.len();
    }
    meter.begin("Saving image", total, plan.blobs.len() as u64);
    plan.write(lease, meter, output)
}

impl Plan {
    fn add(&mut self, image: &Found, platform: Option<&Platform>, lease: &Lease) -> Result<()> {
        let store = lease.store();
        let root: Digest = Descriptor::from(&image.descriptor).digest()?;
        lease.hold(root);
        let preferred = match (platform, store.choose(image, platform)) {
            (Some(_), Err(error)) => return Err(error),
            (_, Ok(variant)) => Some(variant),
            // Not for this host: any other complete platform stands for it.
            (None, Err(_)) => {
                store.variants(&image.descriptor)?.into_iter().find(Variant::is_complete)
            }
        };
        let preferred = preferred.ok_or_else(|| Error::NoImage(image.name.clone()))?;
        let mut descriptor = Descriptor::from(&image.descriptor);
        if platform.is_some() && preferred.digest != root {
            descriptor.digest = preferred.digest.to_string();
            descriptor.size = preferred.size;
            descriptor.media_type = MANIFEST.into();
        }
        let reachable = store.reachable([descriptor.digest()?]);
        self.blobs.extend(reachable.into_iter().filter(|digest| store.has(*digest, None)));
        let reference = Reference::parse(&image.name, "docker.io")?;
        descriptor.annotations = BTreeMap::from([(NAME_ANNOTATION.into(), image.name.clone())]);
        if let Some(tag) = reference.tag() {
            descriptor.annotations.insert(REF_ANNOTATION.into(), tag.into());
        }
        self.manifests.push(descriptor);
        self.add_docker(&preferred, &reference)
    }

    fn add_docker(&mut self, variant: &Variant, reference: &Reference) -> Result<()> {
        let Some(local) = &variant.local else { return Ok(()) };
        let names: Vec<String> =
            reference.tag().map(|_| reference.to_string()).into_iter().collect();
        let entry = docker::entry(&local.manifest, names)?;
        match self.docker.iter_mut().find(|e| e.config == entry.config && e.layers == entry.layers)
        {
            Some(known) => {
                known.repo_tags.get_or_insert_default().extend(entry.repo_tags.unwrap_or_default());
            }
            None => self.docker.push(entry),
        }
        Ok(())
    }

    fn write(self, lease: &Lease, meter: &Meter, output: CallerWriter) -> Result<()> {
        let failed = || archive_error("writing");
        let json = |e: serde_json::Error| Error::Internal(format!("encoding the index: {e}"));
        let index = IndexFile { schema_version: 2, media_type: INDEX, manifests: self.manifests };
        let index = serde_json::to_vec(&index).map_err(json)?;
        let docker = serde_json::to_vec(&self.docker).map_err(json)?;
        let mut tar = tar::Builder::new(BufWriter::with_capacity(256 << 10, output));
        for (name, bytes) in
            [("oci-layout", LAYOUT), ("index.json", &index[..]), ("manifest.json", &docker[..])]
        {
            append(&mut tar, name, bytes.len() as u64, bytes).map_err(failed())?;
        }
        for digest in &self.blobs {
            meter.check()?;
            let path = lease.store().blob(*digest);
            let file = File::open(&path).map_err(io_error("reading", &path))?;
            let size = file.metadata().map_err(io_error("reading", &path))?.len();
            let name = format!("blobs/sha256/{}", digest.hex());
            append(&mut tar, &name, size, file).map_err(failed())?;
            meter.item();
        }
        let mut output = tar.into_inner().map_err(failed())?;
        output.flush().map_err(failed())
    }
}

fn append(
    tar: &mut tar::Builder<impl Write>,
    name: &str,
    size: u64,
    content: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    // Exactly the size in the header, whatever happens to the file.
    tar.append_data(&mut header, name, content.take(size))
}
