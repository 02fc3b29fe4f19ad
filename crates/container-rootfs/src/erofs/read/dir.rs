//! Directories.

use super::bytes::Bytes;
use super::inode::{FileKind, Inode};
use super::{ErofsReader, ReadAt, ReadError};
use crate::erofs::format::{BLOCK, DIRENT};

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name: not empty, without slash and NUL. The image decides; escape it when it is shown.
    pub name: Vec<u8>,
    /// Number of its inode.
    pub nid: u64,
}

impl<S: ReadAt> ErofsReader<S> {
    /// All entries of a directory but `.` and `..`, as stored (a sound image sorts them by name).
    ///
    /// # Errors
    /// When `dir` isn't a directory or has more than `max` entries, or the image fails or is
    /// damaged.
    pub fn read_dir(&self, dir: &Inode, max: usize) -> Result<Vec<DirEntry>, ReadError> {
        let mut out = Vec::new();
        // Every block of a sound directory has an entry, two of which aren't counted.
        let blocks = dir.size.div_ceil(BLOCK);
        if blocks > (max as u64).saturating_add(2) {
            return Err(ReadError::TooLarge { size: blocks, max: max as u64 });
        }
        self.visit_blocks(dir, |block| {
            for index in 0..block.count {
                let entry = block.entry(index)?;
                if matches!(entry.0, b"." | b"..") {
                    continue;
                }
                if out.len() >= max {
                    return Err(ReadError::TooLarge { size: max as u64 + 1, max: max as u64 });
                }
                out.push(DirEntry { name: entry.0.to_vec(), nid: entry.1 });
            }
            Ok(())
        })?;
        Ok(out)
    }

    fn visit_blocks(
        &self,
        dir: &Inode,
        mut visit: impl FnMut(&DirBlock<'_>) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        if dir.kind != FileKind::Directory {
            return Err(ReadError::NotADirectory);
        }
        let mut block = vec![0; BLOCK as usize];
        let mut offset = 0;
        while offset < dir.size {
            let bytes = self.dir_block(dir, offset / BLOCK, &mut block)?;
            visit(&DirBlock::parse(bytes, dir)?)?;
            offset += BLOCK;
        }
        Ok(())
    }

    /// The number of the inode called `name` in `dir`: binary search over blocks, then inside
    /// one, as the kernel does.
    pub(super) fn find_in_dir(&self, dir: &Inode, name: &[u8]) -> Result<Option<u64>, ReadError> {
        if dir.kind != FileKind::Directory {
            return Err(ReadError::NotADirectory);
        }
        let mut buf = vec![0; BLOCK as usize];
        let (mut low, mut high) = (0, dir.size.div_ceil(BLOCK));
        while low < high {
            let middle = low + (high - low) / 2;
            let block = DirBlock::parse(self.dir_block(dir, middle, &mut buf)?, dir)?;
            if name < block.entry(0)?.0 {
                high = middle;
            } else if name > block.entry(block.count - 1)?.0 {
                low = middle + 1;
            } else {
                return block.find(name);
            }
        }
        Ok(None)
    }

    fn dir_block<'b>(
        &self,
        dir: &Inode,
        index: u64,
        buf: &'b mut [u8],
    ) -> Result<&'b [u8], ReadError> {
        let offset = index * BLOCK;
        let len = dir.size.saturating_sub(offset).min(BLOCK) as usize;
        let mut filled = 0;
        while filled < len {
            match self.read_contents(dir, offset + filled as u64, &mut buf[filled..len])? {
                0 => return Err(dir.corrupt("directory")),
                read => filled += read,
            }
        }
        Ok(&buf[..len])
    }
}

/// One block of a directory: entries, then their names.
struct DirBlock<'a> {
    bytes: &'a [u8],
    count: usize,
    dir: &'a Inode,
}

impl<'a> DirBlock<'a> {
    fn parse(bytes: &'a [u8], dir: &'a Inode) -> Result<Self, ReadError> {
        let names = usize::from(Bytes(bytes).u16(8));
        if names < DIRENT || names % DIRENT != 0 || names > bytes.len() {
            return Err(dir.corrupt("directory"));
        }
        Ok(Self { bytes, count: names / DIRENT, dir })
    }

    fn name_offset(&self, index: usize) -> usize {
        usize::from(Bytes(self.bytes).u16(index * DIRENT + 8))
    }

    /// Name and inode number of an entry.
    fn entry(&self, index: usize) -> Result<(&'a [u8], u64), ReadError> {
        let start = self.name_offset(index);
        let last = index + 1 == self.count;
        let end = if last { self.bytes.len() } else { self.name_offset(index + 1) };
        let name = self.bytes.get(start..end).filter(|_| start >= self.count * DIRENT);
        let mut name = name.ok_or_else(|| self.dir.corrupt("directory"))?;
        // The last name of a block ends with the block or at a NUL.
        if last && let Some(end) = name.iter().position(|byte| *byte == 0) {
            name = &name[..end];
        }
        if name.is_empty() || name.len() > 255 || name.iter().any(|b| matches!(b, 0 | b'/')) {
            return Err(self.dir.corrupt("directory"));
        }
        Ok((name, Bytes(self.bytes).u64(index * DIRENT)))
    }

    fn find(&self, name: &[u8]) -> Result<Option<u64>, ReadError> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let (known, nid) = self.entry(middle)?;
            match known.cmp(name) {
                std::cmp::Ordering::Equal => return Ok(Some(nid)),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }
}
