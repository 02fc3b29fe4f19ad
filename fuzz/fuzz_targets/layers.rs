//! Tar layers to an image, which must then be sound.

#![no_main]

use std::fs::File;
use std::ops::ControlFlow;

use container_rootfs::{ErofsReader, FileKind, ImageBuilder, Inode, Limits};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};

const BLOCK: usize = 512;
const LEN: u64 = 64 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((split, layers)) = data.split_first() else { return };
    let mut layers = layers.to_vec();
    layers.chunks_exact_mut(BLOCK).for_each(correct_checksum);
    let at = (usize::from(*split) * BLOCK).min(layers.len());
    let (lower, upper) = layers.split_at(at);

    let limits = Limits {
        max_data_bytes: 16 << 20,
        max_image_bytes: LEN,
        max_layer_bytes: 1 << 20,
        max_entries: 500,
        max_metadata_bytes: 1 << 20,
        max_inline_bytes: 16 << 10,
        ..Limits::default()
    };
    let output = File::from(memfd_create("image", MemfdFlags::CLOEXEC).unwrap());
    let mut builder = ImageBuilder::new(output, limits).unwrap();
    for layer in [lower, upper] {
        if builder.apply_layer(layer, |_| ControlFlow::Continue(())).is_err() {
            return;
        }
    }
    let Ok(summary) = builder.finish(LEN) else { return };
    let reader = ErofsReader::open(&summary.file).expect("the superblock is sound");
    let root = reader.root().expect("the root is sound");
    walk(&reader, &root);
});

/// Makes the checksum of what looks like a header right.
fn correct_checksum(block: &mut [u8]) {
    if &block[257..262] != b"ustar" {
        return;
    }
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn walk(reader: &ErofsReader<&File>, dir: &Inode) {
    for entry in reader.read_dir(dir, usize::MAX).expect("a directory is sound") {
        let inode = reader.inode(entry.nid).expect("an inode is sound");
        reader.xattrs(&inode).expect("attributes are sound");
        match inode.kind {
            FileKind::Directory => walk(reader, &inode),
            FileKind::Symlink => drop(reader.read_link(&inode).expect("a link is sound")),
            FileKind::File => {
                let mut buf = vec![0; 64 << 10];
                for offset in [0, inode.size.saturating_sub(buf.len() as u64)] {
                    reader.read_at(&inode, offset, &mut buf).expect("contents are sound");
                }
            }
            _ => {}
        }
    }
}
