//! `container-runtime-linux`: one helper, one VM, one container.
//!
//! The apiserver writes [`VmSpec`] and the container's configuration into the container's
//! directory, starts `container-runtime-linux run DIRECTORY`, and calls [`Request`] on the socket
//! `runtime.sock` there. The helper boots the VM at once; [`Request::Start`] waits for it.
//!
//! ```text
//! booting ──► ready ──Start──► running ──(first process ends, Stop, Kill)──► ended
//!    └───────────┴─────────────────┴── VM or helper dies ──────────────────► ended
//! ```
//! When the container has ended the helper writes the exit record, answers waiting calls, and
//! ends itself.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::archive::ArchiveWork;
use crate::mounts::{FileIdentity, IdRange};
use crate::network::Mac;
use crate::types::{
    Accelerator, ExitRecord, OutOfMemoryKill, ProcessConfig, Resources, Stdio, TerminalSize,
    Timestamp, VmOrigin,
};

/// Name of the first process.
pub const INIT_PROCESS: &str = "init";

/// From the helper's start to a ready guest. Emulated boots on a loaded host take seconds. One that
/// hangs is repeated, and its caller waits for that.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(60);
/// For calls that the guest answers at once.
pub const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// What a VM is made of; the helper reads it from `vm.json` beside the container's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmSpec {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// The VM's shape: its CPUs and its RAM. A container may be allowed less.
    pub resources: Resources,
    /// The template to restore the VM from; `None` boots it.
    #[serde(default)]
    pub template: Option<TemplateFiles>,
    /// Whether a restored VM's RAM can be mapped by others, whatever it has: a spare's, for a
    /// container with shares.
    #[serde(default)]
    pub mappable: bool,
    /// Whether the VM has a NIC. Without a tap that the helper inherits, one is made inside the
    /// jail that leads nowhere.
    #[serde(default)]
    pub nic: bool,
    /// How the guest sets its NICs up; `None`: not at all, they lead nowhere. An interface beyond
    /// the first is plugged in once the guest answers.
    #[serde(default)]
    pub network: Option<GuestNetwork>,
    /// What runs guest code, already proved.
    pub accelerator: Accelerator,
    /// Whether the VM's CPU can run VMs itself.
    #[serde(default)]
    pub virtualization: bool,
    /// The image as a disk (EROFS), shared and read-only.
    pub image_disk: PathBuf,
    /// The container's writable disk (ext4).
    pub upper_disk: PathBuf,
    /// What the file server shows: each at its number in this list, below the root of one virtio-fs
    /// whose tag is [`SHARE_TAG`]. None: there is no file server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Share>,
    /// Directories of the installation that every share shows empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<PathBuf>,
    /// Block volumes: the first [`VOLUME_SLOTS`] that are written to are behind disks that every VM
    /// has for that, the others are plugged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeDisk>,
    /// No program will be started: the VM is there to read the container's disk, or to write it.
    #[serde(default)]
    pub maintenance: bool,
    /// The QEMU to use, as `container-runtime-linux probe` found it.
    pub hypervisor: serde_json::Value,
    /// Host user id for the jail when the helper is root.
    pub jail_uid: u32,
    /// Layers of the jail that may be missing on this host.
    pub allow_missing: Vec<String>,
    /// Size in bytes at which the output log is rotated.
    pub log_max_size: u64,
    /// Output logs kept.
    pub log_max_files: u32,
}

/// The tag of the virtio-fs that a container's file server serves.
pub const SHARE_TAG: &str = "container";

/// Writable block volumes that a VM takes without a device being plugged.
pub const VOLUME_SLOTS: usize = 2;

/// Serial number of the disk of a plugged volume, by its place in [`VmSpec::volumes`].
pub fn volume_serial(index: usize) -> String {
    format!("volume-{index}")
}

/// A directory or file of the host that a container sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// Its path; what it leads to is not used unless it is `identity`.
    #[serde(with = "path_bytes")]
    pub source: PathBuf,
    /// What was checked.
    pub identity: FileIdentity,
    /// Nothing may be changed, whatever the guest does.
    pub read_only: bool,
    /// Host changes raise events in the guest.
    #[serde(default)]
    pub notify: bool,
    /// Whom files belong to in the container that belong to the sharing user on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// As `uid`, for the group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Whom files belong to on either side, instead of `uid` and `gid`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub idmap: Vec<IdRange>,
}

/// Paths of any bytes, as [`ByteString`]s.
mod path_bytes {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::types::ByteString;

    pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        ByteString::from(path.as_os_str()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        ByteString::deserialize(deserializer).map(|path| OsString::from_vec(path.0).into())
    }
}

/// A block volume of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeDisk {
    /// The ext4 file.
    pub path: PathBuf,
    /// Nothing may be changed.
    pub read_only: bool,
}

/// What a guest is told of its network before the first process starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GuestNetwork {
    /// In the order of the taps.
    pub interfaces: Vec<GuestInterface>,
    /// `/etc/hosts`, whole.
    pub hosts: String,
    /// `/etc/resolv.conf`, whole; `None`: the image's own.
    pub resolv_conf: Option<String>,
}

/// One NIC in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestInterface {
    /// Its Ethernet address.
    pub mac_address: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Addresses with their prefixes, used at once (no duplicate address detection).
    pub addresses: Vec<IpNet>,
    /// Default routes, at most one of a family.
    pub gateways: Vec<IpAddr>,
}

/// What `container-runtime-linux probe` prints (JSON): what this host can run VMs with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeReport {
    /// The accelerator chosen.
    pub accelerator: Accelerator,
    /// Why that one, in one line.
    pub accelerator_reason: String,
    /// The QEMU found: opaque to everyone but the helper, which gets it back in [`VmSpec`].
    pub hypervisor: serde_json::Value,
    /// Its version, for `system status`.
    pub hypervisor_version: String,
    /// Why no VM can run here, if so: no QEMU, a missing namespace, AppArmor's restriction.
    pub problem: Option<String>,
    /// A digest of what a template depends on beside kernel, initramfs and [`Resources`]: QEMU's
    /// file and version, the accelerator, the CPU's features, our own command line for it.
    #[serde(default)]
    pub template_identity: String,
    /// Why VMs of this host can't run VMs themselves, one line each; empty: they can. `None`: nobody
    /// has looked.
    #[serde(default)]
    pub nesting: Option<Vec<String>>,
    /// Whether a jail can make a tap here; if not, VMs have no NIC.
    #[serde(default)]
    pub tap: bool,
}

/// A template's files, for a VM that is restored from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TemplateFiles {
    /// The RAM: mapped copy-on-write, never written.
    pub ram: PathBuf,
    /// The device state.
    pub state: PathBuf,
}

/// What `container-runtime-linux template DIRECTORY` leaves as `template.json` beside `ram` and
/// `state`, last of all: a directory without it is no template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TemplateManifest {
    /// Length of the RAM file in bytes: that of the VM's RAM. Sparse.
    pub ram_len: u64,
    /// The RAM file's digest, as [`crate::ram::digest`] gives it.
    pub ram_digest: String,
    /// SHA-256 of the device state, in hex ([`crate::ram::sha256`]).
    pub state_digest: String,
    /// When it was made.
    pub created_date: Timestamp,
}

/// What can be asked of a helper.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "method", content = "parameters")]
pub enum Request {
    /// Any state. Answer: [`State`].
    #[serde(rename = "dev.container.Runtime.State")]
    State,
    /// Booting or ready, once: starts the first process with the descriptors that `stdio` names.
    /// Answer: `()` when it runs, `ProgramNotFound`/`ProgramNotExecutable`/… when it can't (the
    /// container then ends).
    #[serde(rename = "dev.container.Runtime.Start")]
    Start {
        /// Streams to attach; logs are kept anyway.
        stdio: Stdio,
        /// Size of the caller's terminal.
        size: Option<TerminalSize>,
        /// One more descriptor, the last: a file to which [`crate::trace`] appends.
        #[serde(default)]
        trace: bool,
    },
    /// A restored spare, once: runs throwaway containers in it, so that the start of a container
    /// finds its way prepared and translated. Answer: `()` when it may be taken again.
    #[serde(rename = "dev.container.Runtime.WarmUp")]
    WarmUp,
    /// A spare only, once: becomes the container in `directory`, whose socket it serves from then
    /// on. Answer: `()` once it does; the container is then booting as any other.
    #[serde(rename = "dev.container.Runtime.Adopt")]
    Adopt {
        /// The container's directory, with `config.json` and `vm.json`.
        directory: PathBuf,
        /// As many descriptors: taps of the interfaces beyond the first, whose tap it has.
        #[serde(default)]
        taps: usize,
    },
    /// Running: changes the limits, within the VM's shape. Answer: `()`, or `InvalidArgument`
    /// with what the shape allows.
    #[serde(rename = "dev.container.Runtime.Update")]
    Update {
        /// The container's new limits.
        resources: Resources,
    },
    /// Running: has the guest give back the memory that it can do without, page cache above all.
    /// Its limits are the same before and after. Answer: `()`.
    #[serde(rename = "dev.container.Runtime.Reclaim")]
    Reclaim,
    /// Running: attaches further descriptors to the first process. Answer: `()`.
    #[serde(rename = "dev.container.Runtime.Attach")]
    Attach {
        /// Streams to attach.
        stdio: Stdio,
    },
    /// Running: starts another process. Answer: `()` when it runs.
    #[serde(rename = "dev.container.Runtime.Exec")]
    Exec {
        /// A name that no process of this container has had.
        process_id: String,
        /// The process.
        process: ProcessConfig,
        /// Streams to attach.
        stdio: Stdio,
        /// Size of the caller's terminal.
        size: Option<TerminalSize>,
    },
    /// Booting, ready (nothing else runs then) or running: copies files. A process of this name
    /// does, whose end [`Request::Wait`] tells: 0, or 1 and one line on its standard error. Answer:
    /// `()` when it has begun.
    #[serde(rename = "dev.container.Runtime.Archive")]
    Archive {
        /// A name that no process of this container has had.
        process_id: String,
        /// What to copy.
        work: ArchiveWork,
        /// Its streams.
        stdio: Stdio,
    },
    /// Any state: waits until the process has ended and its output is delivered. Answer:
    /// [`ExitRecord`].
    #[serde(rename = "dev.container.Runtime.Wait")]
    Wait {
        /// [`INIT_PROCESS`] or an exec's.
        process_id: String,
    },
    /// Running. Answer: `()`.
    #[serde(rename = "dev.container.Runtime.Signal")]
    Signal {
        /// [`INIT_PROCESS`] or an exec's.
        process_id: String,
        /// The signal's number on Linux.
        signal: i32,
    },
    /// Running. Answer: `()`.
    #[serde(rename = "dev.container.Runtime.Resize")]
    Resize {
        /// [`INIT_PROCESS`] or an exec's.
        process_id: String,
        /// The new size.
        size: TerminalSize,
    },
    /// Any state: sends `signal` to the first process, waits `timeout_ms`, then kills the
    /// container and ends the VM. Answer: [`ExitRecord`].
    #[serde(rename = "dev.container.Runtime.Stop")]
    Stop {
        /// The signal's number on Linux.
        signal: i32,
        /// Milliseconds between the signal and the kill.
        timeout_ms: u64,
    },
    /// Ready or running. Answer: [`Usage`].
    #[serde(rename = "dev.container.Runtime.Stats")]
    Stats,
    /// Booting or ready: gives the VM up without a start (the caller of `run` went away).
    #[serde(rename = "dev.container.Runtime.Abort")]
    Abort,
}

/// Where the helper is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// See the module's drawing.
    pub phase: Phase,
    /// When the first process started.
    pub started_date: Option<Timestamp>,
    /// How it ended.
    pub exit: Option<ExitRecord>,
    /// The helper's process id.
    pub pid: i32,
    /// The hypervisor's process id.
    pub hypervisor_pid: Option<i32>,
    /// The limits in force.
    #[serde(default)]
    pub resources: Option<Resources>,
    /// How the VM came to be, once it has.
    #[serde(default)]
    pub vm_origin: Option<VmOrigin>,
    /// Kills for want of memory, the newest last.
    #[serde(default)]
    pub out_of_memory_kills: Vec<OutOfMemoryKill>,
}

/// The helper's phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The VM starts.
    Booting,
    /// The guest answers; no process yet.
    Ready,
    /// The first process runs.
    Running,
    /// It has been asked to end.
    Stopping,
    /// It has ended.
    Ended,
}

/// What a container uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Processes and threads of the container.
    pub pids: u64,
    /// Bytes of memory that the container uses, in the guest, without page cache that could be
    /// dropped.
    pub memory_bytes: u64,
    /// The container's limit in bytes.
    pub memory_limit_bytes: u64,
    /// Microseconds of CPU time it has used, by the guest's clock.
    pub cpu_usec: u64,
    /// Bytes read from its disks.
    pub block_read_bytes: u64,
    /// Bytes written to its disks.
    pub block_written_bytes: u64,
    /// Bytes of the host's memory that the VM and its helper hold for themselves: anonymous
    /// memory and swap of both processes, and RAM that no other VM maps.
    pub host_memory_bytes: u64,
    /// Microseconds of the host's CPU time that the VM's process has used.
    pub host_cpu_usec: u64,
}
