//! `container-images`: registry client, content store, images as disks, and kernel bundles.
//!
//! ```text
//! service ──► registry ─┐                        ┌─► catalog (find, list, inspect)
//!        ├──► archive ──┴─► store (blobs, names) ─┼─► unpack (disks, through container-rootfs)
//!        ├──► commit (one more layer)
//!        ├──► kernel (bundles)                   └─► removal (delete, prune)
//!        └──► meter (progress, cancellation)
//! ```
//!
//! Everything that comes in is hostile: registries' answers, archives, layers, kernel packages.
//! The process is confined ([`sandbox`]) before it reads any of it.

pub mod archive;
pub mod catalog;
mod change;
mod commit;
pub mod digest;
mod download;
pub mod error;
pub mod kernel;
pub mod meter;
pub mod oci;
pub mod reference;
pub mod registry;
pub mod removal;
pub mod sandbox;
pub mod serve;
pub mod service;
pub mod store;
pub mod unpack;
