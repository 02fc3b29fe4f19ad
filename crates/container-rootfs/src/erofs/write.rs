//! Writing the metadata of an image behind its data.
//!
//! In two steps: [`Writer::plan`] gives every inode its place, from sizes alone; [`Writer::write`]
//! then encodes in the order of the file, with one pass and one buffer.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::dirent::{self, NewEntry, Packer};
use super::format::*;
use super::xattr;
use crate::tar::Timestamp;
use crate::tree::{Content, Kind, Node, NodeId, ROOT, Tree};

/// Where metadata begins in its area: not at 0, because inode number 0 means "none" to programs.
const FIRST_INODE: u64 = 2 * SLOT;
/// Blocks whose rest is remembered to be filled with small inodes.
const OPEN_BLOCKS: usize = 8;
const WRITE_BUFFER: usize = 1 << 20;

/// Where a node goes.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    /// Byte in the metadata area; 0 for a node that isn't in the image.
    offset: u64,
    /// First block of contents that the planner has placed: directories and long links.
    block: u32,
    /// Size in bytes of a directory's contents.
    dir_size: u64,
    subdirs: u32,
    inline: bool,
    compact: bool,
}

/// The plan of an image's metadata.
pub(crate) struct Writer<'a> {
    tree: &'a Tree,
    places: Vec<Place>,
    /// Nodes in the order of directories, for inode numbers and contents.
    order: Vec<NodeId>,
    build_time: Timestamp,
    contents_start: u64,
    meta_start: u64,
    meta_len: u64,
    chunked: bool,
}

impl<'a> Writer<'a> {
    /// Places everything from block `first_block` on.
    pub(crate) fn plan(tree: &'a Tree, first_block: u64) -> Self {
        let mut writer = Self {
            tree,
            places: vec![Place::default(); tree.node_count()],
            order: Vec::new(),
            build_time: Timestamp::default(),
            contents_start: first_block,
            meta_start: first_block,
            meta_len: 0,
            chunked: false,
        };
        writer.collect();
        writer.build_time = writer.commonest_time();
        writer.place();
        writer
    }

    /// Bytes up to the image's end.
    pub(crate) fn end(&self) -> u64 {
        self.meta_start.saturating_mul(BLOCK).saturating_add(self.meta_len)
    }

    pub(crate) fn inodes(&self) -> u64 {
        self.order.len() as u64
    }

    /// Puts nodes in order: the entries of a directory together, then those of its directories.
    fn collect(&mut self) {
        let mut seen = vec![false; self.tree.node_count()];
        seen[ROOT as usize] = true;
        self.order.push(ROOT);
        let mut pending = vec![ROOT];
        while let Some(dir) = pending.pop() {
            let Some(directory) = self.tree.directory(dir) else { continue };
            let first = pending.len();
            for slot in directory.entries.values() {
                if std::mem::replace(&mut seen[slot.node as usize], true) {
                    continue;
                }
                self.order.push(slot.node);
                if self.tree.directory(slot.node).is_some() {
                    self.places[dir as usize].subdirs += 1;
                    pending.push(slot.node);
                }
            }
            // The first directory is to be walked first.
            pending[first..].reverse();
        }
    }

    /// The time that most inodes have, which those inodes then needn't store.
    fn commonest_time(&self) -> Timestamp {
        let mut counts: HashMap<Timestamp, usize> = HashMap::new();
        for id in &self.order {
            *counts.entry(self.tree.node(*id).meta.mtime).or_default() += 1;
        }
        let best = counts.into_iter().max_by_key(|(time, count)| (*count, *time));
        best.map(|(time, _)| time).unwrap_or_default()
    }

    fn place(&mut self) {
        let mut slots = SlotAllocator { end: FIRST_INODE, open: Vec::new() };
        let mut next_block = self.contents_start;
        for id in self.order.clone() {
            let node = self.tree.node(id);
            let mut place = self.places[id as usize];
            if let Kind::Directory(directory) = &node.kind {
                let mut packer = Packer::default();
                for name in names_with_dots(directory.entries.keys().map(|name| &**name)) {
                    packer.add(name.len());
                }
                place.dir_size = packer.size();
            }
            let size = size_of_node(node, &place);
            let owner = (node.meta.uid, node.meta.gid);
            let links = links(node, &place);
            place.compact = fits_compact(size, links, owner, node.meta.mtime, self.build_time);
            let head = inode_len(place.compact) + xattr::stored_size(node.meta.xattrs.as_ref());
            let mut beside = 0;
            match &node.kind {
                Kind::Directory(_) | Kind::Symlink(_) => {
                    let tail = size % BLOCK;
                    place.inline = tail > 0 && head + tail <= BLOCK;
                    beside = if place.inline { tail } else { 0 };
                    let blocks = if place.inline { size / BLOCK } else { size.div_ceil(BLOCK) };
                    // Beyond the last block the image is refused for its length.
                    place.block = u32::try_from(next_block).unwrap_or(u32::MAX);
                    next_block += blocks;
                }
                Kind::File(content) => match &**content {
                    Content::Flat { tail, .. } => {
                        place.inline = tail.is_some();
                        beside = tail.as_ref().map_or(0, |tail| tail.len() as u64);
                    }
                    Content::Chunked { chunks, .. } => {
                        self.chunked = true;
                        beside = 4 * chunks.len() as u64;
                    }
                },
                _ => {}
            }
            place.offset = slots.allocate(head + beside, inode_len(place.compact));
            self.places[id as usize] = place;
        }
        self.meta_start = next_block;
        self.meta_len = slots.end;
    }

    /// Writes all blocks but those of file contents.
    pub(crate) fn write(self, file: &File, uuid: [u8; 16]) -> io::Result<()> {
        let mut out = Output::new(file, self.contents_start * BLOCK);
        for id in &self.order {
            self.write_contents(*id, &mut out)?;
        }
        let meta_start = self.meta_start * BLOCK;
        let mut order: Vec<(u64, u32, NodeId)> = (1u32..)
            .zip(&self.order)
            .map(|(number, id)| (self.places[*id as usize].offset, number, *id))
            .collect();
        order.sort_unstable();
        for (offset, number, id) in order {
            out.zeros_to(meta_start + offset)?;
            self.encode_inode(id, number, &mut out.buffer);
            out.flush_when_full()?;
        }
        let blocks = self.end().div_ceil(BLOCK);
        out.zeros_to(blocks * BLOCK)?;
        out.flush()?;
        let superblock = Super {
            root_nid: (self.places[ROOT as usize].offset / SLOT) as u16,
            inodes: self.inodes(),
            build_time: self.build_time,
            blocks: blocks as u32,
            meta_block: self.meta_start as u32,
            uuid,
            chunked: self.chunked,
        };
        file.write_all_at(&superblock.encode(), 0)
    }

    /// Writes the part of a directory or link that isn't beside its inode.
    fn write_contents(&self, id: NodeId, out: &mut Output<'_>) -> io::Result<()> {
        let place = &self.places[id as usize];
        let node = self.tree.node(id);
        let size = size_of_node(node, place);
        if !matches!(node.kind, Kind::Directory(_) | Kind::Symlink(_))
            || (place.inline && size < BLOCK)
        {
            return Ok(());
        }
        out.zeros_to(u64::from(place.block) * BLOCK)?;
        let whole = if place.inline { size / BLOCK * BLOCK } else { size };
        match &node.kind {
            Kind::Symlink(target) => out.buffer.extend(&target[..whole as usize]),
            _ => out.buffer.extend(&self.directory_contents(id)[..whole as usize]),
        }
        out.flush_when_full()
    }

    fn directory_contents(&self, id: NodeId) -> Vec<u8> {
        let Some(directory) = self.tree.directory(id) else { return Vec::new() };
        let parent = self.new_entry(b"..", directory.parent);
        let mut entries = vec![self.new_entry(b".", id), parent];
        let named = directory.entries.iter().map(|(name, slot)| self.new_entry(name, slot.node));
        entries.extend(named);
        entries.sort_by_key(|entry| entry.name);
        dirent::encode(&entries)
    }

    fn new_entry<'n>(&self, name: &'n [u8], id: NodeId) -> NewEntry<'n> {
        let nid = self.places[id as usize].offset / SLOT;
        NewEntry { name, nid, file_type: file_type(type_bits(&self.tree.node(id).kind)) }
    }

    fn encode_inode(&self, id: NodeId, number: u32, out: &mut Vec<u8>) {
        let node = self.tree.node(id);
        let place = &self.places[id as usize];
        let (layout, address) = layout_and_address(node, place);
        let fields = InodeFields {
            layout,
            xattr_count: xattr::inode_count(xattr::stored_size(node.meta.xattrs.as_ref())),
            mode: type_bits(&node.kind) | node.meta.mode,
            links: links(node, place),
            size: size_of_node(node, place),
            address,
            number,
            uid: node.meta.uid,
            gid: node.meta.gid,
            mtime: node.meta.mtime,
        };
        fields.encode(place.compact, out);
        if let Some(xattrs) = &node.meta.xattrs {
            xattr::encode(xattrs, out);
        }
        let tail = |bytes: &[u8]| bytes.len() / BLOCK as usize * BLOCK as usize;
        match &node.kind {
            Kind::Directory(_) if place.inline => {
                let contents = self.directory_contents(id);
                out.extend(&contents[tail(&contents)..]);
            }
            Kind::Symlink(target) if place.inline => out.extend(&target[tail(target)..]),
            Kind::File(content) => match &**content {
                Content::Flat { tail, .. } => out.extend(tail.iter().flat_map(|tail| tail.iter())),
                Content::Chunked { chunks, .. } => out.extend(
                    chunks.iter().flat_map(|chunk| chunk.unwrap_or(NULL_ADDRESS).to_le_bytes()),
                ),
            },
            _ => {}
        }
    }
}

fn layout_and_address(node: &Node, place: &Place) -> (u16, u32) {
    let flat = if place.inline { LAYOUT_FLAT_INLINE } else { LAYOUT_FLAT_PLAIN };
    match &node.kind {
        Kind::Directory(_) | Kind::Symlink(_) => (flat, place.block),
        Kind::File(content) => match &**content {
            Content::Flat { extent, .. } => (flat, extent.start),
            Content::Chunked { chunk_bits, .. } => (LAYOUT_CHUNK_BASED, chunk_bits - BLOCK_BITS),
        },
        Kind::CharDevice(device) | Kind::BlockDevice(device) => (LAYOUT_FLAT_PLAIN, *device),
        Kind::Fifo | Kind::Free => (LAYOUT_FLAT_PLAIN, 0),
    }
}

fn type_bits(kind: &Kind) -> u16 {
    match kind {
        Kind::Directory(_) => S_IFDIR,
        Kind::File(_) => S_IFREG,
        Kind::Symlink(_) => S_IFLNK,
        Kind::CharDevice(_) => S_IFCHR,
        Kind::BlockDevice(_) => S_IFBLK,
        Kind::Fifo | Kind::Free => S_IFIFO,
    }
}

fn size_of_node(node: &Node, place: &Place) -> u64 {
    match &node.kind {
        Kind::Directory(_) => place.dir_size,
        Kind::File(content) => content.size(),
        Kind::Symlink(target) => target.len() as u64,
        _ => 0,
    }
}

fn links(node: &Node, place: &Place) -> u32 {
    match node.kind {
        Kind::Directory(_) => 2 + place.subdirs,
        _ => node.links,
    }
}

fn inode_len(compact: bool) -> u64 {
    if compact { INODE_COMPACT } else { INODE_MAX }
}

/// `.`, `..` and sorted `names`, sorted.
fn names_with_dots<'n>(names: impl Iterator<Item = &'n [u8]>) -> Vec<&'n [u8]> {
    let mut all: Vec<&[u8]> = vec![b".", b".."];
    all.extend(names);
    all.sort();
    all
}

/// Gives out space in the metadata area.
struct SlotAllocator {
    end: u64,
    /// Begin and end of gaps at the ends of blocks.
    open: Vec<(u64, u64)>,
}

impl SlotAllocator {
    /// Space for `len` bytes: inside one block when they fit into one, so that what is inline
    /// never crosses a block; else anywhere, but with the inode itself in one block.
    fn allocate(&mut self, len: u64, inode: u64) -> u64 {
        if let Some(index) = self.open.iter().position(|(start, end)| start + len <= *end) {
            let start = self.open[index].0;
            self.open[index].0 = (start + len).next_multiple_of(SLOT);
            if self.open[index].0 >= self.open[index].1 {
                self.open.swap_remove(index);
            }
            return start;
        }
        let mut start = self.end.next_multiple_of(SLOT);
        let left = start.next_multiple_of(BLOCK) - start;
        let together = if len <= BLOCK { len } else { inode };
        if left < together {
            if left >= INODE_COMPACT {
                if self.open.len() == OPEN_BLOCKS {
                    self.open.remove(0);
                }
                self.open.push((start, start + left));
            }
            start += left;
        }
        self.end = start + len;
        start
    }
}

/// Bytes in ascending order of their place, written in large pieces.
struct Output<'a> {
    file: &'a File,
    position: u64,
    buffer: Vec<u8>,
}

impl<'a> Output<'a> {
    fn new(file: &'a File, position: u64) -> Self {
        Self { file, position, buffer: Vec::with_capacity(2 * WRITE_BUFFER) }
    }

    fn zeros_to(&mut self, position: u64) -> io::Result<()> {
        let gap = position.saturating_sub(self.position + self.buffer.len() as u64);
        self.buffer.resize(self.buffer.len() + gap as usize, 0);
        self.flush_when_full()
    }

    fn flush_when_full(&mut self) -> io::Result<()> {
        if self.buffer.len() >= WRITE_BUFFER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.position)?;
        self.position += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}
