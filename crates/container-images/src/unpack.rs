//! From an image's layers to a disk.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use container_api::ErrorCode;
use container_api::escape::escape;
use container_api::images::{FormatVolume, JournalMode};
use container_api::mounts::VOLUME_DATA;
use container_api::paths::DISK_LEN;
use container_rootfs::{
    ApplyError, Decompressor, FinishError, ImageBuilder, Limits, ReadAhead, ext4,
};

use crate::catalog::Variant;
use crate::digest::{Digest, HashingReader};
use crate::error::{Error, Result, io_error};
use crate::meter::Meter;
use crate::oci::Descriptor;
use crate::store::{Lease, Store, sync_directory};

/// The name of the empty writable disk, in the store.
const EMPTY_UPPER: &str = "empty-upper.ext4";

/// Makes the disk of a complete variant, or finds it made. One at a time for a manifest: the caller
/// sees to it.
pub(crate) fn unpack(variant: &Variant, lease: &Lease, meter: &Arc<Meter>) -> Result<PathBuf> {
    let store = lease.store();
    lease.hold(variant.digest);
    let disk = store.disk(variant.digest);
    if disk.exists() {
        return Ok(disk);
    }
    let local = variant.local.as_ref().ok_or(Error::NoBlob(variant.digest))?;
    let what = variant.digest.to_string();
    local.manifest.check_runnable(&what)?;
    let layers = &local.manifest.layers;
    let diff_ids = local.config.diff_ids(&what)?;
    if diff_ids.len() != layers.len() {
        let problem = format!("{} layers, but {} diff_ids", layers.len(), diff_ids.len());
        return Err(Error::malformed(what, problem));
    }
    let total = layers.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.size));
    meter.begin("Unpacking image", total, layers.len() as u64);
    make_file(&disk, |file, path| {
        let mut builder =
            ImageBuilder::new(file, Limits::default()).map_err(io_error("writing", path))?;
        builder.set_uuid(uuid(variant.digest));
        for (layer, diff_id) in layers.iter().zip(&diff_ids) {
            apply(&mut builder, layer, *diff_id, path, store, meter)?;
            meter.item();
        }
        let summary = builder.finish(DISK_LEN).map_err(|error| match error {
            FinishError::Write(source) => io_error("writing", path)(source),
            other => Error::malformed(&what, other.to_string()),
        })?;
        Ok(summary.file)
    })?;
    Ok(disk)
}

/// The empty writable disk, made when it is not there.
pub fn empty_upper(store: &Store) -> Result<PathBuf> {
    let path = store.root().join(EMPTY_UPPER);
    if !path.exists() {
        make_file(&path, |file, path| {
            ext4::write_empty(&file, DISK_LEN, &ext4::Params::default()).map_err(|e| match e {
                ext4::WriteError::Io(source) => io_error("writing", path)(source),
                other => Error::Internal(other.to_string()),
            })?;
            Ok(file)
        })?;
    }
    Ok(path)
}

/// Makes a file an empty volume, durably.
pub fn format_volume(file: &File, format: FormatVolume) -> Result<()> {
    let params = ext4::Params {
        uuid: format.uuid,
        journal_mib: format.journal_mib,
        journal_mode: match format.journal {
            JournalMode::Ordered => ext4::JournalMode::Ordered,
            JournalMode::Writeback => ext4::JournalMode::Writeback,
            JournalMode::Journal => ext4::JournalMode::Data,
        },
        directories: &[VOLUME_DATA],
        stop_on_errors: true,
        ..ext4::Params::default()
    };
    let volume = Path::new("the volume's file");
    ext4::write_empty(file, format.size_in_bytes, &params).map_err(|e| match e {
        ext4::WriteError::Io(source) => io_error("writing", volume)(source),
        other => Error::Internal(other.to_string()),
    })?;
    file.sync_all().map_err(io_error("writing", volume))
}

/// Writes a file under a temporary name and gives it its own when its bytes are on the disk.
fn make_file(target: &Path, write: impl FnOnce(File, &Path) -> Result<File>) -> Result<()> {
    let directory = target.parent().unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new()
        .prefix(".tmp-")
        .tempfile_in(directory)
        .map_err(io_error("creating a file in", directory))?;
    let (file, path) = temporary.into_parts();
    let file = write(file, target)?;
    file.sync_all().map_err(io_error("writing", target))?;
    fs::rename(&path, target).map_err(io_error("renaming", target))?;
    // The file is no longer there under its temporary name.
    let _ = path.keep();
    sync_directory(directory)
}

fn uuid(manifest: Digest) -> [u8; 16] {
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(manifest.hex().as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(&String::from_utf8_lossy(pair), 16).unwrap_or(0);
    }
    uuid
}

fn apply(
    builder: &mut ImageBuilder,
    layer: &Descriptor,
    diff_id: Digest,
    disk: &Path,
    store: &Store,
    meter: &Arc<Meter>,
) -> Result<()> {
    let digest = layer.digest()?;
    let blob = store.blob(digest);
    let failed = |e| io_error("reading", &blob)(e);
    let file = File::open(&blob).map_err(failed)?;
    let stream = Decompressor::detect(Counted { file, meter: meter.clone() }).map_err(failed)?;
    let go_on = |_| match meter.check() {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    };
    let ahead = ReadAhead::new(stream).map_err(failed)?;
    let wrong = |error| layer_error(error, digest, disk);
    if diff_id == digest {
        // Stored as it is: its digest was verified when it was written.
        builder.apply_layer(ahead, go_on).map_err(wrong)?;
        return Ok(());
    }
    let mut hashing = HashingReader::new(ahead);
    builder.apply_layer(&mut hashing, go_on).map_err(wrong)?;
    let actual = hashing.finish();
    match actual == diff_id {
        true => Ok(()),
        false => Err(Error::Digest {
            what: format!("layer {digest}, uncompressed"),
            expected: diff_id,
            actual,
        }),
    }
}

fn layer_error(error: ApplyError, digest: Digest, disk: &Path) -> Error {
    match error {
        ApplyError::Cancelled => Error::Cancelled,
        ApplyError::Write(source) => io_error("writing", disk)(source),
        other => {
            let mut problem = other.to_string();
            let mut source = std::error::Error::source(&other);
            while let Some(inner) = source {
                problem = format!("{problem}: {inner}");
                source = inner.source();
            }
            let problem = escape(&problem).into_owned();
            Error::Layer { digest, problem, code: ErrorCode::InvalidData }
        }
    }
}

/// Counts the bytes of a layer as they are stored.
struct Counted {
    file: File,
    meter: Arc<Meter>,
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buf)?;
        self.meter.advance(n as u64);
        Ok(n)
    }
}
