//! From the paths of entries to places in the tree.

use super::{Kind, Meta, NodeId, ROOT, Tree};
use crate::limits::Limits;
use crate::tar::Fault;

/// Symbolic links that are followed on one path, as Linux does.
const MAX_SYMLINKS: usize = 40;
/// Mode of directories that no layer describes.
const MISSING_PARENT_MODE: u16 = 0o755;

/// The components of an entry's path below the root, without `.`, with `..` resolved against the
/// path itself. Leading slashes are dropped; a path that leads out of the root is refused.
pub(crate) fn components<'a>(path: &'a [u8], limits: &Limits) -> Result<Vec<&'a [u8]>, Fault> {
    if path.len() > limits.max_path_bytes {
        return Err(Fault::limit("bytes in a path", limits.max_path_bytes as u64));
    }
    if path.contains(&0) {
        return Err(Fault::NulInName);
    }
    let mut out = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(out.pop().ok_or(Fault::EscapesRoot)?),
            name if name.len() > limits.max_name_bytes => {
                return Err(Fault::limit("bytes in a name", limits.max_name_bytes as u64));
            }
            name => out.push(name),
        }
    }
    Ok(out)
}

/// Components still to be walked, the next one last.
struct Walk {
    pending: Vec<Box<[u8]>>,
    symlinks: usize,
}

impl Walk {
    fn new(path: &[&[u8]]) -> Self {
        Self { pending: path.iter().rev().map(|name| (*name).into()).collect(), symlinks: 0 }
    }

    /// Goes on with a link's target instead; the directory to go on from.
    fn follow(&mut self, target: &[u8], dir: NodeId) -> Result<NodeId, Fault> {
        self.symlinks += 1;
        if self.symlinks > MAX_SYMLINKS {
            return Err(Fault::SymlinkLoop);
        }
        let names = target.split(|byte| *byte == b'/').rev();
        self.pending.extend(names.filter(|name| !name.is_empty() && *name != b".").map(Box::from));
        Ok(if target.starts_with(b"/") { ROOT } else { dir })
    }
}

enum Step {
    Into(NodeId),
    Missing,
    /// Something else than a directory.
    Blocked,
}

impl Tree {
    /// The directory at `path`, following symbolic links inside the root; missing directories
    /// are made, and whatever else stands in the way becomes a directory.
    pub(crate) fn make_directories(&mut self, path: &[&[u8]]) -> Result<NodeId, Fault> {
        let mut walk = Walk::new(path);
        let mut dir = ROOT;
        while let Some(name) = walk.pending.pop() {
            dir = match self.step(dir, &name, &mut walk)? {
                Step::Into(next) => next,
                Step::Missing | Step::Blocked => {
                    // A link's target is longer in components than any name check has seen.
                    if name.len() > self.limits.max_name_bytes {
                        let max = self.limits.max_name_bytes as u64;
                        return Err(Fault::limit("bytes in a name", max));
                    }
                    self.charge_entry()?;
                    let meta = Meta { mode: MISSING_PARENT_MODE, ..Meta::default() };
                    self.make_directory(dir, &name, meta)?
                }
            };
        }
        Ok(dir)
    }

    /// The directory at `path`, following symbolic links inside the root, if there is one.
    pub(crate) fn find_directory(&self, path: &[&[u8]]) -> Result<Option<NodeId>, Fault> {
        let mut walk = Walk::new(path);
        let mut dir = ROOT;
        while let Some(name) = walk.pending.pop() {
            dir = match self.step(dir, &name, &mut walk)? {
                Step::Into(next) => next,
                Step::Missing | Step::Blocked => return Ok(None),
            };
        }
        Ok(Some(dir))
    }

    /// The node at `path`, following symbolic links but for the last component.
    pub(crate) fn find(&self, path: &[&[u8]]) -> Result<Option<NodeId>, Fault> {
        let Some((name, parents)) = path.split_last() else { return Ok(Some(ROOT)) };
        Ok(self.find_directory(parents)?.and_then(|dir| self.child(dir, name)))
    }

    fn step(&self, dir: NodeId, name: &[u8], walk: &mut Walk) -> Result<Step, Fault> {
        if name == b".." {
            let parent = self.directory(dir).map_or(ROOT, |directory| directory.parent);
            return Ok(Step::Into(parent));
        }
        let Some(id) = self.child(dir, name) else { return Ok(Step::Missing) };
        match &self.node(id).kind {
            Kind::Directory(_) => Ok(Step::Into(id)),
            Kind::Symlink(target) => walk.follow(target, dir).map(Step::Into),
            _ => Ok(Step::Blocked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree_with_link(name: &[u8], target: &[u8]) -> Tree {
        let mut tree = Tree::new(Limits::default());
        tree.put_new(ROOT, name, Meta::default(), Kind::Symlink(target.into())).unwrap();
        tree
    }

    #[test]
    fn paths_are_normalised_or_refused() {
        let limits = Limits::default();
        let ok = |path: &'static [u8]| components(path, &limits).unwrap().join(&b"/"[..]);
        assert_eq!(ok(b"/a//./b/"), b"a/b");
        assert_eq!(ok(b"a/../b"), b"b");
        assert_eq!(ok(b"./"), b"");
        assert_eq!(components(b"../a", &limits), Err(Fault::EscapesRoot));
        assert_eq!(components(b"a/../../b", &limits), Err(Fault::EscapesRoot));
        assert_eq!(components(b"a\0b", &limits), Err(Fault::NulInName));
        assert!(components(&[b'a'; 256], &limits).is_err());
        assert!(components(&[b'/'; 5000], &limits).is_err());
    }

    #[test]
    fn links_are_followed_inside_the_root() {
        for target in [&b"usr/lib"[..], b"/usr/lib", b"../../usr/./lib", b"/../usr/x/../lib/"] {
            let mut tree = tree_with_link(b"lib", target);
            let usr = tree.make_directories(&[b"usr"]).unwrap();
            tree.make_directories(&[b"usr", b"x"]).unwrap();
            let through = tree.make_directories(&[b"lib", b"a"]).unwrap();
            let lib = tree.child(usr, b"lib").unwrap();
            assert_eq!(tree.child(lib, b"a"), Some(through));
        }
    }

    #[test]
    fn loops_end() {
        let mut tree = tree_with_link(b"a", b"a");
        assert_eq!(tree.make_directories(&[b"a"]), Err(Fault::SymlinkLoop));
        let mut tree = tree_with_link(b"a", b"a/a");
        assert_eq!(tree.make_directories(&[b"a", b"b"]), Err(Fault::SymlinkLoop));
    }

    #[test]
    fn depth_is_bounded_through_links_too() {
        let limits = Limits { max_depth: 4, ..Limits::default() };
        let mut tree = Tree::new(limits);
        tree.make_directories(&[b"1", b"2", b"3"]).unwrap();
        tree.put_new(ROOT, b"l", Meta::default(), Kind::Symlink(b"1/2/3"[..].into())).unwrap();
        tree.make_directories(&[b"l", b"4"]).unwrap();
        assert!(tree.make_directories(&[b"l", b"4", b"5"]).is_err());
    }
}
