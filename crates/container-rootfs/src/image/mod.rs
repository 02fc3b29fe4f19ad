//! From layers to one EROFS image.
//!
//! ```text
//! block 0      superblock
//! block 1 …    file contents, as the layers bring them (space of files that a later layer
//!              removes is reused, what stays unused is punched out)
//! …            contents of directories and long symbolic links
//! meta_blkaddr inodes, with attributes and short contents beside them
//! …            a hole up to the fixed length
//! ```

mod apply;
mod data;
mod free;

use std::fs::File;
use std::io;
use std::ops::ControlFlow;

pub use self::apply::{ApplyError, LayerStats, Progress};
use self::data::DataArea;
use crate::erofs::format::BLOCK;
use crate::erofs::write::Writer;
use crate::limits::Limits;
use crate::tree::Tree;

/// Builds one read-only EROFS image from the layers of an OCI image.
///
/// Contents go into the output as they are read; names and metadata stay in memory until
/// [`finish`](Self::finish). Until then the output is no file system; nothing is synced, and an
/// output whose builder failed or was dropped is to be deleted by the caller.
///
/// The same layers give the same bytes.
#[derive(Debug)]
pub struct ImageBuilder {
    data: DataArea,
    tree: Tree,
    limits: Limits,
    uuid: [u8; 16],
    inline_left: u64,
    /// File contents of all layers so far.
    data_bytes: u64,
    failed: bool,
}

/// What [`ImageBuilder::finish`] wrote.
#[derive(Debug)]
#[non_exhaustive]
pub struct Summary {
    /// The image, its length set; not synced.
    pub file: File,
    /// Bytes from the beginning up to the last one that means something.
    pub bytes: u64,
    /// Inodes in the image.
    pub inodes: u64,
}

/// An image that can't be completed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FinishError {
    /// A layer was not applied completely, so the image would be wrong.
    #[error("a layer of the image was not applied completely")]
    Incomplete,
    /// The image is longer than the length that it is to have.
    #[error("the image needs {needed} bytes, more than the {max} allowed")]
    TooLong {
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that it may have.
        max: u64,
    },
    /// The output can't be written.
    #[error("write the image's metadata")]
    Write(#[source] io::Error),
}

impl ImageBuilder {
    /// Starts an image in `output`, a file open for reading and writing, which is emptied.
    ///
    /// # Errors
    /// When the file can't be emptied.
    pub fn new(output: File, limits: Limits) -> io::Result<Self> {
        Ok(Self {
            data: DataArea::new(output)?,
            tree: Tree::new(limits),
            limits,
            uuid: [0; 16],
            inline_left: limits.max_inline_bytes,
            data_bytes: 0,
            failed: false,
        })
    }

    /// Sets the file system's UUID; zeros when it isn't called. A part of the image's digest
    /// serves well.
    pub fn set_uuid(&mut self, uuid: [u8; 16]) {
        self.uuid = uuid;
    }

    /// Applies the next layer, the lowest one first, from its decompressed tar stream.
    ///
    /// The stream is read to its end, beyond the archive's end too, so that digests taken on the
    /// way are complete. `progress` is called at least once per MiB and every few hundred
    /// entries; when it breaks, the layer ends with [`ApplyError::Cancelled`].
    ///
    /// # Errors
    /// A layer that is malformed, hostile or beyond the limits, a stream that fails, an output
    /// that can't be written. The builder can't be used any more then.
    pub fn apply_layer(
        &mut self,
        layer: impl io::Read,
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<LayerStats, ApplyError> {
        // Set first: what a panic in the reader or the callback leaves is no image either.
        let failed_before = std::mem::replace(&mut self.failed, true);
        if failed_before {
            return Err(ApplyError::Incomplete);
        }
        let stats = self.apply(layer, &mut progress)?;
        self.failed = false;
        Ok(stats)
    }

    /// Writes metadata and superblock and makes the file `fixed_len` bytes long (sparse).
    ///
    /// # Errors
    /// When a layer had failed, the image is longer than `fixed_len` or the limits allow, or the
    /// output can't be written.
    pub fn finish(self, fixed_len: u64) -> Result<Summary, FinishError> {
        if self.failed {
            return Err(FinishError::Incomplete);
        }
        // Block addresses have 32 bits.
        let max = fixed_len.min(self.limits.max_image_bytes).min(u64::from(u32::MAX) * BLOCK);
        let (file, data_end) = self.data.finish().map_err(FinishError::Write)?;
        let first_block = data_end.div_ceil(BLOCK);
        let writer = Writer::plan(&self.tree, first_block);
        let needed = writer.end();
        if needed > max {
            return Err(FinishError::TooLong { needed, max });
        }
        let inodes = writer.inodes();
        writer.write(&file, self.uuid).map_err(FinishError::Write)?;
        file.set_len(fixed_len).map_err(FinishError::Write)?;
        Ok(Summary { file, bytes: needed, inodes })
    }
}
