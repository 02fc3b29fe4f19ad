//! The audit trail: who asked for what, what was decided, what came of it.

pub mod describe;
