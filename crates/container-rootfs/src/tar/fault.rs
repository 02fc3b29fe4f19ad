//! What can be wrong with a layer.

use std::io;

/// What is wrong with one entry or header of a layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The bytes are not a tar header, or were damaged.
    #[error("the header's checksum is wrong")]
    Checksum,
    /// A number is not octal or base-256, or doesn't fit.
    #[error("the field {0} holds no valid number")]
    Number(&'static str),
    /// A pax header isn't a list of `length key=value` records.
    #[error("the pax header is malformed")]
    PaxRecord,
    /// A pax value that is needed can't be understood.
    #[error("the pax value of {0} is invalid")]
    PaxValue(&'static str),
    /// An extension header is followed by the end of the archive.
    #[error("an extension header describes no entry")]
    DanglingExtension,
    /// An entry type that a layer can't have.
    #[error("entries of type {0:#04x} are not supported")]
    Type(u8),
    /// A sparse map that is out of order or doesn't fit its file.
    #[error("the sparse map doesn't fit the file")]
    SparseMap,
    /// An entry or link without a name.
    #[error("the name is empty")]
    EmptyName,
    /// A NUL byte in a name.
    #[error("the name holds a NUL byte")]
    NulInName,
    /// `..` leads out of the root.
    #[error("the path leads out of the root")]
    EscapesRoot,
    /// The root directory can't become anything else.
    #[error("the root can only be a directory")]
    RootReplaced,
    /// A whiteout that would name `.`, `..` or nothing.
    #[error("the whiteout names no file")]
    Whiteout,
    /// A hard link to a name that doesn't exist.
    #[error("the hard link's target {0} doesn't exist")]
    LinkTarget(String),
    /// A hard link to a directory.
    #[error("the hard link's target {0} is a directory")]
    LinkToDirectory(String),
    /// More than 40 symbolic links on the way to an entry.
    #[error("too many symbolic links on the path")]
    SymlinkLoop,
    /// Linux device numbers have 12 bits (major) and 20 bits (minor).
    #[error("the device number {0}:{1} is out of range")]
    Device(u64, u64),
    /// An extended attribute that can't be stored.
    #[error("the extended attribute {0} is too large")]
    Xattr(String),
    /// A bound of [`crate::Limits`] was reached.
    #[error("more {what} than the {max} allowed")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        max: u64,
    },
}

impl Fault {
    pub(crate) fn limit(what: &'static str, max: u64) -> Self {
        Self::Limit { what, max }
    }
}

/// A layer that can't be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// A header that is refused before its entry's name is known.
    #[error("layer header at byte {offset}")]
    Header {
        /// Where the header begins in the decompressed stream.
        offset: u64,
        /// What is wrong.
        #[source]
        source: Fault,
    },
    /// An entry that is refused.
    #[error("layer entry {entry} at byte {offset}")]
    Entry {
        /// The entry's name, escaped and shortened.
        entry: String,
        /// Where its header begins in the decompressed stream.
        offset: u64,
        /// What is wrong.
        #[source]
        source: Fault,
    },
    /// The stream ends inside a header or inside an entry's data.
    #[error("the layer is cut off at byte {offset}")]
    Truncated {
        /// Where the stream ends.
        offset: u64,
    },
    /// The stream can't be read or decompressed.
    #[error("read the layer at byte {offset}")]
    Read {
        /// Up to where it was read.
        offset: u64,
        /// The reader's failure.
        #[source]
        source: io::Error,
    },
}

/// Bytes of a name that an error shows.
const SHOWN_BYTES: usize = 200;

/// `name` made fit for a message: escaped, and shortened when it is long.
pub(crate) fn shown(name: &[u8]) -> String {
    match name.get(..SHOWN_BYTES) {
        Some(start) if name.len() > SHOWN_BYTES => format!("{}…", start.escape_ascii()),
        _ => name.escape_ascii().to_string(),
    }
}
