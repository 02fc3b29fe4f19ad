//! What a container is made of.

use super::ProcessSpec;

/// Starts the container's first process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartContainer {
    /// Its surroundings.
    #[prost(message, required, tag = "1")]
    pub container: ContainerSpec,
    /// The process itself.
    #[prost(message, required, tag = "2")]
    pub process: ProcessSpec,
}

/// A container's namespaces, mounts and limits.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerSpec {
    /// Host name, also written to `/etc/hostname`; 1 to 64 bytes.
    #[prost(string, tag = "1")]
    pub hostname: String,
    /// Whether the root file system is read-only.
    #[prost(bool, tag = "2")]
    pub read_only_root: bool,
    /// Paths hidden from the container; missing ones are skipped.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub masked_paths: Vec<Vec<u8>>,
    /// Paths made read-only; missing ones are skipped.
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub read_only_paths: Vec<Vec<u8>>,
    /// Extra tmpfs mounts, in this order.
    #[prost(message, repeated, tag = "5")]
    pub tmpfs: Vec<TmpfsMount>,
    /// Size of `/dev/shm` in bytes; 0 means 64 MiB.
    #[prost(uint64, tag = "6")]
    pub shm_size_bytes: u64,
    /// Whether a small init of ours is PID 1, which reaps and forwards signals.
    #[prost(bool, tag = "7")]
    pub init: bool,
    /// Content of `/etc/hosts`; empty means loopback and the host name.
    #[prost(bytes = "vec", tag = "8")]
    pub hosts: Vec<u8>,
    /// Content of `/etc/resolv.conf`; empty leaves the image's.
    #[prost(bytes = "vec", tag = "9")]
    pub resolv_conf: Vec<u8>,
    /// Limits of the container's cgroup.
    #[prost(message, optional, tag = "10")]
    pub limits: Option<Limits>,
    /// Sysctls written inside the container's namespaces.
    #[prost(message, repeated, tag = "11")]
    pub sysctls: Vec<super::Sysctl>,
    /// Sockets on which the guest listens for the host, from before the first process starts.
    #[prost(message, repeated, tag = "12")]
    pub sockets: Vec<super::ListenSocket>,
    /// Shared directories and volumes.
    #[prost(message, repeated, tag = "13")]
    pub mounts: Vec<super::MountSpec>,
    /// Whether it has `/dev/kvm`; [`LoadDrivers`](super::LoadDrivers) was asked for it before.
    #[prost(bool, tag = "14")]
    pub virtualization: bool,
}

/// A tmpfs inside the container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TmpfsMount {
    /// Absolute path in the container; made when missing.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Size in bytes; 0 means the kernel's default, half of the memory.
    #[prost(uint64, tag = "2")]
    pub size_bytes: u64,
    /// Permissions of its root; unset means 01777.
    #[prost(uint32, optional, tag = "3")]
    pub mode: Option<u32>,
    /// Owner of its root.
    #[prost(uint32, tag = "4")]
    pub uid: u32,
    /// Group of its root.
    #[prost(uint32, tag = "5")]
    pub gid: u32,
    /// Whether it is read-only.
    #[prost(bool, tag = "6")]
    pub read_only: bool,
    /// Whether programs may be run from it.
    #[prost(bool, tag = "7")]
    pub exec: bool,
    /// Whether set-id bits count.
    #[prost(bool, tag = "8")]
    pub suid: bool,
    /// Whether device nodes count.
    #[prost(bool, tag = "9")]
    pub dev: bool,
}

/// Limits of the container's cgroup; 0 means none beyond the VM's own size.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Limits {
    /// Memory in bytes.
    #[prost(uint64, tag = "1")]
    pub memory_bytes: u64,
    /// Number of processes and threads.
    #[prost(uint64, tag = "2")]
    pub pids: u64,
    /// CPU time in thousandths of one CPU.
    #[prost(uint64, tag = "3")]
    pub cpu_milli: u64,
}

/// Paths that Docker masks by default.
pub const DEFAULT_MASKED_PATHS: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Paths that Docker makes read-only by default.
pub const DEFAULT_READ_ONLY_PATHS: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
