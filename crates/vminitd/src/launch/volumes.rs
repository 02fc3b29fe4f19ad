//! Block volumes: a disk with an ext4, of which the container sees the directory `data`.
//!
//! ```text
//! PID 1:          serial ─► device ─► cache dropped ─► mounted ─► detached tree of `data`
//! first process:                                                   that ─► filled
//!                                 (when it is empty and the image has files there)
//! ```
//! The container's cgroup may open no disk, so PID 1 mounts them: those that the host names with
//! the root on a thread beside it, for a mount takes an emulated processor some 8 ms, and the other
//! one has nothing to do. The rest is done by the first process on its way, in its own namespaces
//! and before the root is changed: a large copy holds nobody else up, and what goes wrong is its
//! failure.

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
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use vminitd_protocol::message::ErrorCode::Mount;
use vminitd_protocol::message::{MountSource, MountSpec};

/// Where a volume is mounted while its tree is taken.
const STAGE: &str = "/run/volume";
/// What of a volume's file system the container sees: `lost+found` is beside it.
const DATA: &str = "data";

/// Stack of the thread that mounts volumes, in bytes.
const STACK: usize = 256 << 10;

/// Volumes that were mounted with the root, for a start that is to come.
#[derive(Debug, Default)]
pub struct Volumes(Vec<(MountSpec, Result<OwnedFd, Failure>)>);

impl Volumes {
    /// Does `work`, and mounts volumes meanwhile. There is no thread before or after it: this
    /// program forks.
    pub fn beside<T>(
        mounts: &[MountSpec],
        disks: &mut Disks,
        work: impl FnOnce() -> T,
    ) -> (T, Volumes) {
        let found = |mount: &MountSpec| Some((mount.clone(), disks.find(serial(mount)?)));
        let found: Vec<_> = mounts.iter().filter_map(found).collect();
        if found.is_empty() {
            return (work(), Volumes::default());
        }
        let mount_all = || {
            let mount = |(mount, device): (MountSpec, Result<PathBuf, Failure>)| {
                let tree = device.and_then(|device| mount_one(&mount, &device));
                (mount, tree)
            };
            Volumes(found.into_iter().map(mount).collect())
        };
        thread::scope(|scope| {
            let builder = thread::Builder::new().stack_size(STACK);
            let mounting = builder.spawn_scoped(scope, mount_all);
            let done = work();
            // Without it the start does all.
            let mounted = mounting.ok().and_then(|thread| thread.join().ok());
            (done, mounted.unwrap_or_default())
        })
    }

    /// The trees of the disks among `mounts`, in their order. A volume is mounted as long as its
    /// tree is open or mounted somewhere.
    pub fn take(
        mut self,
        mounts: &[MountSpec],
        disks: &mut Disks,
    ) -> Result<Vec<OwnedFd>, Failure> {
        let mut trees = Vec::new();
        for mount in mounts {
            let Some(serial) = serial(mount) else { continue };
            trees.push(match self.0.iter().position(|(done, _)| done == mount) {
                Some(index) => self.0.swap_remove(index).1?,
                None => mount_one(mount, &disks.find(serial)?)?,
            });
        }
        Ok(trees)
    }

    /// Gives them up: the serial numbers of their disks, which are in use a moment longer.
    pub fn give_up(self) -> Vec<String> {
        self.0.iter().filter_map(|(mount, _)| serial(mount)).map(str::to_owned).collect()
    }
}

/// The serial number of a mount that is a disk.
pub fn serial(mount: &MountSpec) -> Option<&str> {
    match &mount.source {
        Some(MountSource::Disk(disk)) => Some(&disk.serial),
        _ => None,
    }
}

/// Mounts a volume; its tree.
fn mount_one(mount: &MountSpec, device: &Path) -> Result<OwnedFd, Failure> {
    // What is behind it was another file when the kernel looked last.
    block::drop_cache(device)?;
    let stage = Path::new(STAGE);
    fs::create_dir_all(stage).context(Mount, || "make a place for volumes")?;
    mount_disk(device, stage, mount)?;
    let tree = open_data(stage);
    let unmounted = umount2(stage, MntFlags::MNT_DETACH);
    let tree = tree?;
    // Read ahead: whoever fills it looks there.
    is_empty(&path_of_tree(tree.as_fd()))?;
    unmounted.context(Mount, || "unmount the staged volume")?;
    Ok(tree)
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
    fill(path, &path_of_tree(tree))
}

/// A directory that is open, by a path.
fn path_of_tree(tree: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/.", tree.as_raw_fd()))
}

fn is_empty(volume: &Path) -> Result<bool, Failure> {
    let first = fs::read_dir(volume).and_then(|mut entries| entries.next().transpose());
    Ok(first.context(Mount, || "look into a volume: its file may be damaged")?.is_none())
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
    if !is_empty(to)? {
        return Ok(());
    }
    let Some(image) = directory_in_root(path)? else { return Ok(()) };
    super::tree::copy(&path_of_tree(image.as_fd()), to)
        .context(Mount, || "fill a volume with the image's files")
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
