//! `container-apiserver`: lifecycle, state and supervision of containers.
//!
//! One process per app root. It holds no hypervisor, network or image-parsing code: images belong
//! to `container-images`, networks to `container-network`, a VM to the `container-runtime-linux` of its container. What happens to
//! a container is written down in [`lifecycle`]; where its parts lie in [`directory`] (files) and
//! [`store`] (SQLite).
//!
//! ```text
//! command line ──► service ──► engine ─┬─► create  (validate, merge, directory, images)
//!   (socket)      (audit line)         ├─► start   (plan, networks, launch) ──► watch (one task a VM)
//!                                      └─► stop, exec, logs, delete …
//! in the background: template (made once per shape), spare (VMs that wait)
//! at start: reconcile (what is there) with store (what was recorded)
//! ```
//!
//! Any process may be killed at any time. Directories are made and removed by one rename, a
//! helper is found again by its process id and start time, and a container whose helper is gone
//! gets an exit record.

pub mod app_root;
pub mod archive;
pub mod args;
pub mod attachment;
pub mod audit;
pub mod backoff;
pub mod binds;
pub mod companion;
pub mod container;
pub mod create;
pub mod daemon;
pub mod delete;
pub mod directory;
pub mod engine;
pub mod helper;
pub mod images;
pub mod invariants;
pub mod jail_uid;
pub mod kernel;
pub mod launch;
pub mod lifecycle;
pub mod limits;
pub mod listen;
pub mod log_file;
pub mod logs;
pub mod merge;
pub mod networks;
pub mod posture;
pub mod prepared;
pub mod pressure;
pub mod priority;
pub mod probe;
pub mod process;
pub mod reconcile;
pub mod relief;
pub mod restart;
pub mod run;
pub mod service;
pub mod spare;
pub mod ssh_agent;
pub mod start;
pub mod starts;
pub mod stats;
pub mod status;
pub mod stop;
pub mod store;
pub mod template;
pub mod usage;
pub mod validate;
pub mod virtualization;
pub mod volumes;
pub mod watch;
