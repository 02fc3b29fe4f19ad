//! The superblock, and the journal's.

use super::inode;
use super::layout::Layout;
use super::{BLOCK, BLOCKS_PER_GROUP, FIRST_INODE, INODE, JOURNAL_INODE, JournalMode, Params};

const OFFSET: usize = 1024;

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const COMPAT_EXT_ATTR: u32 = 0x8;
const COMPAT_DIR_INDEX: u32 = 0x20;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_FILETYPE: u32 = 0x2;
const INCOMPAT_EXTENTS: u32 = 0x40;
const INCOMPAT_FLEX_BG: u32 = 0x200;
const RO_COMPAT_LARGE_FILE: u32 = 0x2;
const RO_COMPAT_HUGE_FILE: u32 = 0x8;
/// Checksums of the descriptors, which groups that are not initialised need. Checksums of all
/// metadata would cost the guest time for a disk that lives as long as its container.
const RO_COMPAT_GDT_CSUM: u32 = 0x10;
const RO_COMPAT_DIR_NLINK: u32 = 0x20;
const RO_COMPAT_EXTRA_ISIZE: u32 = 0x40;

const STATE_CLEAN: u16 = 1;
const ERRORS_CONTINUE: u16 = 1;
const ERRORS_READ_ONLY: u16 = 2;
const MOUNT_OPTIONS_XATTR_ACL: u32 = 0xc;
const HASH_HALF_MD4: u8 = 1;
const FLAG_SIGNED_HASH: u32 = 1;
const JOURNAL_MAGIC: u32 = 0xc03b_3998;
const JOURNAL_SUPERBLOCK_V2: u32 = 4;

/// Puts fields at offsets of a structure.
struct Fields<'a>(&'a mut [u8]);

impl Fields<'_> {
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn u16(&mut self, offset: usize, value: u16) {
        self.put(offset, &value.to_le_bytes());
    }

    fn u32(&mut self, offset: usize, value: u32) {
        self.put(offset, &value.to_le_bytes());
    }
}

/// Block 0.
pub(super) fn encode(layout: &Layout, params: &Params) -> Vec<u8> {
    let mut block = vec![0; BLOCK as usize];
    let mut sb = Fields(&mut block[OFFSET..]);
    sb.u32(0x00, layout.inodes() as u32);
    sb.u32(0x04, layout.blocks as u32);
    sb.u32(0x0c, (layout.blocks - layout.end) as u32);
    sb.u32(0x10, layout.inodes() as u32 - layout.used_inodes);
    sb.u32(0x18, BLOCK.trailing_zeros() - 10);
    sb.u32(0x1c, BLOCK.trailing_zeros() - 10);
    sb.u32(0x20, BLOCKS_PER_GROUP as u32);
    sb.u32(0x24, BLOCKS_PER_GROUP as u32);
    sb.u32(0x28, layout.inodes_per_group as u32);
    sb.u32(0x30, params.created); // last write
    sb.u16(0x36, u16::MAX); // no check after a number of mounts
    sb.u16(0x38, 0xef53);
    sb.u16(0x3a, STATE_CLEAN);
    sb.u16(0x3c, if params.stop_on_errors { ERRORS_READ_ONLY } else { ERRORS_CONTINUE });
    sb.u32(0x40, params.created); // last check
    sb.u32(0x4c, 1); // revision with dynamic inode sizes
    sb.u32(0x54, FIRST_INODE);
    sb.u16(0x58, INODE as u16);
    let compat = COMPAT_HAS_JOURNAL | COMPAT_EXT_ATTR | COMPAT_DIR_INDEX | COMPAT_SPARSE_SUPER2;
    sb.u32(0x5c, compat);
    sb.u32(0x60, INCOMPAT_FILETYPE | INCOMPAT_EXTENTS | INCOMPAT_FLEX_BG);
    let ro_compat = RO_COMPAT_LARGE_FILE
        | RO_COMPAT_HUGE_FILE
        | RO_COMPAT_GDT_CSUM
        | RO_COMPAT_DIR_NLINK
        | RO_COMPAT_EXTRA_ISIZE;
    sb.u32(0x64, ro_compat);
    sb.put(0x68, &params.uuid);
    sb.u32(0xe0, JOURNAL_INODE);
    sb.put(0xec, &params.uuid); // seed of directory hashes
    sb.0[0xfc] = HASH_HALF_MD4;
    sb.0[0xfd] = 1; // a copy of the journal's inode is at 0x10c
    let mode = match params.journal_mode {
        JournalMode::Ordered => 0,
        JournalMode::Data => 0x20,
        JournalMode::Writeback => 0x60,
    };
    sb.u32(0x100, MOUNT_OPTIONS_XATTR_ACL | mode);
    sb.u32(0x108, params.created);
    sb.put(0x10c, &inode::extent_root(layout.journal, layout.journal_blocks));
    sb.u32(0x10c + 64, (layout.journal_blocks * BLOCK) as u32);
    sb.u16(0x15c, inode::EXTRA_SIZE);
    sb.u16(0x15e, inode::EXTRA_SIZE);
    sb.u32(0x160, FLAG_SIGNED_HASH);
    sb.0[0x174] = layout.flex_log();
    // With this the kernel needn't go through all groups to know it.
    sb.u32(0x248, (layout.dirs + layout.journal_blocks) as u32);
    block
}

/// The journal's first block, of an empty journal. Its fields are big-endian.
pub(super) fn encode_journal(layout: &Layout, params: &Params) -> Vec<u8> {
    let mut block = vec![0; BLOCK as usize];
    let mut sb = Fields(&mut block);
    let mut put = |offset, value: u32| sb.put(offset, &value.to_be_bytes());
    put(0x00, JOURNAL_MAGIC);
    put(0x04, JOURNAL_SUPERBLOCK_V2);
    put(0x0c, BLOCK as u32);
    put(0x10, layout.journal_blocks as u32);
    put(0x14, 1); // first block of the log
    put(0x18, 1); // first transaction expected
    put(0x40, 1); // one user
    sb.put(0x30, &params.uuid);
    block
}
