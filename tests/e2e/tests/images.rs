//! Images from archives: loaded, shown, saved, named, deleted; and what is in them.

use e2e::registry::skopeo;
use e2e::{Cmd, Compression, Image, Installation, Layer, busybox, layout};
use serde_json::json;

fn names(it: &Installation) -> Vec<String> {
    let mut names: Vec<String> =
        it.run(["image", "list", "--quiet"]).ok().text().lines().map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn archives_load_in_every_form() {
    let it = Installation::new();
    let archive = it.scratch().join("image.tar");
    let mut digests = Vec::new();
    for (number, compression) in
        [Compression::None, Compression::Gzip, Compression::Zstd].into_iter().enumerate()
    {
        let mut image = busybox::image().unwrap();
        image.reference = format!("docker.io/library/form:{number}");
        image.compression = compression;
        image.write_archive(&archive).unwrap();
        it.container(["image", "load", "-i"]).arg(&archive).run().ok();
        let shown = it.run(["image", "inspect", &format!("form:{number}")]).ok().json();
        digests.push(shown.to_string());
    }
    busybox::image().unwrap().write_docker_archive(&archive).unwrap();
    it.container(["image", "load", "-i"]).arg(&archive).run().ok();

    // The archive itself may be compressed, and come through a pipe.
    let mut image = busybox::image().unwrap();
    image.reference = "docker.io/library/piped:1".to_owned();
    image.write_archive(&archive).unwrap();
    Cmd::new("gzip").arg("--force").arg(&archive).run().ok();
    let piped = std::fs::read(it.scratch().join("image.tar.gz")).unwrap();
    it.container(["image", "load"]).stdin(piped).run().ok();

    assert_eq!(names(&it), ["busybox:latest", "form:0", "form:1", "form:2", "piped:1"]);
    let table = it.run(["image", "list"]).ok().text();
    for column in ["NAME", "TAG", "DIGEST"] {
        assert!(table.lines().next().unwrap().contains(column), "{table}");
    }
    it.run(["image", "ls", "--verbose"]).ok().has("linux");
    let list = it.run(["image", "list", "--format", "json"]).ok().json();
    assert_eq!(list.as_array().map(Vec::len), Some(5));
}

#[test]
fn what_other_tools_wrote_loads_and_what_is_saved_they_read() {
    let it = Installation::new();
    let source = it.scratch().join("source.tar");
    busybox::image().unwrap().write_archive(&source).unwrap();
    let source = format!("oci-archive:{}", source.display());

    // skopeo, in both of its formats.
    for (kind, name) in [("oci-archive", "by-skopeo:oci"), ("docker-archive", "by-skopeo:docker")] {
        let target = it.scratch().join(format!("{kind}.tar"));
        skopeo(["copy", &source, &format!("{kind}:{}:{name}", target.display())]).run().ok();
        it.load_archive(&target);
        it.run(["image", "inspect", name]).ok();
    }
    // umoci, with a layer of its own making.
    let layout = it.scratch().join("layout");
    skopeo(["copy", &source, &format!("oci:{}:changed", layout.display())]).run().ok();
    let umoci = |args: &[&str]| Cmd::new("umoci").args(args).current_dir(it.scratch()).run().ok();
    umoci(&["unpack", "--rootless", "--image", "layout:changed", "bundle"]);
    std::fs::write(it.scratch().join("bundle/rootfs/added"), "by umoci\n").unwrap();
    std::fs::remove_file(it.scratch().join("bundle/rootfs/etc/broken")).unwrap();
    umoci(&["repack", "--image", "layout:changed", "bundle"]);
    umoci(&["config", "--image", "layout:changed", "--config.env", "BY=umoci"]);
    Cmd::new("tar").args(["cf", "umoci.tar", "-C", "layout", "."]).current_dir(it.scratch()).run();
    it.container(["image", "load", "-i"]).arg(it.scratch().join("umoci.tar")).run().ok();
    let name = names(&it).into_iter().find(|name| name.contains("changed")).expect("umoci's image");
    it.run(["run", "--rm", &name, "sh", "-c", "cat /added; echo $BY; test ! -e /etc/broken"])
        .ok()
        .prints("by umoci\numoci");

    // Saved, then read back by skopeo and by another installation of ours.
    let saved = it.scratch().join("saved.tar");
    it.container(["image", "save", "--output"]).arg(&saved).args([&name]).run().ok();
    let config =
        skopeo(["inspect", "--config", &format!("oci-archive:{}", saved.display())]).run().ok();
    assert!(config.text().contains("BY=umoci"));
    let other = Installation::new();
    other.load_archive(&saved);
    assert_eq!(
        other.run(["image", "inspect", &name]).ok().json()[0]["index"]["digest"],
        it.run(["image", "inspect", &name]).ok().json()[0]["index"]["digest"]
    );
}

#[test]
fn an_image_of_many_platforms_runs_on_this_one() {
    let it = Installation::new();
    let mut other = Image::new("x", vec![Layer::build(|e| _ = e.dir("etc"))], json!({}));
    other.architecture = "s390x".to_owned();
    let archive = it.scratch().join("many.tar");
    let images = [other, busybox::image().unwrap()];
    layout::write_multi_platform(&archive, "docker.io/library/many:1", &images).unwrap();
    it.load_archive(&archive);
    it.run(["run", "--rm", "many:1", "true"]).ok();
    let host = format!("linux/{}", layout::host_architecture());
    it.run(["create", "--name", "named", "--platform", &host, "many:1", "true"]).ok();
    it.run(["create", "--platform", "linux/riscv64", "many:1", "true"]).fails(125, "riscv64");
    it.run(["create", "--platform", "linux/s390x", "many:1", "true"]).fails(125, "s390x");
    it.run(["create", "--arch", "no/such/arch/x", "many:1", "true"]).code(125);
    let one = it.scratch().join("one.tar");
    it.container(["image", "save", "--platform", &host, "-o"]).arg(&one).arg("many:1").run().ok();
    skopeo(["inspect", &format!("oci-archive:{}", one.display())]).run().ok();
}

#[test]
fn names_come_and_go() {
    let it = Installation::with_busybox();
    it.run(["image", "tag", "busybox", "mine/box:2"]).ok();
    it.run(["image", "tag", "busybox:latest", "other.example:5000/box"]).ok();
    assert_eq!(names(&it).len(), 3);
    it.run(["image", "inspect", "mine/box:2", "busybox"]).ok();
    it.run(["image", "delete", "busybox"]).ok();
    it.run(["image", "inspect", "busybox"]).fails(125, "busybox");
    // The blobs stay as long as a name needs them.
    it.run(["create", "--name", "user", "mine/box:2", "true"]).ok();
    it.run(["delete", "user"]).ok();
    it.run(["image", "delete", "no-such-image"]).fails(125, "no-such-image");
    it.run(["image", "tag", "no-such-image", "x"]).fails(125, "no-such-image");
    it.run(["image", "tag", "mine/box:2", "UPPER case"]).code(125);
    it.run(["image", "delete", "--all"]).ok();
    assert!(names(&it).is_empty());
    it.run(["image", "prune", "--all"]).ok();
    let blobs = it.app_root().join("images/content/blobs/sha256");
    let left = std::fs::read_dir(blobs).map_or(0, Iterator::count);
    assert_eq!(left, 0, "blobs that nothing names are gone");
}

/// Layers with everything that a layer may hold, checked from inside.
#[test]
fn layers_become_the_tree_that_they_describe() {
    let it = Installation::new();
    it.load(&rich_image());
    let script = r#"
        set -e
        cd /t
        echo "gone: $(ls -d gone 2>/dev/null) $(ls opaque)"
        echo "links: $(stat -c %h a) $(readlink s) $(cat b)"
        echo "ids: $(stat -c %u:%g:%a owned)"
        echo "time: $(stat -c %Y owned)"
        echo "dev: $(stat -c '%F %t:%T' dev)"
        echo "fifo: $(stat -c %F fifo)"
        echo "replaced: $(stat -c %F replaced) $(cat replaced)"
        echo "many: $(ls many | wc -l)"
        echo "long: $(cat $(printf 'd%.0s/' $(seq 60))deep)"
        echo "setuid: $(stat -c %a setuid)"
        echo "odd: $(for f in odd/*; do printf %s "$f"; done | od -An -c | tr -d ' ')"
    "#;
    let output = it.run(["run", "--rm", "rich", "sh", "-c", script]).ok();
    assert_eq!(
        output.text().lines().collect::<Vec<_>>(),
        [
            "gone:  new",
            "links: 2 target/of/link same",
            "ids: 1234:5678:640",
            "time: 1700000000",
            "dev: character special file 1:3",
            "fifo: fifo",
            "replaced: regular file now a file",
            "many: 3000",
            "long: deep",
            "setuid: 4755",
            r"odd: odd/n\nl",
        ]
    );
}

fn rich_image() -> Image {
    let deep = format!("t/{}deep", "d/".repeat(60));
    let lower = Layer::build(|e| {
        e.dir("t").file("t/gone", 0o644, b"x").dir("t/opaque").file("t/opaque/old", 0o644, b"");
        e.file("t/a", 0o644, b"same").hardlink("t/b", "t/a").symlink("t/s", "target/of/link");
        e.owned_file("t/owned", 0o640, (1234, 5678), b"x");
        e.device("t/dev", tar::EntryType::Char, 1, 3);
        e.special("t/fifo", tar::EntryType::Fifo, 0o600, "");
        e.dir("t/replaced").file("t/replaced/inner", 0o644, b"x");
        e.dir("t/many");
        for number in 0..3000 {
            e.file(&format!("t/many/file-{number}"), 0o644, b"");
        }
        e.file(&deep, 0o644, b"deep");
        e.file("t/setuid", 0o4755, b"");
        e.dir("t/odd").file("t/odd/n\nl", 0o644, b"");
    });
    let upper = Layer::build(|e| {
        e.whiteout("t/gone").opaque("t/opaque").file("t/opaque/new", 0o644, b"");
        e.file("t/replaced", 0o644, b"now a file");
    });
    let layers = vec![busybox::layer().expect("busybox"), lower, upper];
    Image::new("docker.io/library/rich:latest", layers, json!({"Env": ["PATH=/bin"]}))
}

#[test]
fn extended_attributes_and_file_capabilities_survive() {
    let it = Installation::new();
    let capable = Layer::build(|e| {
        // cap_net_raw=ep, version 2, as the kernel stores it.
        let caps = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let busybox = std::fs::read(busybox::PROGRAM).expect("busybox");
        e.dir("caps").file_with_xattrs(
            "caps/busybox",
            0o755,
            &[("security.capability", &caps)],
            &busybox,
        );
    });
    let layers = vec![busybox::layer().unwrap(), capable];
    it.load(&Image::new("docker.io/library/caps:1", layers, json!({"Env": ["PATH=/bin"]})));
    // The program has the capability that its file gives, unless no-new-privileges holds
    // it back, which images with such files can't be run under.
    let output = it
        .run(["run", "--rm", "-u", "app", "caps:1", "/caps/busybox", "cat", "/proc/self/status"])
        .ok();
    let text = output.text();
    let bounded = text.lines().any(|line| line == "CapEff:\t0000000000002000");
    let held_back = text.lines().any(|line| line == "NoNewPrivs:\t1");
    assert!(bounded || held_back, "{text}");
}
