//! Host interfaces of `container`: wire types, error codes and clients.
//!
//! Every host process speaks [Varlink](https://varlink.org)'s wire format over a unix stream
//! socket ([`varlink`]), with descriptors as ancillary data. Each service has one module with one
//! typed request enum and a client:
//!
//! | module | service | spoken to by |
//! |---|---|---|
//! | [`apiserver`] | `container-apiserver` | the command line |
//! | [`network`] | `container-network` | the apiserver, which also relays the command line's requests |
//! | [`images`] | `container-images` | the apiserver, which also relays the command line's requests |
//! | [`runtime`] | `container-runtime-linux`, one per container | the apiserver |
//!
//! [`types`] holds what the services say to each other, [`mounts`] what a
//! container sees of the host, [`network_options`] how a user writes what [`network`] holds, [`config`] the configuration file, [`paths`] where everything lies,
//! [`output_log`] how a program's output is kept, [`socket`] how sockets are found, [`trace`] where
//! the time of a start goes, [`audit`] the trail of what was done, [`memory`] what a process holds, [`invariants`] what holds whenever nothing is under way, [`posture`] what keeps a container in, [`ram`] a template's RAM, and
//! [`escape`] how strings of strangers are shown.

pub mod apiserver;
pub mod archive;
pub mod audit;
pub mod config;
pub mod error;
pub mod escape;
pub mod images;
pub mod invariants;
pub mod memory;
pub mod mount_options;
pub mod mounts;
pub mod network;
pub mod network_options;
pub mod output_log;
pub mod paths;
pub mod posture;
pub mod ram;
pub mod runtime;
pub mod seccomp;
pub mod serve;
pub mod socket;
pub mod trace;
pub mod types;
pub mod varlink;

pub use error::{ApiError, ErrorCode, Result};
