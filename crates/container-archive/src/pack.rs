//! A tree to a tar stream. The tree may change meanwhile; what is no longer there is left out.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::entry::{Entry, Kind, Time};
use crate::write::header;
use crate::{ArchiveError, At, CHUNK, MAX_DEPTH, Result};

/// Longest extended attribute, and list of their names, that is taken along.
const MAX_XATTR: usize = 64 << 10;
/// `/proc`, sysfs, cgroup: no files, and no end.
const PSEUDO: [i64; 4] = [0x9fa0, 0x6265_6572, 0x6367_7270, 0x27_e0eb];
/// What overlayfs calls a whiteout: a character device of this number.
const WHITEOUT: (u32, u32) = (0, 0);
const OPAQUE: &CStr = c"trusted.overlay.opaque";

/// What is packed, and how.
#[derive(Clone, Copy, Debug)]
pub struct Packing {
    /// Which extended attributes go along.
    pub xattr: fn(&[u8]) -> bool,
    /// The tree is the upper directory of an overlay: its whiteouts become a layer's.
    pub layer: bool,
    /// Paths, relative to the top, that are left out when they are empty.
    pub leave_out: &'static [&'static str],
}

/// Writes `name` in `parent`, which is no link that is followed, and all below it. Entries are
/// named `called` and `called/…`.
///
/// # Errors
/// What can't be read, and a stream that breaks.
pub fn pack_path(
    out: &mut impl Write,
    parent: BorrowedFd<'_>,
    name: &CStr,
    called: &[u8],
    packing: Packing,
) -> Result<()> {
    let mut packer = Packer::new(out, packing);
    packer.path.extend_from_slice(called);
    if !packer.node(parent, name, 0)? {
        return Err(Errno::NOENT).at("read", name.to_bytes());
    }
    packer.finish()
}

/// Writes what is in a directory, named relative to it.
///
/// # Errors
/// As [`pack_path`].
pub fn pack_children(out: &mut impl Write, top: BorrowedFd<'_>, packing: Packing) -> Result<()> {
    let mut packer = Packer::new(out, packing);
    let top = open_directory(top, c".").at("open", b"/")?;
    packer.children(&top, 0)?;
    packer.finish()
}

struct Packer<'a, W> {
    out: &'a mut W,
    packing: Packing,
    /// Where we are; entries are named so.
    path: Vec<u8>,
    /// First names of files that have several, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

fn open_directory(parent: impl AsFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// The names in a directory, sorted.
pub fn names(directory: impl AsFd) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Whether this is overlayfs's mark for something that is gone.
pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == WHITEOUT
}

/// Whether a directory of an overlay's upper hides what is below it.
pub fn is_opaque(directory: impl AsFd) -> bool {
    let mut value = [0u8; 4];
    rustix::fs::fgetxattr(directory, OPAQUE, &mut value).is_ok_and(|n| &value[..n] == b"y")
}

/// Whether something is there only because something was mounted on it.
pub fn is_left_out(list: &[&str], path: &[u8], stat: &Stat, empty: impl FnOnce() -> bool) -> bool {
    list.iter().any(|name| name.as_bytes() == path)
        && match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => stat.st_size == 0,
            FileType::Directory => empty(),
            _ => false,
        }
}

impl<'a, W: Write> Packer<'a, W> {
    fn new(out: &'a mut W, packing: Packing) -> Self {
        Packer { out, packing, path: Vec::new(), links: HashMap::new(), buffer: Vec::new() }
    }

    fn finish(&mut self) -> Result<()> {
        self.put(&[0; 1024])?;
        self.out.flush().map_err(ArchiveError::Stream)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(ArchiveError::Stream)
    }

    /// Writes what `name` is; false when it is not there any more.
    fn node(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<bool> {
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            other => other.at("look at", &self.path)?,
        };
        if self.packing.layer && is_whiteout(&stat) {
            self.whiteout(name.to_bytes())?;
            return Ok(true);
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return self.directory(parent, name, depth),
            FileType::RegularFile => return self.file(parent, name),
            FileType::Symlink => {
                let link = match rustix::fs::readlinkat(parent, name, Vec::new()) {
                    Err(Errno::NOENT) => return Ok(false),
                    other => other.at("read the link", &self.path)?,
                };
                let mut entry = self.entry(Kind::Symlink, &stat);
                entry.link = link.into_bytes();
                self.linked(entry, &stat)?;
            }
            // A socket means nothing without its process.
            FileType::Socket | FileType::Unknown => {}
            other => {
                let kind = match other {
                    FileType::CharacterDevice => Kind::CharDevice,
                    FileType::BlockDevice => Kind::BlockDevice,
                    _ => Kind::Fifo,
                };
                self.linked(self.entry(kind, &stat), &stat)?;
            }
        }
        Ok(true)
    }

    fn entry(&self, kind: Kind, stat: &Stat) -> Entry {
        let mut entry = Entry::new(self.path.clone(), kind);
        entry.mode = stat.st_mode & 0o7777;
        (entry.uid, entry.gid) = (stat.st_uid, stat.st_gid);
        entry.mtime = Time {
            seconds: stat.st_mtime,
            nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        };
        if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            entry.device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        }
        entry
    }

    /// Writes a header: the file's own, or where its first name is.
    fn linked(&mut self, mut entry: Entry, stat: &Stat) -> Result<bool> {
        if stat.st_nlink > 1 {
            let known = self.links.entry((stat.st_dev, stat.st_ino));
            match known {
                std::collections::hash_map::Entry::Occupied(first) => {
                    entry.kind = Kind::HardLink;
                    entry.link = first.get().clone();
                    (entry.size, entry.device) = (0, (0, 0));
                    entry.xattrs.clear();
                }
                std::collections::hash_map::Entry::Vacant(none) => {
                    none.insert(entry.path.clone());
                }
            }
        }
        self.put(&header(&entry))?;
        Ok(entry.kind == Kind::HardLink)
    }

    fn whiteout(&mut self, name: &[u8]) -> Result<()> {
        let cut = self.path.len() - name.len();
        let path = [&self.path[..cut], b".wh.", name].concat();
        self.put(&header(&Entry::new(path, Kind::File)))
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<bool> {
        let directory = match open_directory(parent, name) {
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => return Ok(false),
            other => other.at("open", &self.path)?,
        };
        let stat = rustix::fs::fstat(&directory).at("look at", &self.path)?;
        let empty = || names(&directory).is_ok_and(|names| names.is_empty());
        if is_left_out(self.packing.leave_out, &self.path, &stat, empty) {
            return Ok(true);
        }
        let mut entry = self.entry(Kind::Directory, &stat);
        entry.xattrs = self.xattrs(&directory)?;
        self.put(&header(&entry))?;
        if self.packing.layer && is_opaque(&directory) {
            let path = [&self.path[..], b"/.wh..wh..opq"].concat();
            self.put(&header(&Entry::new(path, Kind::File)))?;
        }
        let kind = rustix::fs::fstatfs(&directory).at("look at", &self.path)?.f_type;
        if !PSEUDO.contains(&(kind as i64)) {
            self.children(&directory, depth + 1)?;
        }
        Ok(true)
    }

    fn children(&mut self, directory: &OwnedFd, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            let message = format!("more than {MAX_DEPTH} directories are inside of each other");
            return Err(ArchiveError::Refused(message));
        }
        for name in names(directory).at("list", &self.path)? {
            let len = self.path.len();
            if len > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name.to_bytes());
            self.node(directory.as_fd(), &name, depth)?;
            self.path.truncate(len);
        }
        Ok(())
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<bool> {
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::LOOP) => return Ok(false),
            other => other.at("open", &self.path)?,
        };
        let stat = rustix::fs::fstat(&file).at("look at", &self.path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            // Something else has taken its place just now.
            return Ok(false);
        }
        if is_left_out(self.packing.leave_out, &self.path, &stat, || false) {
            return Ok(true);
        }
        let mut entry = self.entry(Kind::File, &stat);
        entry.size = u64::try_from(stat.st_size).unwrap_or(0);
        entry.xattrs = self.xattrs(&file)?;
        let size = entry.size;
        if !self.linked(entry, &stat)? {
            self.data(&file, size)?;
        }
        Ok(true)
    }

    /// Exactly `size` bytes: a file that shrinks meanwhile ends in zeros.
    fn data(&mut self, file: &OwnedFd, size: u64) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(CHUNK, 0);
        let mut left = size;
        let mut at_end = false;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let n = match at_end {
                false => rustix::io::read(file, &mut buffer[..most]),
                true => Ok(0),
            };
            let n = match n {
                Err(Errno::INTR) => continue,
                other => other.at("read", &self.path)?,
            };
            let n = match n {
                0 => {
                    at_end = true;
                    buffer[..most].fill(0);
                    most
                }
                n => n,
            };
            self.put(&buffer[..n])?;
            left -= n as u64;
        }
        let padding = (size.wrapping_neg() % 512) as usize;
        self.put(&[0; 512][..padding])?;
        self.buffer = buffer;
        Ok(())
    }

    fn xattrs(&mut self, file: &OwnedFd) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut list = vec![0u8; 0];
        let needed = match rustix::fs::flistxattr(file, &mut list) {
            // File systems without them, and files that are none of ours.
            Err(_) | Ok(0) => return Ok(Vec::new()),
            Ok(n) => n.min(MAX_XATTR),
        };
        list.resize(needed, 0);
        let Ok(len) = rustix::fs::flistxattr(file, &mut list[..]) else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for name in list[..len].split(|b| *b == 0).filter(|name| !name.is_empty()) {
            if self.packing.layer && matches!(name, REDIRECT | METACOPY) {
                let path = crate::shown(&self.path);
                let message = format!("{path} was moved by overlayfs in a way no layer can say");
                return Err(ArchiveError::Refused(message));
            }
            if !(self.packing.xattr)(name) {
                continue;
            }
            let mut value = vec![0u8; MAX_XATTR];
            if let Ok(len) = rustix::fs::fgetxattr(file, name, &mut value[..]) {
                value.truncate(len);
                found.push((name.to_vec(), value));
            }
        }
        Ok(found)
    }
}

const REDIRECT: &[u8] = b"trusted.overlay.redirect";
const METACOPY: &[u8] = b"trusted.overlay.metacopy";
