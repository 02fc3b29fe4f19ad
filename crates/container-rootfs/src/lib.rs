//! File systems for containers, written and read without any tool or mount.
//!
//! - [`ImageBuilder`] turns the layers of an OCI image, bottom first, into one read-only EROFS
//!   image: file contents stream straight into the image, names and metadata stay in memory
//!   until [`ImageBuilder::finish`] writes them behind the data.
//! - [`Decompressor`] and [`ReadAhead`] feed it from gzip, zstd or plain layers, decompressing
//!   on a second thread.
//! - [`ErofsReader`] reads such an image (and other uncompressed EROFS images).
//! - [`ext4::write_empty`] writes the empty file system that a container writes to.
//!
//! Layers and images are hostile input: every length is checked before it is believed, every
//! table is bounded by [`Limits`], paths can't leave the root, and failures are typed.
//!
//! The crate is synchronous and uses no network.

mod decompress;
mod erofs;
pub mod ext4;
mod image;
mod limits;
mod read_ahead;
mod tar;
mod tree;

pub use decompress::{Compression, Decompressor};
pub use erofs::read::{DirEntry, ErofsReader, FileKind, Inode, ReadAt, ReadError};
pub use image::{ApplyError, FinishError, ImageBuilder, LayerStats, Progress, Summary};
pub use limits::Limits;
pub use read_ahead::ReadAhead;
pub use tar::{Entry, EntryKind, Fault, Segment, TarError, TarReader, Timestamp};
