//! Volumes: data that outlives containers, one writer at a time, and what can go wrong with them.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
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
    sh_in(it, "busybox", volume, script)
}

fn sh_in(it: &Installation, image: &str, volume: &str, script: &str) -> Output {
    it.run(["run", "--rm", "-v", volume, image, "sh", "-c", script])
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
    // The image's own volume went with the container.
    wait_for("the image's volume to go", DEADLINE, || names(&it).is_empty().then_some(()));
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

    // Without --rm they stay until they are removed.
    it.run(["run", "--name", "box", "-v", "/more", "data", "touch", "/data/x", "/more/y"]).ok();
    assert_eq!(names(&it).len(), 4);
    it.run(["volume", "prune"]).ok();
    assert_eq!(names(&it).len(), 2);
    it.run(["start", "-a", "box"]).ok();
    it.run(["delete", "box"]).ok();
    it.run(["volume", "prune"]).ok();
    assert!(names(&it).is_empty());
}

#[test]
fn volumes_of_an_image_are_anonymous_ones() {
    let it = Installation::new();
    it.load(&image_with_data());
    it.run(["create", "--name", "box", "data", "sh", "-c", "ls /data; echo kept >>/data/log"]).ok();
    let config = it.run(["inspect", "box"]).ok().json()[0]["configuration"].clone();
    let mount = &config["mounts"][0];
    assert_eq!((&mount["destination"], &mount["anonymous"]), (&json!("/data"), &json!(true)));
    assert_eq!(names(&it), [mount["source"].as_str().unwrap()]);
    it.run(["start", "-a", "box"]).ok().prints("hard\nlink\nsub");
    it.run(["start", "-a", "box"]).ok().prints("hard\nlink\nlog\nsub");
    it.run(["delete", "box"]).ok();
    it.run(["volume", "prune"]).ok();

    // What is mounted there takes its place.
    it.run(["run", "--name", "box", "--tmpfs", "/data", "data", "ls", "/data"]).ok().prints("");
    assert!(names(&it).is_empty());

    // More than the VM takes: nothing is made.
    let volumes: serde_json::Map<_, _> = (0..7).map(|n| (format!("/v{n}"), json!({}))).collect();
    let config = json!({ "Cmd": ["/bin/true"], "Volumes": volumes });
    let layers = vec![busybox::layer().unwrap()];
    it.load(&Image::new("docker.io/library/many:latest", layers, config));
    it.run(["run", "--rm", "many"]).fails(125, "5 devices would be plugged into the VM");
    assert!(names(&it).is_empty());
    let own = "for n in 0 2 3 4 5 6; do echo $n >/v$n/n || exit; done; cat /v*/n";
    let many = it.run(["run", "--rm", "--tmpfs", "/v1", "many", "sh", "-c", own]);
    many.ok().prints("0\n2\n3\n4\n5\n6");
}

#[test]
fn a_copy_of_a_container_that_does_not_run_sees_its_volumes() {
    let it = Installation::with_busybox();
    it.load(&image_with_data());
    let host = |name: &str| it.scratch().join(name);
    let from = |path: &str, to: &str| it.container(["cp", path]).arg(host(to)).run();
    let into = |file: &str, to: &str| it.container(["cp"]).arg(host(file)).arg(to).run();
    let read = |name: &str| std::fs::read_to_string(host(name)).unwrap();
    std::fs::write(host("new"), "from the host\n").unwrap();
    let here = format!("{}:/m", it.scratch().display());
    it.container(["create", "--name", "box", "-v", "vol:/data", "-v", &here, "--tmpfs", "/t"])
        .args(["data", "sh", "-c", "cat /data/new; echo changed >/data/sub/file"])
        .run()
        .ok();
    // Filled by whoever comes first, and written to.
    from("box:/data/sub/file", "first").ok();
    assert_eq!(read("first"), "from the image\n");
    into("new", "box:/data/new").ok();
    // It was unmounted in order: nobody has to replay its journal.
    sh(&it, "vol:/a:ro", "cat /a/new /a/sub/file").ok().prints("from the host\nfrom the image");
    it.run(["start", "-a", "box"]).ok().prints("from the host");
    from("box:/data/sub/file", "second").ok();
    assert_eq!(read("second"), "changed\n");

    // What only a program has is refused, and what somebody else has.
    from("box:/m/x", "x").fails(125, "/m in it is a bind mount");
    into("new", "box:/t/").fails(125, "/t in it is a tmpfs");
    it.run(["run", "-d", "--name", "other", "-v", "vol:/d", "busybox", "sleep", "100000"]).ok();
    from("box:/data/new", "x").fails(125, "volume 'vol' is in use by container 'other'");
    from("box:/", "x").fails(125, "volume 'vol' is in use by container 'other'");
    from("box:/etc", "etc").ok();
}

#[test]
fn a_shared_volume_is_written_by_several_at_once() {
    let it = Installation::new();
    it.load(&image_with_data());
    it.run(["volume", "create", "--opt", "type=shared", "both"]).ok().prints("both");
    let volume = inspect(&it, "both");
    assert_eq!((&volume["type"], &volume["format"]), (&json!("shared"), &json!("virtiofs")));

    // The first one fills it, as any volume.
    for (name, at) in [("one", "/data"), ("two", "/elsewhere")] {
        let volume = format!("both:{at}");
        it.run(["run", "-d", "--name", name, "-v", &volume, "data", "sleep", "100000"]).ok();
    }
    let exec = |name: &str, script: &str| it.run(["exec", name, "sh", "-c", script]);
    exec("two", "cat /elsewhere/sub/file; ls /elsewhere")
        .ok()
        .prints("from the image\nhard\nlink\nsub");
    it.run(["volume", "delete", "both"]).fails(125, "used by containers 'one', 'two'");

    // Both append to one file at the same time, and neither writes over the other.
    let append = |name: &str, at: &str| {
        let script = "for n in $(seq 200); do echo \"$1 $n\" >>\"$2/log\"; done";
        it.run(["exec", name, "sh", "-c", script, "sh", name, at]).ok();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| append("one", "/data"));
        scope.spawn(|| append("two", "/elsewhere"));
    });
    for name in ["one", "two"] {
        let count = format!("grep -c '^{name} [0-9]*$' /data/log /elsewhere/log 2>/dev/null");
        assert!(exec("one", &count).text().contains(":200"), "{name}");
        assert!(exec("two", &count).text().contains(":200"), "{name}");
    }
    sh_in(&it, "data", "both:/data:ro", "cat /data/sub/file; echo no >/data/log")
        .fails(1, "Read-only");

    // It outlives them, and takes what it takes.
    it.run(["delete", "--force", "one", "two"]).ok();
    sh_in(
        &it,
        "data",
        "both:/data",
        "wc -l </data/log; dd if=/dev/urandom of=/data/big bs=1M count=4 2>/dev/null",
    )
    .ok()
    .prints("400");
    assert!(inspect(&it, "both")["allocatedInBytes"].as_u64().unwrap() >= 4 << 20);
    it.run(["volume", "prune"]).ok().has("both");
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
        (&["-s", "1g", "--opt", "type=shared", "vv"], "neither a size nor a journal"),
        (&["--opt", "journal=ordered", "--opt", "type=shared", "vv"], "neither a size"),
        (&["--opt", "colour=red", "vv"], "size, journal and type"),
    ] {
        it.container(["volume", "create"]).args(args).run().fails(125, text);
    }
    it.run(["volume", "delete", "missing"]).fails(125, "no volume 'missing'");
    sh(&it, "vv:relative", "true").fails(125, "not absolute");
    sh(&it, "vv:/", "true").fails(125, "root");
    assert!(names(&it).is_empty());

    for name in ["short", "scrambled", "zeroed", "fine"] {
        sh(&it, &format!("{name}:/a"), "echo here >/a/file").ok();
    }
    let disk = |name: &str| PathBuf::from(inspect(&it, name)["source"].as_str().unwrap());
    let open = |name: &str| OpenOptions::new().read(true).write(true).open(disk(name)).unwrap();
    let whole = it.scratch().join("whole.img");
    let copied = std::process::Command::new("cp")
        .arg("--sparse=always")
        .args([&disk("short"), &whole])
        .status();
    assert!(copied.unwrap().success());
    let half = std::fs::metadata(disk("short")).unwrap().len() / 2;
    open("short").set_len(half).unwrap();
    // The file system's head, and its superblock alone.
    let heads = [("scrambled", 0, vec![0xa5; 64 << 10]), ("zeroed", 1024, vec![0; 1024])];
    let heads = heads.map(|(name, at, bytes)| {
        let mut head = bytes.clone();
        open(name).read_exact_at(&mut head, at).unwrap();
        open(name).write_all_at(&bytes, at).unwrap();
        (name, at, head)
    });
    sh(&it, "short:/a", "true").fails(125, "volume 'short' is damaged");
    for (name, at, head) in heads {
        let damaged = "mount the volume at /a: its file may be damaged";
        sh(&it, &format!("{name}:/a"), "true").fails(125, damaged);
        open(name).write_all_at(&head, at).unwrap();
    }
    std::fs::rename(&whole, disk("short")).unwrap();
    // Nothing was lost by that.
    for name in ["short", "scrambled", "zeroed"] {
        sh(&it, &format!("{name}:/a"), "cat /a/file").ok().prints("here");
    }
    sh(&it, "fine:/a", "cat /a/file").ok().prints("here");
}
