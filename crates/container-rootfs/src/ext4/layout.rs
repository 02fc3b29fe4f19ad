//! Where everything goes, and the groups' tables that follow from it.

use super::{BLOCK, BLOCKS_PER_GROUP, INODE, MAX_DIRECTORIES, Params, WriteError};

const DESCRIPTOR: u64 = 32;
const FLAG_INODE_UNINIT: u16 = 1;
const FLAG_BLOCK_UNINIT: u16 = 2;
const FLAG_INODE_ZEROED: u16 = 4;
/// Block addresses have 32 bits.
const MAX_LEN: u64 = 1 << 44;

/// Block numbers and counts.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) blocks: u64,
    pub(super) groups: u64,
    pub(super) inodes_per_group: u64,
    pub(super) descriptor_blocks: u64,
    pub(super) block_bitmaps: u64,
    pub(super) inode_bitmaps: u64,
    pub(super) inode_tables: u64,
    pub(super) dirs: u64,
    pub(super) journal: u64,
    pub(super) journal_blocks: u64,
    /// Directories beside the root.
    pub(super) directories: u64,
    pub(super) used_inodes: u32,
    /// First block that is free.
    pub(super) end: u64,
}

impl Layout {
    pub(super) fn new(len: u64, params: &Params) -> Result<Self, WriteError> {
        let inodes_per_group = u64::from(params.inodes_per_group);
        if inodes_per_group == 0
            || !inodes_per_group.is_multiple_of(BLOCK / INODE)
            || inodes_per_group > BLOCKS_PER_GROUP
        {
            return Err(WriteError::Params("inodes_per_group"));
        }
        if !(4..=128).contains(&params.journal_mib) {
            return Err(WriteError::Params("journal_mib"));
        }
        if params.directories.len() > MAX_DIRECTORIES {
            return Err(WriteError::Params("directories"));
        }
        let blocks = len / BLOCK;
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
        let descriptor_blocks = (groups * DESCRIPTOR).div_ceil(BLOCK);
        let block_bitmaps = 1 + descriptor_blocks;
        let inode_bitmaps = block_bitmaps + groups;
        let inode_tables = inode_bitmaps + groups;
        let dirs = inode_tables + groups * inodes_per_group * INODE / BLOCK;
        let directories = params.directories().count() as u64;
        let journal = dirs + 1 + directories;
        let journal_blocks = (u64::from(params.journal_mib) << 20) / BLOCK;
        let end = journal + journal_blocks;
        // Some room to be of use.
        let min = (end + 1024) * BLOCK;
        if len < min || len > MAX_LEN {
            return Err(WriteError::Length { len, min, max: MAX_LEN });
        }
        Ok(Self {
            blocks,
            groups,
            inodes_per_group,
            descriptor_blocks,
            block_bitmaps,
            inode_bitmaps,
            inode_tables,
            dirs,
            journal,
            journal_blocks,
            directories,
            used_inodes: params.used_inodes(),
            end,
        })
    }

    pub(super) fn inodes(&self) -> u64 {
        self.groups * self.inodes_per_group
    }

    /// The power of two of groups in a flexible group: all are in one.
    pub(super) fn flex_log(&self) -> u8 {
        self.groups.next_power_of_two().trailing_zeros().max(1) as u8
    }

    fn group_blocks(&self, group: u64) -> u64 {
        (self.blocks - group * BLOCKS_PER_GROUP).min(BLOCKS_PER_GROUP)
    }

    /// Used blocks of a group: everything up to `end` is used, nothing behind it.
    fn used_blocks(&self, group: u64) -> u64 {
        self.end.saturating_sub(group * BLOCKS_PER_GROUP).min(self.group_blocks(group))
    }

    /// Whole blocks of group descriptors.
    pub(super) fn encode_descriptors(&self, uuid: &[u8; 16]) -> Vec<u8> {
        let mut out = Vec::with_capacity((self.descriptor_blocks * BLOCK) as usize);
        let table_blocks = self.inodes_per_group * INODE / BLOCK;
        for group in 0..self.groups {
            let used = self.used_blocks(group);
            let free_inodes =
                self.inodes_per_group - if group == 0 { u64::from(self.used_inodes) } else { 0 };
            let directories = if group == 0 { 1 + self.directories as u16 } else { 0 };
            let block_flag = if self.has_bitmap(group) { 0 } else { FLAG_BLOCK_UNINIT };
            let inode_flag = if group == 0 { 0 } else { FLAG_INODE_UNINIT };
            let start = out.len();
            out.extend(((self.block_bitmaps + group) as u32).to_le_bytes());
            out.extend(((self.inode_bitmaps + group) as u32).to_le_bytes());
            out.extend(((self.inode_tables + group * table_blocks) as u32).to_le_bytes());
            out.extend(((self.group_blocks(group) - used) as u16).to_le_bytes());
            out.extend((free_inodes as u16).to_le_bytes());
            out.extend(directories.to_le_bytes());
            out.extend((FLAG_INODE_ZEROED | block_flag | inode_flag).to_le_bytes());
            out.extend([0; 8]);
            // Never used inodes at the table's end.
            out.extend((free_inodes as u16).to_le_bytes());
            let checksum = crc16(crc16(!0, uuid), &(group as u32).to_le_bytes());
            let checksum = crc16(checksum, &out[start..]);
            out.extend(checksum.to_le_bytes());
        }
        out.resize((self.descriptor_blocks * BLOCK) as usize, 0);
        out
    }

    /// Whether a group's block bitmap is written: where blocks are used, and in the last group,
    /// whose bitmap says where the file system ends.
    fn has_bitmap(&self, group: u64) -> bool {
        self.used_blocks(group) > 0 || group + 1 == self.groups
    }

    /// The block bitmaps that are written, each with its block number.
    pub(super) fn encode_block_bitmaps(&self) -> impl Iterator<Item = (u64, Vec<u8>)> {
        (0..self.groups).filter(|group| self.has_bitmap(*group)).map(|group| {
            let mut bitmap = vec![0; BLOCK as usize];
            set_bits(&mut bitmap, 0, self.used_blocks(group));
            // What is behind the file system's end counts as used.
            set_bits(&mut bitmap, self.group_blocks(group), BLOCKS_PER_GROUP);
            (self.block_bitmaps + group, bitmap)
        })
    }

    /// The inode bitmap of the first group, the only one that is initialised.
    pub(super) fn encode_inode_bitmap(&self) -> Vec<u8> {
        let mut bitmap = vec![0; BLOCK as usize];
        set_bits(&mut bitmap, 0, u64::from(self.used_inodes));
        set_bits(&mut bitmap, self.inodes_per_group, 8 * BLOCK);
        bitmap
    }
}

fn set_bits(bitmap: &mut [u8], from: u64, to: u64) {
    for bit in from as usize..to as usize {
        bitmap[bit / 8] |= 1 << (bit % 8);
    }
}

/// CRC-16 with polynomial 0x8005, reflected, as the kernel's `crc16`.
fn crc16(start: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(start, |crc, byte| {
        (0..8).fold(
            crc ^ u16::from(*byte),
            |crc, _| {
                if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0xa001 }
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc16_check_value() {
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
    }

    #[test]
    fn lengths_and_parameters_are_checked() {
        let params = Params::default();
        assert!(Layout::new(64 << 30, &params).is_ok());
        assert!(matches!(Layout::new(1 << 20, &params), Err(WriteError::Length { .. })));
        assert!(matches!(Layout::new(1 << 45, &params), Err(WriteError::Length { .. })));
        for (inodes_per_group, journal_mib) in [(0, 32), (8, 32), (65536, 32), (8192, 3)] {
            let params = Params { inodes_per_group, journal_mib, ..params };
            assert!(matches!(Layout::new(64 << 30, &params), Err(WriteError::Params(_))));
        }
    }

    #[test]
    fn the_default_has_more_than_four_million_inodes() {
        let layout = Layout::new(64 << 30, &Params::default()).unwrap();
        assert!(layout.inodes() > 4_000_000);
        assert_eq!(layout.flex_log(), 9);
    }
}
