//! Block volumes: a disk with an ext4, of which the container sees the directory `data`.
//!
//! ```text
//! PID 1:          serial ─► device ─► cache dropped ─► mounted ─► detached tree of `data`
//! first process:                                                   that ─► filled
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
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use vminitd_protocol::message::ErrorCode::Mount;
use vminitd_protocol::message::{MountSource, MountSpec};

/// Where a volume is mounted while its tree is taken.
const STAGE: &str = "/run/volume";
/// What of a volume's file system the container sees: `lost+found` is beside it.
const DATA: &str = "data";

/// The trees of the disks among `mounts`, in their order. A volume is mounted as long as its tree
/// is open or mounted somewhere.
pub fn take(mounts: &[MountSpec], disks: &mut Disks) -> Result<Vec<OwnedFd>, Failure> {
    let mut trees = Vec::new();
    for mount in mounts {
        let Some(MountSource::Disk(disk)) = &mount.source else { continue };
        let device = disks.find(&disk.serial)?;
        // What is behind it was another file when the kernel looked last.
        block::drop_cache(&device)?;
        let stage = Path::new(STAGE);
        fs::create_dir_all(stage).context(Mount, || "make a place for volumes")?;
        mount_disk(&device, stage, mount)?;
        let tree = open_data(stage);
        let unmounted = umount2(stage, MntFlags::MNT_DETACH);
        trees.push(tree?);
        unmounted.context(Mount, || "unmount the staged volume")?;
    }
    Ok(trees)
}

/// A detached tree of what the container sees of a volume.
fn open_data(stage: &Path) -> Result<OwnedFd, Failure> {
    let what = || "pick a volume up: its file may be damaged";
    let data = stage.join(DATA);
    // A link there would lead out of the volume.
    if !fs::symlink_metadata(&data).context(Mount, what)?.is_dir() {
        return Err(Failure::new(Mount, format!("{}: there is no directory in it", what())));
    }
    let data = CString::new(data.as_os_str().as_bytes()).expect("no NUL in a constant");
    sys::open_tree(&data).context(Mount, what)
}

/// Fills the tree of a volume with what the image has at `path`, if it is empty.
pub fn fill_tree(path: &[u8], tree: BorrowedFd<'_>) -> Result<(), Failure> {
    fill(path, &PathBuf::from(format!("/proc/self/fd/{}/.", tree.as_raw_fd())))
}

fn mount_disk(device: &Path, place: &Path, spec: &MountSpec) -> Result<(), Failure> {
    let at = String::from_utf8_lossy(&spec.path);
    // As the upper disk; the journal's mode is in the superblock.
    let options = "discard,noinit_itable,no_prefetch_block_bitmaps";
    let mut flags = MsFlags::MS_NODEV;
    flags.set(MsFlags::MS_RDONLY, spec.read_only);
    match mount(Some(device), place, Some("ext4"), flags, Some(options)) {
        Ok(()) => Ok(()),
        Err(Errno::EROFS) if spec.read_only => {
            let message = format!(
                "the volume at {at} was not unmounted in order, and needs its journal replayed: \
                 mount it writable once"
            );
            Err(Failure::new(Mount, message))
        }
        Err(errno) => Err(errno)
            .context(Mount, || format!("mount the volume at {at}: its file may be damaged")),
    }
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
