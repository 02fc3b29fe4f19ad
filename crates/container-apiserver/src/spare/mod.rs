//! Spare VMs: restored ahead, warmed by throwaway containers, taken by one start each.
//!
//! ```text
//! shape in use, template ready ──► restoring ──► restored ──► warming ──► ready
//!                                      │ fails     │ take        │ fails    │ take
//!                                   back-off       └─────────────│──────────┴──► adopted: a
//!                                                             back-off          container's helper
//! restored, ready ── idle, memory pressure, template gone, dead, service ends ──► ended
//! ```
//! A spare is made in a quiet moment. Where starts follow each other there is none: then one that
//! finds no warm spare has the next restored at once, beside it, so that the processor that one
//! start leaves idle works for the next. A start waits for the spare that is being restored or made
//! warm: that takes less than a VM of its own.
//!
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
