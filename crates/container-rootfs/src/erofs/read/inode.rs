//! Inodes and file contents.

use super::bytes::Bytes;
use super::{ErofsReader, ReadAt, ReadError};
use crate::erofs::format::*;
use crate::erofs::xattr::IBODY_HEADER;
use crate::tar::Timestamp;

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device, with Linux's 32-bit device number.
    CharDevice(u32),
    /// A block device, with Linux's 32-bit device number.
    BlockDevice(u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Metadata of a file in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Its number in the image.
    pub nid: u64,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, set-id and sticky bits (0o7777).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of its contents.
    pub size: u64,
    /// Names it has.
    pub links: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
    pub(super) layout: Layout,
    /// Where its attributes begin in the image.
    pub(super) xattr_start: u64,
    /// Bytes of its attributes.
    pub(super) xattr_len: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Contents from a block on; with `inline`, the last part of a block is behind the inode.
    Flat { block: u32, inline: bool },
    /// Addresses of chunks behind the inode.
    Chunks { chunk_bits: u32, indexes: bool },
}

impl Inode {
    /// Where what follows inode and attributes begins.
    fn beside(&self) -> u64 {
        self.xattr_start.saturating_add(self.xattr_len)
    }

    pub(super) fn corrupt(&self, what: &'static str) -> ReadError {
        ReadError::Corrupt { what, nid: self.nid }
    }
}

impl<S: ReadAt> ErofsReader<S> {
    /// The root directory.
    ///
    /// # Errors
    /// When the image fails or is damaged.
    pub fn root(&self) -> Result<Inode, ReadError> {
        self.inode(self.root_nid)
    }

    /// The inode of number `nid`.
    ///
    /// # Errors
    /// When the image fails, is damaged, or the inode is compressed.
    pub fn inode(&self, nid: u64) -> Result<Inode, ReadError> {
        let corrupt = |what| ReadError::Corrupt { what, nid };
        let start = nid.checked_mul(SLOT).and_then(|offset| offset.checked_add(self.meta_start));
        let start = start.ok_or(corrupt("number"))?;
        let mut bytes = [0; INODE_MAX as usize];
        self.fill(&mut bytes[..INODE_COMPACT as usize], start, nid)?;
        let format = Bytes(&bytes).u16(0);
        let extended = format & 1 != 0;
        let len = if extended { INODE_MAX } else { INODE_COMPACT };
        if extended {
            self.fill(&mut bytes, start, nid)?;
        }
        let fields = Bytes(&bytes);
        let mode = fields.u16(4);
        let address = fields.u32(16);
        let count = u64::from(fields.u16(2));
        let mut inode = Inode {
            nid,
            kind: kind(mode, address).ok_or(corrupt("type"))?,
            mode: mode & !S_IFMT,
            uid: u32::from(fields.u16(24)),
            gid: u32::from(fields.u16(26)),
            size: u64::from(fields.u32(8)),
            links: u32::from(fields.u16(6)),
            mtime: Timestamp { seconds: self.build_seconds, nanos: self.build_nanos },
            layout: layout(format, address).ok_or(ReadError::Unsupported("inode layout"))?,
            xattr_start: start + len,
            xattr_len: if count == 0 { 0 } else { IBODY_HEADER + 4 * (count - 1) },
        };
        if extended {
            inode.size = fields.u64(8);
            // The extended inode's address is at the same place as the compact one's.
            inode.uid = fields.u32(24);
            inode.gid = fields.u32(28);
            inode.mtime = Timestamp { seconds: fields.u64(32) as i64, nanos: fields.u32(40) };
            inode.links = fields.u32(44);
        }
        Ok(inode)
    }

    /// Reads contents of a file from byte `offset` on; 0 bytes at its end.
    ///
    /// # Errors
    /// When `inode` isn't a regular file, or the image fails or is damaged.
    pub fn read_at(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize, ReadError> {
        if inode.kind != FileKind::File {
            return Err(ReadError::NotAFile);
        }
        self.read_contents(inode, offset, buf)
    }

    /// All contents of a file of at most `max` bytes.
    ///
    /// # Errors
    /// When `inode` isn't a regular file or is larger, or the image fails or is damaged.
    pub fn read_inode(&self, inode: &Inode, max: u64) -> Result<Vec<u8>, ReadError> {
        if inode.kind != FileKind::File {
            return Err(ReadError::NotAFile);
        }
        self.read_all(inode, max)
    }

    pub(super) fn read_all(&self, inode: &Inode, max: u64) -> Result<Vec<u8>, ReadError> {
        if inode.size > max {
            return Err(ReadError::TooLarge { size: inode.size, max });
        }
        // Grows with what is there: a size alone allocates nothing.
        let mut out = Vec::new();
        let mut buf = vec![0; 64 << 10];
        loop {
            match self.read_contents(inode, out.len() as u64, &mut buf)? {
                0 => return Ok(out),
                read => out.extend_from_slice(&buf[..read]),
            }
        }
    }

    /// Reads one contiguous piece, at most up to the end of the file.
    pub(super) fn read_contents(
        &self,
        inode: &Inode,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<usize, ReadError> {
        if offset >= inode.size || buf.is_empty() {
            return Ok(0);
        }
        let left = inode.size - offset;
        let (start, run) = match inode.layout {
            Layout::Flat { block, inline } => flat_run(inode, block, inline, offset)?,
            Layout::Chunks { chunk_bits, indexes } => {
                self.chunk_run(inode, chunk_bits, indexes, offset)?
            }
        };
        let len = usize::try_from(left.min(run)).unwrap_or(usize::MAX).min(buf.len());
        match start {
            Some(start) => self.fill(&mut buf[..len], start, inode.nid)?,
            None => buf[..len].fill(0),
        }
        Ok(len)
    }

    /// Where byte `offset` of a chunked file is (`None`: in a hole), and how many bytes follow it
    /// there.
    fn chunk_run(
        &self,
        inode: &Inode,
        chunk_bits: u32,
        indexes: bool,
        offset: u64,
    ) -> Result<(Option<u64>, u64), ReadError> {
        let unit = if indexes { 8 } else { 4 };
        let table = inode.beside().checked_next_multiple_of(unit);
        let entry = (offset >> chunk_bits).checked_mul(unit);
        let entry = table.zip(entry).and_then(|(table, entry)| table.checked_add(entry));
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..unit as usize];
        self.fill(bytes, entry.ok_or(inode.corrupt("chunk"))?, inode.nid)?;
        let fields = Bytes(bytes);
        if indexes && fields.u16(2) != 0 {
            return Err(ReadError::Unsupported("several devices"));
        }
        let address = if indexes { fields.u32(4) } else { fields.u32(0) };
        let within = offset & ((1 << chunk_bits) - 1);
        let run = (1u64 << chunk_bits) - within;
        let start = (address != NULL_ADDRESS).then(|| u64::from(address) * BLOCK + within);
        Ok((start, run))
    }
}

/// Where byte `offset` of a flat file is, and how many bytes follow it there.
fn flat_run(
    inode: &Inode,
    block: u32,
    inline: bool,
    offset: u64,
) -> Result<(Option<u64>, u64), ReadError> {
    let in_blocks = if inline { inode.size / BLOCK * BLOCK } else { inode.size };
    if offset < in_blocks {
        let start = (u64::from(block) * BLOCK).checked_add(offset);
        return Ok((Some(start.ok_or(inode.corrupt("size"))?), in_blocks - offset));
    }
    let start = inode.beside().checked_add(offset - in_blocks).ok_or(inode.corrupt("size"))?;
    Ok((Some(start), inode.size - offset))
}

fn kind(mode: u16, address: u32) -> Option<FileKind> {
    Some(match mode & S_IFMT {
        S_IFREG => FileKind::File,
        S_IFDIR => FileKind::Directory,
        S_IFLNK => FileKind::Symlink,
        S_IFCHR => FileKind::CharDevice(address),
        S_IFBLK => FileKind::BlockDevice(address),
        S_IFIFO => FileKind::Fifo,
        S_IFSOCK => FileKind::Socket,
        _ => return None,
    })
}

fn layout(format: u16, address: u32) -> Option<Layout> {
    match format >> 1 {
        LAYOUT_FLAT_PLAIN => Some(Layout::Flat { block: address, inline: false }),
        LAYOUT_FLAT_INLINE => Some(Layout::Flat { block: address, inline: true }),
        LAYOUT_CHUNK_BASED => {
            let chunk_format = address as u16;
            if chunk_format & !(CHUNK_BITS_MASK | CHUNK_FORMAT_INDEXES) != 0 {
                return None;
            }
            Some(Layout::Chunks {
                chunk_bits: BLOCK_BITS + u32::from(chunk_format & CHUNK_BITS_MASK),
                indexes: chunk_format & CHUNK_FORMAT_INDEXES != 0,
            })
        }
        _ => None,
    }
}
