//! `container-runtime-linux`: one process, one VM, one container; or the VM waits to become one's
//! ([`spare`]), or is saved for others to be restored from ([`template`]).
//!
//! ```text
//!            runtime.sock                    agent, bulk (virtio-serial)
//! apiserver ─────────────► service ─► container ◄──────────────► guest (vminitd)
//!                             │          ▲                │ streams
//!                          process ──────┘ state, verdict │
//!                             └── clients' descriptors, output.log ◄┘
//!                                    life ──► hypervisor (QEMU in its jail)
//! ```
//!
//! - [`helper`]: the process: lock, socket, signals.
//! - [`service`]: the requests; every one passes [`state::Machine::admit`].
//! - [`state`]: the states, drawn and tested.
//! - [`container`]: what all tasks share.
//! - [`vm`], [`boot`]: from `vm.json` to a guest that answers.
//! - [`life`]: from there to the VM's end.
//! - [`spare`], [`disks`]: a VM made ahead, and how it becomes a container's.
//! - [`template`], [`throwaway`]: what others are restored from, and what makes both warm.
//! - [`network`], [`tap`]: the guest's NICs, and what they are connected to.
//! - [`limits`], [`usage`]: what a container may use, and what it does.
//! - [`guest`]: calls, events and streams.
//! - [`archive`]: copies of files, in the guest.
//! - [`shares`]: the file server of bind mounts.
//! - [`sockets`]: unix sockets between host and container, and what may be asked of an SSH agent.
//! - [`process`]: a process's streams and its clients.
//! - [`hypervisor`]: the VM; only this module knows QEMU.
//! - [`probe`], [`report`]: what this host can run VMs with.

pub mod archive;
pub mod boot;
pub mod console;
pub mod container;
pub mod directory;
pub mod disks;
pub mod exit;
pub mod file_events;
pub mod guest;
pub mod helper;
pub mod hypervisor;
mod idle;
pub mod life;
pub mod limits;
pub mod network;
pub mod output;
pub mod port;
pub mod probe;
pub mod process;
pub mod report;
pub mod seccomp;
pub mod service;
pub mod setup;
pub mod shares;
pub mod sockets;
pub mod spare;
pub mod spec;
pub mod state;
pub mod tap;
pub mod template;
pub mod throwaway;
pub mod timeline;
pub mod usage;
pub mod vm;
pub mod volumes;
