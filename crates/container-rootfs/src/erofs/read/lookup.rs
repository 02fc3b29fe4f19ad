//! Paths inside the image.

use super::inode::{FileKind, Inode};
use super::{ErofsReader, ReadAt, ReadError};

const MAX_SYMLINKS: usize = 40;
const TARGET_MAX: u64 = 4095;

impl<S: ReadAt> ErofsReader<S> {
    /// The file at `path`, following symbolic links inside the image; `..` ends at the root.
    ///
    /// # Errors
    /// When there is no such file, a component isn't a directory, links go round in circles, or
    /// the image fails or is damaged.
    pub fn lookup(&self, path: &[u8]) -> Result<Inode, ReadError> {
        self.walk(path, true)
    }

    /// The file at `path`, following symbolic links but for the last component.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub fn lookup_no_follow(&self, path: &[u8]) -> Result<Inode, ReadError> {
        self.walk(path, false)
    }

    /// All contents of the file at `path`, links followed, of at most `max` bytes.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup), and when it isn't a regular file or is larger.
    pub fn read_file(&self, path: &[u8], max: u64) -> Result<Vec<u8>, ReadError> {
        self.read_inode(&self.lookup(path)?, max)
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// When `inode` isn't a symbolic link, or the image fails or is damaged.
    pub fn read_link(&self, inode: &Inode) -> Result<Vec<u8>, ReadError> {
        if inode.kind != FileKind::Symlink {
            return Err(ReadError::NotASymlink);
        }
        self.read_all(inode, TARGET_MAX)
    }

    fn walk(&self, path: &[u8], follow_last: bool) -> Result<Inode, ReadError> {
        // The directories above, so that `..` needs no trust in the image's own entries.
        let mut above: Vec<Inode> = Vec::new();
        let mut here = self.root()?;
        let mut pending = reversed(path);
        let mut symlinks = 0;
        while let Some(name) = pending.pop() {
            match &*name {
                b"." => continue,
                b".." => {
                    here = above.pop().unwrap_or(here);
                    continue;
                }
                _ => {}
            }
            let nid = self.find_in_dir(&here, &name)?.ok_or(ReadError::NotFound)?;
            let next = self.inode(nid)?;
            if next.kind == FileKind::Symlink && (follow_last || !pending.is_empty()) {
                symlinks += 1;
                if symlinks > MAX_SYMLINKS {
                    return Err(ReadError::SymlinkLoop);
                }
                let target = self.read_link(&next)?;
                if target.starts_with(b"/") {
                    here = above.into_iter().next().unwrap_or(here);
                    above = Vec::new();
                }
                pending.extend(reversed(&target));
                continue;
            }
            if !pending.is_empty() && next.kind != FileKind::Directory {
                return Err(ReadError::NotADirectory);
            }
            above.push(std::mem::replace(&mut here, next));
        }
        Ok(here)
    }
}

/// The components of a path, the first one last.
fn reversed(path: &[u8]) -> Vec<Box<[u8]>> {
    path.split(|byte| *byte == b'/').rev().filter(|name| !name.is_empty()).map(Box::from).collect()
}
