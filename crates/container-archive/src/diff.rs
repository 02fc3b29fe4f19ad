//! What a container has changed, from the upper directory of its overlay.

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::pack::{is_left_out, is_opaque, is_whiteout, names};
use crate::{ArchiveError, At, MAX_DEPTH, Result};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// `A`, `C` or `D`: added, changed, deleted.
    pub kind: u8,
    /// Where, from the root, with `/` before it.
    pub path: Vec<u8>,
}

/// The bytes of a list of changes, as [`diff`] writes it: a letter and a path each, ended by a
/// zero byte. What is no such thing is left out.
pub fn records(bytes: &[u8]) -> Vec<Change> {
    let known = |kind: u8| matches!(kind, b'A' | b'C' | b'D');
    let records = bytes.split(|b| *b == 0).filter_map(|record| record.split_first());
    let changes = records.filter(|(kind, _)| known(**kind));
    changes.map(|(kind, path)| Change { kind: *kind, path: path.to_vec() }).collect()
}

/// Writes the changes that `upper` makes to `lower`; `leave_out` as in packing.
///
/// # Errors
/// What can't be read, and a stream that breaks.
pub fn diff(
    out: &mut impl Write,
    upper: BorrowedFd<'_>,
    lower: BorrowedFd<'_>,
    leave_out: &[&str],
) -> Result<()> {
    let mut walk = Walk { out, path: Vec::new(), leave_out };
    walk.children(upper, Some(lower), false, 0)?;
    walk.out.flush().map_err(ArchiveError::Stream)
}

struct Walk<'a, W> {
    out: &'a mut W,
    path: Vec<u8>,
    leave_out: &'a [&'a str],
}

fn open(parent: impl AsFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

impl<W: Write> Walk<'_, W> {
    fn tell(&mut self, kind: u8) -> Result<()> {
        let record = [&[kind, b'/'], &self.path[..], &[0]].concat();
        self.out.write_all(&record).map_err(ArchiveError::Stream)
    }

    /// `opaque`: nothing of `lower` shows through. Returns whether anything was told.
    fn children(
        &mut self,
        upper: BorrowedFd<'_>,
        lower: Option<BorrowedFd<'_>>,
        opaque: bool,
        depth: usize,
    ) -> Result<bool> {
        if depth > MAX_DEPTH {
            let message = format!("more than {MAX_DEPTH} directories are inside of each other");
            return Err(ArchiveError::Refused(message));
        }
        let mut all = names(upper).at("list", &self.path)?;
        if opaque && let Some(lower) = lower {
            all.extend(names(lower).at("list", &self.path)?);
            all.sort();
            all.dedup();
        }
        let mut told = false;
        for name in all {
            let len = self.path.len();
            if len > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name.to_bytes());
            told |= self.node(upper, lower, &name, depth)?;
            self.path.truncate(len);
        }
        Ok(told)
    }

    fn node(
        &mut self,
        upper: BorrowedFd<'_>,
        lower: Option<BorrowedFd<'_>>,
        name: &CStr,
        depth: usize,
    ) -> Result<bool> {
        let stat = |directory: BorrowedFd<'_>| {
            rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
        };
        let before = lower.and_then(|lower| stat(lower).ok());
        let now = match stat(upper) {
            Ok(now) if !is_whiteout(&now) => now,
            Ok(_) | Err(Errno::NOENT) => {
                if before.is_some() {
                    self.tell(b'D')?;
                }
                return Ok(before.is_some());
            }
            Err(errno) => return Err(errno).at("look at", &self.path),
        };
        let kind = if before.is_some() { b'C' } else { b'A' };
        if FileType::from_raw_mode(now.st_mode) != FileType::Directory {
            if is_left_out(self.leave_out, &self.path, &now, || false) {
                return Ok(false);
            }
            self.tell(kind)?;
            return Ok(true);
        }
        let directory = open(upper, name).at("open", &self.path)?;
        let names_inside = names(&directory).at("list", &self.path)?;
        if is_left_out(self.leave_out, &self.path, &now, || names_inside.is_empty()) {
            return Ok(false);
        }
        let below = lower.and_then(|lower| open(lower, name).ok());
        // A directory comes before what is in it, but is told only when that is worth a line.
        let only_places = kind == b'C' && !names_inside.is_empty() && {
            let mut all = true;
            for inside in &names_inside {
                let path = [&self.path[..], b"/", inside.to_bytes()].concat();
                let stat = rustix::fs::statat(&directory, inside, AtFlags::SYMLINK_NOFOLLOW);
                let empty = || {
                    open(&directory, inside).is_ok_and(|d| names(&d).is_ok_and(|n| n.is_empty()))
                };
                all &= stat.is_ok_and(|stat| is_left_out(self.leave_out, &path, &stat, empty));
            }
            all
        };
        if only_places {
            return Ok(false);
        }
        self.tell(kind)?;
        let opaque = below.is_some() && is_opaque(&directory);
        self.children(directory.as_fd(), below.as_ref().map(AsFd::as_fd), opaque, depth + 1)?;
        Ok(true)
    }
}
