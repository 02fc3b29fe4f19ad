//! Control messages on the `agent` port, protobuf by hand-written derives.
//!
//! ```text
//! guest:  Booted ─Setup─► Ready ─MountRoot─► Rooted ─StartContainer─► Running
//!                          ▲ │                 │                         │ first process
//!                          │ └──── Setup again │                         ▼ exits
//!                          └── UnmountRoot ────┴──────────────────── Stopped
//!         Shutdown is legal everywhere and ends in power-off.
//! ```
//!
//! The host may send requests without waiting for answers; they are carried out
//! and answered in order. A request in the wrong state is answered with
//! [`ErrorCode::InvalidState`] and changes nothing.
//!
//! Beside that, `ConfigureNetwork` is legal while there is no process: Ready, Rooted.
//!
//! Tags are never reused. A field left out means its zero value.

mod archive;
mod container;
mod event;
mod file_event;
mod mount;
mod network;
mod process;
mod response;
mod socket;

pub use archive::*;
pub use container::*;
pub use event::*;
pub use file_event::*;
pub use mount::*;
pub use network::*;
pub use process::*;
pub use response::*;
pub use socket::*;

/// One frame from the host.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// Chosen by the host, echoed in the response.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What to do.
    #[prost(
        oneof = "Call",
        tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21"
    )]
    pub call: Option<Call>,
}

/// What the host can ask; each variant says in which guest state it is legal.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Call {
    /// Any state. Answered with [`Reply::Pong`].
    #[prost(message, tag = "2")]
    Ping(Ping),
    /// Booted or Ready (again after a restore). → Ready. [`Reply::Done`].
    #[prost(message, tag = "3")]
    Setup(Setup),
    /// Ready. → Rooted. [`Reply::Done`].
    #[prost(message, tag = "4")]
    MountRoot(MountRoot),
    /// Rooted. → Running. [`Reply::Started`]; when the program can't be started
    /// the state stays Rooted and another attempt is legal.
    #[prost(message, tag = "5")]
    StartContainer(Box<StartContainer>),
    /// Running. [`Reply::Started`].
    #[prost(message, tag = "6")]
    Exec(Box<ProcessSpec>),
    /// Running or Stopped. [`Reply::Done`], or [`ErrorCode::NoSuchProcess`].
    #[prost(message, tag = "7")]
    Signal(Signal),
    /// Running. [`Reply::Done`], or [`ErrorCode::NoSuchProcess`].
    #[prost(message, tag = "8")]
    Resize(Resize),
    /// Running. [`Reply::Stats`].
    #[prost(message, tag = "9")]
    Stats(StatsRequest),
    /// Any state. Writes everything to the disks. [`Reply::Done`].
    #[prost(message, tag = "10")]
    Sync(SyncRequest),
    /// Any state. [`Reply::BootLog`].
    #[prost(message, tag = "11")]
    BootLog(BootLogRequest),
    /// Rooted or Stopped. Unmounts the root and drops the caches of its disks,
    /// so that they can be exchanged. → Ready. [`Reply::Done`].
    #[prost(message, tag = "12")]
    UnmountRoot(UnmountRoot),
    /// Any state. Kills everything, unmounts cleanly, answers [`Reply::Done`]
    /// (or the error of the unmount), powers off.
    #[prost(message, tag = "13")]
    Shutdown(Shutdown),
    /// Running. Which processes the container has. [`Reply::Processes`].
    #[prost(message, tag = "14")]
    Processes(ProcessesRequest),
    /// Any state but Booted. Loads the drivers that a boot leaves out to be fast: balloon, NIC.
    /// From then on no module can be loaded. Again: nothing. [`Reply::Done`].
    #[prost(message, tag = "15")]
    LoadDrivers(LoadDrivers),
    /// Running. Changes the limits of the container's cgroup. [`Reply::Done`].
    #[prost(message, tag = "16")]
    Update(Update),
    /// Ready or Rooted. The NICs are as this says from then on, and as nothing else said before.
    /// Loads their driver where the boot has left it out. [`Reply::Done`].
    #[prost(message, tag = "17")]
    ConfigureNetwork(ConfigureNetwork),
    /// Running. [`Reply::Done`] once connected.
    #[prost(message, tag = "18")]
    ConnectSocket(ConnectSocket),
    /// While the connection waits. [`Reply::Done`].
    #[prost(message, tag = "19")]
    AcceptSocket(AcceptSocket),
    /// Rooted (then there is no program beside it) or Running. [`Reply::Started`]; the end is told
    /// as a process's is.
    #[prost(message, tag = "20")]
    Archive(Box<Archive>),
    /// Running. [`Reply::Done`] once it is on its way to the process that raises the events;
    /// [`ErrorCode::Exhausted`] while that is behind.
    #[prost(message, tag = "21")]
    RaiseFileEvents(RaiseFileEvents),
}

/// See [`Call::Ping`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Ping {}

/// What a VM learns about its host after boot or after a restore.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Setup {
    /// Fresh random bytes, 32 to 512: credited to the kernel's pool, which is
    /// then reseeded, before anything else happens.
    #[prost(bytes = "vec", tag = "1")]
    pub entropy: Vec<u8>,
    /// Wall clock in nanoseconds since 1970.
    #[prost(uint64, tag = "2")]
    pub wall_clock_ns: u64,
    /// Sysctls to write, as `net.ipv4.ip_forward` with its value.
    #[prost(message, repeated, tag = "3")]
    pub sysctls: Vec<Sysctl>,
}

/// One kernel parameter.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Sysctl {
    /// Name with dots; letters, digits, `_`, `-` and `.` only.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The text to write.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Mounts the image and the container's own disk, joined by overlayfs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MountRoot {
    /// Serial of the device with the image's EROFS ([`crate::IMAGE_SERIAL`]).
    #[prost(string, tag = "1")]
    pub image_serial: String,
    /// Serial of the device with the ext4 upper ([`crate::UPPER_SERIAL`]).
    #[prost(string, tag = "2")]
    pub upper_serial: String,
    /// Block volumes to mount meanwhile, whose disks are there. A start with the same mounts finds
    /// them done, or why they can't be; others it mounts itself.
    #[prost(message, repeated, tag = "3")]
    pub volumes: Vec<MountSpec>,
}

/// Sends a signal.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Signal {
    /// The process that the host named so.
    #[prost(string, tag = "1")]
    pub process: String,
    /// Signal number, 1 to 64.
    #[prost(uint32, tag = "2")]
    pub signal: u32,
    /// Whether every process of the container gets it, not only the named one.
    #[prost(bool, tag = "3")]
    pub all: bool,
}

/// Gives a terminal a new size.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Resize {
    /// The process that the host named so; it must have a terminal.
    #[prost(string, tag = "1")]
    pub process: String,
    /// The new size.
    #[prost(message, required, tag = "2")]
    pub size: TerminalSize,
}

/// See [`Call::Stats`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatsRequest {}

/// See [`Call::Processes`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProcessesRequest {}

/// See [`Call::Sync`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct SyncRequest {}

/// See [`Call::BootLog`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct BootLogRequest {}

/// See [`Call::UnmountRoot`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct UnmountRoot {}

/// See [`Call::LoadDrivers`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct LoadDrivers {
    /// Whether KVM is one of them. [`ErrorCode::Unsupported`] when it does not work here.
    #[prost(bool, tag = "1")]
    pub virtualization: bool,
}

/// See [`Call::Update`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Update {
    /// The new limits.
    #[prost(message, required, tag = "1")]
    pub limits: Limits,
}

/// See [`Call::Shutdown`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Shutdown {}
