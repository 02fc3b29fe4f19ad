//! Volumes: data that outlives containers, one writer at a time, and what can go wrong with them.

use std::fs::OpenOptions;
use std::path::PathBuf;

use e2e::layer::Layer;
use e2e::layout::Image;
use e2e::{DEADLINE, Installation, Output, busybox, processes, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

fn inspect(it: &Installation, volume: &str) -> Value {
    it.run(["volume", "inspect", volume]).ok().json()[0].clone()
}

fn names(it: &Installation) -> Vec<String> {
    it.run(["volume", "list", "--quiet"]).ok().text().lines().map(String::from).collect()
}

fn sh(it: &Installation, volume: &str, script: &str) -> Output {
    it.run(["run", "--rm", "-v", volume, "busybox", "sh", "-c", script])
}

/// Busybox with files below `/data`.
fn image_with_data() -> Image {
    let data = Layer::build(|entries| {
        entries.dir("data").dir("data/sub");
        entries.owned_file("data/sub/file", 0o640, (1000, 1001), b"from the image\n");
        entries.hardlink("data/hard", "data/sub/file");
        entries.symlink("data/link", "/nowhere");
    });
    let config = json!({
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "Cmd": ["sh"],
        "Volumes": { "/data": {} },
    });
    Image::new("docker.io/library/data:latest", vec![busybox::layer().unwrap(), data], config)
}

#[test]
fn data_outlives_containers_and_has_one_writer() {
    let it = Installation::with_busybox();
    it.run([
        "volume",
        "create",
        "-s",
        "1g",
        "--label",
        "of=us",
        "--opt",
        "journal=journal:8m",
        "db",
    ])
    .ok()
    .prints("db");
    it.run(["volume", "create", "db"]).fails(125, "exists already");
    let volume = inspect(&it, "db");
    assert_eq!(
        (&volume["sizeInBytes"], &volume["labels"]["of"]),
        (&json!(1u64 << 30), &json!("us"))
    );
    it.run(["volume", "list"]).ok().has("ext4").has("1.0 GB");

    // Also with --rm, whose VM is not ended in order otherwise.
    sh(&it, "db:/a", "ls -A /a; echo one >/a/file; chown 5:6 /a/file").ok().prints("");
    sh(&it, "db:/b/c", "cat /b/c/file; stat -c %u:%g /b/c/file").ok().prints("one\n5:6");
    sh(&it, "db:/a:ro", "cat /a/file; echo two >/a/file").fails(1, "Read-only");

    // Readers keep each other company; a writer wants to be alone.
    let reader = ["run", "-d", "-v", "db:/a:ro", "--name"];
    for name in ["r1", "r2"] {
        it.container(reader).args([name, "busybox", "sleep", "100000"]).run().ok();
    }
    it.run(["exec", "r2", "cat", "/a/file"]).ok().prints("one");
    sh(&it, "db:/a", "true").fails(125, "volume 'db' is in use by container 'r");
    it.run(["volume", "delete", "db"]).fails(125, "used by containers 'r1', 'r2'");
    it.run(["delete", "--force", "r1", "r2"]).ok();

    // Who has it is known again after the service was killed.
    it.run(["run", "-d", "--name", "writer", "-v", "db:/a", "busybox", "sleep", "100000"]).ok();
    processes::kill(it.apiserver_pid(), Signal::KILL);
    it.run(["system", "start"]).ok();
    sh(&it, "db:/a:ro", "true").fails(125, "volume 'db' is in use by container 'writer'");
    // What was synced survives the VM.
    it.run(["exec", "writer", "sh", "-c", "echo synced >/a/file; sync"]).ok();
    for qemu in it.qemus() {
        processes::kill(qemu.pid, Signal::KILL);
    }
    wait_for("the end", DEADLINE, || {
        (it.status("writer").as_deref() == Some("stopped")).then_some(())
    });
    it.run(["delete", "writer"]).ok();
    sh(&it, "db:/a", "cat /a/file").ok().prints("synced");

    it.run(["system", "df"]).ok().has("Volumes");
    it.run(["volume", "prune"]).ok().has("db").has("Reclaimed");
    assert!(names(&it).is_empty());
}

#[test]
fn volumes_are_filled_and_anonymous_ones_go_with_rm() {
    let it = Installation::new();
    it.load(&image_with_data());
    let look = "cat /data/sub/file; stat -c '%u:%g %a %h' /data/hard; readlink /data/link; \
                ls -A /data; touch /data/new";
    let expected = "from the image\n1000:1001 640 2\n/nowhere\nhard\nlink\nsub";
    it.run(["run", "--rm", "data", "sh", "-c", look]).ok().prints(expected);
    // The image's own volume is kept in the container itself.
    assert!(names(&it).is_empty());
    it.run(["run", "--rm", "-v", "/more", "data", "touch", "/more/x"]).ok();
    wait_for("an anonymous volume to go", DEADLINE, || names(&it).is_empty().then_some(()));
    // A volume in its place is filled once, and stays.
    for expected in [expected.to_owned(), format!("{}\nnew\nsub", &expected[..expected.len() - 4])]
    {
        it.run(["run", "--rm", "-v", "kept:/data", "data", "sh", "-c", look])
            .ok()
            .prints(&expected);
    }
    assert_eq!(names(&it), ["kept"]);
    it.run(["run", "--rm", "-v", "empty:/data:nocopy", "data", "ls", "-A", "/data"])
        .ok()
        .prints("");

    // Without --rm it stays until it is removed.
    it.run(["run", "--name", "box", "-v", "/more", "data", "touch", "/data/x", "/more/y"]).ok();
    assert_eq!(names(&it).len(), 3);
    it.run(["volume", "prune"]).ok();
    assert_eq!(names(&it).len(), 1);
    it.run(["start", "-a", "box"]).ok();
    it.run(["delete", "box"]).ok();
    it.run(["volume", "prune"]).ok();
    assert!(names(&it).is_empty());
}

#[test]
fn what_can_not_be_is_refused_and_harms_nobody_else() {
    let it = Installation::with_busybox();
    for (args, text) in [
        (&["-s", "65g", "big"][..], "at most 64 GiB"),
        (&["-s", "1m", "small"], "needs"),
        (&["a/b"], "invalid volume name"),
        (&["--opt", "type=tape", "vv"], "block and shared"),
        (&["--opt", "type=shared", "vv"], "not supported yet"),
        (&["--opt", "colour=red", "vv"], "size, journal and type"),
    ] {
        it.container(["volume", "create"]).args(args).run().fails(125, text);
    }
    it.run(["volume", "delete", "missing"]).fails(125, "no volume 'missing'");
    sh(&it, "vv:relative", "true").fails(125, "not absolute");
    sh(&it, "vv:/", "true").fails(125, "root");
    assert!(names(&it).is_empty());

    for name in ["short", "scrambled", "fine"] {
        sh(&it, &format!("{name}:/a"), "echo here >/a/file").ok();
    }
    let disk = |name: &str| PathBuf::from(inspect(&it, name)["source"].as_str().unwrap());
    let open = |name: &str| OpenOptions::new().write(true).open(disk(name)).unwrap();
    open("short").set_len(1 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&open("scrambled"), &[0xa5; 64 << 10], 0).unwrap();
    sh(&it, "short:/a", "true").fails(125, "volume 'short' is damaged");
    sh(&it, "scrambled:/a", "true").fails(125, "volume");
    sh(&it, "fine:/a", "cat /a/file").ok().prints("here");
}
