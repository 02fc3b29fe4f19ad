//! Block volumes: a disk with an ext4, of which the container sees the directory `data`.
//!
//! ```text
//! PID 1:          serial ─► device ─► cache dropped ─► mounted at the stage
//! first process:  a copy of that mount ─► filled ─► detached tree of `data`
//!                                 (when it is empty and the image has files there)
//! ```
//! The container's cgroup may open no disk, so PID 1 mounts them. The rest is done by the first
//! process on its way, in its own namespaces and before the root is changed: a large copy holds
//! nobody else up, and what goes wrong is its failure.

use crate::block::{self, Disks};
use crate::failure::{Context, Failure};
use crate::root::ROOT;
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use std::ffi::{CString, OsStr};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use vminitd_protocol::message::ErrorCode::Mount;
use vminitd_protocol::message::{DiskSource, MountSource, MountSpec};

/// Where volumes are mounted while they are looked at, each at its serial number.
const STAGE: &str = "/run/volumes";
/// What of a volume's file system the container sees: `lost+found` is beside it.
const DATA: &str = "data";

/// Volumes that PID 1 has mounted, for a process that is made meanwhile; unmounted here on drop.
#[derive(Debug, Default)]
pub struct Staged(Vec<PathBuf>);

impl Staged {
    /// Mounts the disks among `mounts`.
    pub fn mount(mounts: &[MountSpec]) -> Result<Staged, Failure> {
        let (mut staged, mut disks) = (Staged::default(), Disks::default());
        for mount in mounts {
            let Some(MountSource::Disk(disk)) = &mount.source else { continue };
            let device = disks.find(&disk.serial)?;
            // What is behind it was another file when the kernel looked last.
            block::drop_cache(&device)?;
            let place = Path::new(STAGE).join(&disk.serial);
            fs::create_dir_all(&place).context(Mount, || "make a place for volumes")?;
            mount_disk(&device, &place, mount.read_only)?;
            staged.0.push(place);
        }
        Ok(staged)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        for place in &self.0 {
            let _ = umount2(place, MntFlags::MNT_DETACH);
        }
    }
}

/// The tree of a volume that is staged, filled with what the image has at `path` when that is asked
/// for.
pub fn open_disk(source: &DiskSource, path: &[u8], read_only: bool) -> Result<OwnedFd, Failure> {
    let place = Path::new(STAGE).join(&source.serial);
    let tree = take(source, &place.join(DATA), path, read_only);
    let unmounted = umount2(&place, MntFlags::MNT_DETACH);
    let tree = tree?;
    unmounted.context(Mount, || "unmount the staged volume")?;
    Ok(tree)
}

fn mount_disk(device: &Path, place: &Path, read_only: bool) -> Result<(), Failure> {
    // As the upper disk; the journal's mode is in the superblock.
    let options = "discard,noinit_itable,no_prefetch_block_bitmaps";
    let mut flags = MsFlags::MS_NODEV;
    flags.set(MsFlags::MS_RDONLY, read_only);
    match mount(Some(device), place, Some("ext4"), flags, Some(options)) {
        Ok(()) => Ok(()),
        Err(Errno::EROFS) if read_only => Err(Failure::new(
            Mount,
            "a volume was not unmounted in order, and needs its journal replayed: \
             mount it writable once",
        )),
        Err(errno) => Err(errno).context(Mount, || "mount a volume: its file may be damaged"),
    }
}

fn take(
    source: &DiskSource,
    data: &Path,
    path: &[u8],
    read_only: bool,
) -> Result<OwnedFd, Failure> {
    if source.copy && !read_only {
        fill(path, data)?;
    }
    let data = CString::new(data.as_os_str().as_bytes())
        .map_err(|_| Failure::invalid("a NUL byte in a serial number"))?;
    sys::open_tree(&data).context(Mount, || "pick a volume up: its file may be damaged")
}

/// Copies what the image has at `path`, if the volume is empty.
pub fn fill(path: &[u8], to: &Path) -> Result<(), Failure> {
    let empty = fs::read_dir(to).and_then(|mut entries| entries.next().transpose());
    if empty.context(Mount, || "look into a volume: its file may be damaged")?.is_some() {
        return Ok(());
    }
    let Some(image) = directory_in_root(path)? else { return Ok(()) };
    let from = PathBuf::from(format!("/proc/self/fd/{}/.", image.as_raw_fd()));
    super::tree::copy(&from, to).context(Mount, || "fill a volume with the image's files")
}

/// The directory that the container will find at a path before anything is mounted there.
fn directory_in_root(path: &[u8]) -> Result<Option<OwnedFd>, Failure> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let root = open(ROOT, flags, Mode::empty()).context(Mount, || "open the container's root")?;
    let below = Path::new(OsStr::from_bytes(path));
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    match openat2(&root, below, how) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno).context(Mount, || format!("open {}", below.display())),
    }
}
