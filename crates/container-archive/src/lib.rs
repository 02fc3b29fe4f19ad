//! Trees of files as tar streams, for copies into containers and out of them.
//!
//! ```text
//! a path ──View──► parent and name ──pack──► tar stream ──unpack──► beneath a Place
//!                                                            rules: who owns, which modes,
//!                                                            devices or none
//! ```
//! The same code runs in the guest, inside of the container's root, and in the command line. Both
//! meet a hostile side: the guest's files may change while they are walked, and a stream may hold
//! anything. So every step goes through descriptors of directories, no step follows a link that it
//! has not been told to follow, and nothing is allocated on the word of a header.
//!
//! It has two consumers across the protocol's gap, hence it is a crate of its own; the reader of
//! image layers (`container-rootfs`) builds images and never touches a file system.

mod diff;
mod entry;
mod pack;
mod place;
mod read;
mod unpack;
mod write;

use std::borrow::Cow;
use std::io;

pub use diff::{Change, diff, records};
pub use entry::{Entry, Kind, Time};
pub use pack::{Packing, pack_children, pack_path};
pub use place::{Place, Source, View};
pub use read::TarReader;
pub use unpack::{Owner, Rules, Unpacked, Unpacker};

/// Bytes moved at once.
pub(crate) const CHUNK: usize = 256 << 10;
/// Directories inside of each other; each holds a descriptor while it is walked.
pub(crate) const MAX_DEPTH: usize = 400;

/// Why a copy ended early.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The system refused an operation.
    #[error("{what}")]
    Io {
        /// The operation and its object.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The rules refuse it.
    #[error("{0}")]
    Refused(String),
    /// The stream is no archive, or not a whole one.
    #[error("the archive is damaged: {0}")]
    Damaged(&'static str),
    /// The stream is broken; the other side knows why.
    #[error("the stream broke")]
    Stream(#[source] io::Error),
}

/// What comes of a step.
pub type Result<T> = std::result::Result<T, ArchiveError>;

impl ArchiveError {
    /// The error and its cause in one line. It may hold anything: names come from archives.
    pub fn line(&self) -> String {
        match self {
            ArchiveError::Io { what, source } => format!("{what}: {}", plain(source)),
            ArchiveError::Stream(source) => format!("the stream broke: {}", plain(source)),
            other => other.to_string(),
        }
    }
}

/// A system's error without Rust's number behind it.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// A path as text.
pub(crate) fn shown(path: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(path)
}

pub(crate) trait At<T> {
    fn at(self, verb: &str, path: &[u8]) -> Result<T>;
}

impl<T> At<T> for rustix::io::Result<T> {
    fn at(self, verb: &str, path: &[u8]) -> Result<T> {
        self.map_err(|errno| ArchiveError::Io {
            what: format!("{verb} {}", shown(path)),
            source: errno.into(),
        })
    }
}

impl<T> At<T> for io::Result<T> {
    fn at(self, verb: &str, path: &[u8]) -> Result<T> {
        self.map_err(|source| ArchiveError::Io { what: format!("{verb} {}", shown(path)), source })
    }
}

#[cfg(test)]
mod tests;
