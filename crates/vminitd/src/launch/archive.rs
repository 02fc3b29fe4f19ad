//! A child that copies files: outside of the container's PID namespace, so that no program of the
//! container sees it, and outside of its cgroup, whose limits are not its own.

use super::mounts::{depth, lay_mount, path_of};
use super::stdio::ChildEnds;
use super::{Container, Launched, Volumes, child, sources, stdio};
use crate::block::Disks;
use crate::failure::{Context, Failure};
use crate::files::write_kernel;
use crate::root::ROOT;
use crate::{archive, sys};
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{chdir, chroot, pipe2};
use std::os::fd::OwnedFd;
use vminitd_protocol::message::ErrorCode::{Exhausted, InvalidState};
use vminitd_protocol::message::{Archive, ArchiveWork, MountSpec, ProcessSpec};

/// Starts the work; with a `container` where that one's mounts are, else in the mounted root with
/// the disks that the request names.
pub fn start(
    container: Option<&Container>,
    disks: &mut Disks,
    request: &Archive,
    work: &ArchiveWork,
) -> Result<Launched, Failure> {
    let spec = ProcessSpec { stdio: request.stdio, ..ProcessSpec::default() };
    let (theirs, ends) = stdio::create(&spec)?;
    let (report, report_end) =
        pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).context(Exhausted, || "create a pipe")?;
    let inside = archive::is_inside(work);
    let place = match container {
        Some(container) if inside => Place::Container(container),
        None if inside && !request.mounts.is_empty() => {
            Place::Mounts(&request.mounts, Volumes::default().take(&request.mounts, disks)?)
        }
        _ => Place::Root,
    };
    match sys::fork(0, None).context(Exhausted, || "create a process")? {
        sys::Forked::Child => {
            drop((report, ends));
            child::run_archive(report_end, |report_end| {
                begin(&place, &theirs, report_end)?;
                Ok(move || match place {
                    Place::Container(_) => archive::run(work, "/", false),
                    Place::Mounts(mounts, _) => {
                        let code = archive::run(work, "/", true);
                        unmount(mounts);
                        code
                    }
                    Place::Root => archive::run(work, ROOT, true),
                })
            })
        }
        sys::Forked::Parent { pid, pidfd } => Ok(Launched { pid, pidfd, report, ends }),
    }
}

/// Where files are read and written.
enum Place<'a> {
    /// Where a container is.
    Container(&'a Container),
    /// In the mounted root.
    Root,
    /// The same, with trees mounted in it.
    Mounts(&'a [MountSpec], Vec<OwnedFd>),
}

fn begin(place: &Place<'_>, stdio: &ChildEnds, report_end: &OwnedFd) -> Result<(), Failure> {
    child::take_stdio(stdio)?;
    // PID 1 is protected; this is the first to go.
    write_kernel("/proc/self/oom_score_adj", "1000").internal("set oom_score_adj")?;
    match place {
        Place::Root => {}
        Place::Container(container) => setns(&container.pidfd, CloneFlags::CLONE_NEWNS)
            .context(InvalidState, || "join the container's mounts")?,
        Place::Mounts(mounts, trees) => enter_root(mounts, trees)?,
    }
    child::detach_from_parent(report_end, report_end)
}

/// Makes `/` the mounted root, with volumes in it, for this process alone.
fn enter_root(mounts: &[MountSpec], trees: &[OwnedFd]) -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWNS).internal("create a mount namespace")?;
    let trees = sources::open(mounts, trees)?;
    chroot(ROOT).internal("change the root")?;
    chdir("/").internal("enter the new root")?;
    let mut mounts: Vec<_> = mounts.iter().zip(trees).collect();
    mounts.sort_by_key(|(mount, _)| depth(path_of(&mount.path)));
    mounts.iter().try_for_each(|(mount, tree)| lay_mount(mount, tree))
}

/// In order, since the VM may end at once: a volume that was not unmounted can't be read without
/// being written to.
fn unmount(mounts: &[MountSpec]) {
    let mut paths: Vec<_> = mounts.iter().map(|mount| path_of(&mount.path)).collect();
    paths.sort_by_key(|path| std::cmp::Reverse(depth(path)));
    for path in paths {
        let _ = umount2(path, MntFlags::empty());
    }
}
