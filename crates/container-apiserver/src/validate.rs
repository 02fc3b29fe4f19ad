//! What a request may ask for. Each function is pure, and its error is the line the user reads.

pub mod capability;
pub mod mount;
pub mod name;
pub mod network;
pub mod process;
pub mod resources;
pub mod signal;
