//! Where a copy comes from and where it goes, by Docker's rules.
//!
//! | the source is | the destination is | it becomes |
//! |---|---|---|
//! | a file | missing, its parent is there | that file |
//! | a file | missing, written with `/` at its end | refused |
//! | a file | a file | that file, anew |
//! | a file | a directory | a file in it, of the source's name |
//! | a directory | missing, its parent is there | that directory |
//! | a directory | a file | refused |
//! | a directory | a directory | a directory in it, of the source's name |
//! | a directory written `DIR/.` | a directory | merged with it |

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::{ArchiveError, At, Result, shown};

/// Links in a row that are followed.
const MAX_LINKS: usize = 40;

/// How often a path is looked up that changes meanwhile.
const MAX_RACES: usize = 1000;

/// How a path that somebody wrote is looked up.
#[derive(Clone, Copy, Debug)]
pub enum View<'a> {
    /// As the caller's own paths are.
    Host,
    /// Below this directory, which is the root: absolute links and `..` end there.
    Root(BorrowedFd<'a>),
}

/// What is to be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its last name; empty where only what is in it is copied.
    pub name: Vec<u8>,
    /// It is a directory.
    pub directory: bool,
}

impl Source {
    /// The name that a copy of what `path` says gets; empty where it says what is in a directory.
    pub fn name_of(path: &[u8]) -> Vec<u8> {
        let (_, last) = split(path);
        let contents = path == b"." || path.ends_with(b"/.");
        if contents || matches!(last, b"" | b"." | b"..") { Vec::new() } else { last.to_vec() }
    }
}

/// Where a copy goes.
#[derive(Debug)]
pub struct Place {
    /// Everything lands beneath this directory.
    pub base: OwnedFd,
    /// Under this name; empty: it is the directory itself.
    pub name: Vec<u8>,
}

/// A path in two: all but the last name, and the last name without slashes.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|b| *b != b'/').map_or(0, |at| at + 1);
    let path = &path[..end];
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..=at], &path[at + 1..]),
        None => (b".", path),
    }
}

fn says_directory(path: &[u8]) -> bool {
    let last = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    matches!(last, b"" | b"." | b"..")
}

impl View<'_> {
    fn open(self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        match self {
            View::Host => rustix::fs::openat(CWD, path, flags, Mode::empty()),
            View::Root(root) => {
                let rules = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
                let path = if path.is_empty() { b"." } else { path };
                for _ in 0..MAX_RACES {
                    match rustix::fs::openat2(root, path, flags, Mode::empty(), rules) {
                        // Something was moved while the kernel went upwards.
                        Err(Errno::AGAIN) => {}
                        outcome => return outcome,
                    }
                }
                Err(Errno::AGAIN)
            }
        }
    }

    fn directory(self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        self.open(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// The parent of what is to be read, its name there, and the name that its copy gets. A link
    /// at the end is followed with `follow`, and where the path says that it is a directory.
    ///
    /// # Errors
    /// When there is nothing of that name.
    pub fn source(self, path: &[u8], follow: bool) -> Result<(OwnedFd, CString, Source)> {
        let as_directory = says_directory(path);
        let name = Source::name_of(path);
        if as_directory {
            let found = self.directory(path).at("read", path)?;
            return Ok((found, c".".to_owned(), Source { name, directory: true }));
        }
        let path = if follow { self.follow(path)? } else { path.to_vec() };
        let (parent, last) = split(&path);
        let parent = self.directory(parent).at("read", &path)?;
        let last = c_name(last)?;
        let stat =
            rustix::fs::statat(&parent, &last, AtFlags::SYMLINK_NOFOLLOW).at("read", &path)?;
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        Ok((parent, last, Source { name, directory }))
    }

    /// A path whose last name is no link.
    fn follow(self, path: &[u8]) -> Result<Vec<u8>> {
        let mut path = path.to_vec();
        for _ in 0..MAX_LINKS {
            let (parent, last) = split(&path);
            let Ok(directory) = self.directory(parent) else { return Ok(path) };
            let Ok(link) = rustix::fs::readlinkat(&directory, c_name(last)?, Vec::new()) else {
                return Ok(path);
            };
            let link = link.into_bytes();
            path = if link.first() == Some(&b'/') { link } else { [parent, b"/", &link].concat() };
        }
        Err(Errno::LOOP).at("follow", &path)
    }

    /// Where a copy of `source` to `path` goes.
    ///
    /// # Errors
    /// Where Docker refuses.
    pub fn destination(self, path: &[u8], source: &Source) -> Result<Place> {
        let refused = |why: &str| ArchiveError::Refused(format!("{} {why}", shown(path)));
        match self.open(path, OFlags::PATH) {
            Ok(found) => {
                let stat = rustix::fs::fstat(&found).at("look at", path)?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => Ok(Place { base: found, name: source.name.clone() }),
                    FileType::RegularFile if source.directory => {
                        Err(refused("is a file: a directory can't be copied onto it"))
                    }
                    FileType::RegularFile => self.beside(path),
                    _ => Err(refused("is neither a file nor a directory")),
                }
            }
            Err(Errno::NOENT) if says_directory(path) && !source.directory => {
                Err(refused("does not exist: a file is copied into a directory that exists"))
            }
            Err(Errno::NOENT) => self.beside(path),
            Err(errno) => Err(errno).at("open", path),
        }
    }

    /// A directory that is there, for a stream whose entries have names of their own.
    ///
    /// # Errors
    /// When there is none.
    pub fn existing(self, path: &[u8]) -> Result<Place> {
        let base = self.directory(path).at("open the directory", path)?;
        Ok(Place { base, name: Vec::new() })
    }

    fn beside(self, path: &[u8]) -> Result<Place> {
        let path = self.follow(path)?;
        let (parent, name) = split(&path);
        if matches!(name, b"" | b"." | b"..") {
            return Err(Errno::NOENT).at("open", &path);
        }
        let base = self.directory(parent).at("open the directory of", &path)?;
        Ok(Place { base, name: name.to_vec() })
    }
}

fn c_name(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| ArchiveError::Refused("a zero byte is in a path".into()))
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.base.as_fd()
    }
}
