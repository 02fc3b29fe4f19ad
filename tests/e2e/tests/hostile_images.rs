//! Images that lie, climb out, or never end: refused or contained, with nothing left
//! behind.

use std::time::Duration;

use e2e::{Cmd, Image, Installation, Layer, busybox, layer::Entries};
use serde_json::json;
use tar::EntryType;

/// What a layer does, and whether a tree may come of it all the same.
type Hostile = (&'static str, fn(&mut Entries));

/// Each climbs out, or would if it were unpacked by path.
const CLIMBERS: &[Hostile] = &[
    ("absolute", |e| {
        e.special("/tmp/e2e-escaped", EntryType::Regular, 0o644, "");
    }),
    ("dots", |e| {
        e.special("../../../../../../tmp/e2e-escaped", EntryType::Regular, 0o644, "");
    }),
    ("inner-dots", |e| {
        e.dir("a").special("a/../../../tmp/e2e-escaped", EntryType::Regular, 0o644, "");
    }),
    ("symlink-parent", |e| {
        e.symlink("way", "/tmp").file("way/e2e-escaped", 0o644, b"x");
    }),
    ("relative-symlink-parent", |e| {
        e.symlink("way", "../../../../../tmp").file("way/e2e-escaped", 0o644, b"x");
    }),
    ("hardlink-out", |e| {
        e.hardlink("shadow", "/etc/shadow").hardlink("up", "../../../../etc/shadow");
    }),
    ("hardlink-through-symlink", |e| {
        e.symlink("etc2", "/etc").hardlink("shadow", "etc2/shadow");
    }),
    ("symlink-then-file", |e| {
        e.symlink("x", "/tmp/e2e-escaped").file("x", 0o644, b"replaces the link");
    }),
    ("whiteout-out", |e| {
        e.special("../../../tmp/.wh.e2e-kept", EntryType::Regular, 0o644, "");
    }),
    ("duplicates", |e| {
        e.file("same", 0o644, b"1").dir("same").file("same", 0o644, b"3").symlink("same", "/etc");
    }),
    ("dir-over-symlink", |e| {
        e.symlink("d", "/tmp").dir("d").file("d/e2e-escaped", 0o644, b"x");
    }),
];

/// Each is broken beyond use.
const BROKEN: &[Hostile] = &[
    ("lying-size", |e| {
        e.lying_size("huge", 7 << 40);
    }),
    ("truncated", |e| {
        e.lying_size("cut", 1 << 20).raw(b"only this");
    }),
    ("garbage", |e| {
        e.raw(&[0xa5; 4096]);
    }),
    ("bad-checksum", |e| {
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header.set_entry_type(EntryType::Regular);
        header.as_old_mut().name[..4].copy_from_slice(b"file");
        e.raw(header.as_bytes());
    }),
    ("link-to-nothing", |e| {
        e.hardlink("a", "does/not/exist");
    }),
];

fn image(name: &str, fill: fn(&mut Entries)) -> Image {
    let layers = vec![busybox::layer().expect("busybox"), Layer::build(fill)];
    let reference = format!("docker.io/library/{name}:latest");
    Image::new(&reference, layers, json!({"Env": ["PATH=/bin"], "Cmd": ["true"]}))
}

/// Loads and unpacks an image (by creating a container); true when both worked.
fn unpacks(it: &Installation, name: &str, fill: fn(&mut Entries)) -> bool {
    let archive = it.scratch().join("hostile.tar");
    image(name, fill).write_archive(&archive).unwrap();
    let loaded = it.container(["image", "load", "-i"]).arg(&archive).run();
    let output = match loaded.code {
        Some(0) => it.run(["create", "--name", name, name, "true"]),
        _ => loaded,
    };
    if output.code == Some(0) {
        return true;
    }
    let errors = output.errors();
    assert_eq!(output.code, Some(125), "{name}: {output:?}");
    assert_eq!(errors.trim_end().lines().count(), 1, "{name}: one line, not {errors:?}");
    assert!(!errors.contains("panicked"), "{name}: {errors}");
    false
}

#[test]
fn nothing_climbs_out_of_a_layer() {
    let it = Installation::new();
    let kept = std::path::Path::new("/tmp/e2e-kept");
    std::fs::write(kept, "kept").unwrap();
    for (name, fill) in CLIMBERS {
        let unpacked = unpacks(&it, name, *fill);
        println!("{name}: {}", if unpacked { "contained" } else { "refused" });
        assert!(!std::path::Path::new("/tmp/e2e-escaped").exists(), "{name} climbed out");
        assert!(kept.exists(), "{name} deleted a file of the host");
        if unpacked {
            it.run(["delete", name]).ok();
        }
    }
    std::fs::remove_file(kept).unwrap();
}

#[test]
fn broken_layers_are_refused_and_leave_nothing() {
    let it = Installation::with_busybox();
    for (name, fill) in BROKEN {
        assert!(!unpacks(&it, name, *fill), "{name} was taken");
        assert_eq!(it.status(name), None, "{name} left a container");
    }
    let images = it.app_root().join("images");
    let erofs = std::fs::read_dir(images.join("erofs")).map_or(0, Iterator::count);
    assert!(erofs <= 1, "{erofs} images, though at most busybox unpacked");
    let ingest = std::fs::read_dir(images.join("content/ingest")).map_or(0, Iterator::count);
    assert_eq!(ingest, 0, "unfinished blobs stay");
    // The service is as good as before.
    it.run(["create", "--name", "fine", "busybox", "true"]).ok();
}

#[test]
fn a_bomb_is_refused_before_the_disk_is_full() {
    let it = Installation::new();
    // Says that it has more than any disk of a container, and would go on to bring it.
    let large = |e: &mut Entries| {
        e.lying_size("bomb", 80 << 30).raw(&vec![0; 64 << 20]);
    };
    let start = std::time::Instant::now();
    let mut image = image("bomb", large);
    image.compression = e2e::Compression::Gzip;
    let archive = it.scratch().join("bomb.oci.tar");
    image.write_archive(&archive).unwrap();
    it.container(["image", "load", "-i"]).arg(&archive).run();
    it.run(["create", "--name", "bomb", "bomb", "true"]).code(125);
    assert!(start.elapsed() < Duration::from_secs(60));
    let used = used_bytes(&it.app_root().join("images"));
    assert!(used < 96 << 20, "{used} bytes stay of a bomb");
}

#[test]
fn what_is_sparse_in_a_layer_is_sparse_on_the_disk() {
    let it = Installation::new();
    let file = it.scratch().join("sparse");
    let sparse = std::fs::File::create(&file).unwrap();
    let length: u64 = 6 << 30;
    std::os::unix::fs::FileExt::write_at(&sparse, b"begin", 0).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"end", length - 3).unwrap();
    let mut layers = vec![busybox::layer().unwrap()];
    for format in ["gnu", "posix"] {
        let tar = it.scratch().join(format!("{format}.tar"));
        Cmd::new("tar")
            .args(["--create", "--sparse", "--owner=0", "--group=0"])
            .arg(format!("--format={format}"))
            .arg(format!("--transform=s,sparse,{format},"))
            .arg("--file")
            .arg(&tar)
            .arg("--directory")
            .arg(it.scratch())
            .arg("sparse")
            .run()
            .ok();
        layers.push(Layer::File(tar));
    }
    let config = json!({"Env": ["PATH=/bin"]});
    it.load(&Image::new("docker.io/library/sparse:latest", layers, config));
    let script = "for f in /gnu /posix; do stat -c %s $f; head -c 5 $f; tail -c 3 $f; echo; done";
    it.run(["run", "--rm", "sparse", "sh", "-c", script])
        .ok()
        .prints(&format!("{length}\nbeginend\n{length}\nbeginend"));
    let used = used_bytes(&it.app_root().join("images"));
    assert!(used < 64 << 20, "{used} bytes for two holes");
}

#[test]
fn archives_that_are_no_images_are_refused() {
    let it = Installation::new();
    let archive = it.scratch().join("archive");
    let cases: &[(&str, Vec<u8>)] = &[
        ("empty", Vec::new()),
        ("text", b"this is no archive\n".repeat(100)),
        ("zeros", vec![0; 10_240]),
        ("gzip of nothing", vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]),
    ];
    for (what, bytes) in cases {
        std::fs::write(&archive, bytes).unwrap();
        let output = it.container(["image", "load", "-i"]).arg(&archive).run();
        assert_eq!(output.code, Some(125), "{what}: {output:?}");
        assert_eq!(output.errors().trim_end().lines().count(), 1, "{what}: {output:?}");
    }
    // A blob that is not what its name says.
    let folder = it.scratch().join("layout");
    std::fs::create_dir(&folder).unwrap();
    busybox::image().unwrap().write_layout(&folder).unwrap();
    let blobs = folder.join("blobs/sha256");
    for entry in std::fs::read_dir(&blobs).unwrap().flatten() {
        if entry.metadata().unwrap().len() > 100_000 {
            let mut bytes = std::fs::read(entry.path()).unwrap();
            bytes[5000] ^= 1;
            std::fs::write(entry.path(), bytes).unwrap();
        }
    }
    let output = std::process::Command::new("tar")
        .args(["--create", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(&folder)
        .arg(".")
        .status()
        .unwrap();
    assert!(output.success());
    it.container(["image", "load", "-i"]).arg(&archive).run().fails(125, "digest");
    it.run(["image", "list", "--quiet"]).ok().prints("");
    it.run(["image", "load", "-i", "/no/such/file"]).fails(125, "/no/such/file");
}

fn used_bytes(folder: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(folder).expect("a folder").flatten();
    entries
        .map(|entry| match entry.metadata().expect("metadata") {
            found if found.is_dir() => used_bytes(&entry.path()),
            found => found.blocks() * 512,
        })
        .sum()
}
