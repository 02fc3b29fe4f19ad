//! Directories of templates.
//!
//! ```text
//! templates/.new-<key>-<n>  being made by the process that `maker.json` names
//! templates/<key>           a template: ram, state, template.json, shape.json
//! templates/.gone-<n>       being removed
//! ```

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use container_api::paths::template_files as names;
use container_api::runtime::TemplateManifest;

use super::Shape;
use super::check::{Fault, Stamp};
use crate::directory::{GONE, NEW, allocated, read_json, remove_tree};

/// What a template is made of ([`Shape`], JSON); the file's time is that of its last use.
pub const SHAPE: &str = "shape.json";

/// A template as it lies on the disk.
#[derive(Debug)]
pub struct Found {
    /// What it is made of.
    pub shape: Shape,
    /// Its lengths and digests.
    pub manifest: TemplateManifest,
    /// What of it was checked.
    pub checked: Option<Stamp>,
    /// Bytes on the disk.
    pub bytes: u64,
    /// When it was used last.
    pub used: SystemTime,
}

/// Reads a template; what RAM and device state hold is not looked at.
pub fn read(directory: &Path) -> Result<Found, Fault> {
    let damaged = |name| {
        move |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Fault::Damaged(name)
            }
            _ => Fault::Io(error),
        }
    };
    let shape: Shape = read_json(&directory.join(SHAPE)).map_err(damaged(SHAPE))?;
    let manifest: TemplateManifest =
        read_json(&directory.join(names::MANIFEST)).map_err(damaged(names::MANIFEST))?;
    let ram = directory.join(names::RAM).metadata().map_err(damaged(names::RAM))?;
    if ram.len() != manifest.ram_len || ram.len() != shape.resources.memory_in_bytes {
        return Err(Fault::Damaged(names::RAM));
    }
    let used = directory.join(SHAPE).metadata()?.modified()?;
    Ok(Found { shape, manifest, checked: None, bytes: allocated(directory), used })
}

/// Notes that a template was used now.
pub fn touch(directory: &Path) {
    let times = fs::FileTimes::new().set_modified(SystemTime::now());
    let touched = fs::File::open(directory.join(SHAPE)).and_then(|file| file.set_times(times));
    if let Err(error) = touched {
        tracing::debug!(%error, "the time of a template's use is not kept");
    }
}

/// What lies in the directory of all templates.
#[derive(Debug, Default)]
pub struct Scan {
    /// Templates.
    pub found: Vec<Found>,
    /// What was being made.
    pub unfinished: Vec<PathBuf>,
}

/// Lists the templates in `root`, and removes what is damaged or was being removed.
pub fn scan(root: &Path) -> io::Result<Scan> {
    let mut scan = Scan::default();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(NEW) {
            scan.unfinished.push(path);
            continue;
        }
        if name.starts_with(GONE) {
            remove_tree(&path)?;
            continue;
        }
        match read(&path) {
            Ok(found) if found.shape.key == name => scan.found.push(found),
            Ok(_) => discard(root, &name, "its name is another's"),
            Err(Fault::Io(error)) => {
                tracing::warn!(template = name, %error, "a template can't be read and is left");
            }
            Err(fault) => discard(root, &name, &fault.to_string()),
        }
    }
    Ok(scan)
}

fn discard(root: &Path, name: &str, why: &str) {
    let name = container_api::escape::escape(name).into_owned();
    tracing::warn!(template = name, why, "a template is removed");
    if let Err(error) = remove(root, &name) {
        tracing::warn!(template = name, %error, "a template stays");
    }
}

/// Removes a template: at once out of sight. The answer is the bytes of disk that came back.
pub fn remove(root: &Path, key: &str) -> io::Result<u64> {
    let gone = root.join(format!("{GONE}{}-{}", number(), std::process::id()));
    match fs::rename(root.join(key), &gone) {
        Ok(()) => remove_tree(&gone),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(e),
    }
}

/// A new directory for a template that is to be made.
pub fn begin(root: &Path, key: &str) -> io::Result<PathBuf> {
    let path = root.join(format!("{NEW}{key}-{}-{}", std::process::id(), number()));
    DirBuilder::new().mode(0o700).create(&path)?;
    Ok(path)
}

fn number() -> u64 {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// Gives a template that was made in `made` its name, without what its making needed.
pub fn commit(root: &Path, made: &Path, key: &str) -> io::Result<()> {
    let kept = [names::RAM, names::STATE, names::MANIFEST, SHAPE];
    for entry in fs::read_dir(made)? {
        let entry = entry?;
        if !kept.iter().any(|name| entry.file_name() == *name) {
            fs::remove_file(entry.path())?;
        }
    }
    remove(root, key)?;
    fs::rename(made, root.join(key))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::directory::write_json;
    use container_api::types::Resources;

    pub(crate) fn shape(key: &str) -> Shape {
        Shape {
            key: key.into(),
            family: "f".into(),
            resources: Resources { cpus: 1, memory_in_bytes: 16 << 20 },
            nic: true,
            virtualization: false,
            bundle: "/nonexistent".into(),
            identity: "q".into(),
        }
    }

    /// A template that is being made.
    pub(crate) fn made(root: &Path, key: &str) -> PathBuf {
        let path = begin(root, key).unwrap();
        let manifest = crate::template::check::tests::make(&path);
        write_json(&path, names::MANIFEST, &manifest).unwrap();
        write_json(&path, SHAPE, &shape(key)).unwrap();
        fs::write(path.join("upper.img"), "x").unwrap();
        path
    }

    #[test]
    fn what_is_whole_is_found_and_the_rest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for key in ["whole", "nameless", "short", "renamed"] {
            commit(root, &made(root, key), key).unwrap();
        }
        assert_eq!(fs::read_dir(root.join("whole")).unwrap().count(), 4);
        fs::remove_file(root.join("nameless").join(names::MANIFEST)).unwrap();
        fs::write(root.join("short").join(names::RAM), "").unwrap();
        fs::rename(root.join("renamed"), root.join("other")).unwrap();
        let unfinished = made(root, "unfinished");
        fs::create_dir(root.join(".gone-1")).unwrap();
        let scan = scan(root).unwrap();
        let keys: Vec<_> = scan.found.iter().map(|found| found.shape.key.as_str()).collect();
        assert_eq!((keys, scan.unfinished), (vec!["whole"], vec![unfinished]));
        assert_eq!(fs::read_dir(root).unwrap().count(), 2);
        assert!(remove(root, "whole").unwrap() > 0);
        assert_eq!(remove(root, "whole").unwrap(), 0);
    }
}
