//! From `vm.json` to a VM's configuration, anew for each attempt to start it.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail};
use container_api::paths;
use container_api::runtime::{GuestInterface, VmSpec};

use crate::hypervisor::{ExtraNic, Jail, Nic, Origin, QemuInstall, RamSharing, VmConfig};

/// What a VM is made from, as often as it takes.
#[derive(Debug)]
pub struct Blueprint {
    spec: VmSpec,
    install: QemuInstall,
    jail: Jail,
    ram: Option<File>,
    /// In the order of the NICs.
    taps: Vec<OwnedFd>,
    tapped: usize,
}

impl Blueprint {
    /// Of a specification. `ram` is a file to be the RAM of a VM that boots, which is to become a
    /// template.
    ///
    /// # Errors
    /// When its hypervisor is none that this version has found.
    pub fn new(spec: VmSpec, jail: Jail, ram: Option<File>) -> Result<Blueprint> {
        let install = serde_json::from_value(spec.hypervisor.clone())
            .context("vm.json: the hypervisor is not one that this version has probed")?;
        Ok(Blueprint { spec, install, jail, ram, taps: Vec::new(), tapped: 0 })
    }

    /// With taps for the VM's NICs. A VM that is nobody's yet may have one.
    ///
    /// # Errors
    /// When they are not as many as the specification has interfaces.
    pub fn with_taps(mut self, taps: Vec<OwnedFd>) -> Result<Blueprint> {
        let wanted = self.spec.network.as_ref().map(|network| network.interfaces.len());
        let (given, fits) = (taps.len(), wanted.map_or(taps.len() <= 1, |n| n == taps.len()));
        if !fits {
            bail!("vm.json: {} network interfaces, but {given} taps", wanted.unwrap_or(0));
        }
        self.tapped = given;
        self.taps = taps;
        Ok(self)
    }

    /// How many of the VM's NICs have a tap that was given.
    pub fn tapped(&self) -> usize {
        self.tapped
    }

    /// Whether the VM has a NIC.
    pub fn has_nic(&self) -> bool {
        self.spec.nic || self.tapped > 0
    }

    /// Gives the taps up, once no further VM is made: they are to go with the VM that has them.
    /// Returns those that a restored one has yet to get.
    pub fn release_taps(&mut self) -> Vec<ExtraNic> {
        let taps = std::mem::take(&mut self.taps);
        self.nics(taps.into_iter().skip(1))
    }

    fn nics(&self, taps: impl Iterator<Item = OwnedFd>) -> Vec<ExtraNic> {
        let interfaces = self.spec.network.iter().flat_map(|network| &network.interfaces);
        let nic =
            |(interface, tap): (&GuestInterface, _)| ExtraNic { mac: interface.mac_address, tap };
        interfaces.skip(1).zip(taps).map(nic).collect()
    }

    /// The specification.
    pub fn spec(&self) -> &VmSpec {
        &self.spec
    }

    /// The jail of its VMs.
    pub fn jail(&self) -> &Jail {
        &self.jail
    }

    /// A VM that boots.
    ///
    /// # Errors
    /// When the writable disk can't be opened.
    pub fn cold(&self) -> Result<VmConfig> {
        let ram = self.ram.as_ref().map(File::try_clone);
        let ram = ram.transpose().context("the RAM's descriptor")?;
        let kernel = self.spec.kernel.clone();
        let initramfs = self.spec.initramfs.clone();
        self.config(Origin::Cold { kernel, initramfs, ram })
    }

    /// A VM that is restored; `None` without a template.
    ///
    /// # Errors
    /// When the template's state or the writable disk can't be opened.
    pub fn restored(&self) -> Result<Option<VmConfig>> {
        let Some(template) = &self.spec.template else { return Ok(None) };
        if self.has_nic() && !self.spec.nic {
            tracing::warn!("the template has no NIC, which the container needs");
            return Ok(None);
        }
        let state = File::open(&template.state);
        let state = state.with_context(|| format!("opening {}", template.state.display()))?;
        let origin = Origin::Template {
            ram: template.ram.clone(),
            state: state.into(),
            // A file server maps the RAM.
            sharing: match self.spec.mappable || !self.spec.shares.is_empty() {
                false => RamSharing::CopyOnWrite,
                true => RamSharing::Copy,
            },
        };
        self.config(origin).map(Some)
    }

    fn config(&self, origin: Origin) -> Result<VmConfig> {
        let spec = &self.spec;
        let taps = self.taps.iter().map(OwnedFd::try_clone).collect::<Result<Vec<_>, _>>();
        let mut taps = taps.context("the taps' descriptors")?.into_iter();
        let nic = match taps.next() {
            Some(tap) => Nic::Tap(tap),
            None if spec.nic => Nic::Isolated,
            None => Nic::None,
        };
        let more_nics = match origin {
            Origin::Cold { .. } => self.nics(taps),
            Origin::Template { .. } => Vec::new(),
        };
        let memory_mib = spec.resources.memory_in_bytes >> 20;
        Ok(VmConfig {
            install: self.install.clone(),
            jail: self.jail.clone(),
            accelerator: spec.accelerator,
            virtualization: spec.virtualization,
            origin,
            nic,
            more_nics,
            memory_mib: u32::try_from(memory_mib).context("vm.json: memory")?,
            vcpus: spec.resources.cpus,
            image: spec.image_disk.clone(),
            upper: writable_disk(spec)?,
            // Slots come with the places.
            takes_plugs: !spec.volumes.is_empty() || !spec.shares.is_empty(),
        })
    }
}

/// Opens a specification's writable disk.
///
/// # Errors
/// Those of the system.
pub fn writable_disk(spec: &VmSpec) -> Result<OwnedFd> {
    let mut options = OpenOptions::new();
    let upper = options.read(true).write(true).open(&spec.upper_disk);
    Ok(upper.with_context(|| format!("opening {}", spec.upper_disk.display()))?.into())
}

/// The jail of this host. Root's has a uid of its own outside; everybody else's has theirs.
///
/// # Errors
/// When the jailer is not installed.
pub fn jail(allow_missing: Vec<String>, jail_uid: u32) -> Result<Jail> {
    let jailer = paths::program("container-jailer")?;
    let host_ids = nix::unistd::geteuid().is_root().then_some((jail_uid, jail_uid));
    Ok(Jail { jailer, host_ids, allow_missing })
}
