//! Whether a template is what was made.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use container_api::paths::template_files as names;
use container_api::ram;
use container_api::runtime::TemplateManifest;

/// Largest device state in bytes; they have some 100 KiB.
const MAX_STATE: u64 = 64 << 20;

/// Why a template can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It is not what was written.
    #[error("its {0} is damaged")]
    Damaged(&'static str),
    /// It could not be read; it may be whole.
    #[error("it can't be read: {0}")]
    Io(#[from] io::Error),
}

/// What tells changed files from those that were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp([FileStamp; 2]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    file: (u64, u64),
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileStamp {
    fn of(found: &Metadata) -> FileStamp {
        FileStamp {
            file: (found.dev(), found.ino()),
            len: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

impl Stamp {
    /// That of the template in `directory`.
    pub fn of(directory: &Path) -> io::Result<Stamp> {
        let of = |name| directory.join(name).metadata().map(|found| FileStamp::of(&found));
        Ok(Stamp([of(names::RAM)?, of(names::STATE)?]))
    }
}

/// Checks the template in `directory` against its digests; the stamp is that of what was checked.
/// Blocks for as long as reading its RAM takes.
pub fn check(directory: &Path, manifest: &TemplateManifest) -> Result<Stamp, Fault> {
    let ram_file = open(directory, names::RAM)?;
    let state_file = open(directory, names::STATE)?;
    let found = ram_file.metadata()?;
    let stamp = Stamp([FileStamp::of(&found), FileStamp::of(&state_file.metadata()?)]);
    check_state(state_file, manifest)?;
    match found.len() == manifest.ram_len && ram::digest(&ram_file)?.0 == manifest.ram_digest {
        true => Ok(stamp),
        false => Err(Fault::Damaged(names::RAM)),
    }
}

fn check_state(file: File, manifest: &TemplateManifest) -> Result<(), Fault> {
    use std::io::Read;
    let mut bytes = Vec::new();
    file.take(MAX_STATE).read_to_end(&mut bytes)?;
    match ram::sha256(&bytes) == manifest.state_digest {
        true => Ok(()),
        false => Err(Fault::Damaged(names::STATE)),
    }
}

fn open(directory: &Path, name: &'static str) -> Result<File, Fault> {
    match File::open(directory.join(name)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Fault::Damaged(name)),
        other => Ok(other?),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use container_api::types::Timestamp;
    use std::os::unix::fs::FileExt;

    pub(crate) fn make(directory: &Path) -> TemplateManifest {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        let ram_file = options.open(directory.join(names::RAM)).unwrap();
        ram_file.set_len(16 << 20).unwrap();
        ram_file.write_all_at(b"guest", 1 << 20).unwrap();
        std::fs::write(directory.join(names::STATE), "state").unwrap();
        TemplateManifest {
            ram_len: 16 << 20,
            ram_digest: ram::digest(&ram_file).unwrap().0,
            state_digest: ram::sha256(b"state"),
            created_date: Timestamp::now(),
        }
    }

    #[test]
    fn a_changed_byte_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let manifest = make(directory.path());
        let at = directory.path();
        let stamp = || Stamp::of(directory.path()).unwrap();
        let first = check(at, &manifest).unwrap();
        assert_eq!(first, stamp());
        let path = directory.path().join(names::RAM);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"G", 1 << 20).unwrap();
        let damaged = || matches!(check(at, &manifest), Err(Fault::Damaged("ram")));
        assert!(damaged());
        assert_ne!(stamp(), first);
        file.write_all_at(b"g", 1 << 20).unwrap();
        assert_eq!(check(at, &manifest).unwrap(), stamp());
        file.set_len(8 << 20).unwrap();
        assert!(damaged());
        std::fs::remove_file(path).unwrap();
        assert!(damaged());
        let manifest = make(directory.path());
        let first = check(at, &manifest).unwrap();
        std::fs::write(directory.path().join(names::STATE), "State").unwrap();
        assert_ne!(stamp(), first);
        assert!(matches!(check(at, &manifest), Err(Fault::Damaged("state"))));
    }
}
