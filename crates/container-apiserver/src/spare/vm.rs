//! One spare.

use std::fs::DirBuilder;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use container_api::paths::{self, container_files as files};
use container_api::runtime::{BOOT_DEADLINE, Phase, Request, State, VolumeDisk};
use container_api::varlink::Client;
use container_api::{ApiError, ErrorCode, Result, memory};
use tokio::time::{Instant, sleep};

use super::pool::{Kind, Order};
use crate::directory::{allocated, copy_disk, remove_tree, write_json};
use crate::engine::Engine;
use crate::helper::{Helper, Launch};
use crate::jail_uid::JailUid;
use crate::priority;
use crate::process::{Handle, Identity};
use crate::template::{Acquired, Shape};
use crate::validate::name;

/// From the launch to a spare that is ready.
const READY_DEADLINE: Duration = BOOT_DEADLINE;
/// Between two questions whether it is.
const STEP: Duration = Duration::from_millis(20);
/// For one question.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// For an adoption's first answer. What comes after it is part of the container's start.
const ADOPT_DEADLINE: Duration = Duration::from_secs(5);
/// The volume of its throwaway containers; gone once it is ready.
const VOLUME: &str = "volume.img";
/// From the kill to the end.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// A VM that waits.
#[derive(Debug)]
pub struct Spare {
    /// What it is made of.
    pub shape: Shape,
    directory: PathBuf,
    helper: Helper,
    client: Client,
    hypervisor: Option<Handle>,
    uid: JailUid,
    /// Its NIC's tap, which is on no network yet; `None`: the NIC leads nowhere for good.
    tap: Option<String>,
    /// Whether a file server can map its RAM.
    mappable: bool,
    /// Whether throwaway containers ran in it.
    warm: bool,
}

/// What a container's machine is made of when it was a spare.
#[derive(Debug)]
pub struct Adopted {
    /// Its helper, which serves the container's directory now.
    pub helper: Helper,
    /// Its hypervisor.
    pub hypervisor: Option<Handle>,
    /// Its jail's user id.
    pub uid: JailUid,
}

impl Spare {
    /// Restores one from its template, and waits until its guest answers. `launched` is told its
    /// process. Not `hurried`: at a low priority.
    pub async fn restore(
        engine: &Arc<Engine>,
        order: &Order,
        template: &Acquired,
        hurried: bool,
        launched: impl FnOnce(Arc<Handle>),
    ) -> Result<Spare> {
        let directory = engine.root.spares().join(name::random()?);
        DirBuilder::new().mode(0o700).create(&directory)?;
        let made = match Self::launch(engine, order, template, hurried, &directory).await {
            Ok((helper, uid, tap)) => {
                launched(helper.handle.clone());
                match wait_ready(&helper).await {
                    Ok((client, hypervisor)) => Ok(Spare {
                        shape: order.shape.clone(),
                        directory: directory.clone(),
                        helper,
                        client,
                        hypervisor,
                        uid,
                        tap,
                        mappable: order.mappable,
                        warm: false,
                    }),
                    Err(error) => {
                        helper.handle.kill();
                        helper.end_within(END_DEADLINE).await;
                        Err(error)
                    }
                }
            }
            Err(error) => Err(error),
        };
        if made.is_err() {
            discard(&directory);
        }
        made
    }

    async fn launch(
        engine: &Arc<Engine>,
        order: &Order,
        template: &Acquired,
        hurried: bool,
        directory: &Path,
    ) -> Result<(Helper, JailUid, Option<String>)> {
        let Order { shape, kernel, mappable } = order;
        let report = engine.probe.usable().await?;
        let uid = engine.jail_uids.take();
        let upper = directory.join(files::UPPER);
        copy_disk(&engine.empty_upper().await?, &upper)?;
        let volume = VolumeDisk { path: directory.join(VOLUME), read_only: false };
        let mut spec = engine.vm_spec(kernel, &report, shape.resources)?;
        spec.volumes = vec![volume];
        spec.virtualization = shape.virtualization;
        spec.template = Some(template.files.clone());
        spec.mappable = *mappable;
        spec.image_disk = kernel.warm_image.clone();
        spec.upper_disk = upper;
        spec.jail_uid = uid.get();
        write_json(directory, files::VM_SPEC, &spec)?;
        let program = paths::program("container-runtime-linux")?;
        let (tap, taps) = parked(engine).await;
        let low_priority = !hurried && priority::can_be_undone();
        let launch = Launch { command: "spare", low_priority, taps };
        let helper = Helper::launch(&program, directory, launch)
            .map_err(|e| ApiError::from(e).context(program.display()))?;
        Helper::write_identity(directory, helper.handle.identity().pid)?;
        Ok((helper, uid, tap))
    }

    /// Runs throwaway containers in it, at a low priority. One that fails is ended.
    pub async fn warm_up(mut self, engine: &Arc<Engine>) -> Result<Spare> {
        if priority::can_be_undone() {
            self.processes().for_each(priority::lower);
        }
        let volume = self.directory.join(VOLUME);
        let warmed = async {
            let made = engine.throwaway_volume(&volume).await;
            made.map_err(|error| error.context("a throwaway volume"))?;
            self.client.call::<_, ()>(&Request::WarmUp, &[], Some(READY_DEADLINE)).await
        };
        let warmed = warmed.await;
        let _ = std::fs::remove_file(&volume);
        if let Err(error) = warmed {
            self.end().await;
            return Err(error);
        }
        self.processes().for_each(priority::undo);
        self.warm = true;
        Ok(self)
    }

    /// Its helper and its hypervisor.
    pub fn processes(&self) -> impl Iterator<Item = i32> {
        let processes = std::iter::once(&*self.helper.handle).chain(&self.hypervisor);
        processes.map(|process| process.identity().pid)
    }

    /// Whether throwaway containers ran in it.
    pub fn is_warm(&self) -> bool {
        self.warm
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&self) -> bool {
        self.helper.handle.has_ended()
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its helper's process.
    pub fn handle(&self) -> &Arc<Handle> {
        &self.helper.handle
    }

    /// Makes it the VM of the container in `directory`, whose `config.json` and `vm.json` are
    /// written, with `taps` for its NICs beyond the first. One that fails is ended.
    pub async fn adopt(mut self, directory: &Path, taps: &[OwnedFd]) -> Result<Adopted> {
        let request = Request::Adopt { directory: directory.to_owned(), taps: taps.len() };
        let fds: Vec<BorrowedFd<'_>> = taps.iter().map(AsFd::as_fd).collect();
        let answer = self.client.call::<_, ()>(&request, &fds, Some(ADOPT_DEADLINE)).await;
        if let Err(error) = answer {
            self.end().await;
            return Err(error);
        }
        let Spare { directory: own, helper, hypervisor, uid, .. } = self;
        tokio::task::spawn_blocking(move || discard(&own));
        Ok(Adopted { helper: helper.moved_to(directory), hypervisor, uid })
    }

    /// Its NIC's tap, by the name that the network service knows.
    pub fn tap(&self) -> Option<&str> {
        self.tap.as_deref()
    }

    pub(super) fn kind(&self) -> Kind {
        Kind { key: self.shape.key.clone(), mappable: self.mappable }
    }

    /// Whether a file server can map its RAM.
    pub fn is_mappable(&self) -> bool {
        self.mappable
    }

    /// The jail's user id, for the container's `vm.json`.
    pub fn uid(&self) -> u32 {
        self.uid.get()
    }

    /// Ends it and removes its directory.
    pub async fn end(self) {
        self.helper.handle.kill();
        self.helper.end_within(END_DEADLINE).await;
        if let Some(hypervisor) = &self.hypervisor {
            hypervisor.kill();
        }
        discard(&self.directory);
    }

    /// Bytes of the host's memory that it holds for itself; of a process that has gone, none.
    pub fn memory(&self) -> u64 {
        self.processes().map(|pid| memory::own_with_memfds(pid).unwrap_or(0)).sum()
    }

    /// Bytes of disk that it holds.
    pub fn disk(&self) -> u64 {
        allocated(&self.directory)
    }
}

/// A tap for a spare, where containers have networks.
async fn parked(engine: &Engine) -> (Option<String>, Vec<OwnedFd>) {
    if !engine.networks.is_wanted() {
        return (None, Vec::new());
    }
    match engine.networks.park().await {
        Ok((tap, fd)) => (Some(tap), vec![fd]),
        Err(error) => {
            tracing::warn!(%error, "a spare has no tap: it serves containers without a network");
            (None, Vec::new())
        }
    }
}

fn discard(directory: &Path) {
    if let Err(error) = remove_tree(directory) {
        tracing::warn!(path = %directory.display(), %error, "files of a spare stay");
    }
}

async fn wait_ready(helper: &Helper) -> Result<(Client, Option<Handle>)> {
    let end = Instant::now() + READY_DEADLINE;
    let mut client = helper.connect().await?;
    loop {
        let state: State = client.call(&Request::State, &[], Some(ANSWER_DEADLINE)).await?;
        match state.phase {
            Phase::Ready => {
                let identity = state.hypervisor_pid.and_then(|pid| Identity::of(pid).ok());
                let hypervisor = identity.and_then(|identity| Handle::open(identity).ok()?);
                for pid in [Some(helper.handle.identity().pid), state.hypervisor_pid] {
                    pid.into_iter().for_each(priority::undo);
                }
                return Ok((client, hypervisor));
            }
            Phase::Booting if Instant::now() < end => sleep(STEP).await,
            Phase::Booting => {
                let message = format!("it is not ready after {} s", READY_DEADLINE.as_secs());
                return Err(ApiError::new(ErrorCode::Timeout, message));
            }
            _ => {
                let reason = state.exit.map_or("it has ended".into(), |exit| exit.reason);
                let reason = container_api::escape::escape(&reason).into_owned();
                return Err(ApiError::new(ErrorCode::Unavailable, reason));
            }
        }
    }
}
