//! Copies of files into containers and out of them, and images made of containers. The bytes never
//! pass here: the descriptors do.
//!
//! ```text
//! running ────────────────────────────────────────► the helper's guest copies
//! created, stopped ─► turn ─► VM without a program ─► the same ─► VM ended ─► as it was
//! ```
//! What a guest has written to a disk is read by a guest alone. So a container that does not run
//! gets a VM for the time of the copy, with its block volumes, without network and bind mounts.
//! Its life is not touched by that: it is shown as it was, a start waits for its turn, and a
//! service that finds such a VM at its own start ends it.

use std::io::pipe;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use container_api::archive::{ArchiveWork, CommitOptions};
use container_api::images::{self, ImageSummary};
use container_api::paths::container_files as names;
use container_api::runtime::{BOOT_DEADLINE, CALL_DEADLINE, Request};
use container_api::types::{ExitRecord, Stdio};
use container_api::varlink::Responder;
use container_api::{ApiError, ErrorCode, Result};

use crate::attachment::Attachment;
use crate::container::{Container, Machine};
use crate::directory::write_json;
use crate::engine::Engine;
use crate::helper::{END_DEADLINE, forget_socket, left_record};
use crate::start::running;
use crate::validate::name;
use crate::volumes::Claim;
use crate::watch::end_hypervisor;

/// The signal that ends a copy whose caller has gone.
const KILL: i32 = 9;
/// Longest complaint of a copy, in bytes.
const MAX_COMPLAINT: usize = 8 << 10;

impl Engine {
    /// Copies with the caller's streams; how the copy ended.
    pub async fn archive(
        self: &Arc<Self>,
        container: &Arc<Container>,
        work: ArchiveWork,
        attachment: &Attachment,
        responder: &Responder,
    ) -> Result<ExitRecord> {
        self.copy(container, work, attachment.stdio, &attachment.borrowed(), responder).await
    }

    async fn copy(
        self: &Arc<Self>,
        container: &Arc<Container>,
        work: ArchiveWork,
        stdio: Stdio,
        fds: &[BorrowedFd<'_>],
        responder: &Responder,
    ) -> Result<ExitRecord> {
        if let Ok(machine) = running(container) {
            return carry_out(&machine, work, stdio, fds, responder).await;
        }
        let _turn = self.turn(container).await?;
        if let Ok(machine) = running(container) {
            return carry_out(&machine, work, stdio, fds, responder).await;
        }
        self.at_rest(container).await?;
        if work.changes() && container.config.read_only {
            let message = format!("the root of container '{}' is read-only", container.id());
            return Err(ApiError::new(ErrorCode::PermissionDenied, message));
        }
        let claim = self.claim_for_copy(container, &work).await?;
        let plan = self.plan(container).await?.for_maintenance(claim.is_some());
        let machine = self.launch_bare(container, &plan).await?;
        container.update(|live| live.machine = Some(machine.clone()));
        self.write_down(container);
        // Dropped early or not, the VM's end is seen to.
        let end =
            End { engine: self.clone(), container: container.clone(), machine, _claim: claim };
        let outcome = carry_out(&end.machine, work, stdio, fds, responder).await;
        let outcome = match outcome {
            Err(error) if error.code == ErrorCode::Disconnected => {
                let reason = left_record(&self.directory(container)).map(|record| record.reason);
                Err(reason.map_or(error, |why| ApiError::new(ErrorCode::Unavailable, why)))
            }
            other => other,
        };
        end.run().await;
        outcome
    }

    /// Makes an image of a container: its own changes become one more layer of its image.
    pub async fn commit(
        self: &Arc<Self>,
        container: &Arc<Container>,
        options: CommitOptions,
        responder: &Responder,
    ) -> Result<ImageSummary> {
        let (layer, writer) = pipe()?;
        let (complaints, complain) = pipe()?;
        let work = ArchiveWork::Layer { pause: options.pause };
        let request =
            images::Request::Commit { base: container.image.manifest_digest.clone(), options };
        let layer = [OwnedFd::from(layer)];
        let stdio = Stdio { stdin: false, stdout: true, stderr: true };
        let copy = async {
            let fds = [writer.as_fd(), complain.as_fd()];
            let outcome = self.copy(container, work, stdio, &fds, responder).await;
            drop((writer, complain));
            let record = outcome?;
            match record.exit_code {
                0 => Ok(()),
                _ => Err(ApiError::internal(complaint(complaints, &record))),
            }
        };
        // The image service learns of a copy that failed by a layer without an end.
        let image = async move {
            let image = self.images.relay::<ImageSummary>(&request, &layer, responder).await;
            // Nobody reads what still comes.
            drop(layer);
            image
        };
        let (copied, image) = tokio::join!(copy, image);
        copied?;
        let image = image?;
        self.prepared.forget();
        Ok(image)
    }

    /// Gives a container that does not run another id.
    pub async fn rename(self: &Arc<Self>, container: &Arc<Container>, new: &str) -> Result<()> {
        name::check(new)?;
        let _reservation = self.reserve(new)?;
        let _turn = self.turn(container).await?;
        let live = container.live();
        if live.life.is_active() {
            let message = format!(
                "container '{}' is {}: stop it first, its VM and networks know it by its name",
                container.id(),
                live.life.status
            );
            return Err(ApiError::new(ErrorCode::InvalidState, message));
        }
        self.at_rest(container).await?;
        self.move_to(container, new)
    }

    /// No await here: a container has one name or the other.
    fn move_to(&self, container: &Arc<Container>, new: &str) -> Result<()> {
        let old = container.id().to_owned();
        let mut record = container.record();
        if record.config.hostname == old {
            record.config.hostname = new.to_owned();
        }
        record.config.id = new.to_owned();
        if let Some(kernel) = &mut record.config.kernel
            && let Ok(rest) = kernel.strip_prefix(self.root.container(&old))
        {
            *kernel = self.root.container(new).join(rest);
        }
        let target = self.root.container(new);
        if target.symlink_metadata().is_ok() {
            let message = format!("a directory of a container '{new}' is there already");
            return Err(ApiError::new(ErrorCode::AlreadyExists, message));
        }
        // A service that dies in between finds a directory whose row is the other: the directory's
        // configuration, written first, says what it is.
        let directory = self.directory(container);
        write_json(&directory, names::CONFIG, &record.config)?;
        let moved = std::fs::rename(&directory, &target)
            .map_err(ApiError::from)
            .and_then(|()| Ok(self.store.put(&record)?));
        if let Err(error) = moved {
            let _ = std::fs::rename(&target, &directory);
            write_json(&directory, names::CONFIG, &container.config)?;
            return Err(error.context(format!("renaming container '{old}'")));
        }
        if let Err(error) = self.store.remove(&old, None) {
            // The next start finds a row without a directory, and removes it.
            let error = ApiError::from(error);
            tracing::error!(container = old, %error, "a row stays");
        }
        self.add(Container::new(record));
        self.forget(container);
        container.update(|live| live.removed = true);
        Ok(())
    }
}

/// What a copy has said of its failure.
fn complaint(complaints: std::io::PipeReader, record: &ExitRecord) -> String {
    let fd = OwnedFd::from(complaints);
    let mut said = vec![0; MAX_COMPLAINT];
    let flags = rustix::fs::fcntl_getfl(&fd).map(|flags| flags | rustix::fs::OFlags::NONBLOCK);
    let n = flags
        .and_then(|flags| rustix::fs::fcntl_setfl(&fd, flags))
        .and_then(|()| rustix::io::read(&fd, &mut said[..]))
        .unwrap_or(0);
    match n {
        0 => format!("the copy ended: {}", record.reason),
        n => String::from_utf8_lossy(&said[..n]).into_owned(),
    }
}

/// One copy in a VM that is there, to its end. A caller that goes away ends it.
async fn carry_out(
    machine: &Machine,
    work: ArchiveWork,
    stdio: Stdio,
    fds: &[BorrowedFd<'_>],
    responder: &Responder,
) -> Result<ExitRecord> {
    let process_id = format!("copy-{}", &name::random()?[..13]);
    let request = Request::Archive { process_id: process_id.clone(), work, stdio };
    let deadline: Duration = BOOT_DEADLINE + CALL_DEADLINE;
    let wait = Request::Wait { process_id: process_id.clone() };
    let copy = async {
        machine.helper.call::<()>(&request, fds, Some(deadline)).await?;
        machine.helper.call::<ExitRecord>(&wait, &[], None).await
    };
    tokio::select! {
        outcome = copy => outcome,
        () = responder.hung_up() => {
            let kill = Request::Signal { process_id, signal: KILL };
            let _ = machine.helper.call::<()>(&kill, &[], Some(CALL_DEADLINE)).await;
            Err(ApiError::new(ErrorCode::Cancelled, "the caller went away"))
        }
    }
}

/// Ends a VM that was there for a copy which nobody waits for any more.
pub async fn end(engine: Arc<Engine>, container: Arc<Container>, machine: Arc<Machine>) {
    machine.helper.handle.kill();
    End { engine, container, machine, _claim: None }.run().await;
}

/// The end of a VM that was there for a copy.
struct End {
    engine: Arc<Engine>,
    container: Arc<Container>,
    machine: Arc<Machine>,
    /// Its volumes are nobody else's until it is gone.
    _claim: Option<Claim>,
}

impl End {
    async fn run(&self) {
        let machine = &self.machine;
        let abort = machine.helper.call::<()>(&Request::Abort, &[], Some(END_DEADLINE));
        if abort.await.is_err() {
            machine.helper.handle.kill();
        }
        machine.helper.end_within(END_DEADLINE).await;
        end_hypervisor(machine).await;
        self.tidy();
    }

    /// The directory is as it was: the last end of the container is not this VM's.
    fn tidy(&self) {
        let directory = self.engine.directory(&self.container);
        let written = match self.container.live().life.exit {
            Some(exit) => write_json(&directory, names::EXIT, &exit),
            None => match std::fs::remove_file(directory.join(names::EXIT)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        };
        if let Err(error) = written {
            tracing::warn!(container = self.container.id(), %error, "an exit record is not kept");
        }
        forget_socket(&directory);
        self.container.update(|live| live.machine = None);
        self.engine.write_down(&self.container);
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let here = self.container.live().machine;
        if here.is_some_and(|here| Arc::ptr_eq(&here, &self.machine)) {
            self.machine.helper.handle.kill();
            self.tidy();
        }
    }
}
