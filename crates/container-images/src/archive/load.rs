//! Reading archives: one pass over a stream, blobs into the store as they come, names last.
//!
//! Nothing is written by a path of the archive. Every file becomes a blob; what no loaded image
//! leads to is removed when the lease is settled, after a failure all of it.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use container_api::escape::escape_bytes;
use container_rootfs::{Compression, Decompressor, Entry, EntryKind, Limits, TarError, TarReader};

use super::docker::{self, Stored};
use super::stream::{CallerReader, archive_error};
use crate::catalog::Found;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::meter::Meter;
use crate::oci::{
    DOCKER_LIST, Descriptor, Document, INDEX, Index, MANIFEST, MAX_MANIFEST, NAME_ANNOTATION,
    REF_ANNOTATION,
};
use crate::reference::Reference;
use crate::store::Lease;

/// Most entries of an archive, and most bytes of their paths.
const MAX_ENTRIES: usize = 50_000;
const MAX_PATHS: usize = 16 << 20;
/// Bytes of an archive, decompressed.
const MAX_ARCHIVE: u64 = 1 << 40;
/// Most images of an archive.
const MAX_IMAGES: usize = 1000;
/// Indexes may hold indexes; deeper than this nobody nests them.
const MAX_DEPTH: usize = 4;

/// What an archive holds, by path.
#[derive(Default)]
struct Scan {
    files: HashMap<String, Stored>,
    links: HashMap<String, String>,
    index: Option<Vec<u8>>,
    manifest: Option<Vec<u8>>,
    entries: usize,
    path_bytes: usize,
}

/// Loads the images of an archive and names them. `name` is for an image that brings none.
pub fn load(
    input: CallerReader,
    name: Option<&str>,
    default_domain: &str,
    lease: &Lease,
    meter: &Arc<Meter>,
) -> Result<Vec<Found>> {
    meter.begin("Loading image", input.file_len().unwrap_or(0), 0);
    let scan = Scan::read(input, lease, meter)?;
    let images = match (&scan.index, &scan.manifest) {
        (Some(index), manifest) => oci_images(index, manifest.as_deref(), lease)?,
        (None, Some(manifest)) => docker_images(manifest, &scan, lease)?,
        (None, None) => {
            return Err(Error::malformed("archive", "neither an OCI layout nor a docker archive"));
        }
    };
    if images.is_empty() {
        return Err(Error::malformed("archive", "there is no image in it"));
    }
    let mut found = Vec::new();
    for (descriptor, names) in images {
        let names = full_names(&descriptor, names, name, default_domain)?;
        check_complete(&descriptor, &names, lease)?;
        found
            .extend(names.into_iter().map(|name| Found { name, descriptor: descriptor.to_wire() }));
    }
    lease.store().change_names(|all| {
        all.extend(found.iter().map(|f| (f.name.clone(), f.descriptor.clone())));
    })?;
    Ok(found)
}

impl Scan {
    fn read(input: CallerReader, lease: &Lease, meter: &Meter) -> Result<Scan> {
        let limits = Limits { max_layer_bytes: MAX_ARCHIVE, ..Limits::default() };
        let stream = Decompressor::detect(input).map_err(archive_error("reading"))?;
        let mut tar = TarReader::new(stream, limits);
        let mut scan = Scan::default();
        while let Some(entry) = tar.next_entry().map_err(tar_error)? {
            scan.entry(&entry, &mut tar, lease, meter)?;
        }
        // A writer at the other end of a pipe may still have padding to write.
        let mut rest = vec![0; 64 << 10];
        while tar.read_rest(&mut rest).map_err(tar_error)? > 0 {
            meter.check()?;
        }
        Ok(scan)
    }

    fn entry<R: Read>(
        &mut self,
        entry: &Entry,
        tar: &mut TarReader<R>,
        lease: &Lease,
        meter: &Meter,
    ) -> Result<()> {
        let shown = || escape_bytes(&entry.path);
        let path = normal_path(&entry.path).ok_or_else(|| {
            Error::malformed("archive", format!("the path '{}' leads out of it", shown()))
        })?;
        self.entries += 1;
        self.path_bytes += path.len();
        if self.entries > MAX_ENTRIES || self.path_bytes > MAX_PATHS {
            return Err(Error::malformed("archive", "too many files"));
        }
        match &entry.kind {
            EntryKind::File { segments: None, size } => {
                self.file(path, *size, tar, lease, meter)?;
            }
            EntryKind::Symlink(target) | EntryKind::HardLink(target) => {
                let base = match entry.kind {
                    EntryKind::Symlink(_) => path.rsplit_once('/').map_or("", |(base, _)| base),
                    _ => "",
                };
                if let Some(target) = join(base, target) {
                    self.links.insert(path, target);
                }
            }
            EntryKind::Directory => {}
            _ => {
                return Err(Error::malformed(
                    "archive",
                    format!("'{}' is not a plain file", shown()),
                ));
            }
        }
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        path: String,
        size: u64,
        tar: &mut TarReader<R>,
        lease: &Lease,
        meter: &Meter,
    ) -> Result<()> {
        let document = match path.as_str() {
            "index.json" => Some(&mut self.index),
            "manifest.json" => Some(&mut self.manifest),
            _ => None,
        };
        if let Some(document) = document {
            if document.is_some() {
                return Err(Error::malformed("archive", format!("{path} is there twice")));
            }
            *document = Some(read_document(&path, size, tar)?);
            return Ok(());
        }
        let stored = store(tar, lease, meter)?;
        if let Some(hex) = path.strip_prefix("blobs/sha256/") {
            let expected = Digest::from_hex(hex)
                .ok_or_else(|| Error::malformed("archive", format!("'{path}' is not a digest")))?;
            if expected != stored.digest {
                return Err(Error::Digest {
                    what: "archive".into(),
                    expected,
                    actual: stored.digest,
                });
            }
        }
        self.files.insert(path, stored);
        meter.item();
        Ok(())
    }

    /// The file at `path`, links followed.
    fn find(&self, path: &str) -> Option<Stored> {
        let mut path = normal_path(path.as_bytes())?;
        for _ in 0..8 {
            match self.files.get(&path) {
                Some(stored) => return Some(*stored),
                None => path = self.links.get(&path)?.clone(),
            }
        }
        None
    }
}

fn tar_error(error: TarError) -> Error {
    let mut chain = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        let own = inner.downcast_ref::<std::io::Error>().and_then(|e| e.get_ref());
        if let Some(Error::Cancelled) = own.and_then(|e| e.downcast_ref::<Error>()) {
            return Error::Cancelled;
        }
        chain = format!("{chain}: {inner}");
        source = inner.source();
    }
    Error::malformed("archive", chain)
}

fn store<R: Read>(tar: &mut TarReader<R>, lease: &Lease, meter: &Meter) -> Result<Stored> {
    let mut ingest = lease.ingest()?;
    let mut buffer = vec![0; 512 << 10];
    let mut prefix = Vec::with_capacity(16);
    loop {
        meter.check()?;
        let n = tar.read_data(&mut buffer).map_err(tar_error)?;
        if n == 0 {
            break;
        }
        let missing = 16usize.saturating_sub(prefix.len());
        prefix.extend_from_slice(&buffer[..n.min(missing)]);
        ingest.append(&buffer[..n])?;
    }
    let (digest, size) = ingest.commit()?;
    Ok(Stored { digest, size, compression: Compression::of(&prefix) })
}

fn read_document<R: Read>(path: &str, size: u64, tar: &mut TarReader<R>) -> Result<Vec<u8>> {
    if size > MAX_MANIFEST {
        return Err(Error::malformed("archive", format!("{path} is larger than 4 MiB")));
    }
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        match tar.read_data(&mut buffer).map_err(tar_error)? {
            0 => return Ok(bytes),
            n => bytes.extend_from_slice(&buffer[..n]),
        }
    }
}

/// `path` without `.` and leading `/`; `None` when it leads out, is empty or not UTF-8.
fn normal_path(path: &[u8]) -> Option<String> {
    join("", path)
}

fn join(base: &str, path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let mut parts: Vec<&str> = match path.starts_with('/') {
        true => Vec::new(),
        false => base.split('/').filter(|p| !p.is_empty()).collect(),
    };
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

type Named = (Descriptor, Vec<String>);

fn docker_images(manifest: &[u8], scan: &Scan, lease: &Lease) -> Result<Vec<Named>> {
    let entries = docker::parse(manifest)?;
    if entries.len() > MAX_IMAGES {
        return Err(Error::malformed("archive", "too many images"));
    }
    let find = |path: &str| scan.find(path);
    let image = |entry: &docker::Entry| {
        let names = entry.repo_tags.clone().unwrap_or_default();
        Ok((docker::manifest(entry, &find, lease)?, names))
    };
    entries.iter().map(image).collect()
}

/// The images of `index.json`. A docker archive that is an OCI layout too has the names of images
/// in `manifest.json`.
fn oci_images(index: &[u8], docker: Option<&[u8]>, lease: &Lease) -> Result<Vec<Named>> {
    let Document::Index(Index { manifests }) = Document::parse("index.json", index)? else {
        return Err(Error::malformed("index.json", "not an index"));
    };
    let entries = docker.map(docker::parse).transpose()?.unwrap_or_default();
    let mut images: Vec<Named> = Vec::new();
    for mut descriptor in manifests {
        check_content(&mut descriptor, 0, lease)?;
        let annotation = |name| descriptor.annotations.get(name).cloned();
        let mut names: Vec<String> = annotation(NAME_ANNOTATION).into_iter().collect();
        if names.is_empty()
            && let Ok(Document::Manifest(manifest)) = lease.store().document(descriptor.digest()?)
        {
            names = docker::names_of(&entries, &manifest);
        }
        if names.is_empty() {
            names.extend(annotation(REF_ANNOTATION));
        }
        match images.iter_mut().find(|(known, _)| known.digest == descriptor.digest) {
            Some((_, known)) => known.extend(names),
            None => images.push((descriptor, names)),
        }
    }
    Ok(images)
}

/// Checks that what is here below `descriptor` is what it says. Platforms may be missing.
fn check_content(descriptor: &mut Descriptor, depth: usize, lease: &Lease) -> Result<()> {
    let digest = descriptor.digest()?;
    let what = digest.to_string();
    let store = lease.store();
    if !store.has(digest, None) {
        let problem = "the archive has no such content";
        return Err(Error::malformed(what, problem));
    }
    if !store.has(digest, Some(descriptor.size)) {
        return Err(Error::malformed(what, "the size is not what the index says"));
    }
    if depth > MAX_DEPTH {
        return Err(Error::malformed(what, "an index nested too deep"));
    }
    lease.hold(digest);
    match store.document(digest)? {
        Document::Index(index) => {
            if descriptor.media_type != DOCKER_LIST {
                descriptor.media_type = INDEX.into();
            }
            for mut child in index.manifests {
                if child.digest().is_ok_and(|digest| store.has(digest, None)) {
                    check_content(&mut child, depth + 1, lease)?;
                }
            }
        }
        Document::Manifest(manifest) => {
            if descriptor.media_type.is_empty() {
                descriptor.media_type = MANIFEST.into();
            }
            for part in manifest.layers.iter().chain([&manifest.config]) {
                let digest = part.digest()?;
                if store.has(digest, None) && !store.has(digest, Some(part.size)) {
                    return Err(Error::malformed(
                        digest.to_string(),
                        "the size is not what the manifest says",
                    ));
                }
            }
        }
    }
    Ok(())
}

/// An image that can't run on any platform is refused now, not when someone tries.
fn check_complete(descriptor: &Descriptor, names: &[String], lease: &Lease) -> Result<()> {
    let variants = lease.store().variants(&descriptor.to_wire())?;
    match variants.iter().any(|v| v.is_complete()) {
        true => Ok(()),
        false => {
            let name = names.first().map_or("image", String::as_str);
            Err(Error::malformed(name, "no platform of the image is complete in the archive"))
        }
    }
}

/// Full references of the names that an archive has for an image.
///
/// `org.opencontainers.image.ref.name` is a whole name with some writers, a tag alone with others.
/// One word is a name, unless the caller gave one (then it is the tag) or it is `latest`.
fn full_names(
    descriptor: &Descriptor,
    names: Vec<String>,
    given: Option<&str>,
    default_domain: &str,
) -> Result<Vec<String>> {
    let full = |name: &str| Reference::parse(name, default_domain).map(|r| r.to_string());
    let mut out: Vec<String> = Vec::new();
    for name in names {
        let is_word = !name.contains([':', '/', '@']);
        let reference = match (given, is_word) {
            (Some(given), true) if !given.rsplit('/').next().unwrap_or("").contains([':', '@']) => {
                full(&format!("{given}:{name}"))?
            }
            (Some(given), true) => full(given)?,
            (None, true) if name == "latest" => continue,
            _ => full(&name)?,
        };
        if !out.contains(&reference) {
            out.push(reference);
        }
    }
    if out.is_empty() {
        out.push(match given {
            Some(given) => full(given)?,
            None => full(&format!("untagged@{}", descriptor.digest))?,
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(normal_path(b"./a//b/").unwrap(), "a/b");
        assert_eq!(normal_path(b"../a"), None);
        assert_eq!(join("x", b"../y/layer.tar").unwrap(), "y/layer.tar");
        assert_eq!(join("x", b"../../y"), None);
    }

    #[test]
    fn names() {
        let digest = Digest::of(b"");
        let text = format!(r#"{{"digest":"{digest}","size":0}}"#);
        let descriptor: Descriptor = serde_json::from_str(&text).unwrap();
        let names = |names: &[&str], given| {
            let names = names.iter().map(|n| (*n).to_owned()).collect();
            full_names(&descriptor, names, given, "docker.io").unwrap().join(" ")
        };
        assert_eq!(names(&["app"], None), "docker.io/library/app:latest");
        assert_eq!(names(&["h.x/app:1", "h.x/app:1"], None), "h.x/app:1");
        assert_eq!(names(&["1.0"], Some("app")), "docker.io/library/app:1.0");
        assert_eq!(names(&["1.0"], Some("app:2")), "docker.io/library/app:2");
        assert_eq!(names(&[], Some("app")), "docker.io/library/app:latest");
        let untagged = format!("docker.io/library/untagged@{digest}");
        assert_eq!(names(&["latest"], None), untagged);
        assert_eq!(names(&[], None), untagged);
        full_names(&descriptor, vec!["No Good".into()], None, "docker.io").unwrap_err();
    }
}
