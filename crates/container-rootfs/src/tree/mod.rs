//! The file tree of an image, in memory: everything but file contents.
//!
//! Nodes live in one vector and are named by index, so a tree of any depth is dropped and walked
//! without recursion. Directory entries remember the layer that made them, which is what makes
//! whiteouts independent of their order within a layer.

mod remove;
pub(crate) mod resolve;

use std::collections::BTreeMap;

use crate::limits::Limits;
use crate::tar::{Fault, Timestamp};

/// Index of a node.
pub(crate) type NodeId = u32;

pub(crate) const ROOT: NodeId = 0;

/// Extended attributes, as full names and values, ascending by name.
pub(crate) type Xattrs = Box<[(Box<[u8]>, Box<[u8]>)]>;

/// Owner, times and attributes of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) xattrs: Option<Xattrs>,
}

/// A run of blocks in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) start: u32,
    pub(crate) blocks: u32,
}

/// Where a file's contents are.
#[derive(Debug)]
pub(crate) enum Content {
    /// In one extent, the end maybe in `tail`.
    Flat { size: u64, extent: Extent, tail: Option<Box<[u8]>> },
    /// In chunks of `1 << chunk_bits` bytes; `None` is a hole.
    Chunked { size: u64, chunk_bits: u32, chunks: Box<[Option<u32>]> },
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) node: NodeId,
    layer: u32,
}

#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) parent: NodeId,
    depth: u32,
    /// Nothing of a layer below this one is in here or deeper, so that no directory is searched
    /// twice for the same layer's whiteouts.
    clean_since: u32,
    pub(crate) entries: BTreeMap<Box<[u8]>, Slot>,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Directory(Box<Directory>),
    File(Box<Content>),
    Symlink(Box<[u8]>),
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
    /// Its last name was removed.
    Free,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) meta: Meta,
    pub(crate) kind: Kind,
    /// Names that a node other than a directory has.
    pub(crate) links: u32,
}

#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    layer: u32,
    limits: Limits,
    entries: u64,
    metadata_bytes: u64,
    /// Extents of files that are gone, for whoever manages the space.
    freed: Vec<Extent>,
}

impl Tree {
    pub(crate) fn new(limits: Limits) -> Self {
        let root = Directory { parent: ROOT, depth: 0, clean_since: 0, entries: BTreeMap::new() };
        let meta = Meta { mode: 0o755, ..Meta::default() };
        let root = Node { meta, kind: Kind::Directory(Box::new(root)), links: 1 };
        Self {
            nodes: vec![root],
            layer: 0,
            limits,
            entries: 0,
            metadata_bytes: 0,
            freed: Vec::new(),
        }
    }

    /// What follows belongs to the next layer.
    pub(crate) fn begin_layer(&mut self) {
        self.layer += 1;
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    pub(crate) fn directory(&self, id: NodeId) -> Option<&Directory> {
        match &self.node(id).kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn directory_mut(&mut self, id: NodeId) -> Option<&mut Directory> {
        match &mut self.nodes[id as usize].kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    pub(crate) fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        self.directory(dir)?.entries.get(name).map(|slot| slot.node)
    }

    /// Number of node ids ever given; some of them may be free.
    pub(crate) fn node_count(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn take_freed(&mut self) -> Vec<Extent> {
        std::mem::take(&mut self.freed)
    }

    /// Counts an entry of a layer.
    pub(crate) fn charge_entry(&mut self) -> Result<(), Fault> {
        self.entries += 1;
        if self.entries > self.limits.max_entries {
            return Err(Fault::limit("entries", self.limits.max_entries));
        }
        Ok(())
    }

    /// Counts bytes that stay in memory.
    pub(crate) fn charge_metadata(&mut self, bytes: usize) -> Result<(), Fault> {
        self.metadata_bytes += bytes as u64;
        if self.metadata_bytes > self.limits.max_metadata_bytes {
            return Err(Fault::limit("bytes of metadata", self.limits.max_metadata_bytes));
        }
        Ok(())
    }

    /// Makes `name` in `dir` a directory: a new one, or the one there with new metadata.
    pub(crate) fn put_directory(
        &mut self,
        dir: NodeId,
        name: &[u8],
        meta: Meta,
    ) -> Result<(), Fault> {
        match self.child(dir, name) {
            Some(id) if self.directory(id).is_some() => {
                self.nodes[id as usize].meta = meta;
                self.set_slot(dir, name, id)
            }
            _ => self.make_directory(dir, name, meta).map(drop),
        }
    }

    pub(crate) fn set_root_meta(&mut self, meta: Meta) {
        self.nodes[ROOT as usize].meta = meta;
    }

    fn make_directory(&mut self, dir: NodeId, name: &[u8], meta: Meta) -> Result<NodeId, Fault> {
        let depth = self.directory(dir).map_or(0, |parent| parent.depth) + 1;
        if depth as usize > self.limits.max_depth {
            return Err(Fault::limit("directories in a path", self.limits.max_depth as u64));
        }
        let clean_since = self.layer;
        let directory = Directory { parent: dir, depth, clean_since, entries: BTreeMap::new() };
        self.put_new(dir, name, meta, Kind::Directory(Box::new(directory)))
    }

    /// Makes `name` in `dir` a new node, replacing what was there.
    pub(crate) fn put_new(
        &mut self,
        dir: NodeId,
        name: &[u8],
        meta: Meta,
        kind: Kind,
    ) -> Result<NodeId, Fault> {
        let id = NodeId::try_from(self.nodes.len())
            .map_err(|_| Fault::limit("entries", u64::from(NodeId::MAX)))?;
        self.nodes.push(Node { meta, kind, links: 1 });
        self.replace(dir, name, id)?;
        Ok(id)
    }

    /// Makes `name` in `dir` another name of `target`, which isn't a directory.
    pub(crate) fn put_link(
        &mut self,
        dir: NodeId,
        name: &[u8],
        target: NodeId,
    ) -> Result<(), Fault> {
        if self.child(dir, name) != Some(target) {
            self.nodes[target as usize].links += 1;
        }
        self.replace(dir, name, target)
    }

    /// Points `name` to `id`, after removing another node that had this name.
    fn replace(&mut self, dir: NodeId, name: &[u8], id: NodeId) -> Result<(), Fault> {
        if let Some(old) = self.child(dir, name)
            && old != id
        {
            self.release(old);
        }
        self.set_slot(dir, name, id)
    }

    fn set_slot(&mut self, dir: NodeId, name: &[u8], node: NodeId) -> Result<(), Fault> {
        let slot = Slot { node, layer: self.layer };
        let Some(directory) = self.directory_mut(dir) else { return Ok(()) };
        if let Some(known) = directory.entries.get_mut(name) {
            *known = slot;
            return Ok(());
        }
        directory.entries.insert(name.into(), slot);
        self.charge_metadata(name.len())
    }
}
