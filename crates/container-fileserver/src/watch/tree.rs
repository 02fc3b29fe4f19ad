//! Which directory each watch is of.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::libc;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use crate::Result;
use crate::events::Place;

/// Directories that are watched for one container.
const MOST: usize = 1 << 16;

const FILE: WatchFlags = WatchFlags::MODIFY
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::DONT_FOLLOW);
const DIRECTORY: WatchFlags = FILE
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::EXCL_UNLINK);

/// A directory, or a file that is shared itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Its path from the root.
    pub path: Vec<u8>,
    /// Its inode number on the host.
    pub inode: u64,
}

impl Watched {
    /// Whether it is a share itself.
    pub fn is_share(&self) -> bool {
        !self.path.contains(&b'/')
    }

    /// A name in it; without one it itself.
    pub fn place(&self, name: &[u8]) -> Place {
        match name {
            [] => Place { parent: 0, path: self.path.clone() },
            _ => Place { parent: self.inode, path: [&self.path, &b"/"[..], name].concat() },
        }
    }
}

/// The watches; one may be of several places, as shares overlap.
pub struct Tree {
    inotify: OwnedFd,
    places: HashMap<i32, Vec<Watched>>,
    said: bool,
}

/// A path as this process has it.
pub fn host_path(path: &[u8]) -> PathBuf {
    let mut full = b"/".to_vec();
    full.extend_from_slice(path);
    PathBuf::from(std::ffi::OsString::from_vec(full))
}

/// Whether a path is another one or in it.
fn is_in(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

impl Tree {
    /// No watch yet.
    pub fn new() -> Result<Tree> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
        let inotify = inotify.map_err(|error| match error {
            Errno::MFILE => "notify: the host's fs.inotify.max_user_instances is used up".into(),
            error => format!("notify: inotify: {error}"),
        })?;
        Ok(Tree { inotify, places: HashMap::new(), said: false })
    }

    /// The descriptor to read.
    pub fn inotify(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// What a watch is of.
    pub fn of(&self, watch: i32) -> Vec<Watched> {
        self.places.get(&watch).cloned().unwrap_or_default()
    }

    /// The kernel has ended a watch.
    pub fn ended(&mut self, watch: i32) {
        self.places.remove(&watch);
    }

    /// Watches a share.
    ///
    /// # Errors
    /// When that can't be.
    pub fn share(&mut self, number: usize, directory: bool) -> Result<()> {
        let path = number.to_string().into_bytes();
        let flags = if directory { DIRECTORY } else { FILE };
        self.watch(&path, flags).map_err(|error| match error {
            Errno::NOSPC => "notify: the host's fs.inotify.max_user_watches is used up".into(),
            error => format!("notify: watch share {number}: {error}"),
        })?;
        if directory {
            self.add(&path, &mut |_, _| {});
        }
        Ok(())
    }

    fn watch(&mut self, path: &[u8], flags: WatchFlags) -> std::result::Result<u64, Errno> {
        let full = host_path(path);
        let watch = inotify::add_watch(&self.inotify, &full, flags)?;
        // The watch is of what was there then, this of what is there now: at worst it is of
        // another directory of the shares.
        let inode = fs::symlink_metadata(&full).map_or(0, |found| found.ino());
        let places = self.places.entry(watch).or_default();
        places.retain(|place| place.path != path);
        places.push(Watched { path: path.to_vec(), inode });
        Ok(inode)
    }

    /// Watches a directory and all below it; what is in there is told, with its type. What can't
    /// be watched is left out, and said once when that is for want of watches.
    pub fn add(&mut self, path: &[u8], found: &mut dyn FnMut(Place, u32)) {
        let mut directories = vec![path.to_vec()];
        while let Some(path) = directories.pop() {
            let watched = match self.places.len() < MOST {
                true => self.watch(&path, DIRECTORY),
                false => Err(Errno::NOSPC),
            };
            let inode = match watched {
                Ok(inode) => inode,
                Err(Errno::NOSPC) => return self.say_full(),
                Err(_) => continue,
            };
            let here = Watched { path, inode };
            let Ok(entries) = fs::read_dir(host_path(&here.path)) else { continue };
            for entry in entries.flatten() {
                let Ok(kind) = entry.file_type() else { continue };
                let place = here.place(entry.file_name().as_bytes());
                if kind.is_dir() {
                    directories.push(place.path.clone());
                }
                let kind = match kind {
                    kind if kind.is_dir() => libc::S_IFDIR,
                    kind if kind.is_file() => libc::S_IFREG,
                    kind if kind.is_symlink() => libc::S_IFLNK,
                    _ => continue,
                };
                found(place, kind);
            }
        }
    }

    fn say_full(&mut self) {
        if !std::mem::replace(&mut self.said, true) {
            let count = self.places.len();
            eprintln!(
                "container-fileserver: notify: {count} directories are watched and no more can be \
                 (fs.inotify.max_user_watches, at most {MOST} for a container): changes in others \
                 raise no events"
            );
        }
    }

    /// A directory has another path, with all in it.
    pub fn moved(&mut self, from: &[u8], to: &[u8]) {
        for place in self.places.values_mut().flatten() {
            if is_in(&place.path, from) {
                place.path = [to, &place.path[from.len()..]].concat();
            }
        }
    }

    /// A directory has gone, with all in it.
    pub fn gone(&mut self, path: &[u8]) {
        let inotify = &self.inotify;
        self.places.retain(|watch, places| {
            places.retain(|place| !is_in(&place.path, path));
            if places.is_empty() {
                let _ = inotify::remove_watch(inotify, *watch);
            }
            !places.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_follow_their_directories() {
        let mut tree = Tree::new().unwrap();
        let watched = |path: &str| Watched { path: path.into(), inode: 1 };
        tree.places.insert(1, vec![watched("0/a"), watched("1")]);
        tree.places.insert(2, vec![watched("0/a/b")]);
        tree.places.insert(3, vec![watched("0/ab")]);
        tree.moved(b"0/a", b"0/c/d");
        assert_eq!(tree.of(1), [watched("0/c/d"), watched("1")]);
        assert_eq!(tree.of(2), [watched("0/c/d/b")]);
        assert_eq!(tree.of(3), [watched("0/ab")]);
        tree.gone(b"0/c/d");
        assert_eq!((tree.of(1), tree.of(2)), (vec![watched("1")], Vec::new()));
    }

    #[test]
    fn places_are_named_from_their_share() {
        let share = Watched { path: b"3".to_vec(), inode: 8 };
        assert!(share.is_share());
        assert_eq!(share.place(b""), Place { parent: 0, path: b"3".to_vec() });
        let place = share.place(b"x");
        assert_eq!(place, Place { parent: 8, path: b"3/x".to_vec() });
    }

    #[test]
    fn all_below_a_directory_is_watched_and_told_and_no_link_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().as_os_str().as_bytes()[1..].to_vec();
        fs::create_dir_all(directory.path().join("a/b")).unwrap();
        fs::write(directory.path().join("a/b/file"), "").unwrap();
        std::os::unix::fs::symlink("/", directory.path().join("link")).unwrap();
        let mut tree = Tree::new().unwrap();
        let mut found = Vec::new();
        tree.add(&path, &mut |place, kind| {
            found.push((String::from_utf8_lossy(place.name()).into_owned(), kind));
        });
        found.sort();
        let expected = [
            ("a", libc::S_IFDIR),
            ("b", libc::S_IFDIR),
            ("file", libc::S_IFREG),
            ("link", libc::S_IFLNK),
        ];
        assert_eq!(found, expected.map(|(name, kind)| (name.to_owned(), kind)));
        assert_eq!(tree.places.len(), 3);
    }
}
