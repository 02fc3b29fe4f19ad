//! Networks of containers.
//!
//! ```text
//! apiserver ──► service      plans, records; the one that may configure
//!                 ├─► engine     (in it) namespaces, bridges, taps, rules, uplinks
//!                 ├─► resolver   a process a network: names, and what egress rules let through
//!                 ├─► forwarder  a process a container with published ports
//!                 └─► pasta      a process a network that leads out
//! ```
//! Each network has a network namespace of its own. Unless the service is root, all of them belong
//! to one user namespace, which the service enters. Resolvers, forwarders and `pasta` carry the
//! traffic; they outlive the service, hold the namespaces, and are found again by the next one.

mod confine;
pub mod engine;
pub mod forward;
pub mod resolver;
pub mod service;
pub mod wire;
