//! The requests, each to its operation, and one line in the log for each.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use container_api::apiserver::Request;
use container_api::audit::Requester;
use container_api::images;
use container_api::runtime::{self, CALL_DEADLINE, INIT_PROCESS};
use container_api::types::ExitRecord;
use container_api::varlink::{Reply, Responder, Service};
use container_api::{ApiError, ErrorCode, Result};
use serde_json::Value;

use crate::attachment::Attachment;
use crate::audit::Audit;
use crate::audit::describe::{Description, describe};
use crate::engine::Engine;
use crate::logs::Wanted;
use crate::merge;
use crate::start::{Caller, running};
use crate::validate::{name, signal};

/// From the answer to a shutdown to the end: the answer is on its way.
const FAREWELL: Duration = Duration::from_millis(50);

/// The engine, as the socket shows it.
#[derive(Debug)]
pub struct Apiserver(pub Arc<Engine>, pub Arc<Audit>);

impl Service for Apiserver {
    type Request = Request;

    async fn call(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
        responder: &Responder,
    ) -> Result<Reply> {
        let begun = Instant::now();
        let described = describe(&request);
        let recorded = self.1.begin(&described, || responder.requester()).await?;
        let outcome = self.dispatch(request, fds, responder).await;
        self.1.end(recorded, &outcome);
        let Description { operation, subject, .. } = described;
        let peer = responder.peer();
        tracing::info!(
            operation,
            subject,
            uid = peer.uid,
            pid = peer.pid,
            duration_us = begun.elapsed().as_micros() as u64,
            result = outcome.as_ref().err().map_or("ok".to_owned(), |e| format!("{:?}", e.code)),
            error = outcome
                .as_ref()
                .err()
                .map(|e| container_api::escape::escape(&e.message).into_owned()),
        );
        outcome
    }

    fn refused(&self, requester: Requester) {
        self.1.refused("connect", requester, "not the owner of the service");
    }
}

/// `work`, unless the caller goes away first: then it is dropped.
async fn while_wanted<T>(
    responder: &Responder,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        done = work => done,
        () = responder.hung_up() => {
            Err(ApiError::new(ErrorCode::Cancelled, "the caller went away"))
        }
    }
}

impl Apiserver {
    async fn dispatch(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
        responder: &Responder,
    ) -> Result<Reply> {
        let engine = &self.0;
        match request {
            Request::Status => {
                Reply::new(&while_wanted(responder, async { Ok(engine.status().await) }).await?)
            }
            Request::Shutdown { stop_containers, timeout_ms } => {
                self.shutdown(stop_containers, timeout_ms).await
            }
            Request::Images(request) => {
                while_wanted(responder, self.images(request, fds, responder)).await
            }
            Request::Create(options) => Reply::new(
                &while_wanted(responder, engine.create(&options, &fds, responder)).await?,
            ),
            Request::Start { id, stdio, size, trace, ssh_agent } => {
                let attachment = Attachment::new(stdio, fds, size, trace)?;
                let container = engine.find(&id)?;
                engine.has_ssh_agent(&container, ssh_agent.as_deref())?;
                engine.start(&container, attachment, Caller::Someone(responder)).await?;
                Reply::done()
            }
            Request::Attach { id, stdio } => {
                let machine = running(&*engine.find(&id)?)?;
                let attachment = Attachment::new(stdio, fds, None, false)?;
                let request = runtime::Request::Attach { stdio };
                let fds = attachment.borrowed();
                machine.helper.call::<()>(&request, &fds, Some(CALL_DEADLINE)).await?;
                Reply::done()
            }
            Request::Exec { id, process, stdio, size, ssh_agent } => {
                let attachment = Attachment::new(stdio, fds, size, false)?;
                engine.has_ssh_agent(&*engine.find(&id)?, ssh_agent.as_deref())?;
                while_wanted(responder, self.exec(&id, &process, attachment)).await
            }
            Request::Archive { id, work, stdio } => {
                let attachment = Attachment::new(stdio, fds, None, false)?;
                let container = engine.find(&id)?;
                Reply::new(&engine.archive(&container, work, &attachment, responder).await?)
            }
            Request::Commit { id, options } => {
                let container = engine.find(&id)?;
                Reply::new(&engine.commit(&container, options, responder).await?)
            }
            Request::Rename { id, name } => {
                engine.rename(&engine.find(&id)?, &name).await?;
                Reply::done()
            }
            Request::Wait { id, process_id } => {
                let wait = self.wait(&id, process_id);
                Reply::new(&while_wanted(responder, wait).await?)
            }
            Request::Signal { id, process_id, signal } => {
                let signal = signal::parse(&signal)?;
                let container = engine.find(&id)?;
                let final_one = Some(signal) == signal::parse(&container.config.stop_signal).ok();
                // A kill by hand is a wish that it ends.
                if process_id.is_none() && (final_one || signal == nix::libc::SIGKILL) {
                    running(&container)?;
                    engine.asked(&container);
                }
                let process_id = process_id.unwrap_or_else(|| INIT_PROCESS.into());
                self.ask(&id, &runtime::Request::Signal { process_id, signal }).await
            }
            Request::Resize { id, process_id, size } => {
                let process_id = process_id.unwrap_or_else(|| INIT_PROCESS.into());
                self.ask(&id, &runtime::Request::Resize { process_id, size }).await
            }
            Request::Stop { id, signal, timeout_ms } => {
                let container = engine.find(&id)?;
                let patience = Duration::from_millis(timeout_ms);
                let stop = engine.stop(&container, signal.as_deref(), patience);
                while_wanted(responder, stop).await?;
                Reply::done()
            }
            Request::Delete { id, force } => {
                engine.delete(&engine.find(&id)?, force).await?;
                Reply::done()
            }
            Request::List => Reply::new(&engine.snapshots()),
            Request::Inspect { id } => Reply::new(&engine.inspect(&*engine.find(&id)?).await),
            Request::Logs { id, follow, tail, boot } => {
                let container = engine.find(&id)?;
                let wanted = Wanted { follow, tail, boot };
                while_wanted(responder, engine.logs(&container, wanted, fds)).await?;
                Reply::done()
            }
            Request::Stats { ids } => {
                Reply::new(&while_wanted(responder, engine.stats(&ids)).await?)
            }
            Request::Update { id, cpus, memory_in_bytes } => {
                engine.update(&*engine.find(&id)?, cpus, memory_in_bytes).await?;
                Reply::done()
            }
            Request::DiskUsage => Reply::new(&while_wanted(responder, engine.disk_usage()).await?),
            Request::CheckState { deep } => Reply::new(
                &while_wanted(responder, async { Ok(engine.check_state(deep).await) }).await?,
            ),
            Request::PruneSystem => Reply::new(&engine.prune_system().await),
            Request::Networks(request) => {
                while_wanted(responder, engine.network_request(request)).await
            }
            Request::CreateVolume(options) => Reply::new(&engine.create_volume(&options).await?),
            Request::DeleteVolume { name } => {
                engine.delete_volume(&name).await?;
                Reply::done()
            }
            Request::ListVolumes => Reply::new(&engine.list_volumes().await?),
            Request::PruneVolumes => Reply::new(&engine.prune_volumes().await?),
            Request::Prune => Reply::new(&engine.prune().await?),
        }
    }

    async fn shutdown(&self, stop_containers: bool, timeout_ms: u64) -> Result<Reply> {
        let engine = self.0.clone();
        engine.stopping.store(true, Ordering::Relaxed);
        if stop_containers {
            engine.stop_all(Duration::from_millis(timeout_ms)).await?;
            engine.networks.empty().await;
        }
        // Whoever is answered finds nothing of ours any more, but for these last moments.
        engine.end_background().await;
        engine.networks.end().await;
        engine.images.end().await;
        tokio::spawn(async move {
            tokio::time::sleep(FAREWELL).await;
            engine.ending.send_replace(true);
        });
        Reply::done()
    }

    async fn images(
        &self,
        mut request: images::Request,
        fds: Vec<OwnedFd>,
        responder: &Responder,
    ) -> Result<Reply> {
        let engine = &self.0;
        let mut removal = None;
        match &mut request {
            images::Request::Delete { in_use, .. } | images::Request::Prune { in_use, .. } => {
                removal = Some(engine.images_in_use.lock().await);
                *in_use = engine.digests_in_use();
            }
            images::Request::DiskUsage { in_use } | images::Request::CheckStore { in_use, .. } => {
                *in_use = engine.digests_in_use();
            }
            images::Request::FormatVolume(_) => {
                return Err(ApiError::invalid("volumes are made by 'volume create'"));
            }
            images::Request::Shutdown => {
                return Err(ApiError::invalid("the image service ends with this one"));
            }
            _ => {}
        }
        let reads = matches!(
            request,
            images::Request::List
                | images::Request::Inspect { .. }
                | images::Request::Save { .. }
                | images::Request::DiskUsage { .. }
                | images::Request::CheckStore { .. }
                | images::Request::EmptyUpper
        );
        let answer: Result<Value> = engine.images.relay(&request, &fds, responder).await;
        if !reads {
            // Also what failed may have changed something.
            engine.prepared.forget();
        }
        drop(removal);
        Reply::new(&answer?)
    }

    async fn exec(
        &self,
        id: &str,
        process: &container_api::apiserver::ProcessOptions,
        attachment: Attachment,
    ) -> Result<Reply> {
        let container = self.0.find(id)?;
        let machine = running(&container)?;
        let process = merge::exec_process(&container.config, process)?;
        let process_id = format!("exec-{}", &name::random()?[..13]);
        let request = runtime::Request::Exec {
            process_id: process_id.clone(),
            process,
            stdio: attachment.stdio,
            size: attachment.size,
        };
        let fds = attachment.borrowed();
        machine.helper.call::<()>(&request, &fds, Some(CALL_DEADLINE)).await?;
        Reply::new(&process_id)
    }

    async fn wait(&self, id: &str, process_id: Option<String>) -> Result<ExitRecord> {
        let engine = &self.0;
        let container = match engine.find(id) {
            Ok(container) => container,
            Err(error) if error.code == ErrorCode::NotFound && process_id.is_none() => {
                return engine.store.ended(id)?.ok_or(error);
            }
            Err(error) => return Err(error),
        };
        if let Some(process_id) = process_id {
            let machine = running(&container)?;
            let request = runtime::Request::Wait { process_id };
            let answer = machine.helper.call(&request, &[], None).await;
            return match answer {
                // The VM went down with it.
                Err(error) if error.code == ErrorCode::Disconnected => {
                    let over = container.until(|live| live.removed || live.life.is_idle()).await;
                    Ok(over.life.exit.unwrap_or_else(|| crate::watch::lost("its VM has ended")))
                }
                other => other,
            };
        }
        let ended = container
            .until(|live| live.removed || live.life.is_idle() && live.life.exit.is_some())
            .await;
        ended.life.exit.ok_or_else(|| {
            ApiError::not_found(format!("container '{}' was deleted", container.id()))
        })
    }

    /// One call to the helper of a running container.
    async fn ask(&self, id: &str, request: &runtime::Request) -> Result<Reply> {
        let machine = running(&*self.0.find(id)?)?;
        machine.helper.call::<()>(request, &[], Some(CALL_DEADLINE)).await?;
        Reply::done()
    }
}
