//! A tar stream to a tree, beneath a directory and nowhere else.
//!
//! A parent is opened beneath the base, through no link at all, also none that the archive made
//! before. What is in the way of a file is removed, not written through; only what can't be
//! removed, since something is mounted on it, is written in place. Directories get their modes and
//! times last.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::entry::{Entry, Kind};
use crate::place::Place;
use crate::read::TarReader;
use crate::{ArchiveError, At, CHUNK, MAX_DEPTH, Result, shown};

/// Most directories of an archive; each is remembered to its end.
const MAX_DIRECTORIES: usize = 4 << 20;

/// Whom files belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Whom the archive says.
    Kept,
    /// This user and group.
    Is(u32, u32),
    /// Who unpacks.
    Caller,
}

/// What an archive may do.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whom files belong to.
    pub owner: Owner,
    /// Set-id and sticky bits are kept.
    pub special_bits: bool,
    /// Devices are made; else they are left out.
    pub devices: bool,
    /// Extended attributes that are set.
    pub xattr: fn(&[u8]) -> bool,
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries.
    pub entries: u64,
    /// Bytes in files.
    pub bytes: u64,
    /// Devices that were left out.
    pub left_out: u64,
}

/// Unpacks one archive.
#[derive(Debug)]
pub struct Unpacker {
    place: Place,
    rules: Rules,
    /// The last parent: most entries have the one of the entry before.
    parent: Option<(Vec<u8>, OwnedFd)>,
    directories: Vec<(Vec<u8>, Entry)>,
    done: Unpacked,
    buffer: Vec<u8>,
}

/// A path in an archive without `.`, doubled and leading slashes.
fn clean(path: &[u8]) -> Result<Vec<u8>> {
    let mut clean = Vec::with_capacity(path.len());
    let mut depth = 0;
    for name in path.split(|b| *b == b'/').filter(|name| !matches!(*name, b"" | b".")) {
        depth += 1;
        if name == b".." {
            let message = format!("{} in the archive leads out of it", shown(path));
            return Err(ArchiveError::Refused(message));
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(name);
    }
    if depth > MAX_DEPTH {
        let message = format!("more than {MAX_DEPTH} directories are inside of each other");
        return Err(ArchiveError::Refused(message));
    }
    Ok(clean)
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.iter().rposition(|b| *b == b'/').map_or((b"", path), |at| (&path[..at], &path[at + 1..]))
}

fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}

impl Unpacker {
    /// Unpacks at `place`.
    pub fn new(place: Place, rules: Rules) -> Unpacker {
        Unpacker {
            place,
            rules,
            parent: None,
            directories: Vec::new(),
            done: Unpacked::default(),
            buffer: Vec::new(),
        }
    }

    /// Unpacks all of `reader`, after `first` where that was taken from it already.
    ///
    /// # Errors
    /// The first thing that can't be done; what was unpacked before stays.
    pub fn run<R: Read>(
        mut self,
        reader: &mut TarReader<R>,
        first: Option<Entry>,
    ) -> Result<Unpacked> {
        let mut next = match first {
            Some(first) => Some(first),
            None => reader.next_entry()?,
        };
        while let Some(entry) = next {
            self.entry(entry, reader)?;
            next = reader.next_entry()?;
        }
        self.parent = None;
        for (path, entry) in std::mem::take(&mut self.directories).into_iter().rev() {
            self.finish_directory(&path, &entry)?;
        }
        Ok(self.done)
    }

    /// The whole path of something in the archive, beneath the base.
    fn whole(&self, path: &[u8]) -> Result<Vec<u8>> {
        let path = clean(path)?;
        Ok(match (self.place.name.is_empty(), path.is_empty()) {
            (true, _) => path,
            (false, true) => self.place.name.clone(),
            (false, false) => [&self.place.name[..], b"/", &path].concat(),
        })
    }

    fn entry<R: Read>(&mut self, entry: Entry, reader: &mut TarReader<R>) -> Result<()> {
        let path = self.whole(&entry.path)?;
        if path.is_empty() {
            return match entry.kind {
                Kind::Directory => Ok(()),
                _ => Err(ArchiveError::Damaged("its top is no directory")),
            };
        }
        if !self.rules.devices && matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice) {
            self.done.left_out += 1;
            return Ok(());
        }
        self.done.entries += 1;
        let (parent, name) = split(&path);
        let parent = self.open_parent(parent)?;
        let outcome = match entry.kind {
            Kind::Directory => self.directory(&parent, name, &path, entry),
            kind => {
                let in_place = self.clear(&parent, name, &path)?;
                match (kind, in_place) {
                    (Kind::File, _) => self.file(&parent, name, &path, &entry, in_place, reader),
                    (_, true) => Err(Errno::BUSY).at("replace", &path),
                    _ => self.special(&parent, name, &path, &entry),
                }
            }
        };
        let (above, _) = split(&path);
        self.parent = Some((above.to_vec(), parent));
        outcome
    }

    fn open_parent(&mut self, path: &[u8]) -> Result<OwnedFd> {
        if let Some((cached, parent)) = self.parent.take()
            && cached == path
        {
            return Ok(parent);
        }
        match self.open_there(path) {
            Err(Errno::NOENT) => {}
            other => return other.at("open the directory", path),
        }
        // The archive leaves out what its entries are in.
        let (above, name) = split(path);
        let parent = self.open_parent(above)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from(0o755)) {
            Err(Errno::EXIST) => {}
            other => other.at("make the directory", path)?,
        }
        self.own(&parent, name, 0, 0, path)?;
        self.open_there(path).at("open the directory", path)
    }

    fn open_there(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = if path.is_empty() { b"." } else { path };
        rustix::fs::openat2(&self.place.base, path, flags, Mode::empty(), beneath())
    }

    fn open_again(&self, path: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::openat2(&self.place.base, path, flags, Mode::empty(), beneath());
        open.at("open the directory", path)
    }

    /// Makes room for something that is no directory; true when it has to be written in place.
    fn clear(&self, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<bool> {
        let there = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            other => other.at("look at", path)?,
        };
        if FileType::from_raw_mode(there.st_mode) == FileType::Directory {
            let message = format!("{} is a directory: no file can take its place", shown(path));
            return Err(ArchiveError::Refused(message));
        }
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Err(Errno::NOENT) | Ok(()) => Ok(false),
            Err(Errno::BUSY) => Ok(true),
            Err(errno) => Err(errno).at("replace", path),
        }
    }

    fn directory(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
        entry: Entry,
    ) -> Result<()> {
        match rustix::fs::mkdirat(parent, name, Mode::from(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let there = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
                let there = there.at("look at", path)?;
                if FileType::from_raw_mode(there.st_mode) != FileType::Directory {
                    let message =
                        format!("{} is no directory: none can take its place", shown(path));
                    return Err(ArchiveError::Refused(message));
                }
            }
            Err(errno) => return Err(errno).at("make the directory", path),
        }
        if self.directories.len() >= MAX_DIRECTORIES {
            return Err(ArchiveError::Damaged("it has too many directories"));
        }
        self.directories.push((path.to_vec(), entry));
        Ok(())
    }

    fn finish_directory(&self, path: &[u8], entry: &Entry) -> Result<()> {
        let directory = self.open_again(path)?;
        self.attributes(&directory, entry, path)
    }

    fn file<R: Read>(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
        in_place: bool,
        reader: &mut TarReader<R>,
    ) -> Result<()> {
        let how = if in_place { OFlags::TRUNC } else { OFlags::CREATE | OFlags::EXCL };
        let flags = how | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::openat(parent, name, flags, Mode::from(0o600)).at("create", path)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(CHUNK, 0);
        loop {
            let n = reader.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            let mut rest = &buffer[..n];
            while !rest.is_empty() {
                match rustix::io::write(&file, rest) {
                    Err(Errno::INTR) => {}
                    other => rest = &rest[other.at("write", path)?..],
                }
            }
            self.done.bytes += n as u64;
        }
        self.buffer = buffer;
        self.attributes(&file, entry, path)
    }

    fn special(&self, parent: &OwnedFd, name: &[u8], path: &[u8], entry: &Entry) -> Result<()> {
        let mode = self.mode(entry);
        match entry.kind {
            Kind::HardLink => return self.hard_link(parent, name, path, entry),
            Kind::Symlink => {
                rustix::fs::symlinkat(&entry.link[..], parent, name).at("make the link", path)?;
            }
            kind => {
                let kind = match kind {
                    Kind::CharDevice => FileType::CharacterDevice,
                    Kind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = rustix::fs::makedev(entry.device.0, entry.device.1);
                rustix::fs::mknodat(parent, name, kind, mode, device).at("make", path)?;
            }
        }
        self.own(parent, name, entry.uid, entry.gid, path)?;
        if entry.kind != Kind::Symlink {
            // Just made, and by nobody else: a link in its place would be a race that is lost.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = rustix::fs::openat(parent, name, flags, Mode::empty()).at("open", path)?;
            let stat = rustix::fs::fstat(&made).at("look at", path)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
                rustix::fs::chmodat(parent, name, mode, AtFlags::empty()).at("change", path)?;
            }
        }
        let times = times(entry);
        rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW).at("change", path)
    }

    fn hard_link(&self, parent: &OwnedFd, name: &[u8], path: &[u8], entry: &Entry) -> Result<()> {
        let target = self.whole(&entry.link)?;
        let (above, last) = split(&target);
        let from = self.open_there(above).at("find what is linked as", path)?;
        rustix::fs::linkat(&from, last, parent, name, AtFlags::empty()).at("link", path)
    }

    fn mode(&self, entry: &Entry) -> Mode {
        Mode::from(entry.mode & if self.rules.special_bits { 0o7777 } else { 0o777 })
    }

    fn owner(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        match self.rules.owner {
            Owner::Kept => Some((uid, gid)),
            Owner::Is(uid, gid) => Some((uid, gid)),
            Owner::Caller => None,
        }
    }

    fn own(&self, parent: &OwnedFd, name: &[u8], uid: u32, gid: u32, path: &[u8]) -> Result<()> {
        let Some((uid, gid)) = self.owner(uid, gid) else { return Ok(()) };
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .at("change the owner of", path)
    }

    /// Owner first: that takes set-id bits and capabilities away.
    fn attributes(&self, file: impl AsFd, entry: &Entry, path: &[u8]) -> Result<()> {
        if let Some((uid, gid)) = self.owner(entry.uid, entry.gid) {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::fchown(&file, uid, gid).at("change the owner of", path)?;
        }
        rustix::fs::fchmod(&file, self.mode(entry)).at("change the mode of", path)?;
        for (name, value) in &entry.xattrs {
            if !(self.rules.xattr)(name) || name.contains(&0) {
                continue;
            }
            let flags = rustix::fs::XattrFlags::empty();
            match rustix::fs::fsetxattr(&file, &name[..], value, flags) {
                // Not every file system has them.
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno).at("set an attribute of", path),
            }
        }
        rustix::fs::futimens(&file, &times(entry)).at("change the times of", path)
    }
}

fn times(entry: &Entry) -> Timestamps {
    let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let last_modification = Timespec {
        tv_sec: entry.mtime.seconds,
        tv_nsec: entry.mtime.nanoseconds.min(999_999_999).into(),
    };
    Timestamps { last_access: omit, last_modification }
}
