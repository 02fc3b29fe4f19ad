//! Templates of VMs: made once per shape, kept on disk, mapped by the VMs restored from them.
//!
//! ```text
//!           want              maker: .new-KEY-N/ ──rename──► KEY/
//! no template ──► wanted ──► being made ─────────────────► ready (checked before its use)
//!      ▲             ▲            │ fails                    │
//!      │             └─ back-off ─┘                          │ damaged, stale, least recently
//!      └─────────────────────────────────────────────────────┘ used, pruned
//! ```
//! - [`shape`]: what a template is made of, and its key.
//! - [`disk`]: the directories, and what of them can be used.
//! - [`check`]: whether it is what was made.
//! - [`store`]: the templates of this service.
//! - [`maker`]: making them in the background.

pub mod check;
pub mod disk;
pub mod maker;
pub mod shape;
pub mod store;

pub use shape::Shape;
pub use store::{Acquired, Templates};
