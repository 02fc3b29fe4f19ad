//! Copies of files: a process of the guest whose streams are the caller's.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use container_api::archive::ArchiveWork;
use container_api::types::Stdio;
use container_api::{ApiError, ErrorCode};
use vminitd_protocol::message::{self, Call};

use crate::container::Container;
use crate::process::Process;
use crate::spec;
use crate::state::State;

/// Starts the work as soon as the guest takes requests.
///
/// # Errors
/// `InvalidState` when the container ends, and what the guest says.
pub async fn start(
    container: &Arc<Container>,
    id: &str,
    work: ArchiveWork,
    stdio: Stdio,
    fds: Vec<OwnedFd>,
) -> Result<(), ApiError> {
    let state = container.state_where(|state| !matches!(state, State::Booting { .. })).await;
    if !matches!(state, State::Ready | State::Running) {
        let reason = container.verdict().map_or("the container ends".into(), |end| end.reason);
        return Err(ApiError::new(ErrorCode::Unavailable, reason));
    }
    let bulk = container.guest()?.bulk.clone();
    let process = Process::open(id, bulk, false, stdio.stdin, None)?;
    process.attach(stdio, fds)?;
    let streams = Some(process.stdio());
    container.register(process)?;
    let work = Some(in_guest(work));
    // Where a program runs its mounts are there; without one the VM may have no volumes.
    let (alone, volumes) = (container.spec.maintenance, &container.spec.volumes);
    let mounts = match alone && !volumes.is_empty() {
        true => spec::disks(&container.config.mounts),
        false => Vec::new(),
    };
    let call = message::Archive { process: id.to_owned(), stdio: streams, work, mounts };
    let outcome = container.ask(Call::Archive(Box::new(call))).await;
    if outcome.is_err() {
        container.forget(id);
    }
    outcome.map(drop)
}

/// The guest's words for it.
fn in_guest(work: ArchiveWork) -> message::ArchiveWork {
    use message::ArchiveWork as Guest;
    match work {
        ArchiveWork::Read { path, follow_link, named } => {
            Guest::Read(message::ReadArchive { path: path.0, follow_link, named })
        }
        ArchiveWork::Write { path, named, name, keep_owner } => {
            let name = name.0;
            Guest::Write(message::WriteArchive { path: path.0, named, name, keep_owner })
        }
        ArchiveWork::Export => Guest::Export(message::ExportRoot {}),
        ArchiveWork::Diff => Guest::Diff(message::DiffRoot {}),
        ArchiveWork::Layer { pause } => Guest::Layer(message::LayerOfRoot { pause }),
    }
}
