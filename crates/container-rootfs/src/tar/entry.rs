//! One entry of a layer.

/// A point in time, as seconds since 1970 and the nanoseconds after that second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 UTC, negative before.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

/// A stretch of a sparse file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// How long it is, in bytes. Never 0.
    pub len: u64,
}

/// What an entry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file of `size` bytes.
    File {
        /// Apparent size in bytes.
        size: u64,
        /// Where the data goes when the file has holes: ascending, without overlap, inside the
        /// file; their lengths add up to what the archive stores.
        segments: Option<Vec<Segment>>,
    },
    /// Another name of the file at this path.
    HardLink(Vec<u8>),
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
    /// A directory.
    Directory,
    /// A character device, major and minor number.
    CharDevice(u64, u64),
    /// A block device, major and minor number.
    BlockDevice(u64, u64),
    /// A named pipe.
    Fifo,
}

/// An entry's header, extensions applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where the header begins in the decompressed stream.
    pub offset: u64,
    /// The name as stored: neither checked nor normalised, but without NUL and not empty.
    pub path: Vec<u8>,
    /// What it makes.
    pub kind: EntryKind,
    /// Permission bits, set-id and sticky bits (0o7777).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last change.
    pub mtime: Timestamp,
    /// Extended attributes: full names and values. Names are unique.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}
