//! The part of the image that holds file contents, written in large pieces while layers are read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

use super::free::FreeRuns;
use crate::erofs::format::BLOCK;
use crate::tree::Extent;

/// Bytes that are gathered before they are written.
const BUFFER: usize = 1 << 20;
const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// Hands out blocks and writes to them through one buffer.
#[derive(Debug)]
pub(super) struct DataArea {
    file: File,
    buffer: Box<[u8]>,
    filled: usize,
    /// Where in the file the buffer's bytes go.
    position: u64,
    /// Where in the file nothing was written yet, up to its end.
    untouched: u64,
    /// First block after all that were handed out.
    end: u32,
    free: FreeRuns,
}

impl DataArea {
    pub(super) fn new(file: File) -> io::Result<Self> {
        // Emptied, so that what is never written reads as zeros: holes depend on that.
        file.set_len(0)?;
        let buffer = vec![0; BUFFER].into();
        let free = FreeRuns::default();
        Ok(Self { file, buffer, filled: 0, position: BLOCK, untouched: BLOCK, end: 1, free })
    }

    /// Bytes up to the last block that was handed out.
    pub(super) fn end_bytes(&self) -> u64 {
        u64::from(self.end) * BLOCK
    }

    /// Blocks that will all be written.
    pub(super) fn allocate(&mut self, blocks: u32) -> Option<u32> {
        if blocks == 0 {
            return Some(0);
        }
        self.free.take(blocks).or_else(|| self.allocate_zeroed(blocks))
    }

    /// Blocks that read as zeros until they are written.
    pub(super) fn allocate_zeroed(&mut self, blocks: u32) -> Option<u32> {
        let start = self.end;
        self.end = start.checked_add(blocks)?;
        Some(start)
    }

    pub(super) fn release(&mut self, extent: Extent) {
        self.free.add(extent);
    }

    /// The next write goes to byte `position` of the file.
    pub(super) fn seek(&mut self, position: u64) -> io::Result<()> {
        if self.position + self.filled as u64 != position {
            self.flush()?;
            self.position = position;
        }
        Ok(())
    }

    /// Room for bytes of the next write, at least one. [`filled`](Self::filled) says how many
    /// there are.
    pub(super) fn room(&mut self) -> io::Result<&mut [u8]> {
        if self.filled == self.buffer.len() {
            self.flush()?;
        }
        Ok(&mut self.buffer[self.filled..])
    }

    pub(super) fn filled(&mut self, len: usize) {
        self.filled += len;
    }

    /// Writes zeros up to the end of the block.
    pub(super) fn pad_block(&mut self) -> io::Result<()> {
        let used = (self.position + self.filled as u64) % BLOCK;
        let mut left = if used == 0 { 0 } else { (BLOCK - used) as usize };
        while left > 0 {
            let room = self.room()?;
            let len = left.min(room.len());
            room[..len].fill(0);
            self.filled(len);
            left -= len;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let bytes = &self.buffer[..self.filled];
        // Zeros where nothing was written are there already.
        if self.position < self.untouched || !is_zero(bytes) {
            self.file.write_all_at(bytes, self.position)?;
        }
        self.position += self.filled as u64;
        self.untouched = self.untouched.max(self.position);
        self.filled = 0;
        Ok(())
    }

    /// Writes what is buffered and gives unused blocks back to the file system below. The file,
    /// and where the data ends in bytes.
    pub(super) fn finish(mut self) -> io::Result<(File, u64)> {
        self.flush()?;
        while let Some(start) = self.free.take_last(self.end) {
            self.end = start;
        }
        for run in self.free.iter() {
            let (offset, len) = (u64::from(run.start) * BLOCK, u64::from(run.blocks) * BLOCK);
            let punched = fallocate(
                &self.file,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                offset,
                len,
            );
            if punched.is_err() {
                // A file system without holes. The blocks belong to nobody, but what a deleted
                // file held must not stay readable in the image.
                self.overwrite(offset, len)?;
            }
        }
        let end = self.end_bytes();
        self.file.set_len(end)?;
        Ok((self.file, end))
    }

    fn overwrite(&self, offset: u64, len: u64) -> io::Result<()> {
        (offset..offset + len)
            .step_by(ZEROS.len())
            .try_for_each(|position| self.file.write_all_at(&ZEROS, position))
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}
