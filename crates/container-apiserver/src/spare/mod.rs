//! Spare VMs: restored ahead, warmed by a throwaway container, taken by one start each.
//!
//! ```text
//! shape in use, template ready ──► being made ──► ready ──take──► adopted: a container's helper
//!                                      │ fails      │
//!                                   back-off        └── idle, memory pressure, template gone,
//!                                                       dead, service ends ──► ended
//! ```
//! A spare is a process of its own, like a container's helper, with a directory in
//! `spares/`. It survives nothing: a service that starts ends those of the one before.
//!
//! - [`vm`]: one spare, from its launch to its adoption or end.
//! - [`pool`]: which there are, and which should be.
//! - [`keeper`]: making and ending them in the background.

pub mod keeper;
pub mod pool;
pub mod vm;

pub use pool::{Needs, Order, Spares};
pub use vm::Spare;
