//! Namespaces, and a root that holds the shares alone.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use crate::args::{Args, Share};
use crate::ids::{self, Identities};
use crate::{Result, at, confine, hidden};

/// The number that the socket gets.
pub const SOCKET: RawFd = 3;
/// Where the new root is mounted until the pivot; every host has it, and a share that is in it was
/// opened before.
const STAGING: &str = "/dev";

const CLOSED: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// Moves the socket to its number and closes everything behind it.
pub fn keep_descriptor(socket: RawFd) -> Result<()> {
    // SAFETY: by value; what was at these numbers is the starter's, and unknown here.
    unsafe {
        if socket != SOCKET && libc::dup2(socket, SOCKET) < 0 {
            return Err(format!("the socket: {}", nix::errno::Errno::last()));
        }
        libc::fcntl(SOCKET, libc::F_SETFD, libc::FD_CLOEXEC);
        if libc::close_range(SOCKET as u32 + 1, u32::MAX, 0) < 0 {
            return Err(format!("close descriptors: {}", nix::errno::Errno::last()));
        }
    }
    die_with_parent()
}

/// SIGKILL when the thread that started this process ends.
pub fn die_with_parent() -> Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(at("prctl"))
}

/// Enters all of them; the pid namespace begins with the next process. Without root's rights a
/// user namespace in which root is the caller. The answer is who the server can be.
pub fn enter_namespaces() -> Result<Identities> {
    let identities = match nix::unistd::geteuid().is_root() {
        true => Identities::everybody(),
        false => ids::enter_user_namespace()?,
    };
    let all = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP
        | CloneFlags::CLONE_NEWPID;
    unshare(all).map_err(at("make namespaces"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(at("make / private"))?;
    Ok(identities)
}

/// The child, in the parent.
pub fn fork() -> Result<Option<Pid>> {
    // SAFETY: this process has one thread.
    match unsafe { nix::unistd::fork() }.map_err(at("fork"))? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Waits for the server, without the socket, whose last end is then the server's, and without any
/// privilege.
pub fn wait(child: Pid) -> Result<()> {
    confine::limit_capabilities(0)?;
    // SAFETY: by value; nothing else owns the descriptor in this process.
    unsafe { libc::close(SOCKET) };
    match waitpid(child, None).map_err(at("wait"))? {
        WaitStatus::Exited(_, 0) => Ok(()),
        // It has said why.
        WaitStatus::Exited(_, code) => std::process::exit(code),
        other => Err(format!("the server ended: {other:?}")),
    }
}

/// Makes the shares the root. The answer is the owner and the group of each, as the server sees
/// them.
pub fn build_root(args: &Args) -> Result<Vec<(u32, u32)>> {
    let trees = args.shares.iter().map(open).collect::<Result<Vec<_>>>()?;
    let parents = hidden::parents(&args.hidden);
    let options = Some("mode=755,size=1m");
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), STAGING, Some("tmpfs"), plain, options).map_err(at("mount the root"))?;
    for (i, ((tree, _), share)) in trees.iter().zip(&args.shares).enumerate() {
        let place = Path::new(STAGING).join(i.to_string());
        let made = match share.directory {
            true => fs::create_dir(&place),
            false => fs::File::create_new(&place).map(drop),
        };
        made.map_err(at("make a place for a share"))?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(tree, "", CWD, &place, flags)
            .map_err(at(format!("attach {}", share.source.display())))?;
    }
    for place in hidden::places(&parents, Path::new(STAGING))? {
        hide(&place)?;
    }
    let root = open_path(Path::new(STAGING))?;
    set_attributes(root.as_fd(), CLOSED | libc::MOUNT_ATTR_RDONLY, false)?;
    std::env::set_current_dir(STAGING).map_err(at("enter the root"))?;
    nix::unistd::pivot_root(".", ".").map_err(at("pivot_root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(at("leave the old root"))?;
    std::env::set_current_dir("/").map_err(at("enter the root"))?;
    Ok(trees.into_iter().map(|(_, owner)| owner).collect())
}

/// Opens a source anew in this mount namespace; refuses what is not what was checked. With it comes
/// whom it belongs to.
fn open(share: &Share) -> Result<(OwnedFd, (u32, u32))> {
    let shown = share.source.display();
    let source = open_path(&share.source)?;
    let found = fs::metadata(PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd())))
        .map_err(at(format!("look at {shown}")))?;
    if (found.dev(), found.ino()) != share.identity || found.is_dir() != share.directory {
        return Err(format!("{shown} is another file than the one that was checked"));
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree =
        rustix::mount::open_tree(&source, "", flags).map_err(at(format!("clone {shown}")))?;
    let read_only = if share.read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    set_attributes(tree.as_fd(), CLOSED | read_only, true)
        .map_err(|error| format!("{shown}: {error}"))?;
    Ok((tree, (found.uid(), found.gid())))
}

fn open_path(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(at(format!("open {}", path.display())))
}

/// Mounts nothing over a directory.
fn hide(place: &Path) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_RDONLY;
    mount(Some("tmpfs"), place, Some("tmpfs"), flags, Some("mode=555,size=4k"))
        .map_err(at(format!("hide {}", place.display())))
}

/// Adds attributes to a mount, and with `all` to those below it. Unlike a remount this can't lose
/// flags that the host has locked.
fn set_attributes(mount: BorrowedFd<'_>, attributes: u64, all: bool) -> Result<()> {
    let attr = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let recursive = if all { libc::AT_RECURSIVE as u32 } else { 0 };
    // SAFETY: the kernel reads `attr`, whose size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            AtFlags::EMPTY_PATH.bits() | recursive,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(format!("mount attributes: {}", nix::errno::Errno::last())),
    }
}
