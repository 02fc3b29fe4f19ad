//! One layer onto the tree.

use std::io::{self, Read};
use std::ops::ControlFlow;

use super::ImageBuilder;
use crate::erofs::format::{self, BLOCK};
use crate::erofs::xattr;
use crate::limits::Limits;
use crate::tar::{Entry, EntryKind, Fault, Segment, TarError, TarReader, shown};
use crate::tree::{Content, Extent, Kind, Meta, NodeId, resolve};

const WHITEOUT: &[u8] = b".wh.";
/// Makes its directory opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Bookkeeping of AUFS that old layers carry: not part of the image.
const AUFS_META: &[u8] = b".wh..wh.";
/// Entries between two calls of the progress callback.
const ENTRIES_PER_CALL: u64 = 256;
/// Bytes read at a time behind an archive's end.
const DRAIN_BUFFER: usize = 256 << 10;
/// The longest file tail that is kept beside its inode. A longer one would share its block with
/// next to nothing.
const TAIL_MAX: u64 = BLOCK / 2;
/// Bytes of holes from which on a sparse file is stored in chunks, which cost no space where the
/// file has none. Smaller holes just stay unwritten.
const CHUNKED_HOLES: u64 = 1 << 20;
/// Chunks that a file is divided into at most; 64 KiB of block addresses.
const CHUNKS_MAX: u64 = 16 << 10;

/// How far a layer has been applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of the decompressed stream read so far.
    pub layer_bytes: u64,
    /// Entries applied so far.
    pub entries: u64,
}

/// What a layer held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerStats {
    /// Bytes of the decompressed stream.
    pub layer_bytes: u64,
    /// Entries, whiteouts included.
    pub entries: u64,
    /// Bytes of file contents.
    pub data_bytes: u64,
}

/// A layer that can't be applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The layer is malformed or refused, or its stream fails.
    #[error(transparent)]
    Layer(#[from] TarError),
    /// The output can't be written.
    #[error("write the image's data")]
    Write(#[source] io::Error),
    /// The callback said so.
    #[error("cancelled")]
    Cancelled,
    /// An earlier layer failed.
    #[error("an earlier layer of the image was not applied completely")]
    Incomplete,
}

impl ApplyError {
    /// What is wrong with the layer, when it is the layer that is at fault.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Layer(TarError::Header { source, .. } | TarError::Entry { source, .. }) => {
                Some(source)
            }
            _ => None,
        }
    }
}

/// First blocks of a file's chunks; `None` is a hole.
type Chunks = Box<[Option<u32>]>;

/// Failures below the level that knows the entry's name.
enum Failure {
    Fault(Fault),
    Apply(ApplyError),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<TarError> for Failure {
    fn from(error: TarError) -> Self {
        Self::Apply(error.into())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Apply(ApplyError::Write(error))
    }
}

/// The state of one layer's application.
struct Applying<'a, R> {
    builder: &'a mut ImageBuilder,
    tar: TarReader<R>,
    stats: LayerStats,
    progress: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
}

impl ImageBuilder {
    pub(super) fn apply(
        &mut self,
        layer: impl Read,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<LayerStats, ApplyError> {
        self.tree.begin_layer();
        let tar = TarReader::new(layer, self.limits);
        let mut applying = Applying { builder: self, tar, stats: LayerStats::default(), progress };
        while let Some(entry) = applying.tar.next_entry()? {
            applying.entry(entry)?;
        }
        applying.drain()?;
        applying.stats.layer_bytes = applying.tar.offset();
        Ok(applying.stats)
    }
}

impl<R: Read> Applying<'_, R> {
    fn drain(&mut self) -> Result<(), ApplyError> {
        let mut buf = vec![0; DRAIN_BUFFER];
        while self.tar.read_rest(&mut buf)? > 0 {
            self.report()?;
        }
        Ok(())
    }

    fn entry(&mut self, mut entry: Entry) -> Result<(), ApplyError> {
        let path = std::mem::take(&mut entry.path);
        let offset = entry.offset;
        if self.stats.entries.is_multiple_of(ENTRIES_PER_CALL) {
            self.report()?;
        }
        self.stats.entries += 1;
        self.place(&path, entry).map_err(|failure| match failure {
            Failure::Apply(error) => error,
            Failure::Fault(source) => {
                TarError::Entry { entry: shown(&path), offset, source }.into()
            }
        })?;
        for extent in self.builder.tree.take_freed() {
            self.builder.data.release(extent);
        }
        Ok(())
    }

    fn place(&mut self, path: &[u8], entry: Entry) -> Result<(), Failure> {
        let limits = self.builder.limits;
        let tree = &mut self.builder.tree;
        tree.charge_entry()?;
        let components = resolve::components(path, &limits)?;
        let Some((&name, parents)) = components.split_last() else {
            if entry.kind != EntryKind::Directory {
                return Err(Fault::RootReplaced.into());
            }
            let meta = self.meta(&entry)?;
            self.builder.tree.set_root_meta(meta);
            return Ok(());
        };
        if name == OPAQUE {
            if let Some(dir) = tree.find_directory(parents)? {
                tree.make_opaque(dir);
            }
            return Ok(());
        }
        if name.starts_with(AUFS_META) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(Fault::Whiteout.into());
            }
            if let Some(dir) = tree.find_directory(parents)? {
                tree.white_out(dir, hidden);
            }
            return Ok(());
        }
        let dir = tree.make_directories(parents)?;
        self.put(dir, name, entry)
    }

    fn put(&mut self, dir: NodeId, name: &[u8], mut entry: Entry) -> Result<(), Failure> {
        let meta = self.meta(&entry)?;
        let kind = match std::mem::replace(&mut entry.kind, EntryKind::Fifo) {
            EntryKind::Directory => return Ok(self.builder.tree.put_directory(dir, name, meta)?),
            EntryKind::HardLink(target) => return self.hard_link(dir, name, &target),
            EntryKind::Symlink(target) => {
                let max = self.builder.limits.max_path_bytes;
                if target.len() > max {
                    return Err(Fault::limit("bytes in a link's target", max as u64).into());
                }
                self.builder.tree.charge_metadata(target.len())?;
                Kind::Symlink(target.into())
            }
            EntryKind::CharDevice(major, minor) => Kind::CharDevice(device(major, minor)?),
            EntryKind::BlockDevice(major, minor) => Kind::BlockDevice(device(major, minor)?),
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::File { size, segments: None } => {
                Kind::File(Box::new(self.plain_file(size, &meta)?))
            }
            EntryKind::File { size, segments: Some(segments) } => {
                Kind::File(Box::new(self.sparse_file(size, &segments)?))
            }
        };
        self.builder.tree.put_new(dir, name, meta, kind)?;
        Ok(())
    }

    fn hard_link(&mut self, dir: NodeId, name: &[u8], target: &[u8]) -> Result<(), Failure> {
        let tree = &mut self.builder.tree;
        let components = resolve::components(target, &self.builder.limits)?;
        let Some(id) = tree.find(&components)? else {
            return Err(Fault::LinkTarget(shown(target)).into());
        };
        if tree.directory(id).is_some() {
            return Err(Fault::LinkToDirectory(shown(target)).into());
        }
        Ok(tree.put_link(dir, name, id)?)
    }

    fn meta(&mut self, entry: &Entry) -> Result<Meta, Fault> {
        let xattrs = xattr::storable(&entry.xattrs, &self.builder.limits)?;
        if let Some(xattrs) = &xattrs {
            let bytes = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
            self.builder.tree.charge_metadata(bytes)?;
        }
        let Entry { mode, uid, gid, mtime, .. } = *entry;
        Ok(Meta { mode, uid, gid, mtime, xattrs })
    }

    fn plain_file(&mut self, size: u64, meta: &Meta) -> Result<Content, Failure> {
        self.charge_data(size)?;
        let tail_len = size % BLOCK;
        let beside = format::INODE_MAX + xattr::stored_size(meta.xattrs.as_ref()) + tail_len;
        let inline = tail_len > 0
            && tail_len <= TAIL_MAX
            && beside <= BLOCK
            && tail_len <= self.builder.inline_left;
        let body = if inline { size - tail_len } else { size };
        let blocks = block_count(body, &self.builder.limits)?;
        let start = self.builder.data.allocate(blocks);
        let extent =
            Extent { start: start.ok_or_else(|| too_large(&self.builder.limits))?, blocks };
        self.check_image_size()?;
        if blocks > 0 {
            self.copy(u64::from(extent.start) * BLOCK, body)?;
            self.builder.data.pad_block()?;
        }
        let mut tail = None;
        if inline {
            let mut bytes = vec![0; tail_len as usize];
            self.tar.read_data_exact(&mut bytes)?;
            self.builder.inline_left -= tail_len;
            tail = Some(bytes.into());
        }
        Ok(Content::Flat { size, extent, tail })
    }

    fn sparse_file(&mut self, size: u64, segments: &[Segment]) -> Result<Content, Failure> {
        let data = segments.iter().map(|segment| segment.len).sum::<u64>();
        self.charge_data(data)?;
        if size - data < CHUNKED_HOLES {
            let blocks = block_count(size, &self.builder.limits)?;
            let start = self.builder.data.allocate_zeroed(blocks);
            let start = start.ok_or_else(|| too_large(&self.builder.limits))?;
            self.check_image_size()?;
            for segment in segments {
                self.copy(u64::from(start) * BLOCK + segment.offset, segment.len)?;
            }
            return Ok(Content::Flat { size, extent: Extent { start, blocks }, tail: None });
        }
        let (chunk_bits, chunks) = self.allocate_chunks(size, segments)?;
        let chunk_bytes = 1u64 << chunk_bits;
        for segment in segments {
            let (mut offset, mut left) = (segment.offset, segment.len);
            while left > 0 {
                let within = offset % chunk_bytes;
                let len = left.min(chunk_bytes - within);
                let start = chunks[(offset / chunk_bytes) as usize].unwrap_or_default();
                self.copy(u64::from(start) * BLOCK + within, len)?;
                offset += len;
                left -= len;
            }
        }
        Ok(Content::Chunked { size, chunk_bits, chunks })
    }

    /// Space for every chunk that a segment touches.
    fn allocate_chunks(
        &mut self,
        size: u64,
        segments: &[Segment],
    ) -> Result<(u32, Chunks), Failure> {
        let mut chunk_bits = format::BLOCK_BITS;
        while size.div_ceil(1 << chunk_bits) > CHUNKS_MAX {
            chunk_bits += 1;
        }
        let count = size.div_ceil(1 << chunk_bits) as usize;
        self.builder.tree.charge_metadata(count * size_of::<Option<u32>>())?;
        let mut chunks = vec![None; count];
        for segment in segments {
            let last = (segment.offset + segment.len - 1) >> chunk_bits;
            for index in segment.offset >> chunk_bits..=last {
                let chunk = &mut chunks[index as usize];
                if chunk.is_none() {
                    let bytes = (size - (index << chunk_bits)).min(1 << chunk_bits);
                    let blocks = block_count(bytes, &self.builder.limits)?;
                    *chunk = self.builder.data.allocate_zeroed(blocks);
                    if chunk.is_none() || self.builder.data.end_bytes() > self.max_image() {
                        return Err(too_large(&self.builder.limits).into());
                    }
                }
            }
        }
        Ok((chunk_bits, chunks.into()))
    }

    /// Moves `len` bytes of the entry's data to byte `position` of the image.
    fn copy(&mut self, position: u64, mut len: u64) -> Result<(), Failure> {
        self.builder.data.seek(position)?;
        while len > 0 {
            let room = self.builder.data.room()?;
            let part = usize::try_from(len).unwrap_or(usize::MAX).min(room.len());
            let read = self.tar.read_data(&mut room[..part])?;
            if read == 0 {
                return Err(TarError::Truncated { offset: self.tar.offset() }.into());
            }
            // Room is left until the buffer's MiB is full: the callback's turn.
            let full = read == room.len();
            self.builder.data.filled(read);
            len -= read as u64;
            if full {
                self.report().map_err(Failure::Apply)?;
            }
        }
        Ok(())
    }

    fn report(&mut self) -> Result<(), ApplyError> {
        let progress = Progress { layer_bytes: self.tar.offset(), entries: self.stats.entries };
        match (self.progress)(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(ApplyError::Cancelled),
        }
    }

    fn charge_data(&mut self, bytes: u64) -> Result<(), Fault> {
        self.stats.data_bytes = self.stats.data_bytes.saturating_add(bytes);
        let max = self.builder.limits.max_data_bytes;
        let total = self.builder.data_bytes.saturating_add(bytes);
        if total > max {
            return Err(Fault::limit("bytes of file contents", max));
        }
        self.builder.data_bytes = total;
        Ok(())
    }

    fn check_image_size(&self) -> Result<(), Fault> {
        if self.builder.data.end_bytes() > self.max_image() {
            return Err(too_large(&self.builder.limits));
        }
        Ok(())
    }

    fn max_image(&self) -> u64 {
        self.builder.limits.max_image_bytes
    }
}

fn too_large(limits: &Limits) -> Fault {
    Fault::limit("bytes in the image", limits.max_image_bytes)
}

/// Blocks for `bytes`, when an image can have so many.
fn block_count(bytes: u64, limits: &Limits) -> Result<u32, Fault> {
    if bytes > limits.max_image_bytes {
        return Err(too_large(limits));
    }
    u32::try_from(format::blocks(bytes)).map_err(|_| too_large(limits))
}

/// Linux's 32-bit encoding of a device number.
fn device(major: u64, minor: u64) -> Result<u32, Fault> {
    if major >= 1 << 12 || minor >= 1 << 20 {
        return Err(Fault::Device(major, minor));
    }
    Ok((minor as u32 & 0xff) | (major as u32) << 8 | (minor as u32 & !0xff) << 12)
}
