//! Layers that mean harm or are broken: refused with a typed error, or contained.

use std::ops::ControlFlow;

use container_rootfs::{ApplyError, Fault, FinishError, ImageBuilder, Limits, TarError};

use crate::support::{ATTRS, Attrs, Layer, build, header, try_build};

fn fault(layer: Layer) -> Fault {
    fault_with(&[layer.bytes()], Limits::default())
}

fn fault_with(layers: &[Vec<u8>], limits: Limits) -> Fault {
    let error = try_build(layers, limits).err().expect("the layer is refused");
    error.fault().unwrap_or_else(|| panic!("{error:?}")).clone()
}

#[test]
fn paths_stay_in_the_root() {
    assert_eq!(fault(Layer::new().file("../a", b"")), Fault::EscapesRoot);
    assert_eq!(fault(Layer::new().file("/a/../../b", b"")), Fault::EscapesRoot);
    assert_eq!(fault(Layer::new().hard_link("a", "../../etc/passwd")), Fault::EscapesRoot);
    assert_eq!(fault(Layer::new().file("/", b"x")), Fault::RootReplaced);
    assert_eq!(fault(Layer::new().file("a/..", b"x")), Fault::RootReplaced);
    let contained = Layer::new()
        .file("//abs", b"1")
        .symlink("out", "../../../../../etc")
        .file("out/passwd", b"2")
        .symlink("abs-out", "/tmp")
        .file("abs-out/x", b"3");
    let image = build(&[contained.bytes()]);
    let list = image.list();
    assert_eq!(
        (&*list["abs"], &*list["etc/passwd"], &*list["tmp/x"]),
        ("file 1", "file 2", "file 3")
    );
}

#[test]
fn names() {
    assert_eq!(fault(Layer::new().file("", b"")), Fault::EmptyName);
    assert_eq!(fault(Layer::new().symlink("a", "")), Fault::EmptyName);
    let nul: &[(&str, &[u8])] = &[("path", b"a\0b")];
    assert_eq!(fault(Layer::new().pax(nul).file("a", b"")), Fault::NulInName);
    let long = "n".repeat(256);
    let pax = Layer::new().pax(&[("path", long.as_bytes())]).file("a", b"");
    assert!(matches!(fault(pax), Fault::Limit { what: "bytes in a name", max: 255 }));
    let long = "n/".repeat(2100);
    let pax = Layer::new().pax(&[("path", long.as_bytes())]).file("a", b"");
    assert!(matches!(fault(pax), Fault::Limit { what: "bytes in a path", .. }));
    let long_link = Layer::new().entry(b'L', "", "", ATTRS, &vec![b'n'; 5000]).file("a", b"");
    assert!(matches!(fault(long_link), Fault::Limit { .. }));
    // A link's target with a component that could be no name: nothing is made there.
    let target = format!("/{}", "t".repeat(300));
    let pax = Layer::new().pax(&[("linkpath", target.as_bytes())]).symlink("l", "x");
    assert!(matches!(fault(pax.file("l/f", b"")), Fault::Limit { what: "bytes in a name", .. }));
}

#[test]
fn whiteouts_of_nothing() {
    for name in [".wh.", ".wh..", "d/.wh..."] {
        assert_eq!(fault(Layer::new().dir("d").file(name, b"")), Fault::Whiteout, "{name}");
    }
}

#[test]
fn links() {
    assert_eq!(fault(Layer::new().hard_link("a", "b")), Fault::LinkTarget("b".into()));
    assert_eq!(
        fault(Layer::new().dir("d").hard_link("a", "d")),
        Fault::LinkToDirectory("d".into())
    );
    assert_eq!(fault(Layer::new().hard_link("a", "/")), Fault::LinkToDirectory("/".into()));
    let cycle = Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", b"");
    assert_eq!(fault(cycle), Fault::SymlinkLoop);
    // The target disappears while its new name's parents are made.
    let gone = Layer::new().file("f", b"x").hard_link("f/g", "f");
    assert_eq!(fault(gone), Fault::LinkToDirectory("f".into()));
}

#[test]
fn headers() {
    let mut damaged = header(b'0', b"a", b"", ATTRS, 0);
    damaged[0] = b'b';
    assert_eq!(fault(Layer::new().data(&damaged)), Fault::Checksum);
    assert_eq!(fault(Layer::new().data(&[b'x'; 512])), Fault::Checksum);
    assert_eq!(fault(Layer::new().entry(b'M', "a", "", ATTRS, b"")), Fault::Type(b'M'));
    assert_eq!(fault(Layer::new().pax(&[("path", b"x")])), Fault::DanglingExtension);
    let records: &[u8] = b"30 path=x\n";
    assert_eq!(fault(Layer::new().entry(b'x', "", "", ATTRS, records)), Fault::PaxRecord);
    let mut number = tar::Header::new_ustar();
    number.set_path("a").unwrap();
    number.set_size(0);
    number.as_old_mut().uid = *b"zzzzzzz\0";
    number.set_cksum();
    assert_eq!(fault(Layer::new().data(number.as_bytes())), Fault::Number("uid"));
    let mut device = tar::Header::new_ustar();
    device.set_path("a").unwrap();
    device.set_size(0);
    device.set_entry_type(tar::EntryType::Block);
    device.set_device_major(4096).unwrap();
    device.set_device_minor(0).unwrap();
    device.set_cksum();
    let all_zero = Layer::new().data(device.as_bytes());
    assert!(matches!(fault(all_zero), Fault::Number("mode") | Fault::Device(4096, 0)));
}

#[test]
fn absurd_sizes_allocate_nothing() {
    let huge = |flag, size| Layer::new().data(&header(flag, b"a", b"", ATTRS, size));
    for size in [1 << 40, u64::MAX >> 1] {
        for flag in [b'0', b'x', b'L', b'K', b'g', b'S'] {
            assert!(matches!(fault(huge(flag, size)), Fault::Limit { .. }), "{flag} {size}");
        }
    }
    for value in [&b"18446744073709551615"[..], b"9223372036854775807"] {
        let layer = Layer::new().pax(&[("size", value)]).file("a", b"");
        assert!(matches!(fault(layer), Fault::Limit { .. }));
    }
    let negative = Layer::new().pax(&[("size", b"-1")]).file("a", b"");
    assert_eq!(fault(negative), Fault::PaxValue("size"));
    // Plausible, but not there.
    let layer = huge(b'0', 1 << 30).unfinished();
    let error = try_build(&[layer], Limits::default()).err().unwrap();
    assert!(matches!(error, ApplyError::Layer(TarError::Truncated { offset: 512 })), "{error:?}");
}

#[test]
fn streams_that_end_early() {
    let whole =
        Layer::new().file("a", &[1; 3000]).pax(&[("uid", b"1")]).file("b", b"x").unfinished();
    // A cut within the padding of an entry loses nothing: some writers end there.
    let is_harmless =
        |len: usize| (512 + 3000..=512 + 3072).contains(&len) || len > whole.len() - 512;
    for len in (1..whole.len()).filter(|len| !is_harmless(*len)) {
        let error = try_build(&[whole[..len].to_vec()], Limits::default()).err();
        let error = error.unwrap_or_else(|| panic!("cut at {len}"));
        let dangling = error.fault() == Some(&Fault::DanglingExtension);
        let truncated = matches!(error, ApplyError::Layer(TarError::Truncated { .. }));
        assert!(truncated || dangling, "cut at {len}: {error:?}");
    }
}

#[test]
fn sparse_maps() {
    let sparse = |map: &str, size: &str, data: &[u8]| {
        let records: [(&str, &[u8]); 3] = [
            ("GNU.sparse.map", map.as_bytes()),
            ("GNU.sparse.size", size.as_bytes()),
            ("GNU.sparse.numblocks", b"1"),
        ];
        Layer::new().pax(&records).file("a", data)
    };
    let good = build(&[sparse("2,1,5,2", "9", b"abc").bytes()]);
    assert_eq!(good.read("a"), b"\0\0a\0\0bc\0\0");
    for (map, size) in
        [("2,1,2,2", "9"), ("2,1", "9"), ("2,1,5", "9"), ("2,1,5,2", "6"), ("x", "9")]
    {
        assert_eq!(fault(sparse(map, size, b"abc")), Fault::SparseMap, "{map} {size}");
    }
    let overflow = sparse("18446744073709551615,3", "9", b"abc");
    assert_eq!(fault(overflow), Fault::SparseMap);
    let huge = sparse("0,3", "18446744073709551615", b"abc");
    assert!(matches!(fault(huge), Fault::Limit { what: "bytes in a file", .. }));
    let map_1_0 = |map: &[u8]| {
        let records: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"real"),
            ("GNU.sparse.realsize", b"8"),
        ];
        Layer::new().pax(&records).file("a", map)
    };
    let padded = |map: &[u8], data: &[u8]| [map, &vec![0; 512 - map.len()], data].concat();
    let good = build(&[map_1_0(&padded(b"1\n4\n2\n", b"xy")).bytes()]);
    assert_eq!(good.lines(), ["real: file \\x00\\x00\\x00\\x00xy\\x00\\x00"]);
    for map in
        [&b"9999999999999\n"[..], b"1\n4\n", b"1\n4\n3\n", b"\n", b"123456789012345678901234\n"]
    {
        fault(map_1_0(&padded(map, b"xy")));
    }
}

#[test]
fn every_limit_holds() {
    let base = Limits::default();
    let many = |n: usize| {
        let files = (0..n).fold(Layer::new(), |layer, n| layer.file(&format!("file-{n}"), b"1234"));
        files.bytes()
    };
    let cases: [(&str, Limits); 6] = [
        ("entries", Limits { max_entries: 9, ..base }),
        ("bytes of file contents", Limits { max_data_bytes: 39, ..base }),
        ("bytes of metadata", Limits { max_metadata_bytes: 20, ..base }),
        ("bytes in a layer", Limits { max_layer_bytes: 5000, ..base }),
        ("bytes in the image", Limits { max_image_bytes: 8192, max_inline_bytes: 0, ..base }),
        ("bytes in a name", Limits { max_name_bytes: 5, ..base }),
    ];
    for (expected, limits) in cases {
        match fault_with(&[many(5), many(5)], limits) {
            Fault::Limit { what, .. } => assert_eq!(what, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
    let deep = Layer::new().file("1/2/3/4/f", b"").bytes();
    let limits = Limits { max_depth: 3, ..base };
    assert!(matches!(fault_with(&[deep], limits), Fault::Limit { .. }));
    let xattr = Layer::new().pax(&[("SCHILY.xattr.user.a", &[1; 100])]).file("a", b"").bytes();
    let limits = Limits { max_inode_xattr_bytes: 99, ..base };
    assert!(matches!(fault_with(&[xattr], limits), Fault::Limit { .. }));
}

#[test]
fn a_missing_parent_counts_as_an_entry() {
    let layer = (0..10).fold(Layer::new(), |layer, n| layer.file(&format!("{n}/a/b/c/d/e/f"), b""));
    let limits = Limits { max_entries: 30, ..Limits::default() };
    let fault = fault_with(&[layer.bytes()], limits);
    assert!(matches!(fault, Fault::Limit { what: "entries", max: 30 }));
}

#[test]
fn errors_name_the_entry_escaped_and_the_offset() {
    let layer = Layer::new().file("ok", b"").file("../\u{1b}[31m", b"").bytes();
    let error = try_build(&[layer], Limits::default()).err().unwrap();
    assert_eq!(error.to_string(), "layer entry ../\\x1b[31m at byte 512");
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(source.to_string(), "the path leads out of the root");
}

#[test]
fn a_failed_or_cancelled_builder_finishes_nothing() {
    let output = || tempfile::tempfile().unwrap();
    let go_on = |_| ControlFlow::Continue(());
    let mut builder = ImageBuilder::new(output(), Limits::default()).unwrap();
    builder.apply_layer(&[1; 600][..], go_on).unwrap_err();
    let again = builder.apply_layer(&Layer::new().bytes()[..], go_on).unwrap_err();
    assert!(matches!(again, ApplyError::Incomplete));
    assert!(matches!(builder.finish(1 << 30), Err(FinishError::Incomplete)));

    let layer = Layer::new().file("a", &vec![1; 5 << 20]).bytes();
    let mut builder = ImageBuilder::new(output(), Limits::default()).unwrap();
    let mut calls = 0;
    let error = builder.apply_layer(&layer[..], |progress| {
        calls += 1;
        if progress.layer_bytes > 2 << 20 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert!(matches!(error, Err(ApplyError::Cancelled)));
    assert!((2..6).contains(&calls), "{calls}");

    let mut builder = ImageBuilder::new(output(), Limits::default()).unwrap();
    builder.apply_layer(&layer[..], go_on).unwrap();
    let error = builder.finish(1 << 20).unwrap_err();
    assert!(matches!(error, FinishError::TooLong { max: 1_048_576, .. }), "{error:?}");
}

#[test]
fn the_stream_is_read_to_its_end() {
    let mut layer = Layer::new().file("a", b"x").bytes();
    layer.extend([7; 100_000]);
    let mut rest = &layer[..];
    let mut builder = ImageBuilder::new(tempfile::tempfile().unwrap(), Limits::default()).unwrap();
    let stats = builder.apply_layer(&mut rest, |_| ControlFlow::Continue(())).unwrap();
    assert!(rest.is_empty());
    assert_eq!((stats.layer_bytes, stats.entries, stats.data_bytes), (layer.len() as u64, 1, 1));
}

#[test]
fn many_names_for_one_file_and_set_id_bits() {
    let attrs = Attrs { mode: 0o6755, ..ATTRS };
    let first = Layer::new().entry(b'0', "f", "", attrs, b"x");
    let layer = (0..70_000).fold(first, |layer, n| layer.hard_link(&format!("l{n}"), "f"));
    let image = build(&[layer.bytes()]);
    let inode = image.inode("l69999");
    assert_eq!((inode.links, inode.mode, image.summary.inodes), (70_001, 0o6755, 2));
}
