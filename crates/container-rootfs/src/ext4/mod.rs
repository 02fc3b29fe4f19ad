//! Writing the empty ext4 that a container, or a volume's user, writes to.
//!
//! Of a file system of 64 GiB less than 100 KiB are written; the rest is a hole. That works
//! because every group's bitmaps and inode table are either written or marked as not initialised,
//! and a hole already holds the zeros that a fresh inode table needs, so the kernel starts no
//! thread to write them. (It does start one to read bitmaps ahead; a guest that mounts with
//! `no_prefetch_block_bitmaps` saves that.)
//!
//! ```text
//! block 0        superblock (no backups: `sparse_super2` with none)
//! …              group descriptors, 32 bytes each
//! …              block bitmaps of all groups, then inode bitmaps, then inode tables:
//!                one flexible group holds them all
//! …              directories: /, lost+found, and those asked for
//! …              the journal
//! ```
//!
//! Source: the kernel's `Documentation/filesystems/ext4/`.

mod dirs;
mod inode;
mod layout;
mod superblock;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use self::layout::Layout;

const BLOCK: u64 = 4096;
const BLOCKS_PER_GROUP: u64 = 8 * BLOCK;
const INODE: u64 = 256;
const ROOT_INODE: u32 = 2;
const JOURNAL_INODE: u32 = 8;
const FIRST_INODE: u32 = 11;
/// Directories that fit into the first block of inodes beside the reserved ones.
const MAX_DIRECTORIES: usize = 4;
/// A container's upper disk has these, for overlayfs.
const OVERLAY: &[&str] = &["upper", "work"];

/// When data reaches the disk, next to the journal's transactions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum JournalMode {
    /// Before the metadata that leads to it.
    #[default]
    Ordered,
    /// At any time.
    Writeback,
    /// Through the journal.
    Data,
}

/// What differs between file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params {
    /// The file system's UUID.
    pub uuid: [u8; 16],
    /// Time of creation in seconds since 1970.
    pub created: u32,
    /// Inodes for each 128 MiB, a multiple of 16 and at most 32,768.
    pub inodes_per_group: u32,
    /// Length of the journal in MiB, 4 to 128.
    pub journal_mib: u32,
    /// The journal's mode, where the mount does not say another.
    pub journal_mode: JournalMode,
    /// Directories at the root beside `lost+found`, at most four: mode 0755, root's.
    pub directories: &'static [&'static str],
    /// What is found damaged makes the kernel stop writing, rather than go on.
    pub stop_on_errors: bool,
}

impl Params {
    /// All directories with their inodes.
    fn directories(&self) -> impl Iterator<Item = (u32, &'static str)> {
        (FIRST_INODE..).zip(std::iter::once("lost+found").chain(self.directories.iter().copied()))
    }

    fn used_inodes(&self) -> u32 {
        FIRST_INODE + self.directories.len() as u32
    }
}

impl Default for Params {
    /// A container's upper disk: no UUID and time; 4,194,304 inodes for 64 GiB; a journal of
    /// 32 MiB; `/upper` and `/work` for overlayfs.
    fn default() -> Self {
        Self {
            uuid: [0; 16],
            created: 0,
            inodes_per_group: 8192,
            journal_mib: 32,
            journal_mode: JournalMode::Ordered,
            directories: OVERLAY,
            stop_on_errors: false,
        }
    }
}

/// A file system that can't be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The length isn't possible.
    #[error("an ext4 of {len} bytes is not possible: it must have {min} to {max}")]
    Length {
        /// The length asked for.
        len: u64,
        /// The least possible with these parameters.
        min: u64,
        /// The most possible.
        max: u64,
    },
    /// A parameter is out of its range.
    #[error("ext4 parameter {0} is out of range")]
    Params(&'static str),
    /// The file can't be written.
    #[error("write an empty ext4")]
    Io(#[from] io::Error),
}

/// Makes `file` an empty ext4 of `len` bytes (sparse). What the file held is lost; it isn't synced.
///
/// # Errors
/// When a parameter is out of range or the file can't be written.
pub fn write_empty(file: &File, len: u64, params: &Params) -> Result<(), WriteError> {
    let layout = Layout::new(len, params)?;
    file.set_len(0)?;
    file.set_len(layout.blocks * BLOCK)?;
    let mut head = superblock::encode(&layout, params);
    head.extend(layout.encode_descriptors(&params.uuid));
    file.write_all_at(&head, 0)?;
    for (block, bitmap) in layout.encode_block_bitmaps() {
        file.write_all_at(&bitmap, block * BLOCK)?;
    }
    file.write_all_at(&layout.encode_inode_bitmap(), layout.inode_bitmaps * BLOCK)?;
    file.write_all_at(&inode::encode_table(&layout, params), layout.inode_tables * BLOCK)?;
    file.write_all_at(&dirs::encode(params), layout.dirs * BLOCK)?;
    file.write_all_at(&superblock::encode_journal(&layout, params), layout.journal * BLOCK)?;
    Ok(())
}
