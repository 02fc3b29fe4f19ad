//! Numbers and structures of the on-disk format.

use crate::tar::Timestamp;

pub(crate) const BLOCK_BITS: u32 = 12;
/// Bytes of a block.
pub(crate) const BLOCK: u64 = 1 << BLOCK_BITS;
/// Bytes of the unit that inode numbers count.
pub(crate) const SLOT: u64 = 32;
pub(super) const INODE_COMPACT: u64 = 32;
/// Bytes of the larger of the two kinds of inodes.
pub(crate) const INODE_MAX: u64 = 64;

pub(super) const SUPER_OFFSET: u64 = 1024;
pub(super) const SUPER_LEN: usize = 128;
pub(super) const SUPER_MAGIC: u32 = 0xE0F5_E1E2;
pub(super) const COMPAT_SB_CHKSUM: u32 = 0x1;
/// Inode times are times of modification.
pub(super) const COMPAT_MTIME: u32 = 0x2;
pub(super) const INCOMPAT_CHUNKED_FILE: u32 = 0x4;

pub(super) const LAYOUT_FLAT_PLAIN: u16 = 0;
pub(super) const LAYOUT_FLAT_INLINE: u16 = 2;
pub(super) const LAYOUT_CHUNK_BASED: u16 = 4;
/// In a chunk format: entries are 8 bytes long and name a device.
pub(super) const CHUNK_FORMAT_INDEXES: u16 = 0x20;
pub(super) const CHUNK_BITS_MASK: u16 = 0x1f;
/// The address of a hole.
pub(super) const NULL_ADDRESS: u32 = u32::MAX;

pub(super) const DIRENT: usize = 12;

pub(super) const S_IFMT: u16 = 0o170000;
pub(super) const S_IFIFO: u16 = 0o010000;
pub(super) const S_IFCHR: u16 = 0o020000;
pub(super) const S_IFDIR: u16 = 0o040000;
pub(super) const S_IFBLK: u16 = 0o060000;
pub(super) const S_IFREG: u16 = 0o100000;
pub(super) const S_IFLNK: u16 = 0o120000;
pub(super) const S_IFSOCK: u16 = 0o140000;

/// Blocks that `bytes` bytes fill.
pub(crate) fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK)
}

/// The type in a directory entry, from a mode.
pub(super) fn file_type(mode: u16) -> u8 {
    match mode & S_IFMT {
        S_IFREG => 1,
        S_IFDIR => 2,
        S_IFCHR => 3,
        S_IFBLK => 4,
        S_IFIFO => 5,
        S_IFSOCK => 6,
        S_IFLNK => 7,
        _ => 0,
    }
}

/// What the writer puts into a superblock.
pub(super) struct Super {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) build_time: Timestamp,
    pub(super) blocks: u32,
    pub(super) meta_block: u32,
    pub(super) uuid: [u8; 16],
    pub(super) chunked: bool,
}

impl Super {
    /// Block 0 of the image.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK as usize);
        out.resize(SUPER_OFFSET as usize, 0);
        out.extend(SUPER_MAGIC.to_le_bytes());
        out.extend([0; 4]); // checksum, set below
        out.extend((COMPAT_SB_CHKSUM | COMPAT_MTIME).to_le_bytes());
        out.push(BLOCK_BITS as u8);
        out.push(0); // no superblock extensions
        out.extend(self.root_nid.to_le_bytes());
        out.extend(self.inodes.to_le_bytes());
        out.extend(self.build_time.seconds.to_le_bytes());
        out.extend(self.build_time.nanos.to_le_bytes());
        out.extend(self.blocks.to_le_bytes());
        out.extend(self.meta_block.to_le_bytes());
        out.extend([0; 4]); // no shared attributes
        out.extend(self.uuid);
        out.extend([0; 16]); // no volume name
        out.extend((if self.chunked { INCOMPAT_CHUNKED_FILE } else { 0 }).to_le_bytes());
        out.resize(BLOCK as usize, 0);
        let checksum = super_checksum(&out[SUPER_OFFSET as usize..]);
        out[SUPER_OFFSET as usize + 4..][..4].copy_from_slice(&checksum.to_le_bytes());
        out
    }
}

/// Over the first block from the superblock on, the checksum itself being zero. The kernel leaves
/// out the final inversion of CRC-32C.
pub(super) fn super_checksum(bytes: &[u8]) -> u32 {
    !crc32c::crc32c(bytes)
}

/// What the writer puts into an inode.
pub(super) struct InodeFields {
    pub(super) layout: u16,
    pub(super) xattr_count: u16,
    pub(super) mode: u16,
    pub(super) links: u32,
    pub(super) size: u64,
    /// Block address, device number or chunk format.
    pub(super) address: u32,
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
}

impl InodeFields {
    pub(super) fn encode(&self, compact: bool, out: &mut Vec<u8>) {
        out.extend((self.layout << 1 | u16::from(!compact)).to_le_bytes());
        out.extend(self.xattr_count.to_le_bytes());
        out.extend(self.mode.to_le_bytes());
        if compact {
            out.extend((self.links as u16).to_le_bytes());
            out.extend((self.size as u32).to_le_bytes());
            out.extend([0; 4]);
            out.extend(self.address.to_le_bytes());
            out.extend(self.number.to_le_bytes());
            out.extend((self.uid as u16).to_le_bytes());
            out.extend((self.gid as u16).to_le_bytes());
            out.extend([0; 4]);
        } else {
            out.extend([0; 2]);
            out.extend(self.size.to_le_bytes());
            out.extend(self.address.to_le_bytes());
            out.extend(self.number.to_le_bytes());
            out.extend(self.uid.to_le_bytes());
            out.extend(self.gid.to_le_bytes());
            out.extend(self.mtime.seconds.to_le_bytes());
            out.extend(self.mtime.nanos.to_le_bytes());
            out.extend(self.links.to_le_bytes());
            out.extend([0; 16]);
        }
    }
}

/// Whether an inode fits the small form, which has no time of its own.
pub(super) fn fits_compact(
    size: u64,
    links: u32,
    owner: (u32, u32),
    mtime: Timestamp,
    build_time: Timestamp,
) -> bool {
    let small = |id: u32| id <= u32::from(u16::MAX);
    size <= u64::from(u32::MAX)
        && small(links)
        && small(owner.0)
        && small(owner.1)
        && mtime == build_time
}
