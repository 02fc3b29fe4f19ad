//! What the host has changed in a file system that it serves, to be raised as events in the guest.
//!
//! The guest raises an event by making a request of the file system that the server answers without
//! doing anything; the server knows it by the event's token.

use crate::MAX_FILE_PATH;

/// Raises events in what the host serves under a tag; at most [`crate::MAX_FILE_EVENTS`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct RaiseFileEvents {
    /// The device's tag.
    #[prost(string, tag = "1")]
    pub tag: String,
    /// In the order in which they happened.
    #[prost(message, repeated, tag = "2")]
    pub events: Vec<FileEvent>,
}

/// One file that was changed. Its flags are raised in their order here.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FileEvent {
    /// The server's name for it: a positive number of 62 bits.
    #[prost(uint64, tag = "1")]
    pub token: u64,
    /// What has become of its name.
    #[prost(enumeration = "FileEventKind", tag = "2")]
    pub kind: i32,
    /// Its content is another. Of [`FileEventKind::Created`] and `Unspecified` alone, as all flags.
    #[prost(bool, tag = "3")]
    pub modified: bool,
    /// Whoever could write it has closed it.
    #[prost(bool, tag = "4")]
    pub closed: bool,
    /// Its mode, owner, times or attributes are others.
    #[prost(bool, tag = "5")]
    pub attributes: bool,
    /// Its type: bits of `S_IFMT`.
    #[prost(uint32, tag = "6")]
    pub file_type: u32,
    /// Its path from the root of the file system, without a slash before.
    #[prost(bytes = "vec", tag = "7")]
    pub path: Vec<u8>,
    /// Where it is now, of [`FileEventKind::Moved`].
    #[prost(bytes = "vec", tag = "8")]
    pub to: Vec<u8>,
}

impl FileEvent {
    /// Whether its paths are what their descriptions say, and not too long.
    pub fn has_valid_paths(&self) -> bool {
        let relative = |path: &[u8]| {
            path.len() <= MAX_FILE_PATH && path.first() != Some(&b'/') && !path.contains(&0)
        };
        !self.path.is_empty() && relative(&self.path) && relative(&self.to)
    }
}

/// What has become of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum FileEventKind {
    /// Nothing.
    Unspecified = 0,
    /// It is new.
    Created = 1,
    /// It is gone.
    Deleted = 2,
    /// It is another one.
    Moved = 3,
    /// The file has come from elsewhere.
    MovedIn = 4,
    /// The file has gone elsewhere.
    MovedOut = 5,
}
