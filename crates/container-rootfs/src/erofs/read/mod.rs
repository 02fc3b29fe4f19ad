//! Reading EROFS images, hostile ones included.
//!
//! Every address is checked before it is used, every loop is bounded, and nothing is allocated on
//! the image's word beyond what the caller allows.

mod bytes;
mod dir;
mod inode;
mod lookup;
mod xattrs;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use self::bytes::Bytes;
pub use self::dir::DirEntry;
pub use self::inode::{FileKind, Inode};
use super::format::*;

/// Something that can be read at any place.
pub trait ReadAt {
    /// Reads up to `buf.len()` bytes from byte `offset` on; 0 at the end.
    ///
    /// # Errors
    /// When the medium fails.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buf, offset)
    }
}

impl ReadAt for &File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(*self, buf, offset)
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|start| self.get(start..)).unwrap_or(&[]);
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

impl ReadAt for &[u8] {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buf, offset)
    }
}

/// An image that can't be read, or a path that isn't in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Not an EROFS image, or one whose superblock is damaged.
    #[error("not an EROFS image: {0}")]
    Superblock(&'static str),
    /// Features of EROFS that are not read here: compression, several devices, other block sizes.
    #[error("the EROFS image uses a feature that is not supported: {0}")]
    Unsupported(&'static str),
    /// Metadata that contradicts itself.
    #[error("the EROFS image is damaged: {what} of inode {nid}")]
    Corrupt {
        /// What is wrong.
        what: &'static str,
        /// The inode's number.
        nid: u64,
    },
    /// No such file.
    #[error("no such file in the image")]
    NotFound,
    /// A component on the way isn't a directory.
    #[error("not a directory")]
    NotADirectory,
    /// A regular file was expected.
    #[error("not a regular file")]
    NotAFile,
    /// A symbolic link was expected.
    #[error("not a symbolic link")]
    NotASymlink,
    /// More than 40 symbolic links on the path.
    #[error("too many symbolic links on the path")]
    SymlinkLoop,
    /// Larger than the caller allowed.
    #[error("{size} bytes, more than the {max} allowed")]
    TooLarge {
        /// Bytes there are.
        size: u64,
        /// Bytes allowed.
        max: u64,
    },
    /// The image can't be read.
    #[error("read the EROFS image at byte {offset}")]
    Io {
        /// Where.
        offset: u64,
        /// The failure.
        #[source]
        source: io::Error,
    },
}

/// Reads an uncompressed EROFS image of 4 KiB blocks.
#[derive(Debug)]
pub struct ErofsReader<S> {
    source: S,
    root_nid: u64,
    meta_start: u64,
    xattr_start: u64,
    inodes: u64,
    blocks: u64,
    build_seconds: i64,
    build_nanos: u32,
    uuid: [u8; 16],
}

impl<S: ReadAt> ErofsReader<S> {
    /// Reads and checks the superblock.
    ///
    /// # Errors
    /// When `source` fails, isn't EROFS, is damaged, or uses compression, several devices or
    /// another block size.
    pub fn open(source: S) -> Result<Self, ReadError> {
        let mut block = vec![0; (BLOCK - SUPER_OFFSET) as usize];
        let mut filled = 0;
        while filled < block.len() {
            let offset = SUPER_OFFSET + filled as u64;
            let read = source.read_at(&mut block[filled..], offset);
            match read.map_err(|source| ReadError::Io { offset, source })? {
                0 => return Err(ReadError::Superblock("too short")),
                read => filled += read,
            }
        }
        let fields = Bytes(&block[..SUPER_LEN]);
        if fields.u32(0) != SUPER_MAGIC {
            return Err(ReadError::Superblock("wrong magic number"));
        }
        if u32::from(fields.u8(12)) != BLOCK_BITS {
            return Err(ReadError::Unsupported("block size"));
        }
        if fields.u32(8) & COMPAT_SB_CHKSUM != 0 {
            let stored = fields.u32(4);
            let mut zeroed = block.clone();
            zeroed[4..8].fill(0);
            if super_checksum(&zeroed) != stored {
                return Err(ReadError::Superblock("wrong checksum"));
            }
        }
        if fields.u32(80) & !INCOMPAT_CHUNKED_FILE != 0 {
            return Err(ReadError::Unsupported("incompatible features"));
        }
        if fields.u16(86) != 0 {
            return Err(ReadError::Unsupported("several devices"));
        }
        if fields.u8(90) != 0 {
            return Err(ReadError::Unsupported("directory block size"));
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&block[48..64]);
        Ok(Self {
            root_nid: u64::from(fields.u16(14)),
            inodes: fields.u64(16),
            build_seconds: fields.u64(24) as i64,
            build_nanos: fields.u32(32),
            blocks: u64::from(fields.u32(36)),
            meta_start: u64::from(fields.u32(40)) * BLOCK,
            xattr_start: u64::from(fields.u32(44)) * BLOCK,
            uuid,
            source,
        })
    }

    /// The file system's UUID.
    pub fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// Number of inodes, as the superblock states it.
    pub fn inodes(&self) -> u64 {
        self.inodes
    }

    /// Bytes of the image that mean something, as the superblock states it.
    pub fn bytes(&self) -> u64 {
        self.blocks * BLOCK
    }

    /// Fills `buf` from byte `offset` of the image on behalf of inode `nid`.
    fn fill(&self, buf: &mut [u8], offset: u64, nid: u64) -> Result<(), ReadError> {
        let mut filled = 0;
        while filled < buf.len() {
            let at = offset.checked_add(filled as u64);
            let at = at.ok_or(ReadError::Corrupt { what: "address", nid })?;
            match self.source.read_at(&mut buf[filled..], at) {
                Ok(0) => return Err(ReadError::Corrupt { what: "address", nid }),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ReadError::Io { offset: at, source }),
            }
        }
        Ok(())
    }
}
