//! Formats of tar archives, as real writers make them.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;

use container_rootfs::Timestamp;

use crate::support::{ATTRS, Attrs, Layer, build, header};

#[test]
fn pax_overrides_the_header() {
    let long = "n".repeat(200);
    let layer = Layer::new()
        .pax(&[
            ("path", format!("d/{long}").as_bytes()),
            ("uid", b"3000000000"),
            ("gid", b"70000"),
            ("mtime", b"1700000001.123456789"),
            ("SCHILY.xattr.user.a", b"va\0lue"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ])
        .file("short", b"x")
        .pax(&[("linkpath", long.as_bytes())])
        .symlink("s", "short")
        .bytes();
    let image = build(&[layer]);
    let inode = image.inode(&format!("d/{long}"));
    assert_eq!((inode.uid, inode.gid), (3_000_000_000, 70_000));
    assert_eq!(inode.mtime, Timestamp { seconds: 1_700_000_001, nanos: 123_456_789 });
    let xattrs = image.reader.xattrs(&inode).unwrap();
    assert_eq!(xattrs.len(), 2);
    assert_eq!(xattrs[0].0, b"security.capability");
    assert_eq!(xattrs[1], (b"user.a".to_vec(), b"va\0lue".to_vec()));
    assert_eq!(image.list()["s"], format!("-> {long}"));
}

#[test]
fn pax_size_overrides_the_headers() {
    let layer = Layer::new()
        .pax(&[("size", b"3")])
        .data(&header(b'0', b"a", b"", ATTRS, 0))
        .data(b"abc")
        .file("b", b"b");
    assert_eq!(build(&[layer.bytes()]).lines(), ["a: file abc", "b: file b"]);
}

#[test]
fn gnu_long_names_and_ignored_headers() {
    let long = "x/".repeat(120) + "end";
    let terminated = [long.as_bytes(), b"\0"].concat();
    let layer = Layer::new()
        .entry(b'g', "global", "", ATTRS, b"19 comment=anything\n")
        .entry(b'V', "volume label", "", ATTRS, b"")
        .entry(b'L', "././@LongLink", "", ATTRS, &terminated)
        .file("short", b"1")
        .entry(b'K', "././@LongLink", "", ATTRS, &terminated)
        .entry(b'1', "link", "short", ATTRS, b"")
        .bytes();
    let image = build(&[layer]);
    assert_eq!(image.read(&long), b"1");
    assert_eq!(image.inode("link").links, 2);
}

#[test]
fn base256_numbers_and_large_ids() {
    let mut header = tar::Header::new_gnu();
    header.set_path("a").unwrap();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(0);
    header.set_mode(0o100644);
    header.set_uid(4_000_000_000);
    header.set_gid(3_000_000);
    header.as_old_mut().mtime = [0xff; 12];
    header.set_cksum();
    let image = build(&[Layer::new().data(header.as_bytes()).bytes()]);
    let inode = image.inode("a");
    assert_eq!((inode.uid, inode.gid, inode.mode), (4_000_000_000, 3_000_000, 0o644));
    assert_eq!(inode.mtime.seconds, -1);
}

#[test]
fn old_archives() {
    // v7 has no type for directories: the name's slash says it. Ends without its zeros too.
    let layer = Layer::new()
        .entry(0, "d/", "", Attrs { mode: 0o755, ..ATTRS }, b"")
        .entry(0, "d/f", "", ATTRS, b"x")
        .entry(b'7', "contiguous", "", ATTRS, b"y")
        .unfinished();
    let image = build(&[layer]);
    assert_eq!(image.lines(), ["contiguous: file y", "d: dir", "d/f: file x"]);
}

/// A directory with everything that `tar` can put into an archive without privileges.
fn sample(dir: &std::path::Path) {
    fs::create_dir(dir.join("d")).unwrap();
    fs::write(dir.join("d/small"), b"small").unwrap();
    for size in [0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 10_000, 3 << 20] {
        let bytes: Vec<u8> = (0..size).map(|i| (i % 253) as u8).collect();
        fs::write(dir.join(format!("size-{size}")), bytes).unwrap();
    }
    fs::hard_link(dir.join("d/small"), dir.join("linked")).unwrap();
    std::os::unix::fs::symlink("d/small", dir.join("sym")).unwrap();
    std::os::unix::fs::symlink("y".repeat(4000), dir.join("long-sym")).unwrap();
    fs::create_dir(dir.join("w".repeat(255))).unwrap();
    fs::write(dir.join("w".repeat(255)).join("v".repeat(255)), b"deep").unwrap();
    fs::write(dir.join("mode"), b"").unwrap();
    fs::set_permissions(dir.join("mode"), fs::Permissions::from_mode(0o4755)).unwrap();
    let sparse = File::create(dir.join("sparse")).unwrap();
    for (offset, byte) in [(70_000u64, b'a'), (5 << 20, b'b'), ((5 << 20) + 40_000, b'c')] {
        sparse.write_all_at(&[byte; 5000], offset).unwrap();
    }
    sparse.set_len(9_000_001).unwrap();
    let sparse = File::create(dir.join("slightly-sparse")).unwrap();
    for n in 0..100u64 {
        sparse.write_all_at(b"data", n * 12_288).unwrap();
    }
    sparse.set_len(1_300_000).unwrap();
    File::create(dir.join("hole")).unwrap().set_len(100 << 20).unwrap();
}

#[test]
fn what_gnu_tar_writes_in_all_its_formats() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let formats: [&[&str]; 6] = [
        &["--format=gnu"],
        &["--format=gnu", "--sparse"],
        &["--format=pax"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
    ];
    for format in formats {
        let mut tar = Command::new("tar");
        tar.args(format).arg("-c").arg("-C").arg(dir.path()).arg(".");
        let output = tar.output().expect("tar runs");
        assert!(output.status.success());
        let image = build(&[output.stdout]);
        let mut paths = 0;
        compare(&image, dir.path(), "", &mut paths);
        assert_eq!(image.list().len(), paths, "{format:?}");
    }
}

fn compare(image: &crate::support::Image, dir: &std::path::Path, prefix: &str, paths: &mut usize) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{prefix}/{}", entry.file_name().to_str().unwrap());
        *paths += 1;
        let meta = entry.metadata().unwrap();
        let inode = image.inode(&path);
        assert_eq!(u32::from(inode.mode), meta.mode() & 0o7777, "{path}");
        assert_eq!((inode.uid, inode.gid), (meta.uid(), meta.gid()), "{path}");
        assert_eq!(inode.mtime.seconds, meta.mtime(), "{path}");
        if meta.is_dir() {
            compare(image, &entry.path(), &path, paths);
            continue;
        }
        assert_eq!((inode.size, u64::from(inode.links)), (meta.len(), meta.nlink()), "{path}");
        if meta.is_symlink() {
            let target = fs::read_link(entry.path()).unwrap();
            let read = image.reader.read_link(&inode).unwrap();
            assert_eq!(read, target.as_os_str().as_encoded_bytes());
        } else {
            let read = image.reader.read_inode(&inode, 1 << 30).unwrap();
            assert!(read == fs::read(entry.path()).unwrap(), "{path}");
        }
    }
}
