//! QEMU as a [`Hypervisor`], in typed phases.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};

use super::arch::HOST;
use super::child::Child;
use super::command::{self, Guest, Numbers, Ram, Shape};
use super::devices::ROOT_PORTS;
use super::error::{Error, Phase};
use super::install::unix_stream;
use super::jail::{self, Descriptors, Program};
use super::listener::{self, FileId};
use super::qmp::Qmp;
use super::qmp_commands::Capabilities;
use super::running::{OwnRam, Running};
use super::trim::Trimmer;
use super::{
    Accelerator, DISK_LEN, ExtraNic, Hypervisor, Nic, Origin, QemuInstall, RamSharing,
    START_DEADLINE, VmConfig, VmStreams, memory, migration, scope,
};

/// The least RAM in MiB with which the guest kernel boots; below, it ends in a
/// panic before the first program.
pub const MIN_MEMORY_MIB: u32 = 96;

/// QEMU. Has no state: each VM is a process of its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Qemu;

impl Hypervisor for Qemu {
    type Vm = Running;

    async fn start(&self, config: VmConfig) -> Result<(Running, VmStreams), Error> {
        let start = async {
            let prepared = Prepared::new(config)?;
            let spawned = prepared.spawn().await?;
            spawned.run().await
        };
        match tokio::time::timeout(START_DEADLINE, start).await {
            Ok(started) => started,
            Err(_) => Err(Error::TimedOut {
                phase: Phase::Greet,
                operation: "starting the VM".into(),
                limit: START_DEADLINE,
            }),
        }
    }
}

/// A configuration that was checked; nothing exists yet.
#[derive(Debug)]
pub struct Prepared {
    config: VmConfig,
}

impl Prepared {
    /// Checks what can be checked without a process.
    pub fn new(mut config: VmConfig) -> Result<Prepared, Error> {
        let max_vcpus = config.install.features.max_vcpus;
        if config.vcpus == 0 || config.vcpus > max_vcpus {
            return Err(Error::Config(format!(
                "{} CPUs: a VM can have 1 to {max_vcpus}",
                config.vcpus
            )));
        }
        if config.memory_mib < MIN_MEMORY_MIB {
            return Err(Error::Config(format!(
                "{} MiB of memory: a VM needs at least {MIN_MEMORY_MIB} MiB",
                config.memory_mib
            )));
        }
        let ram_len = u64::from(config.memory_mib) << 20;
        match &mut config.origin {
            Origin::Cold { kernel, initramfs, ram } => {
                for path in [kernel, initramfs] {
                    check_shared(path, config.jail.host_ids.is_some())?;
                }
                ram.as_ref().map_or(Ok(()), |ram| memory::check_len(ram, ram_len))?;
            }
            Origin::Template { ram, .. } => {
                check_shared(ram, false)?;
                memory::check_len(&open(ram)?, ram_len)?;
            }
        }
        check_nics(&config)?;
        check_shared(&mut config.image, false)?;
        check_upper(&config.upper)?;
        Ok(Prepared { config })
    }

    /// Makes the jail and starts QEMU in it.
    pub async fn spawn(self) -> Result<Spawned, Error> {
        let root_ports = root_ports(&self.config);
        let VmConfig { install, jail, accelerator, origin, nic, more_nics, .. } = self.config;
        let VmConfig { virtualization, memory_mib, vcpus, image, upper, .. } = self.config;
        let shape = Shape { accelerator, virtualization, memory_mib, vcpus, root_ports };
        let (monitor, monitor_end) = pair()?;
        let (agent, agent_end) = pair()?;
        let (bulk, bulk_end) = pair()?;
        let (console, console_end) = pair()?;
        let mut kept = Vec::new();
        let mut keep = |fd: OwnedFd| {
            kept.push(fd);
            kept.last().map_or(-1, AsRawFd::as_raw_fd)
        };
        let mut numbers = Numbers {
            guest: Guest::Incoming,
            ram: Ram::Own,
            tap: None,
            more_taps: Vec::new(),
            disks: [-1, keep(upper)],
            monitor: keep(monitor_end),
            ports: [keep(agent_end), keep(bulk_end)],
            console: keep(console_end),
            trim: None,
        };
        let mut trimmer = None;
        if accelerator == Accelerator::Tcg && install.features.trims {
            let (ours, theirs) = Trimmer::new()?;
            trimmer = Some(ours);
            numbers.trim = Some(keep(theirs));
        }
        let mut boot = None;
        let mut state_number = None;
        let mut own = OwnRam::Shared;
        let mut copied = None;
        match origin {
            Origin::Cold { kernel, initramfs, ram } => {
                boot = Some((kernel, initramfs));
                numbers.ram = ram.map_or(Ram::Own, |ram| Ram::Shared(keep(ram.into())));
            }
            Origin::Template { ram, state, sharing } => {
                state_number = Some(keep(memory::state(state)?));
                numbers.ram = match sharing {
                    RamSharing::CopyOnWrite => {
                        own = OwnRam::Copied;
                        copied = Some(ram);
                        Ram::Own
                    }
                    RamSharing::Copy => Ram::Shared(keep(memory::copy(&ram)?)),
                };
            }
        }
        let isolated = matches!(nic, Nic::Isolated);
        if let Nic::Tap(tap) = nic {
            numbers.tap = Some(keep(tap));
        }
        for ExtraNic { mac, tap } in more_nics {
            numbers.more_taps.push((keep(tap), mac));
        }
        let mut descriptors = Descriptors::new(kept)?;
        if let Some((kernel, initramfs)) = boot {
            let (kernel, initramfs) = (descriptors.share(kernel), descriptors.share(initramfs));
            numbers.guest = Guest::Boot { kernel, initramfs };
        }
        numbers.disks[0] = descriptors.share(image);
        if isolated {
            numbers.tap = Some(descriptors.tap());
        }
        let mut listener = None;
        if let Some(path) = copied {
            let file = FileId::of_path(&path)
                .map_err(Error::io(Phase::Prepare, format!("reading {}", path.display())))?;
            let number = descriptors.share(path);
            numbers.ram = Ram::CopyOnWrite(number);
            listener = Some((descriptors.listen()?, listener::Ram { file, number }));
        }
        let program = Program {
            files: &install.files,
            descriptors,
            kvm: accelerator == Accelerator::Kvm,
            limits: command::limits(shape),
            env: command::environment(&install),
            command: command::vm(&install, shape, numbers),
        };
        let child = jail::spawn(&jail, program).await?;
        scope::enclose(child.pid(), shape);
        if let Some((socket, ram)) = listener {
            let listener = jail::receive(&socket).map_err(no_listener)?;
            listener::answer(listener, ram)?;
        }
        let streams = VmStreams {
            agent: unix_stream(agent)?,
            bulk: unix_stream(bulk)?,
            console: unix_stream(console)?,
        };
        let state = state_number;
        Ok(Spawned { child, monitor, state, own, root_ports, trimmer, streams })
    }
}

/// QEMU's process exists; it has not answered.
#[derive(Debug)]
pub struct Spawned {
    child: Child,
    monitor: StdStream,
    /// The number that the state to restore has there.
    state: Option<RawFd>,
    own: OwnRam,
    root_ports: u32,
    trimmer: Option<Trimmer>,
    streams: VmStreams,
}

impl Spawned {
    /// Waits until the machine is complete and guest code runs.
    pub async fn run(self) -> Result<(Running, VmStreams), Error> {
        let qmp = Qmp::new(unix_stream(self.monitor)?);
        let runs = match self.state {
            // A guest that boots does so as soon as the machine is complete.
            None => qmp.execute(&Capabilities {}, START_DEADLINE).await.map(drop),
            Some(state) => migration::restore(&qmp, state).await,
        };
        match runs {
            Ok(()) => {
                let Spawned { child, own, root_ports, trimmer, streams, .. } = self;
                Ok((Running::new(child, qmp, own, root_ports, trimmer), streams))
            }
            Err(error) => Err(explain(&self.child, Phase::Greet, error).await),
        }
    }
}

/// The error of a QEMU that answers no more is why it died, if it did.
pub(super) async fn explain(child: &Child, phase: Phase, error: Error) -> Error {
    let grace = std::time::Duration::from_millis(500);
    match (&error, tokio::time::timeout(grace, child.wait()).await) {
        (Error::Io { .. }, Ok(exit)) => Error::Died {
            phase,
            status: match (exit.code, exit.signal) {
                (Some(code), _) => format!("exit code {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => "unknown status".into(),
            },
            stderr: exit.stderr,
        },
        _ => error,
    }
}

/// Without a listener QEMU can't open a template's RAM.
fn no_listener(error: std::io::Error) -> Error {
    Error::Config(format!(
        "a VM can't be restored here: the kernel gives no seccomp listener (there is one already, \
         or none at all): {error}"
    ))
}

fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(Error::io(Phase::Prepare, format!("reading {}", path.display())))
}

fn pair() -> Result<(StdStream, OwnedFd), Error> {
    let (ours, theirs) = StdStream::pair().map_err(Error::io(Phase::Prepare, "socketpair"))?;
    Ok((ours, theirs.into()))
}

/// A file that QEMU opens again in the jail must be readable by the uid there. The jailer takes
/// no path with `..` or links in it.
fn check_shared(path: &mut PathBuf, by_other_uid: bool) -> Result<(), Error> {
    let failed = |e| Error::io(Phase::Prepare, format!("reading {}", path.display()))(e);
    let real = std::fs::canonicalize(&*path).map_err(failed)?;
    let meta = std::fs::metadata(&real).map_err(failed)?;
    *path = real;
    if by_other_uid && meta.mode() & 0o004 == 0 {
        return Err(Error::Config(format!(
            "{} must be readable by all (mode {:o}): QEMU has a uid of its own",
            path.display(),
            meta.mode() & 0o7777
        )));
    }
    Ok(())
}

/// Places for devices that come later.
fn root_ports(config: &VmConfig) -> u32 {
    match config.origin {
        Origin::Cold { ram: None, .. } if !config.takes_plugs => 0,
        Origin::Cold { ram: None, .. } => ROOT_PORTS,
        Origin::Cold { ram: Some(_), .. } | Origin::Template { .. } => ROOT_PORTS,
    }
}

fn check_nics(config: &VmConfig) -> Result<(), Error> {
    let first = !matches!(config.nic, Nic::None);
    let boots = matches!(config.origin, Origin::Cold { ram: None, .. });
    if config.more_nics.is_empty() || first && boots {
        return Ok(());
    }
    let reason = "further NICs are for a VM that boots, is no template and has a first one";
    Err(Error::Config(reason.into()))
}

fn check_upper(upper: &OwnedFd) -> Result<(), Error> {
    let failed = Error::io(Phase::Prepare, "reading the container's disk");
    let stat = nix::sys::stat::fstat(upper).map_err(|errno| failed(errno.into()))?;
    if stat.st_size != DISK_LEN as i64 {
        return Err(Error::Config(format!(
            "the container's disk has {} bytes instead of {DISK_LEN}",
            stat.st_size
        )));
    }
    Ok(())
}

/// What of the command line is the same in every VM on this QEMU.
pub fn command_identity(
    install: &QemuInstall,
    accelerator: Accelerator,
    virtualization: bool,
) -> String {
    command::identity(install, accelerator, virtualization)
}

/// What the kernel gets on its command line in every VM.
pub fn kernel_command_line() -> String {
    HOST.kernel_command_line()
}
