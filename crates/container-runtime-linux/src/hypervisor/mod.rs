//! The virtual machine behind one small trait.
//!
//! ```text
//! Prepared ──spawn──► Spawned ──run──► Running ──► Ended
//!  checked             jailed process    guest code   exit status,
//!  configuration       exists            runs         reason
//! ```
//!
//! Each phase is a type that owns what exists by then ([`qemu`]); a failure in
//! a phase drops it, which kills the process. Only this module knows QEMU.

pub mod arch;
pub mod attacker;
mod child;
mod command;
mod devices;
mod error;
pub mod install;
mod jail;
mod listener;
mod memory;
mod migration;
mod plug;
pub mod qemu;
mod qmp;
mod qmp_commands;
mod running;
mod scope;
mod trim;
mod usage;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use container_api::network::Mac;
use tokio::net::UnixStream;

pub use child::VmExit;
pub use container_api::paths::DISK_LEN;
pub use container_api::types::Accelerator;
pub use devices::Disk;
pub use error::{Error, Phase};
pub use install::{QemuInstall, Source};
pub use jail::{Jail, JailFile, check_tap, open_shared};
pub use qemu::Qemu;

/// The longest that a VM may take from the first process to running guest
/// code. A machine with every core busy needs seconds.
pub const START_DEADLINE: Duration = Duration::from_secs(30);

/// The longest that any one request to a VM may take.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// A firmware file by its name in QEMU's data directories.
#[derive(Debug, Clone, Copy)]
pub struct FirmwareFile {
    name: &'static str,
    required: bool,
}

impl FirmwareFile {
    const fn required(name: &'static str) -> FirmwareFile {
        FirmwareFile { name, required: true }
    }

    const fn optional(name: &'static str) -> FirmwareFile {
        FirmwareFile { name, required: false }
    }
}

/// One VM to start.
#[derive(Debug)]
pub struct VmConfig {
    /// QEMU and its files, as [`install::discover`] found them.
    pub install: QemuInstall,
    /// How the jail is made.
    pub jail: Jail,
    /// What executes guest code.
    pub accelerator: Accelerator,
    /// Whether the VM's CPU can run VMs itself.
    pub virtualization: bool,
    /// Where the guest comes from.
    pub origin: Origin,
    /// The VM's network card.
    pub nic: Nic,
    /// Further ones, of a VM that boots and is no template: one that has places for devices gets
    /// them by [`Vm::plug_nic`].
    pub more_nics: Vec<ExtraNic>,
    /// The VM's RAM in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub vcpus: u32,
    /// The image's EROFS file, shared with other VMs, opened read-only.
    pub image: PathBuf,
    /// The container's ext4 file of [`DISK_LEN`] bytes, open for writing.
    pub upper: OwnedFd,
    /// Devices are to be plugged into it though it boots and is no template.
    pub takes_plugs: bool,
}

/// Where a guest comes from.
#[derive(Debug)]
pub enum Origin {
    /// It boots.
    Cold {
        /// Uncompressed kernel (ELF `vmlinux`; `Image` on aarch64), readable by all.
        kernel: PathBuf,
        /// The initramfs (cpio), readable by all.
        initramfs: PathBuf,
        /// A file of the RAM's length to be the RAM, in place of one that QEMU makes: for a VM
        /// that is to become a template. Nobody else may map it.
        ram: Option<File>,
    },
    /// It is restored.
    Template {
        /// The template's RAM: a file of the RAM's length, shared with other VMs, opened on a
        /// read-only mount.
        ram: PathBuf,
        /// The device state, open for reading.
        state: OwnedFd,
        /// How the VM gets its own.
        sharing: RamSharing,
    },
}

/// How a restored VM gets RAM of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RamSharing {
    /// Pages are copied as they are written.
    CopyOnWrite,
    /// All is copied into a memfd that other processes can share: vhost-user devices need that.
    Copy,
}

/// A VM's network card.
#[derive(Debug)]
pub enum Nic {
    /// None.
    None,
    /// On a tap that is made inside the jail and leads nowhere.
    Isolated,
    /// On a tap that was made with `IFF_VNET_HDR`.
    Tap(OwnedFd),
}

/// A network card beside the first.
#[derive(Debug)]
pub struct ExtraNic {
    /// Its hardware address, by which the guest knows it.
    pub mac: Mac,
    /// A tap that was made with `IFF_VNET_HDR`.
    pub tap: OwnedFd,
}

/// The host ends of a VM's channels.
#[derive(Debug)]
pub struct VmStreams {
    /// Control messages: the virtio-serial port `agent`.
    pub agent: UnixStream,
    /// Program input and output: the virtio-serial port `bulk`.
    pub bulk: UnixStream,
    /// The guest kernel's console. Must be read, else the guest waits.
    pub console: UnixStream,
}

/// Something that can start a VM.
#[expect(async_fn_in_trait, reason = "used inside this program alone, on one thread")]
pub trait Hypervisor {
    /// A running VM.
    type Vm: Vm;

    /// Starts a VM; when this returns, guest code runs. Takes at most
    /// [`START_DEADLINE`]. Must be called on the main thread: the VM dies with
    /// the thread that starts it.
    async fn start(&self, config: VmConfig) -> Result<(Self::Vm, VmStreams), Error>;
}

/// A running VM. Dropping it kills it.
#[expect(async_fn_in_trait, reason = "used inside this program alone, on one thread")]
pub trait Vm {
    /// The process, in this process's pid namespace.
    fn pid(&self) -> i32;

    /// Stops guest execution. Legal while running.
    async fn pause(&self) -> Result<(), Error>;

    /// Continues guest execution. Legal while paused or running.
    async fn resume(&self) -> Result<(), Error>;

    /// Puts other files behind disks, behind all of them or none. The guest must not use these
    /// disks meanwhile and must drop its cache of them afterwards; a file has [`DISK_LEN`] bytes.
    /// A read-only disk takes only what [`open_shared`] gives; a slot can be empty. A VM has slots
    /// where it may have devices plugged. Legal while running or paused.
    async fn swap_disks(&self, disks: Vec<(Disk, Option<OwnedFd>)>) -> Result<(), Error>;

    /// Closes what was behind disks before: until then it stays open, though nothing reads or
    /// writes it.
    async fn release_swapped(&self) -> Result<(), Error>;

    /// Writes the device state. Legal while paused. The RAM is not in it: it is the file of
    /// [`Origin::Cold`].
    async fn save(&self, state: OwnedFd) -> Result<(), Error>;

    /// Lets the guest have this much of its RAM in bytes; the rest is taken by the balloon as the
    /// guest's driver gets to it.
    async fn set_balloon(&self, bytes: u64) -> Result<(), Error>;

    /// Plugs a further disk that the guest finds by `serial` (letters, digits, `-`; at most 20
    /// bytes). Legal while running, in a VM that was restored or [`VmConfig::takes_plugs`]; four
    /// devices in all.
    async fn plug_disk(&self, serial: &str, file: OwnedFd, read_only: bool) -> Result<(), Error>;

    /// Plugs a shared directory that the guest mounts by `tag` (virtio-fs): the socket of a
    /// vhost-user file server. Legal while running, in a VM that was restored with
    /// [`RamSharing::Copy`]; counts as one of the four.
    async fn plug_share(&self, tag: &str, server: OwnedFd) -> Result<(), Error>;

    /// Plugs a further network card. Legal while running, in a VM that was restored; counts as one
    /// of the four.
    async fn plug_nic(&self, nic: ExtraNic) -> Result<(), Error>;

    /// Bytes of the host's memory that this VM alone holds.
    fn own_memory(&self) -> std::io::Result<u64>;

    /// Has the hypervisor forget what it can make again, when the guest next wakes: its translations
    /// of the guest's code, which then cost time again as they are needed. False where it has
    /// nothing to forget.
    fn trim(&self) -> bool;

    /// CPU time that it has used.
    fn cpu_time(&self) -> std::io::Result<Duration>;

    /// Asks the hypervisor to end in order, writing out its caches.
    async fn quit(&self) -> Result<(), Error>;

    /// Ends it at once. Legal in every state.
    fn kill(&self);

    /// Waits until the VM has ended; the only wait without a deadline, since
    /// this is what a container's life looks like. May be called again.
    async fn ended(&self) -> VmExit;
}
