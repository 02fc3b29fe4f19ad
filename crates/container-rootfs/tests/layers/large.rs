//! Many entries, long files, space that is used again.

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;

use container_rootfs::{ErofsReader, ImageBuilder, Limits};

use crate::support::{ATTRS, Layer, build, header, try_build};

#[test]
fn a_directory_with_100_000_entries() {
    let layer = (0..100_000).fold(Layer::new(), |layer, n| layer.file(&format!("d/{n}"), b""));
    let image = build(&[layer.bytes()]);
    let dir = image.inode("d");
    assert_eq!(image.reader.read_dir(&dir, 100_000).unwrap().len(), 100_000);
    assert!(image.reader.read_dir(&dir, 99_999).is_err());
    for name in ["d/0", "d/99999", "d/50000"] {
        image.inode(name);
    }
    assert!(image.reader.lookup(b"d/100000").is_err());
    // `.` and `..` are sorted among the others.
    let odd = ["-", "!", "+x", ".", "..a", "0"].map(|name| format!("o/{name}"));
    let layer = odd.iter().fold(Layer::new().dir("o"), |layer, name| match &**name {
        "o/." => layer,
        name => layer.file(name, b""),
    });
    assert_eq!(build(&[layer.bytes()]).list().len(), 6);
}

#[test]
fn a_long_file_of_zeros_costs_no_space() {
    const SIZE: u64 = 5 << 30;
    let start = io::Cursor::new(header(b'0', b"zeros", b"", ATTRS, SIZE - 1));
    let end = io::Cursor::new([b"end".to_vec(), vec![0; 1024 + 510]].concat());
    let stream = start.chain(io::repeat(0).take(SIZE - 4)).chain(end);
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut builder = ImageBuilder::new(file.reopen().unwrap(), Limits::default()).unwrap();
    builder.apply_layer(stream, |_| ControlFlow::Continue(())).unwrap();
    let summary = builder.finish(64 << 30).unwrap();
    assert!(summary.file.metadata().unwrap().blocks() * 512 < 16 << 20);
    let reader = ErofsReader::open(file.reopen().unwrap()).unwrap();
    let inode = reader.lookup(b"zeros").unwrap();
    let mut tail = [1; 8];
    assert_eq!(inode.size, SIZE - 1);
    assert_eq!(reader.read_at(&inode, SIZE - 6, &mut tail).unwrap(), 5);
    assert_eq!(&tail[..5], b"\0\0end");
}

#[test]
fn a_sparse_file_of_two_tebibytes() {
    let size = (2u64 << 40) + 123;
    let map = format!("1000000000000,4,{},3", size - 3);
    let layer = Layer::new()
        .pax(&[
            ("GNU.sparse.map", map.as_bytes()),
            ("GNU.sparse.size", size.to_string().as_bytes()),
        ])
        .file("lastlog", b"datend")
        .bytes();
    // The last byte is missing from the data.
    assert!(try_build(&[layer], Limits::default()).is_err());
    let layer = Layer::new()
        .pax(&[
            ("GNU.sparse.map", map.as_bytes()),
            ("GNU.sparse.size", size.to_string().as_bytes()),
        ])
        .file("lastlog", b"dataend")
        .bytes();
    let image = build(&[layer]);
    let inode = image.inode("lastlog");
    assert_eq!(inode.size, size);
    let mut buf = [0; 4];
    for (offset, expected) in [
        (0, &b"\0\0\0\0"[..]),
        (1_000_000_000_000, b"data"),
        (1_000_000_000_002, b"ta\0\0"),
        (size - 4, b"\0end"),
    ] {
        assert_eq!(image.reader.read_at(&inode, offset, &mut buf).unwrap(), 4);
        assert_eq!(buf, expected);
    }
    assert!(image.summary.file.metadata().unwrap().blocks() * 512 < 1 << 20);
}

#[test]
fn space_of_replaced_files_is_used_again_or_given_back() {
    let lower = (0..20).fold(Layer::new(), |layer, n| layer.file(&format!("f{n}"), &[n; 100_000]));
    let upper = (0..10).fold(Layer::new(), |layer, n| layer.file(&format!("f{n}"), &[!n; 90_000]));
    let upper = (10..19).fold(upper, |layer, n| layer.file(&format!(".wh.f{n}"), b""));
    let image = build(&[lower.bytes(), upper.bytes()]);
    for n in 0..10u8 {
        assert!(image.read(&format!("f{n}")) == vec![!n; 90_000]);
    }
    assert!(image.read("f19") == vec![19; 100_000]);
    let allocated = image.summary.file.metadata().unwrap().blocks() * 512;
    // 0.9 MB in ten files, 0.1 MB in one; twenty files had 2 MB.
    assert!(allocated < 1_300_000, "{allocated}");
    assert!(image.summary.bytes < 2_200_000, "{}", image.summary.bytes);
}

#[test]
fn a_file_of_a_later_layer_never_shows_what_was_deleted() {
    let lower = Layer::new().file("secret", &[b'S'; 10_000]).file("keep", &[b'k'; 5000]).bytes();
    let upper = Layer::new().file(".wh.secret", b"").file("new", &[b'n'; 4097]).bytes();
    let image = build(&[lower, upper]);
    assert!(image.read("new") == vec![b'n'; 4097]);
    let mut bytes = Vec::new();
    (&image.summary.file).take(image.summary.bytes).read_to_end(&mut bytes).unwrap();
    assert!(!bytes.windows(16).any(|window| window == [b'S'; 16]));
}
