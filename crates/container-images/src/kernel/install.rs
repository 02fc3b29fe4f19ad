//! Kernels of one installation: bundles in its `kernels` directory, one of them current.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::Path;

use container_api::images::{
    BUNDLE_KERNEL, CURRENT_KERNEL, InstallKernel, KernelBundle, KernelSource,
};
use sha2::{Digest, Sha256};

use super::error::{KernelError, Result, io_error};
use super::{Source, bundle, make};

/// Largest package or archive, in bytes.
const MAX_SOURCE: u64 = 4 << 30;
const STAGED: &str = ".bundle-staged";

/// A kernel's source as a file that can be read twice, and its digest.
#[derive(Debug)]
pub struct Spooled {
    file: File,
    digest: String,
}

impl Spooled {
    /// Copies `from`, which may be a pipe, to a nameless file in `kernels`.
    pub fn new(kernels: &Path, name: &str, mut from: impl Read) -> Result<Spooled> {
        let failed = |e| io_error("writing to", kernels)(e);
        fs::create_dir_all(kernels).map_err(failed)?;
        let mut file = tempfile::tempfile_in(kernels).map_err(failed)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        let mut total = 0u64;
        loop {
            let n = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(io_error("reading", name)(e)),
            };
            total += n as u64;
            if total > MAX_SOURCE {
                return Err(KernelError::malformed(name, "more than 4 GiB"));
            }
            hash.update(&buffer[..n]);
            file.write_all(&buffer[..n]).map_err(failed)?;
        }
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        Ok(Spooled { file, digest: format!("sha256:{}", hex::encode(hash.finalize())) })
    }
}

/// Makes a bundle of the spooled files in `kernels` and makes it current.
///
/// A bundle is called after its version and its kernel's digest. Another kernel of the same version
/// is refused without `force`; the same kernel again becomes current again.
pub fn install(
    kernels: &Path,
    request: &InstallKernel,
    mut files: Vec<Spooled>,
    init: &Path,
    architecture: &str,
) -> Result<KernelBundle> {
    if let Some(expected) = &request.digest {
        let actual = files.first().map_or_else(String::new, |f| f.digest.clone());
        if !expected.eq_ignore_ascii_case(&actual) {
            let expected = container_api::escape::escape(expected).into_owned();
            return Err(KernelError::Digest { expected, actual });
        }
    }
    let name = request.name.clone();
    let first = |files: &mut Vec<Spooled>| match files.is_empty() {
        true => Err(KernelError::malformed(&request.name, "no file")),
        false => Ok(files.swap_remove(0).file),
    };
    let source = match request.kind {
        KernelSource::Binary => Source::Binary { file: first(&mut files)?, name: name.clone() },
        KernelSource::Tar => Source::Tar {
            file: first(&mut files)?,
            name: name.clone(),
            member: request.member.clone(),
        },
        KernelSource::Deb => {
            Source::Debs(files.into_iter().map(|f| (name.clone(), f.file)).collect())
        }
    };
    let staged = kernels.join(STAGED);
    let bundle = make(&staged, source, init, architecture, &name)?;
    let result = adopt(kernels, &staged, bundle, request.force);
    if result.is_err() {
        // The error that matters is the one that is reported.
        let _ = fs::remove_dir_all(&staged);
    }
    result
}

fn adopt(
    kernels: &Path,
    staged: &Path,
    mut bundle: KernelBundle,
    force: bool,
) -> Result<KernelBundle> {
    let digest = bundle.digests.get(BUNDLE_KERNEL).cloned().unwrap_or_default();
    let short: String = digest.trim_start_matches("sha256:").chars().take(8).collect();
    let name = format!("{}-{short}", bundle.version);
    if !force && has_other(kernels, &bundle.version, &name)? {
        return Err(KernelError::Exists(bundle.version));
    }
    let target = kernels.join(&name);
    let failed = |e| io_error("replacing", &target)(e);
    if target.exists() {
        rustix::fs::renameat_with(
            rustix::fs::CWD,
            staged,
            rustix::fs::CWD,
            &target,
            rustix::fs::RenameFlags::EXCHANGE,
        )
        .map_err(|e| failed(e.into()))?;
        fs::remove_dir_all(staged).map_err(failed)?;
    } else {
        fs::rename(staged, &target).map_err(failed)?;
    }
    make_current(kernels, &name).map_err(io_error("switching", kernels.join(CURRENT_KERNEL)))?;
    bundle.path = target;
    Ok(bundle)
}

/// Whether a bundle of `version` other than `name` is installed.
fn has_other(kernels: &Path, version: &str, name: &str) -> Result<bool> {
    let failed = |e| io_error("reading", kernels)(e);
    for entry in fs::read_dir(kernels).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let own = entry.file_name();
        let own = own.to_string_lossy();
        let same_version = own.rsplit_once('-').is_some_and(|(v, _)| v == version);
        if same_version && own != name && !own.starts_with('.') {
            return Ok(true);
        }
    }
    Ok(false)
}

fn make_current(kernels: &Path, name: &str) -> io::Result<()> {
    let new = kernels.join(format!("{}current", bundle::UNFINISHED));
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    symlink(name, &new)?;
    fs::rename(&new, kernels.join(CURRENT_KERNEL))?;
    bundle::sync_directory(kernels)
}

/// Removes what killed processes have left in `kernels`. Nobody may be making a bundle there.
pub fn remove_unfinished(kernels: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(kernels) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(bundle::UNFINISHED) {
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
    }
    Ok(())
}
