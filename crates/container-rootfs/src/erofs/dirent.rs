//! Directory contents: blocks of sorted entries, each block with its names behind its entries.

use super::format::{BLOCK, DIRENT};

/// One entry to write.
pub(super) struct NewEntry<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) file_type: u8,
}

/// Counts how names fall into blocks.
#[derive(Default)]
pub(super) struct Packer {
    full_blocks: u64,
    used: u64,
}

impl Packer {
    /// Adds the next name in order; whether it begins a new block.
    pub(super) fn add(&mut self, name_len: usize) -> bool {
        let len = (DIRENT + name_len) as u64;
        let new_block = self.used > 0 && self.used + len > BLOCK;
        if new_block {
            self.full_blocks += 1;
            self.used = 0;
        }
        self.used += len;
        new_block
    }

    /// Bytes of the directory: all of its blocks count whole but for the last.
    pub(super) fn size(&self) -> u64 {
        self.full_blocks * BLOCK + self.used
    }
}

/// The contents of a directory whose `entries` are sorted by name and include `.` and `..`.
pub(super) fn encode(entries: &[NewEntry<'_>]) -> Vec<u8> {
    let mut packer = Packer::default();
    let mut out = Vec::new();
    let mut first = 0;
    for (index, entry) in entries.iter().enumerate() {
        if packer.add(entry.name.len()) {
            encode_block(&entries[first..index], &mut out);
            out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
            first = index;
        }
    }
    encode_block(&entries[first..], &mut out);
    out
}

fn encode_block(entries: &[NewEntry<'_>], out: &mut Vec<u8>) {
    let mut name_offset = entries.len() * DIRENT;
    for entry in entries {
        out.extend(entry.nid.to_le_bytes());
        out.extend((name_offset as u16).to_le_bytes());
        out.extend([entry.file_type, 0]);
        name_offset += entry.name.len();
    }
    for entry in entries {
        out.extend(entry.name);
    }
}
