//! The EROFS reader: lookups, other writers' images, damaged images.

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::process::Command;

use container_rootfs::{ErofsReader, FileKind, ImageBuilder, Inode, Limits, ReadAt, ReadError};
use proptest::prelude::*;

/// A small image with a bit of everything.
fn image() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, link: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o755);
        header.set_mtime(data.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        tar.append_data(&mut header, path, data).unwrap();
    };
    add("etc", tar::EntryType::Directory, "", b"");
    add("etc/passwd", tar::EntryType::Regular, "", b"root:x:0:0::/:/bin/sh\n");
    add("etc/block", tar::EntryType::Regular, "", &[b'b'; 4096 + 17]);
    add("etc/long", tar::EntryType::Regular, "", &[b'l'; 3000]);
    add("up", tar::EntryType::Symlink, "../../etc", b"");
    add("abs", tar::EntryType::Symlink, "/up/passwd", b"");
    add("loop", tar::EntryType::Symlink, "loop", b"");
    add("dangling", tar::EntryType::Symlink, "nowhere", b"");
    for n in 0..200 {
        add(&format!("many/entry-{n}-with-a-long-name"), tar::EntryType::Regular, "", b"");
    }
    let layer = tar.into_inner().unwrap();
    let mut builder = ImageBuilder::new(tempfile::tempfile().unwrap(), Limits::default()).unwrap();
    builder.set_uuid(*b"an image's uuid.");
    builder.apply_layer(&layer[..], |_| ControlFlow::Continue(())).unwrap();
    let summary = builder.finish(1 << 20).unwrap();
    let mut bytes = vec![0; summary.bytes.next_multiple_of(4096) as usize];
    summary.file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn lookups() {
    let image = image();
    let reader = ErofsReader::open(&image[..]).unwrap();
    assert_eq!(reader.uuid(), *b"an image's uuid.");
    for path in ["etc/passwd", "/etc//./passwd", "../etc/passwd", "abs", "up/passwd", "many/../abs"]
    {
        let text = reader.read_file(path.as_bytes(), 100).unwrap();
        assert_eq!(text, b"root:x:0:0::/:/bin/sh\n", "{path}");
    }
    assert_eq!(reader.lookup(b"").unwrap(), reader.root().unwrap());
    assert_eq!(reader.lookup(b"/up/").unwrap().kind, FileKind::Directory);
    let link = reader.lookup_no_follow(b"abs").unwrap();
    assert_eq!(reader.read_link(&link).unwrap(), b"/up/passwd");
    assert!(matches!(reader.lookup(b"none"), Err(ReadError::NotFound)));
    assert!(matches!(reader.lookup(b"dangling"), Err(ReadError::NotFound)));
    assert!(matches!(reader.lookup(b"loop"), Err(ReadError::SymlinkLoop)));
    assert!(matches!(reader.lookup(b"abs/x"), Err(ReadError::NotADirectory)));
    assert!(matches!(reader.lookup(b"etc/passwd/x"), Err(ReadError::NotADirectory)));
    assert!(matches!(reader.read_file(b"etc", 100), Err(ReadError::NotAFile)));
    let large = reader.read_file(b"etc/passwd", 21);
    assert!(matches!(large, Err(ReadError::TooLarge { size: 22, max: 21 })));
    assert_eq!(reader.read_file(b"etc/block", 1 << 20).unwrap(), [b'b'; 4096 + 17]);
}

#[test]
fn images_of_the_reference_writer() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for n in 0..500 {
        fs::write(tree.join(format!("{n}")), vec![n as u8; n * 20]).unwrap();
    }
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    sparse.write_all_at(b"data", 1 << 20).unwrap();
    sparse.set_len(2 << 20).unwrap();
    let image = dir.path().join("image");
    for options in
        [&[][..], &["--chunksize=4096"], &["-Eforce-inode-compact"], &["-Enoinline_data"]]
    {
        let made = Command::new("mkfs.erofs").args(options).arg(&image).arg(&tree).output();
        let made = made.expect("mkfs.erofs (package erofs-utils) runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let reader = ErofsReader::open(fs::File::open(&image).unwrap()).unwrap();
        assert_eq!(reader.read_dir(&reader.root().unwrap(), 1000).unwrap().len(), 501);
        for entry in fs::read_dir(&tree).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            let read = reader.read_file(name.as_encoded_bytes(), 1 << 22).unwrap();
            assert!(read == fs::read(entry.path()).unwrap(), "{name:?} {options:?}");
        }
    }
}

#[test]
fn what_is_no_image_is_refused() {
    let image = image();
    let open = |bytes: &[u8]| ErofsReader::open(bytes).map(drop).unwrap_err();
    assert!(matches!(open(b""), ReadError::Superblock(_)));
    assert!(matches!(open(&[0; 4096]), ReadError::Superblock(_)));
    assert!(matches!(open(&image[..4000]), ReadError::Superblock(_)));
    let changed = |offset: usize, byte: u8, checked: bool| {
        let mut image = image.clone();
        image[1024 + offset] = byte;
        if !checked {
            image[1024 + 8] &= !1;
        }
        open(&image)
    };
    assert!(matches!(changed(100, 1, true), ReadError::Superblock("wrong checksum")));
    assert!(matches!(changed(12, 9, false), ReadError::Unsupported("block size")));
    assert!(matches!(changed(80, 1, false), ReadError::Unsupported("incompatible features")));
}

/// Reads everything that is within reach of `dir`, a bounded number of inodes.
fn read_all<S: ReadAt>(reader: &ErofsReader<S>, dir: Inode) -> Result<(), ReadError> {
    let mut pending = vec![dir];
    for _ in 0..500 {
        let Some(inode) = pending.pop() else { break };
        let _ = reader.xattrs(&inode);
        let _ = reader.read_inode(&inode, 1 << 16);
        let _ = reader.read_link(&inode);
        for entry in reader.read_dir(&inode, 1000).unwrap_or_default() {
            assert!(!entry.name.is_empty() && !entry.name.contains(&b'/'));
            pending.extend(reader.inode(entry.nid));
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn damage_is_survived(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        len in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut image = image();
        for (index, byte) in damage {
            // Contents don't matter, metadata does: it is at the end.
            let offset = 1024 + index.index(image.len() - 1024);
            image[offset] = byte;
        }
        image[1024..1028].copy_from_slice(&0xE0F5_E1E2u32.to_le_bytes());
        image[1024 + 8] &= !1;
        if cut {
            image.truncate(1024 + len.index(image.len() - 1024));
        }
        if let Ok(reader) = ErofsReader::open(&image[..]) {
            let _ = reader.read_file(b"/up/passwd", 1 << 16);
            if let Ok(root) = reader.root() {
                read_all(&reader, root).unwrap();
            }
        }
    }
}
