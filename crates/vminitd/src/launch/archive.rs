//! A child that copies files: outside of the container's PID namespace, so that no program of the
//! container sees it, and outside of its cgroup, whose limits are not its own.

use super::stdio::ChildEnds;
use super::{Container, Launched, child, stdio};
use crate::failure::{Context, Failure};
use crate::files::write_kernel;
use crate::{archive, sys};
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::unistd::pipe2;
use std::os::fd::OwnedFd;
use vminitd_protocol::message::ErrorCode::{Exhausted, InvalidState};
use vminitd_protocol::message::{Archive, ArchiveWork, ProcessSpec};

/// Starts the work; with a `container` where that one's mounts are.
pub fn start(
    container: Option<&Container>,
    request: &Archive,
    work: &ArchiveWork,
) -> Result<Launched, Failure> {
    let spec = ProcessSpec { stdio: request.stdio, ..ProcessSpec::default() };
    let (theirs, ends) = stdio::create(&spec)?;
    let (report, report_end) =
        pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).context(Exhausted, || "create a pipe")?;
    let container = container.filter(|_| archive::is_inside(work));
    match sys::fork(0, None).context(Exhausted, || "create a process")? {
        sys::Forked::Child => {
            drop((report, ends));
            child::run_archive(report_end, |report_end| {
                begin(container, &theirs, report_end)?;
                Ok(move || archive::run(work, container.is_some()))
            })
        }
        sys::Forked::Parent { pid, pidfd } => Ok(Launched { pid, pidfd, report, ends }),
    }
}

fn begin(
    container: Option<&Container>,
    stdio: &ChildEnds,
    report_end: &OwnedFd,
) -> Result<(), Failure> {
    child::take_stdio(stdio)?;
    // PID 1 is protected; this is the first to go.
    write_kernel("/proc/self/oom_score_adj", "1000").internal("set oom_score_adj")?;
    if let Some(container) = container {
        setns(&container.pidfd, CloneFlags::CLONE_NEWNS)
            .context(InvalidState, || "join the container's mounts")?;
    }
    child::detach_from_parent(report_end, report_end)
}
