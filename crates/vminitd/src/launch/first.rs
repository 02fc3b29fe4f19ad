//! The launcher of a container's first process.
//!
//! ```text
//! PID 1                         launcher (clone3 into namespaces and cgroup)
//!  ahead: no root yet ────────► all that needs no request, then it waits
//!  start: request, root and ──► root, user, limits, exec
//!         streams, by a socket
//! ```
//!
//! A guest that has unmounted a root makes one for the next container, so that
//! a template's clone finds it waiting. Where there is none, or it is gone, it
//! is made at the start and goes on at once.

use super::child::{self, Task};
use super::stdio::{self, GuestEnds};
use super::{DEVPTS, Launched, NAMESPACES, order, report};
use crate::cgroup::{self, Room};
use crate::failure::{Context, Failure};
use crate::root::ROOT;
use crate::sys;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{pipe2, read};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use vminitd_protocol::message::ErrorCode::{Exhausted, Internal, Mount};
use vminitd_protocol::message::StartContainer;

/// How long a launcher may take to be ready, in milliseconds.
const READY_LIMIT_MS: u16 = 10_000;

/// A container's own terminals, mounted where PID 1 opens them.
#[derive(Debug)]
pub struct Terminals(());

impl Terminals {
    fn mount() -> Result<Self, Failure> {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        let data = "newinstance,ptmxmode=0666,mode=0620,gid=5";
        mount(Some("devpts"), DEVPTS, Some("devpts"), flags, Some(data))
            .context(Mount, || "mount the container's devpts")?;
        Ok(Terminals(()))
    }
}

impl Drop for Terminals {
    fn drop(&mut self) {
        let _ = umount2(DEVPTS, MntFlags::MNT_DETACH);
    }
}

/// What stays of a container's making beside its first process.
#[derive(Debug)]
pub struct Surroundings {
    /// Where its processes are made.
    pub cgroup: OwnedFd,
    _terminals: Terminals,
    /// Held so that the kernel doesn't tear them down between the end of the
    /// first process and our notice of it, which takes tens of milliseconds.
    _namespaces: Vec<File>,
}

/// A launcher that waits. It ends when this is dropped.
#[derive(Debug)]
pub struct Launcher {
    /// What the VM had for a container.
    pub room: Room,
    child: Child,
    socket: OwnedFd,
    surroundings: Surroundings,
}

#[derive(Debug)]
struct Child {
    pid: i32,
    pidfd: OwnedFd,
    report: OwnedFd,
}

impl Launcher {
    /// Makes one, and waits until it is ready: what it does must be done before
    /// the VM is saved.
    pub fn ahead() -> Result<Self, Failure> {
        let terminals = Terminals::mount()?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let (socket, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .context(Exhausted, || "create a socket")?;
        let (child, surroundings) = make(terminals, || Task::Await(&theirs))?;
        drop(theirs);
        let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut ready, READY_LIMIT_MS).internal("wait for the launcher")?;
        if ready == 0 {
            return Err(Failure::new(Internal, "the launcher takes too long"));
        }
        match read(&socket, &mut [0]).internal("hear of the launcher")? {
            0 => Err(child.failure()),
            _ => Ok(Launcher { room: Room::measure(), child, socket, surroundings }),
        }
    }

    /// Sets it off; `None` when it can't be used.
    fn send(self, start: &StartContainer, volumes: &[OwnedFd]) -> Option<(Surroundings, Launched)> {
        let (theirs, ends) = stdio::create(&start.process).ok()?;
        let root = CString::new(ROOT).expect("no NUL in a constant");
        let root = sys::open_tree(&root).ok()?;
        order::send(&self.socket, start, &theirs, &root, volumes).ok()?;
        Some((self.surroundings, self.child.launched(ends)))
    }
}

impl Child {
    /// Why it has ended.
    fn failure(&self) -> Failure {
        let mut bytes = [0; report::MAX_LEN];
        match read(&self.report, &mut bytes) {
            Ok(len) if len > 0 => report::decode(&bytes[..len]),
            _ => Failure::new(Internal, "the launcher was ended"),
        }
    }

    fn launched(self, ends: GuestEnds) -> Launched {
        Launched { pid: self.pid, pidfd: self.pidfd, report: self.report, ends }
    }
}

/// Starts a container's first process with the trees of its volumes, by the
/// launcher that was made ahead if that is possible.
pub fn start(
    start: &StartContainer,
    volumes: &[OwnedFd],
    ahead: Option<Launcher>,
) -> Result<(Surroundings, Launched), Failure> {
    let ahead = ahead.filter(|_| order::fits(start, volumes));
    if let Some(launched) = ahead.and_then(|launcher| launcher.send(start, volumes)) {
        return Ok(launched);
    }
    let terminals = Terminals::mount()?;
    let (theirs, ends) = stdio::create(&start.process)?;
    let (child, surroundings) = make(terminals, || Task::Now(start, &theirs, volumes))?;
    Ok((surroundings, child.launched(ends)))
}

fn make<'a>(
    terminals: Terminals,
    task: impl FnOnce() -> Task<'a>,
) -> Result<(Child, Surroundings), Failure> {
    let cgroup = cgroup::open_own()?;
    let (report, report_end) =
        pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).context(Exhausted, || "create a pipe")?;
    let forked = sys::fork(NAMESPACES, Some(cgroup.as_fd()));
    let sys::Forked::Parent { pid, pidfd } = forked.context(Exhausted, || "create a process")?
    else {
        child::run(task(), report_end)
    };
    let hold = |name| File::open(format!("/proc/{pid}/ns/{name}")).ok();
    let namespaces = ["mnt", "ipc", "net", "uts", "pid"].into_iter().filter_map(hold).collect();
    let surroundings = Surroundings { cgroup, _terminals: terminals, _namespaces: namespaces };
    Ok((Child { pid, pidfd, report }, surroundings))
}
