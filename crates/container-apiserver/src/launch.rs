//! From a container's directory to a VM: a spare, one restored from a template, or one that boots.
//!
//! ```text
//! a spare with a tap ──► attached with that tap ──► adopted
//! none, or it failed ──► attached with new taps ──► helper launched with them
//! ```
//! What the network service refuses is no reason for another VM: the start ends before one is made.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, OnceLock};

use container_api::network::{Attach, Attached};
use container_api::paths::container_files as names;
use container_api::runtime::{GuestNetwork, ProbeReport, Share, VmSpec, VolumeDisk};
use container_api::types::VmOrigin;
use container_api::{ApiError, ErrorCode, Result, paths, trace};

use crate::attachment::Attachment;
use crate::container::{Container, Machine};
use crate::directory::write_json;
use crate::engine::Engine;
use crate::helper::{Helper, Launch};
use crate::jail_uid::{JailUid, JailUids};
use crate::kernel::Kernel;
use crate::lifecycle::Event;
use crate::networks::guest;
use crate::process::Handle;
use crate::spare::{Needs, Spare, keeper};
use crate::store::Runtime;
use crate::template::{Acquired, Shape};

/// What is settled before a VM is chosen.
#[derive(Debug)]
pub struct Plan {
    /// The kernel.
    pub kernel: Kernel,
    /// What VMs like this are made of; `None`: they all boot.
    pub shape: Option<Shape>,
    report: Arc<ProbeReport>,
    image_disk: PathBuf,
    directory: PathBuf,
    volumes: Vec<VolumeDisk>,
    /// What the file server serves, or why it can't.
    shares: Result<Vec<Share>>,
    /// No program will run.
    maintenance: bool,
    /// VMs can be run in the container.
    virtualization: bool,
}

impl Plan {
    /// Whether a file server serves the container's bind mounts.
    pub fn has_shares(&self) -> bool {
        !self.maintenance && self.shares.as_ref().is_ok_and(|shares| !shares.is_empty())
    }

    /// The same for a VM that only reads or writes the container's disk, and its volumes if they
    /// are `claimed` for it.
    pub fn for_maintenance(self, claimed: bool) -> Plan {
        // Nothing will run VMs in it.
        let shape = self.shape.filter(|shape| !shape.virtualization);
        let volumes = if claimed { self.volumes } else { Vec::new() };
        Plan { maintenance: true, virtualization: false, shape, volumes, ..self }
    }
}

/// What a VM gets of its container's networks.
#[derive(Debug, Default)]
struct Wires {
    guest: Option<GuestNetwork>,
    attached: Option<Attached>,
    /// Taps that it does not have yet.
    taps: Vec<OwnedFd>,
}

/// Why a spare did not become a container's VM.
enum NotAdopted {
    /// The network service says no: another VM would hear the same.
    Refused(ApiError),
    /// Something about the spare.
    Failed(ApiError),
}

fn is_networked(container: &Container) -> bool {
    !container.config.network.networks.is_empty()
}

/// Whether another tap may help where the one made ahead did not.
fn is_about_the_tap(error: &ApiError) -> bool {
    use ErrorCode as E;
    matches!(error.code, E::NotFound | E::Unavailable | E::Disconnected | E::Internal)
}

impl Engine {
    /// Finds out whether and with what the container can be started.
    pub async fn plan(&self, container: &Container) -> Result<Plan> {
        let report = self.probe.usable().await?;
        let virtualization = container.config.virtualization;
        let mut kernel = self.kernel(container.config.kernel.as_deref())?;
        if virtualization {
            kernel = kernel.with_kvm();
        }
        let image_disk = self.root.path().join(&container.image.disk);
        if !image_disk.exists() {
            let reference = container_api::escape::escape(&container.config.image.reference);
            let message =
                format!("the disk of image {reference} is gone: create the container anew");
            return Err(ApiError::not_found(message));
        }
        let shape = self.shape(&kernel, &report, container.config.resources, virtualization);
        let directory = self.directory(container);
        let volumes = self.volume_disks(&container.config)?;
        let shares = self.shares(&container.config);
        Ok(Plan {
            kernel,
            shape,
            report,
            image_disk,
            directory,
            volumes,
            shares,
            maintenance: false,
            virtualization,
        })
    }

    /// Gets a VM that no program will run in: a spare, one from a template, or one that boots.
    /// It has the container's disk and nothing else of it.
    pub async fn launch_bare(&self, container: &Container, plan: &Plan) -> Result<Arc<Machine>> {
        if let Some(shape) = &plan.shape
            && let Some(spare) = self.spare_for(shape, Needs { tap: false, mappable: false }).await
        {
            match self.adopt_wired(container, plan, spare, Wires::default()).await {
                Ok(machine) => return Ok(Arc::new(machine)),
                Err(error) => {
                    tracing::warn!(container = container.id(), %error, "a spare was not taken");
                }
            }
        }
        let template = match &plan.shape {
            Some(shape) => self.templates.acquire(shape).await,
            None => None,
        };
        self.launch_helper(container, plan, template, Wires::default()).map(Arc::new)
    }

    /// Gets a VM for the container: the fastest way there is, with `spares` also a spare.
    pub async fn launch(
        &self,
        container: &Arc<Container>,
        plan: &Plan,
        spares: bool,
        attachment: &Attachment,
    ) -> Result<Arc<Machine>> {
        plan.shares.as_ref().map_err(Clone::clone)?;
        let networked = is_networked(container);
        if networked && self.networks.want() {
            keeper::end_tapless(self).await;
        }
        if let Some(shape) = &plan.shape
            && spares
            && let needs = (Needs { tap: networked, mappable: plan.has_shares() })
            && let Some(spare) = self.spare_for(shape, needs).await
        {
            match self.adopt(container, plan, spare, attachment).await {
                Ok(machine) => return Ok(self.has_machine(container, machine)),
                Err(NotAdopted::Refused(error)) => return Err(error),
                Err(NotAdopted::Failed(error)) => {
                    tracing::warn!(container = container.id(), %error, "a spare was not taken");
                }
            }
        }
        let wires = self.attach(container, None, attachment).await?;
        let begun = trace::now_ns();
        let template = match &plan.shape {
            Some(shape) => self.templates.acquire(shape).await,
            None => None,
        };
        match self.launch_helper(container, plan, template, wires) {
            Ok(machine) => {
                attachment.span("helper launched", begun);
                Ok(self.has_machine(container, machine))
            }
            Err(error) => {
                self.networks.detach(container.id()).await;
                Err(error)
            }
        }
    }

    /// Puts a container on its networks; a container that has none gets nothing.
    async fn attach(
        &self,
        container: &Container,
        parked: Option<&str>,
        attachment: &Attachment,
    ) -> Result<Wires> {
        if !is_networked(container) {
            return Ok(Wires::default());
        }
        let begun = trace::now_ns();
        let config = &container.config;
        let attach = Attach {
            container: container.id().to_owned(),
            hostname: config.hostname.clone(),
            options: config.network.clone(),
            parked: parked.map(str::to_owned),
        };
        let (attached, taps) = self.networks.attach(attach).await?;
        attachment.span("networks attached", begun);
        let guest = Some(guest::network(config, &attached));
        Ok(Wires { guest, attached: Some(attached), taps })
    }

    /// A spare of this shape; while there is no template of it, also a larger one.
    async fn spare_for(&self, shape: &Shape, needs: Needs) -> Option<Spare> {
        match self.spares.take(shape, needs).await {
            None if !self.templates.is_ready(&shape.key) => self.spares.take_larger(shape, needs),
            exact => exact,
        }
    }

    fn has_machine(&self, container: &Container, machine: Machine) -> Arc<Machine> {
        let machine = Arc::new(machine);
        tracing::info!(container = container.id(), origin = ?machine.origin(), "a VM starts");
        container.update(|live| {
            live.machine = Some(machine.clone());
            live.life.apply(Event::Launch)
        });
        self.write_down(container);
        machine
    }

    async fn adopt(
        &self,
        container: &Container,
        plan: &Plan,
        spare: Spare,
        attachment: &Attachment,
    ) -> std::result::Result<Machine, NotAdopted> {
        let wires = match self.attach(container, spare.tap(), attachment).await {
            Ok(wires) => wires,
            // The tap, or the service that knew it, has gone.
            Err(error) if is_about_the_tap(&error) => {
                spare.end().await;
                return Err(NotAdopted::Failed(error));
            }
            Err(error) => {
                self.spares.give_back(spare);
                return Err(NotAdopted::Refused(error));
            }
        };
        let begun = trace::now_ns();
        match self.adopt_wired(container, plan, spare, wires).await {
            Ok(machine) => {
                attachment.span("spare adopted", begun);
                Ok(machine)
            }
            Err(error) => {
                self.networks.detach(container.id()).await;
                Err(NotAdopted::Failed(error))
            }
        }
    }

    async fn adopt_wired(
        &self,
        container: &Container,
        plan: &Plan,
        spare: Spare,
        wires: Wires,
    ) -> Result<Machine> {
        let mut spec = self.vm_spec(&plan.kernel, &plan.report, spare.shape.resources)?;
        let template = spare.shape.key.clone();
        spec.template = Some(self.templates.files(&template));
        spec.jail_uid = spare.uid();
        spec.network = wires.guest;
        write_spec(plan, &mut spec)?;
        let adopted = spare
            .adopt(&plan.directory, &wires.taps)
            .await
            .map_err(|error| error.context(format!("container '{}'", container.id())))?;
        let mut machine = Machine::new(adopted.helper, &spec, adopted.uid, VmOrigin::Spare);
        machine.network = wires.attached;
        machine.template = Some(template);
        machine.hypervisor = adopted.hypervisor.map_or_else(OnceLock::new, OnceLock::from);
        Ok(machine)
    }

    fn launch_helper(
        &self,
        container: &Container,
        plan: &Plan,
        template: Option<Acquired>,
        wires: Wires,
    ) -> Result<Machine> {
        let own = container.config.resources;
        let resources = template.as_ref().map_or(own, |template| template.resources);
        let mut spec = self.vm_spec(&plan.kernel, &plan.report, resources)?;
        spec.template = template.as_ref().map(|template| template.files.clone());
        let uid = self.jail_uids.take();
        spec.jail_uid = uid.get();
        spec.nic |= !wires.taps.is_empty();
        spec.network = wires.guest;
        write_spec(plan, &mut spec)?;
        let program = paths::program("container-runtime-linux")?;
        let launch = Launch { command: "run", low_priority: false, taps: wires.taps };
        let helper = Helper::launch(&program, &plan.directory, launch)
            .map_err(|e| ApiError::from(e).context(program.display()))?;
        let origin = template.as_ref().map_or(VmOrigin::Cold, |_| VmOrigin::Template);
        let mut machine = Machine::new(helper, &spec, uid, origin);
        machine.network = wires.attached;
        machine.template = template.as_ref().map(|template| template.key.clone());
        machine.hold = Mutex::new(template);
        Ok(machine)
    }
}

/// Completes and writes `vm.json`, in a directory without traces of the last VM.
fn write_spec(plan: &Plan, spec: &mut VmSpec) -> Result<()> {
    spec.image_disk = plan.image_disk.clone();
    spec.upper_disk = plan.directory.join(names::UPPER);
    spec.volumes = plan.volumes.clone();
    spec.shares = plan.shares.clone().unwrap_or_default();
    spec.maintenance = plan.maintenance;
    spec.virtualization = plan.virtualization;
    if plan.maintenance {
        spec.shares.clear();
    }
    for stale in [names::EXIT, names::SOCKET] {
        let _ = std::fs::remove_file(plan.directory.join(stale));
    }
    write_json(&plan.directory, names::VM_SPEC, spec)
        .map_err(|e| ApiError::from(e).context(plan.directory.join(names::VM_SPEC).display()))
}

impl Machine {
    /// A VM whose helper was just started.
    pub fn new(helper: Helper, spec: &VmSpec, uid: JailUid, origin: VmOrigin) -> Machine {
        Machine {
            helper,
            accelerator: Some(spec.accelerator),
            uid,
            origin: Mutex::new(Some(origin)),
            template: None,
            hold: Mutex::default(),
            limits: Mutex::default(),
            hypervisor: OnceLock::new(),
            network: None,
            maintenance: spec.maintenance,
            abandoned: AtomicBool::new(false),
        }
    }

    /// A VM that was there before this service; `recorded` says what was known of it.
    pub fn found(
        helper: Helper,
        directory: &Path,
        uids: &Arc<JailUids>,
        recorded: Option<&Runtime>,
    ) -> Machine {
        let text = std::fs::read(directory.join(names::VM_SPEC)).unwrap_or_default();
        let spec: Option<VmSpec> = serde_json::from_slice(&text).ok();
        let template = spec.as_ref().and_then(|spec| spec.template.as_ref());
        let key = template.and_then(|files| files.state.parent()?.file_name());
        Machine {
            helper,
            accelerator: spec.as_ref().map(|spec| spec.accelerator),
            uid: uids.claim(spec.as_ref().map_or(0, |spec| spec.jail_uid)),
            origin: Mutex::new(recorded.and_then(|runtime| runtime.origin)),
            template: key.map(|key| key.to_string_lossy().into_owned()),
            hold: Mutex::default(),
            limits: Mutex::new(recorded.and_then(|runtime| runtime.resources)),
            hypervisor: OnceLock::<Handle>::new(),
            network: recorded.and_then(|runtime| runtime.network.clone()),
            maintenance: spec.as_ref().is_some_and(|spec| spec.maintenance),
            abandoned: AtomicBool::new(false),
        }
    }
}
