//! Starting a process: the container's first, in new namespaces, or one more
//! that joins them.
//!
//! ```text
//! PID 1                                   child (clone3, in the cgroup)
//!  pipes or terminal ────────────────────► first: made ahead, or now; pivot_root
//!  keeps its ends, watches the report      join: setns
//!        ▲                                 session, user, limits, capabilities
//!        └── closed: the program runs ◄──── exec
//!        └── a Failure ◄─────────────────── or not
//! ```
//!
//! The report pipe is read by the event loop: what a container does to a child
//! that has joined it can't stop PID 1.

pub mod archive;
mod child;
mod credentials;
mod devices;
mod environment;
pub mod filter;
mod first;
mod init;
mod mounts;
mod order;
mod paths;
mod program;
mod rehearsal;
pub mod report;
pub mod socket;
mod sources;
mod stdio;
mod tree;
mod user;
mod volumes;

use crate::block::Disks;
use crate::cgroup::{self, Room};
use crate::failure::{Context, Failure};
use crate::sys;
use child::Task;
pub use first::Launcher;
use first::Surroundings;
pub use init::{NAME as INIT, serve as serve_as_init};
use nix::fcntl::OFlag;
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::unistd::pipe2;
pub use rehearsal::{NAME as REHEARSAL, Rehearsal};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
pub use stdio::{GuestEnds, resize};
use vminitd_protocol::message::ErrorCode::{Exhausted, Internal, InvalidState};
use vminitd_protocol::message::{ProcessSpec, StartContainer};
pub use volumes::Volumes;

/// The container's own devpts instance, as PID 1 sees it.
pub const DEVPTS: &str = "/run/pts";
/// Where the files that are laid over the image's own are.
pub const ETC: &str = "/run/etc";
/// Namespaces of a container. Its network is the VM's: PID 1 has no use for one.
const NAMESPACES: i32 =
    libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;

/// A child that is on its way to its program.
#[derive(Debug)]
pub struct Launched {
    /// Its process id.
    pub pid: i32,
    /// Stable handle of it.
    pub pidfd: OwnedFd,
    /// Gives a [`Failure`], or ends when the program runs.
    pub report: OwnedFd,
    /// Our ends of its streams.
    pub ends: GuestEnds,
}

/// What a living container is known by.
#[derive(Debug)]
pub struct Container {
    /// Handle of its first process.
    pub pidfd: OwnedFd,
    /// What its cgroup can have at most.
    pub room: Room,
    /// Serial numbers of the disks that are mounted in it.
    pub volumes: Vec<String>,
    hostname: String,
    surroundings: Surroundings,
}

/// Starts the first process of a container in the mounted root; its volumes are mounted already or
/// among `disks`.
pub fn start_container(
    start: &StartContainer,
    volumes: Volumes,
    disks: &mut Disks,
    ahead: Option<Launcher>,
) -> Result<(Container, Launched), Failure> {
    let room = ahead.as_ref().map_or_else(Room::measure, |ahead| ahead.room.now());
    cgroup::limit(&start.container.limits.clone().unwrap_or_default(), room)?;
    let volumes = volumes.take(&start.container.mounts, disks)?;
    let (surroundings, launched) = first::start(start, &volumes, ahead)?;
    let pidfd = launched.pidfd.try_clone().internal("duplicate a process handle")?;
    let hostname = start.container.hostname.clone();
    let volumes = start.container.mounts.iter().filter_map(volumes::serial);
    let volumes = volumes.map(str::to_owned).collect();
    Ok((Container { pidfd, room, volumes, hostname, surroundings }, launched))
}

/// Starts one more process in a living container.
pub fn exec(container: &Container, process: &ProcessSpec) -> Result<Launched, Failure> {
    let (theirs, ends) = stdio::create(process)?;
    let (report, report_end) =
        pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).context(Exhausted, || "create a pipe")?;
    match fork_into(container)? {
        sys::Forked::Child => {
            drop((report, ends));
            child::run(Task::Join(container, process, &theirs), report_end)
        }
        sys::Forked::Parent { pid, pidfd } => Ok(Launched { pid, pidfd, report, ends }),
    }
}

/// Forks so that the child is born in the container's PID namespace, which
/// can't be joined later; PID 1 itself stays where it is.
fn fork_into(container: &Container) -> Result<sys::Forked, Failure> {
    let ours = File::open("/proc/self/ns/pid").internal("open our PID namespace")?;
    setns(&container.pidfd, CloneFlags::CLONE_NEWPID)
        .context(InvalidState, || "join the container's PID namespace")?;
    let result = sys::fork(0, Some(container.surroundings.cgroup.as_fd()));
    if !matches!(result, Ok(sys::Forked::Child)) {
        setns(&ours, CloneFlags::CLONE_NEWPID)
            .context(Internal, || "return to our PID namespace")?;
    }
    result.context(Exhausted, || "create a process")
}
