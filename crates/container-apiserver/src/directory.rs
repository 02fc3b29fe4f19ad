//! A container's directory: made whole and removed whole, each by one rename.
//!
//! ```text
//! containers/.new-<id>-… being made; never used, removed at the next start
//! containers/<id>        a container
//! containers/.gone-<n>   being removed
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use container_api::paths::{AppRoot, DISK_LEN, container_files as names};
use container_api::types::ContainerConfig;
use rustix::fs::{SeekFrom, copy_file_range, seek};
use serde::{Deserialize, Serialize};

use crate::store::ImageDisk;

/// The file that holds the [`ImageDisk`], so that a directory alone is enough to know a container.
const IMAGE: &str = "image.json";
/// Prefix of directories that are being made.
pub const NEW: &str = ".new-";
/// Prefix of directories that are being removed.
pub const GONE: &str = ".gone-";

/// A finished directory under its temporary name; removed on drop unless committed.
#[derive(Debug)]
pub struct Staged {
    path: Option<PathBuf>,
    target: PathBuf,
}

impl Staged {
    /// Makes the directory of `config`: its configuration, and a copy of `empty_upper`.
    pub fn build(
        root: &AppRoot,
        config: &ContainerConfig,
        image: &ImageDisk,
        empty_upper: &Path,
    ) -> io::Result<Staged> {
        let staged = Staged::begin(&root.containers(), &config.id)?;
        write_json(staged.path(), names::CONFIG, config)?;
        write_json(staged.path(), IMAGE, image)?;
        copy_disk(empty_upper, &staged.path().join(names::UPPER))?;
        Ok(staged)
    }

    /// An empty one, which is to be `name` in `folder`.
    pub fn begin(folder: &Path, name: &str) -> io::Result<Staged> {
        // One that was given up a moment ago may still be on its way out.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{NEW}{name}-{}-{number}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Staged { path: Some(path), target: folder.join(name) })
    }

    /// Where it is until then.
    pub fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(&self.target)
    }

    /// Gives it its name.
    pub fn commit(mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            // A rename would replace an empty directory.
            if self.target.symlink_metadata().is_ok() {
                return Err(io::Error::from(io::ErrorKind::AlreadyExists));
            }
            fs::rename(path, &self.target)?;
            self.path = None;
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(path) = self.path.take()
            && let Err(error) = remove_tree(&path)
        {
            tracing::warn!(path = %path.display(), %error, "a half-made directory stays");
        }
    }
}

/// Takes the directory `name` in `folder` out of the way; what remains is to [`remove_tree`] the
/// answer.
pub fn set_aside(folder: &Path, name: &str) -> io::Result<Option<PathBuf>> {
    for number in 0.. {
        let gone = folder.join(format!("{GONE}{number}-{}", std::process::id()));
        if gone.symlink_metadata().is_ok() {
            continue;
        }
        return match fs::rename(folder.join(name), &gone) {
            Ok(()) => Ok(Some(gone)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        };
    }
    unreachable!("the numbers do not end")
}

/// Removes a directory and says how many bytes of disk it held; a missing one is no error.
pub fn remove_tree(path: &Path) -> io::Result<u64> {
    let freed = allocated(path);
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(freed),
    }
}

/// Bytes on disk of all that is in a directory.
pub fn allocated(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => found.blocks() * 512 + allocated(&entry.path()),
        Ok(found) => found.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// Reads back what [`Staged::build`] wrote, for a directory that has no row.
pub fn read(path: &Path) -> io::Result<(ContainerConfig, ImageDisk)> {
    Ok((read_json(&path.join(names::CONFIG))?, read_json(&path.join(IMAGE))?))
}

/// Reads what [`write_json`] wrote.
pub fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<T> {
    serde_json::from_slice(&fs::read(path)?).map_err(io::Error::from)
}

/// Writes a file of mode 0600 that is whole or not there.
pub fn write_json(directory: &Path, name: &str, value: &impl Serialize) -> io::Result<()> {
    let temporary = directory.join(format!(".{name}"));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    let done = file
        .write_all(&serde_json::to_vec(value)?)
        .and_then(|()| fs::rename(&temporary, directory.join(name)));
    if done.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    done
}

/// Copies a sparse file: shares its blocks where the file system can, else copies the data and
/// leaves the holes. The copy is [`DISK_LEN`] long.
pub fn copy_disk(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
        copy_data(&source, &target)?;
    }
    target.set_len(DISK_LEN)
}

fn copy_data(source: &File, target: &File) -> io::Result<()> {
    let len = source.metadata()?.len();
    let mut at = 0;
    while at < len {
        let start = match seek(source, SeekFrom::Data(at)) {
            Ok(start) => start,
            // A hole to the end.
            Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let end = seek(source, SeekFrom::Hole(start))?;
        copy_extent(source, target, start, end)?;
        at = end;
    }
    Ok(())
}

fn copy_extent(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read, mut write) = (start, start);
    while read < end {
        let left = (end - read) as usize;
        match copy_file_range(source, Some(&mut read), target, Some(&mut write), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            // File systems that differ, or that can't: by hand.
            Err(
                rustix::io::Errno::XDEV
                | rustix::io::Errno::OPNOTSUPP
                | rustix::io::Errno::INVAL
                | rustix::io::Errno::NOSYS,
            ) => return copy_by_hand(source, target, read, end),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(source: &File, target: &File, mut at: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 256 << 10];
    while at < end {
        let want = buffer.len().min((end - at) as usize);
        let n = source.read_at(&mut buffer[..want], at)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        target.write_all_at(&buffer[..n], at)?;
        at += n as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{config, image};
    use std::os::unix::fs::FileExt;

    fn root(directory: &tempfile::TempDir) -> AppRoot {
        let root = AppRoot::resolve(Some(directory.path())).unwrap();
        fs::create_dir_all(root.containers()).unwrap();
        root
    }

    fn upper(directory: &Path) -> PathBuf {
        let path = directory.join("empty.img");
        let file = File::create(&path).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"middle", 8 << 20).unwrap();
        file.set_len(16 << 20).unwrap();
        path
    }

    #[test]
    fn a_directory_appears_whole_and_goes_whole() {
        let directory = tempfile::tempdir().unwrap();
        let root = root(&directory);
        let config = config("web");
        let staged = Staged::build(&root, &config, &image(), &upper(directory.path())).unwrap();
        assert!(!root.container("web").exists());
        staged.commit().unwrap();
        assert_eq!(read(&root.container("web")).unwrap(), (config, image()));
        let disk = root.container("web").join(names::UPPER);
        let found = fs::metadata(&disk).unwrap();
        assert_eq!((found.len(), found.mode() & 0o777), (DISK_LEN, 0o600));
        assert!(found.blocks() * 512 < 1 << 20, "the copy is sparse");
        let mut bytes = [0; 6];
        File::open(&disk).unwrap().read_exact_at(&mut bytes, 8 << 20).unwrap();
        assert_eq!(&bytes, b"middle");
        let gone = set_aside(&root.containers(), "web").unwrap().unwrap();
        assert!(!root.container("web").exists());
        assert!(remove_tree(&gone).unwrap() > 0);
        assert!(set_aside(&root.containers(), "web").unwrap().is_none());
    }

    #[test]
    fn a_directory_that_is_not_committed_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let root = root(&directory);
        let upper = upper(directory.path());
        drop(Staged::build(&root, &config("a0"), &image(), &upper).unwrap());
        Staged::build(&root, &config("a0"), &image(), Path::new("/nonexistent")).unwrap_err();
        assert_eq!(fs::read_dir(root.containers()).unwrap().count(), 0);
        fs::create_dir(root.container("a0")).unwrap();
        let staged = Staged::build(&root, &config("a0"), &image(), &upper).unwrap();
        assert_eq!(staged.commit().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_dir(root.containers()).unwrap().count(), 1);
    }
}
