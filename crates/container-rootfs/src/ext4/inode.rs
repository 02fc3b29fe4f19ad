//! The first block of the first inode table.

use super::layout::Layout;
use super::{BLOCK, INODE, JOURNAL_INODE, Params, ROOT_INODE};

/// Bytes of an inode's fields behind the first 128.
pub(super) const EXTRA_SIZE: u16 = 32;
const FLAG_EXTENTS: u32 = 0x8_0000;
const EXTENT_MAGIC: u16 = 0xf30a;
const SECTOR: u64 = 512;

struct NewInode {
    number: u32,
    mode: u16,
    links: u16,
    block: u64,
    blocks: u64,
}

pub(super) fn encode_table(layout: &Layout, params: &Params) -> Vec<u8> {
    let mut table = vec![0; BLOCK as usize];
    let root = NewInode {
        number: ROOT_INODE,
        mode: 0o040755,
        links: 2 + params.directories().count() as u16,
        block: layout.dirs,
        blocks: 1,
    };
    let journal = NewInode {
        number: JOURNAL_INODE,
        mode: 0o100600,
        links: 1,
        block: layout.journal,
        blocks: layout.journal_blocks,
    };
    let directories = (1..).zip(params.directories()).map(|(index, (number, name))| NewInode {
        number,
        mode: if name == "lost+found" { 0o040700 } else { 0o040755 },
        links: 2,
        block: layout.dirs + index,
        blocks: 1,
    });
    for inode in [root, journal].into_iter().chain(directories) {
        // Numbers begin at 1.
        let start = (u64::from(inode.number - 1) * INODE) as usize;
        encode(&inode, params.created, &mut table[start..start + INODE as usize]);
    }
    table
}

fn encode(inode: &NewInode, created: u32, out: &mut [u8]) {
    let mut put = |offset: usize, bytes: &[u8]| {
        out[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    let size = inode.blocks * BLOCK;
    put(0x00, &inode.mode.to_le_bytes());
    put(0x04, &(size as u32).to_le_bytes());
    for time in [0x08, 0x0c, 0x10, 0x90] {
        put(time, &created.to_le_bytes());
    }
    put(0x1a, &inode.links.to_le_bytes());
    put(0x1c, &((size / SECTOR) as u32).to_le_bytes());
    put(0x20, &FLAG_EXTENTS.to_le_bytes());
    put(0x28, &extent_root(inode.block, inode.blocks));
    put(0x80, &EXTRA_SIZE.to_le_bytes());
}

/// The 60 bytes in an inode that map all of a file's blocks, at most 32,768, to one extent.
pub(super) fn extent_root(block: u64, blocks: u64) -> [u8; 60] {
    let mut root = [0; 60];
    root[..2].copy_from_slice(&EXTENT_MAGIC.to_le_bytes());
    root[2] = 1; // extents in use
    root[4] = 4; // of so many
    root[16..18].copy_from_slice(&(blocks as u16).to_le_bytes());
    root[20..24].copy_from_slice(&(block as u32).to_le_bytes());
    root
}
