//! The jail's file system: an empty tmpfs with read-only binds of single
//! files, and the shared files that exist only as descriptors.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::libc;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use crate::args::Args;
use crate::at;
use crate::descriptors;
use crate::error::{Error, Step};
use crate::process::last_errno;

/// Where the new root is mounted until the pivot. Every host has it, and
/// nothing in it is needed any more by then.
const STAGING: &str = "/dev";

const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
/// For device nodes: `nodev` would make them useless.
const DEVICE: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;

/// The device nodes of the jail.
fn devices(args: &Args) -> impl Iterator<Item = &Path> {
    let kvm = args.kvm.then_some(Path::new("/dev/kvm"));
    std::iter::once(Path::new("/dev/null")).chain(kvm)
}

/// Opens everything that will be bound, as the caller's uid: afterwards the
/// files of the caller may be out of reach. First the binds, then the devices.
pub fn open_sources(args: &Args) -> Result<Vec<OwnedFd>, Error> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|errno| Error::system(Step::Namespaces, "make / private", errno))?;
    let binds = args.binds.iter().map(|bind| detached(Step::Bind, &bind.source, READ_ONLY));
    let devices = devices(args).map(|path| detached(Step::Bind, path, DEVICE));
    binds.chain(devices).collect()
}

/// Opens each shared file for reading on a read-only mount and puts it at its
/// number. The mount is in no namespace, so nobody can make it writable.
pub fn open_shared(args: &Args) -> Result<(), Error> {
    for share in &args.shares {
        let path = share.source.display();
        let failed = |errno| Error::system(Step::Share, format!("{path}"), errno);
        let tree = detached(Step::Share, &share.source, READ_ONLY)?;
        let stat = rustix::fs::fstat(&tree).map_err(failed)?;
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        // A directory is a way out of a jail, so it goes to nobody who is in one.
        if !(kind.is_file() || kind.is_dir() && args.send.is_some()) {
            return Err(Error::Refused {
                step: Step::Share,
                what: format!("{path}: not a regular file"),
            });
        }
        let link = format!("/proc/self/fd/{}", tree.as_raw_fd());
        let file = rustix::fs::open(link, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed)?;
        descriptors::place_owned(file, share.fd, "place")?;
    }
    Ok(())
}

/// A clone of the mount at `path`, attached nowhere, with `attributes` set.
fn detached(step: Step, path: &Path, attributes: u64) -> Result<OwnedFd, Error> {
    let failed = |errno| Error::system(step, path.display().to_string(), errno);
    let tree = rustix::mount::open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .map_err(failed)?;
    set_attributes(tree.as_fd(), attributes).map_err(failed)?;
    Ok(tree)
}

/// Builds the root, moves into it and drops the host's.
pub fn build_and_enter(args: &Args, sources: &[OwnedFd]) -> Result<(), Error> {
    let root = new_root()?;
    let mut targets: Vec<&Path> = args.binds.iter().map(|bind| &*bind.target).collect();
    targets.extend(devices(args));
    make_directories(&root, &targets)?;
    for (source, target) in sources.iter().zip(&targets) {
        attach(&root, source, target)?;
    }
    mount_proc(&root)?;

    rustix::process::fchdir(&root).map_err(at(Step::Root))?;
    rustix::process::pivot_root(".", ".")
        .map_err(|errno| Error::system(Step::Root, "pivot_root", errno))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)
        .map_err(|errno| Error::system(Step::Root, "drop the host's root", errno))?;
    rustix::process::chdir("/").map_err(at(Step::Root))?;
    set_attributes(
        root.as_fd(),
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
    )
    .map_err(|errno| Error::system(Step::Root, "make / read-only", errno))
}

/// An empty tmpfs on the staging directory. It holds directories and empty
/// files alone, which need inodes and no block.
fn new_root() -> Result<OwnedFd, Error> {
    let failed = |what: &'static str| move |errno| Error::system(Step::Root, what, errno);
    let fs =
        rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("fsopen"))?;
    for (key, value) in [("size", "64k"), ("nr_inodes", "1k"), ("mode", "0755")] {
        rustix::mount::fsconfig_set_string(&fs, key, value).map_err(failed(key))?;
    }
    rustix::mount::fsconfig_create(&fs).map_err(failed("create tmpfs"))?;
    let root = rustix::mount::fsmount(
        &fs,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
    )
    .map_err(failed("mount tmpfs"))?;
    move_to(root.as_fd(), CWD, Path::new(STAGING)).map_err(failed("attach tmpfs"))?;
    Ok(root)
}

/// Makes the parents of all targets and /proc, each once, parents first.
fn make_directories(root: &OwnedFd, targets: &[&Path]) -> Result<(), Error> {
    let mut directories = BTreeSet::from([PathBuf::from("proc")]);
    for target in targets {
        for parent in inside(target).ancestors().skip(1) {
            if !parent.as_os_str().is_empty() {
                directories.insert(parent.to_path_buf());
            }
        }
    }
    for directory in directories {
        rustix::fs::mkdirat(root, &directory, Mode::from_raw_mode(0o755))
            .map_err(|errno| Error::system(Step::Root, directory.display().to_string(), errno))?;
    }
    Ok(())
}

fn attach(root: &OwnedFd, source: &OwnedFd, target: &Path) -> Result<(), Error> {
    let failed = |errno| Error::system(Step::Root, target.display().to_string(), errno);
    let target = inside(target);
    let file = rustix::fs::openat(
        root,
        target,
        OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o444),
    )
    .map_err(failed)?;
    drop(file);
    move_to(source.as_fd(), root.as_fd(), target).map_err(failed)
}

/// A fresh procfs that shows the jail's processes and nothing of the kernel.
fn mount_proc(root: &OwnedFd) -> Result<(), Error> {
    let failed = |what: &'static str| move |errno| Error::system(Step::Proc, what, errno);
    let fs =
        rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("fsopen"))?;
    rustix::mount::fsconfig_set_string(&fs, "subset", "pid").map_err(failed("subset"))?;
    rustix::mount::fsconfig_create(&fs).map_err(failed("create"))?;
    let proc = rustix::mount::fsmount(
        &fs,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
    .map_err(failed("mount (is the host's own /proc partly hidden?)"))?;
    move_to(proc.as_fd(), root.as_fd(), Path::new("proc")).map_err(failed("attach"))
}

fn move_to(tree: BorrowedFd<'_>, at: BorrowedFd<'_>, target: &Path) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", at, target, flags)
}

/// `/a/b` as a path relative to the root.
fn inside(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Adds attributes to one mount. Unlike a remount this can't lose flags that
/// the host has locked.
fn set_attributes(mount: BorrowedFd<'_>, attributes: u64) -> Result<(), Errno> {
    let attr = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the kernel reads `attr`, whose size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            AtFlags::EMPTY_PATH.bits(),
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}
