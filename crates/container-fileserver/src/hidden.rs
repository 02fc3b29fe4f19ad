//! Directories of ours that no share shows, by identity.
//!
//! A share may be above one of them, or hold a mount of something above it. So every mount of the
//! new root is compared with every parent of what is to be hidden, wherever it was found.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{Result, at};

/// A directory on the way to a hidden one, and what remains of the way.
#[derive(Debug)]
pub struct Parent {
    identity: (u64, u64),
    rest: PathBuf,
}

/// The parents of all that is hidden, themselves included. One that is missing hides nothing.
pub fn parents(hidden: &[PathBuf]) -> Vec<Parent> {
    let mut all = Vec::new();
    for path in hidden.iter().filter_map(|path| fs::canonicalize(path).ok()) {
        for parent in path.ancestors() {
            let Ok(found) = fs::metadata(parent) else { continue };
            let rest = path.strip_prefix(parent).unwrap_or(Path::new("")).to_owned();
            all.push(Parent { identity: (found.dev(), found.ino()), rest });
        }
    }
    all
}

/// The places below `root` at which hidden directories show.
pub fn places(parents: &[Parent], root: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/mountinfo").map_err(at("read the mounts"))?;
    let mut places = Vec::new();
    for mount in table.split(|byte| *byte == b'\n').filter_map(mount_point) {
        if mount == root || !mount.starts_with(root) {
            continue;
        }
        let Ok(found) = fs::symlink_metadata(&mount) else { continue };
        let here = parents.iter().filter(|p| p.identity == (found.dev(), found.ino()));
        let found = here.map(|parent| match parent.rest.as_os_str().is_empty() {
            true => mount.clone(),
            false => mount.join(&parent.rest),
        });
        places.extend(found.filter(|place| place.is_dir()));
    }
    Ok(places)
}

/// The fifth word of a line, with its octal escapes undone.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let word = line.split(|byte| *byte == b' ').nth(4)?;
    let mut path = Vec::new();
    let mut rest = word;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| byte == b'\\');
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                path.push(escaped);
                rest = &after[3..];
            }
            None => {
                path.push(byte);
                rest = after;
            }
        }
    }
    Some(PathBuf::from(OsString::from_vec(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        let line = b"36 35 98:0 / /a\\040b\\134 rw - ext3 /dev/root rw";
        assert_eq!(mount_point(line).unwrap(), Path::new("/a b\\"));
        assert_eq!(mount_point(b"1 2 3"), None);
    }

    #[test]
    fn all_parents_are_known_by_identity() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("a/b");
        fs::create_dir_all(&deep).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&deep, &link).unwrap();
        let found = parents(&[link, directory.path().join("none")]);
        let top = fs::metadata(directory.path()).unwrap();
        let top = found.iter().find(|p| p.identity == (top.dev(), top.ino())).unwrap();
        assert_eq!(top.rest, Path::new("a/b"));
        assert!(found.iter().any(|parent| parent.rest.as_os_str().is_empty()));
    }
}
