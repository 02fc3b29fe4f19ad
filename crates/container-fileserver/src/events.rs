//! What the host has changed, as messages to whoever started the server.
//!
//! One message, little endian: length of the rest (`u32`), token (`u64`), changes (`u32`), type
//! (`u32`), length of the path (`u16`), the path, the other path. Paths begin with a share's
//! number. The reader has the same constants.

use nix::libc;

/// Bits of [`Event::changes`]. Those from `DELETED` on stand alone.
pub mod change {
    /// It is new.
    pub const CREATED: u32 = 1;
    /// Its content is another.
    pub const MODIFIED: u32 = 1 << 1;
    /// Whoever could write it has closed it.
    pub const CLOSED: u32 = 1 << 2;
    /// Its mode, owner, times or attributes are others.
    pub const ATTRIBUTES: u32 = 1 << 3;
    /// It is gone.
    pub const DELETED: u32 = 1 << 4;
    /// It has another name, `to`.
    pub const MOVED: u32 = 1 << 5;
    /// It has come, from somewhere that is not watched.
    pub const MOVED_IN: u32 = 1 << 6;
    /// It has gone to somewhere that is not watched.
    pub const MOVED_OUT: u32 = 1 << 7;
}

/// A name in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The directory's inode number on the host; 0 for a share itself.
    pub parent: u64,
    /// Its path from the root of the file system: the share's number first.
    pub path: Vec<u8>,
}

impl Place {
    /// The last component.
    pub fn name(&self) -> &[u8] {
        self.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }
}

/// What has happened to one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Names this event while it is told; random, so that nobody else does.
    pub token: u64,
    /// Bits of [`change`].
    pub changes: u32,
    /// `S_IFREG`, `S_IFDIR`, …
    pub kind: u32,
    /// Where.
    pub place: Place,
    /// Where it is now, of [`change::MOVED`].
    pub to: Option<Place>,
}

impl Event {
    /// Appends it as a message; one whose path the message has no room for is left out.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let to = self.to.as_ref().map_or(&[][..], |to| &to.path);
        let Ok(length) = u16::try_from(self.place.path.len()) else { return };
        let Ok(rest) = u32::try_from(18 + self.place.path.len() + to.len()) else { return };
        out.extend_from_slice(&rest.to_le_bytes());
        out.extend_from_slice(&self.token.to_le_bytes());
        out.extend_from_slice(&self.changes.to_le_bytes());
        out.extend_from_slice(&self.kind.to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&self.place.path);
        out.extend_from_slice(to);
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind == libc::S_IFDIR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_what_the_reader_expects() {
        let place = |path: &[u8]| Place { parent: 9, path: path.to_vec() };
        let event = Event {
            token: 0x0102,
            changes: change::MOVED,
            kind: libc::S_IFREG,
            place: place(b"0/a"),
            to: Some(place(b"1/bc")),
        };
        let mut bytes = Vec::new();
        event.encode(&mut bytes);
        let expected = b"\x19\0\0\0\x02\x01\0\0\0\0\0\0\x20\0\0\0\0\x80\0\0\x03\x000/a1/bc";
        assert_eq!(bytes, expected);
        assert_eq!(event.place.name(), b"a");
        assert_eq!(place(b"7").name(), b"7");
    }
}
