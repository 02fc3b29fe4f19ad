//! Hostile EROFS images.

#![no_main]

use container_rootfs::{ErofsReader, Inode};
use libfuzzer_sys::fuzz_target;

const FEATURES: usize = 1024 + 8;
/// Inodes to look at: an image may link its directories in circles.
const INODES: usize = 100;

fuzz_target!(|data: &[u8]| {
    let mut data = data.to_vec();
    if let Some(features) = data.get_mut(FEATURES) {
        *features &= !1; // no checksum of the superblock
    }
    let Ok(reader) = ErofsReader::open(&data[..]) else { return };
    let _ = reader.read_file(b"/etc/passwd", 1 << 16);
    let _ = reader.lookup(b"a/../b/./c");
    let Ok(root) = reader.root() else { return };
    let mut pending = vec![root];
    for _ in 0..INODES {
        let Some(inode) = pending.pop() else { return };
        visit(&reader, &inode, &mut pending);
    }
});

fn visit(reader: &ErofsReader<&[u8]>, inode: &Inode, pending: &mut Vec<Inode>) {
    let _ = reader.xattrs(inode);
    let _ = reader.read_link(inode);
    let _ = reader.read_inode(inode, 1 << 20);
    let mut buf = [0; 5000];
    let _ = reader.read_at(inode, inode.size.saturating_sub(100), &mut buf);
    for entry in reader.read_dir(inode, 1000).unwrap_or_default() {
        let path = [b"/", &entry.name[..]].concat();
        let _ = reader.lookup_no_follow(&path);
        pending.extend(reader.inode(entry.nid));
    }
}
