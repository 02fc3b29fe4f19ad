//! Taking nodes away: replacement, whiteouts, opaque directories.

use super::{Content, Directory, Extent, Kind, NodeId, Tree};

impl Tree {
    /// Applies a whiteout of `name` in `dir`: what lower layers put there goes, what the current
    /// layer put there stays.
    pub(crate) fn white_out(&mut self, dir: NodeId, name: &[u8]) {
        let Some(slot) = self.directory(dir).and_then(|dir| dir.entries.get(name)).copied() else {
            return;
        };
        if self.directory(slot.node).is_some() {
            self.make_opaque(slot.node);
            let emptied = self.directory(slot.node).is_some_and(|dir| dir.entries.is_empty());
            if slot.layer == self.layer || !emptied {
                return;
            }
        } else if slot.layer == self.layer {
            return;
        }
        self.unlink(dir, name);
    }

    /// Removes what lower layers put into `dir` and below it. Directories of lower layers stay
    /// when the current layer put something into them.
    pub(crate) fn make_opaque(&mut self, dir: NodeId) {
        // First all directories, parents before children; then emptying them, children first.
        let mut order = Vec::new();
        order.extend(self.needs_search(dir).then_some(dir));
        let mut next = 0;
        while let Some(&id) = order.get(next) {
            next += 1;
            if let Some(directory) = self.directory(id) {
                let children = directory.entries.values().map(|slot| slot.node);
                order.extend(children.filter(|child| self.needs_search(*child)));
            }
        }
        for id in order.into_iter().rev() {
            self.remove_lower_entries(id);
        }
    }

    fn needs_search(&self, id: NodeId) -> bool {
        self.directory(id).is_some_and(|directory| directory.clean_since < self.layer)
    }

    /// Removes entries of lower layers, but for directories that aren't empty.
    fn remove_lower_entries(&mut self, dir: NodeId) {
        let layer = self.layer;
        let Some(directory) = self.directory_mut(dir) else { return };
        let mut entries = std::mem::take(&mut directory.entries);
        entries.retain(|_, slot| {
            let keep = slot.layer == layer
                || self.directory(slot.node).is_some_and(|child| !child.entries.is_empty());
            if !keep {
                self.release(slot.node);
            }
            keep
        });
        if let Some(directory) = self.directory_mut(dir) {
            directory.entries = entries;
            directory.clean_since = layer;
        }
    }

    fn unlink(&mut self, dir: NodeId, name: &[u8]) {
        let slot = self.directory_mut(dir).and_then(|dir| dir.entries.remove(name));
        if let Some(slot) = slot {
            self.release(slot.node);
        }
    }

    /// Takes one name away from `id`, and from everything below it when it is a directory. Nodes
    /// without a name become free.
    pub(super) fn release(&mut self, id: NodeId) {
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            let node = &mut self.nodes[id as usize];
            node.links = node.links.saturating_sub(1);
            if node.links > 0 {
                continue;
            }
            node.meta.xattrs = None;
            match std::mem::replace(&mut node.kind, Kind::Free) {
                Kind::Directory(directory) => {
                    let Directory { entries, .. } = *directory;
                    pending.extend(entries.into_values().map(|slot| slot.node));
                }
                Kind::File(content) => content.extents(&mut self.freed),
                _ => {}
            }
        }
    }
}

impl Content {
    /// Apparent size in bytes.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Flat { size, .. } | Self::Chunked { size, .. } => *size,
        }
    }

    /// Appends the extents that hold the contents.
    fn extents(&self, out: &mut Vec<Extent>) {
        match self {
            Self::Flat { extent, .. } if extent.blocks == 0 => {}
            Self::Flat { extent, .. } => out.push(*extent),
            Self::Chunked { size, chunk_bits, chunks } => {
                let mut left = *size;
                for chunk in chunks {
                    let bytes = left.min(1 << chunk_bits);
                    left -= bytes;
                    if let Some(start) = *chunk {
                        let blocks = crate::erofs::format::blocks(bytes) as u32;
                        out.push(Extent { start, blocks });
                    }
                }
            }
        }
    }
}
