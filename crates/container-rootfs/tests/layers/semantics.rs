//! What the OCI image specification says about layers.

use container_rootfs::FileKind;

use crate::support::{ATTRS, Attrs, Layer, build};

#[test]
fn later_layers_replace_files_and_merge_directories() {
    let lower = Layer::new().dir("d/").file("d/a", b"1").file("d/b", b"1").bytes();
    let attrs = Attrs { mode: 0o700, uid: 5, ..ATTRS };
    let upper = Layer::new().entry(b'5', "d", "", attrs, b"").file("d/b", b"2").bytes();
    let image = build(&[lower, upper]);
    assert_eq!(image.lines(), ["d: dir", "d/a: file 1", "d/b: file 2"]);
    let dir = image.inode("d");
    assert_eq!((dir.mode, dir.uid, dir.links), (0o700, 5, 2));
}

#[test]
fn files_directories_and_links_replace_one_another() {
    let lower = Layer::new()
        .file("a", b"file")
        .dir("b")
        .file("b/x", b"x")
        .symlink("c", "b")
        .dir("d")
        .file("d/y", b"y")
        .bytes();
    let upper = Layer::new()
        .dir("a/")
        .file("a/in", b"in")
        .file("b", b"now a file")
        .dir("c/")
        .symlink("d", "a")
        .bytes();
    let image = build(&[lower, upper]);
    let expected = ["a: dir", "a/in: file in", "b: file now a file", "c: dir", "d: -> a"];
    assert_eq!(image.lines(), expected);
}

#[test]
fn whiteouts_hide_lower_layers_only_whatever_their_order() {
    let lower = || {
        Layer::new()
            .dir("d/")
            .file("d/old", b"1")
            .dir("d/sub/")
            .file("d/sub/old", b"1")
            .file("f", b"1")
    };
    let whiteouts = |layer: Layer| layer.file(".wh.d", b"").file(".wh.f", b"");
    let additions = |layer: Layer| layer.dir("d/").file("d/new", b"2").file("f", b"2");
    let expected = ["d: dir", "d/new: file 2", "f: file 2"];
    let before = additions(whiteouts(Layer::new())).bytes();
    let after = whiteouts(additions(Layer::new())).bytes();
    assert_eq!(build(&[lower().bytes(), before]).lines(), expected);
    assert_eq!(build(&[lower().bytes(), after]).lines(), expected);
    let only = whiteouts(Layer::new()).bytes();
    assert!(build(&[lower().bytes(), only]).lines().is_empty());
}

#[test]
fn a_whiteout_keeps_what_the_layer_put_deep_below() {
    let lower = Layer::new().dir("d/").dir("d/e/").file("d/e/old", b"1").file("d/old", b"1");
    let upper = Layer::new().file("d/e/new", b"2").file(".wh.d", b"");
    let image = build(&[lower.bytes(), upper.bytes()]);
    assert_eq!(image.lines(), ["d: dir", "d/e: dir", "d/e/new: file 2"]);
}

#[test]
fn opaque_directories_hide_lower_layers_only_whatever_their_order() {
    let lower = || Layer::new().dir("d/").file("d/old", b"1").dir("d/sub/").file("d/sub/old", b"1");
    let expected = ["d: dir", "d/new: file 2", "d/sub: dir", "d/sub/new: file 2"];
    let first =
        Layer::new().file("d/.wh..wh..opq", b"").file("d/new", b"2").file("d/sub/new", b"2");
    let last = Layer::new().file("d/new", b"2").file("d/sub/new", b"2").file("d/.wh..wh..opq", b"");
    for upper in [first, last] {
        assert_eq!(build(&[lower().bytes(), upper.bytes()]).lines(), expected);
    }
    let all = Layer::new().file(".wh..wh..opq", b"").bytes();
    assert!(build(&[lower().bytes(), all]).lines().is_empty());
}

#[test]
fn whiteouts_of_a_layer_do_not_reach_into_the_next() {
    let one = Layer::new().file("a", b"1").bytes();
    let two = Layer::new().file(".wh.a", b"").file(".wh.never-there", b"").bytes();
    let three = Layer::new().file("a", b"3").bytes();
    assert_eq!(build(&[one, two, three]).lines(), ["a: file 3"]);
}

#[test]
fn hard_links_reach_into_lower_layers_and_outlive_names() {
    let lower = Layer::new().file("a", b"shared").hard_link("b", "a").hard_link("/c", "./b");
    let upper = Layer::new().hard_link("d", "a").file(".wh.a", b"").file("b", b"own").bytes();
    let image = build(&[lower.bytes(), upper]);
    assert_eq!(image.lines(), ["b: file own", "c: file shared", "d: file shared"]);
    assert_eq!(image.inode("c"), image.inode("d"));
    assert_eq!((image.inode("c").links, image.inode("b").links), (2, 1));
}

#[test]
fn links_to_links_and_to_themselves() {
    let layer = Layer::new()
        .symlink("s", "nowhere")
        .hard_link("t", "s")
        .file("f", b"f")
        .hard_link("f", "f")
        .dir("d/")
        .file("d/x", b"x")
        .hard_link("d", "d/x")
        .bytes();
    let image = build(&[layer]);
    assert_eq!(image.lines(), ["d: file x", "f: file f", "s: -> nowhere", "t: -> nowhere"]);
    assert_eq!(image.inode("t").links, 2);
    assert_eq!((image.inode("f").links, image.inode("d").links), (1, 1));
}

#[test]
fn parents_that_are_missing_are_made() {
    let image = build(&[Layer::new().file("a/b/c", b"x").bytes()]);
    assert_eq!(image.lines(), ["a: dir", "a/b: dir", "a/b/c: file x"]);
    let made = image.inode("a/b");
    assert_eq!((made.mode, made.uid, made.gid), (0o755, 0, 0));
}

#[test]
fn entries_below_a_link_go_where_it_leads_inside_the_root() {
    let lower =
        Layer::new().dir("usr/").dir("usr/lib/").symlink("lib", "usr/lib").symlink("up", "../..");
    let upper = Layer::new()
        .file("lib/x", b"1")
        .file("up/etc", b"2")
        .symlink("dangling", "/made/of")
        .file("dangling/late", b"3");
    let image = build(&[lower.bytes(), upper.bytes()]);
    let expected = [
        "dangling: -> /made/of",
        "etc: file 2",
        "lib: -> usr/lib",
        "made: dir",
        "made/of: dir",
        "made/of/late: file 3",
        "up: -> ../..",
        "usr: dir",
        "usr/lib: dir",
        "usr/lib/x: file 1",
    ];
    assert_eq!(image.lines(), expected);
    assert_eq!(image.read("/lib/x"), b"1");
    assert_eq!(image.read("/lib/../../up/usr/../lib/x"), b"1");
}

#[test]
fn duplicates_the_last_wins() {
    let layer = Layer::new().file("a", b"1").file("a", b"22").dir("a/").file("a", b"333").bytes();
    assert_eq!(build(&[layer]).lines(), ["a: file 333"]);
}

#[test]
fn devices_pipes_and_the_root() {
    let mut device = tar::Header::new_ustar();
    device.set_path("null").unwrap();
    device.set_entry_type(tar::EntryType::Char);
    device.set_mode(0o666);
    device.set_size(0);
    device.set_device_major(0x123).unwrap();
    device.set_device_minor(0x4567).unwrap();
    device.set_cksum();
    let root = Attrs { mode: 0o1777, uid: 7, gid: 8, mtime: 9 };
    let layer = Layer::new()
        .entry(b'5', "./", "", root, b"")
        .entry(b'6', "pipe", "", ATTRS, b"")
        .data(device.as_bytes());
    let image = build(&[layer.bytes()]);
    // Linux's encoding: the minor number's upper bits are above the major number.
    assert_eq!(image.inode("null").kind, FileKind::CharDevice(0x0451_2367));
    assert_eq!(image.inode("pipe").kind, FileKind::Fifo);
    let inode = image.inode("/");
    assert_eq!((inode.mode, inode.uid, inode.gid, inode.mtime.seconds), (0o1777, 7, 8, 9));
}

#[test]
fn an_image_without_layers_is_an_empty_root() {
    let image = build(&[]);
    assert!(image.lines().is_empty());
    assert_eq!((image.summary.inodes, image.inode("").mode), (1, 0o755));
}

#[test]
fn the_same_layers_give_the_same_bytes() {
    let layers = || [Layer::new().file("a", &[1; 5000]).dir("d").symlink("d/s", "x").bytes()];
    let bytes = |image: crate::support::Image| {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; image.summary.bytes as usize];
        image.summary.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert!(bytes(build(&layers())) == bytes(build(&layers())));
}
