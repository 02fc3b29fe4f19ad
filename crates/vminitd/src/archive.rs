//! Copies of files, carried out by a child of PID 1 whose standard streams are the archive's.
//!
//! | work | sees |
//! |---|---|
//! | read, write; a program runs | the container's root, with all that is mounted in it |
//! | read, write; none runs | image and upper joined, with the container's volumes |
//! | export | image and upper joined, nothing mounted |
//! | diff, layer | the upper directory, and the image beside it |
//!
//! The files are hostile, and change meanwhile: see [`container_archive`].

use crate::cgroup;
use crate::root::{LOWER, UPPER_DIRECTORY};
use container_archive::{
    ArchiveError, Owner, Packing, Rules, Source, TarReader, Unpacker, View, diff, pack_children,
    pack_path,
};
use nix::unistd::sync;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use vminitd_protocol::message::{ArchiveWork, ReadArchive, WriteArchive};

/// What is in an upper directory only because something was mounted on it.
const MOUNT_POINTS: &[&str] =
    &["dev", "proc", "sys", "etc/hostname", "etc/hosts", "etc/resolv.conf"];

const FILES: Packing = Packing { xattr: is_taken, layer: false, leave_out: &[] };
const LAYER: Packing = Packing { xattr: is_taken, layer: true, leave_out: MOUNT_POINTS };

/// Extended attributes that go along.
fn is_taken(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name == b"security.capability"
}

/// Whether the work is done where the container's own mounts are.
pub fn is_inside(work: &ArchiveWork) -> bool {
    matches!(work, ArchiveWork::Read(_) | ArchiveWork::Write(_))
}

/// Does the work in `root`; `alone` says that no program of the container runs. The exit code.
pub fn run(work: &ArchiveWork, root: &str, alone: bool) -> i32 {
    match carry_out(work, root) {
        Ok(()) => {
            if matches!(work, ArchiveWork::Write(_)) && alone {
                // This VM may end at once.
                sync();
            }
            0
        }
        Err(error) => {
            let _ = io::stderr().write_all(error.line().as_bytes());
            1
        }
    }
}

fn carry_out(work: &ArchiveWork, root: &str) -> Result<(), ArchiveError> {
    let mut out = stream(io::stdout().as_fd())?;
    match work {
        ArchiveWork::Read(read) => read_archive(read, root, &mut out),
        ArchiveWork::Write(write) => write_archive(write, root),
        ArchiveWork::Export(_) => pack_children(&mut out, open(root)?.as_fd(), FILES),
        ArchiveWork::Diff(_) => {
            let (upper, lower) = (open(UPPER_DIRECTORY)?, open(LOWER)?);
            diff(&mut out, upper.as_fd(), lower.as_fd(), MOUNT_POINTS)
        }
        ArchiveWork::Layer(layer) => {
            if layer.pause {
                cgroup::freeze().map_err(|failure| ArchiveError::Refused(failure.to_string()))?;
            }
            pack_children(&mut out, open(UPPER_DIRECTORY)?.as_fd(), LAYER)
        }
    }
}

fn read_archive(read: &ReadArchive, root: &str, out: &mut File) -> Result<(), ArchiveError> {
    let root = open(root)?;
    let view = View::Root(root.as_fd());
    let (parent, name, source) = view.source(&read.path, read.follow_link)?;
    let called = if read.named && !source.name.is_empty() { &source.name[..] } else { b"." };
    pack_path(out, parent.as_fd(), &name, called, FILES)
}

fn write_archive(write: &WriteArchive, root: &str) -> Result<(), ArchiveError> {
    let mut reader = TarReader::new(stream(io::stdin().as_fd())?);
    let root = open(root)?;
    let view = View::Root(root.as_fd());
    let owner = if write.keep_owner { Owner::Kept } else { Owner::Is(0, 0) };
    let rules = Rules { owner, special_bits: true, devices: true, xattr: is_taken };
    let (place, first) = if write.named {
        (view.existing(&write.path)?, None)
    } else {
        let first = reader.next_entry()?.ok_or(ArchiveError::Damaged("it is empty"))?;
        let directory = first.kind == container_archive::Kind::Directory;
        let source = Source { name: write.name.clone(), directory };
        (view.destination(&write.path, &source)?, Some(first))
    };
    let done = Unpacker::new(place, rules).run(&mut reader, first).map(drop);
    if done.is_ok() {
        // Whoever writes is not to find a broken pipe after the archive's end.
        reader.drain();
    }
    done
}

/// A standard stream without a buffer.
fn stream(fd: std::os::fd::BorrowedFd<'_>) -> Result<File, ArchiveError> {
    fd.try_clone_to_owned().map(File::from).map_err(ArchiveError::Stream)
}

fn open(path: &str) -> Result<File, ArchiveError> {
    File::open(path).map_err(|source| ArchiveError::Io { what: format!("open {path}"), source })
}
