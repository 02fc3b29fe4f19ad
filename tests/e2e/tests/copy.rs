//! Copies of files into containers and out of them, running and not; images made of containers.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use e2e::{Cmd, DEADLINE, Installation, Running, processes, wait_for};
use rustix::process::Signal;

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}

/// A tree with what is hard to copy.
fn tree(at: &Path) {
    fs::create_dir_all(at.join("sub/empty")).unwrap();
    fs::write(at.join("file"), b"content").unwrap();
    fs::write(at.join("sub/new\nline \u{202e}\u{1b}[31m"), b"odd").unwrap();
    fs::write(at.join("sub").join("long ".repeat(40)), b"long").unwrap();
    fs::write(at.join("big"), vec![0x5a; 3 << 20]).unwrap();
    fs::hard_link(at.join("file"), at.join("sub/hard")).unwrap();
    symlink("/etc/../nowhere", at.join("link")).unwrap();
    for (name, mode) in [("file", 0o640), ("big", 0o4755), ("sub", 0o750)] {
        fs::set_permissions(at.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// Names, kinds, modes, times and contents, one line each.
fn listing(at: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = vec![at.to_owned()];
    while let Some(path) = left.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let (kind, content) = if found.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            ("d", String::new())
        } else if found.is_symlink() {
            ("l", fs::read_link(&path).unwrap().display().to_string())
        } else {
            ("f", e2e::sha256_hex(&fs::read(&path).unwrap()))
        };
        let mode = if found.is_symlink() { 0 } else { found.mode() & 0o777 };
        let (seconds, rest) = (found.mtime(), found.mtime_nsec());
        let name = path.strip_prefix(at).unwrap();
        lines.push(format!("{name:?} {kind} {mode:o} {seconds}.{rest} {content}"));
    }
    lines.sort();
    lines
}

fn cp(it: &Installation, source: &str, destination: &str) -> e2e::Output {
    it.run(["cp", "-q", source, destination])
}

#[test]
fn trees_come_back_as_they_were_from_a_container_that_runs() {
    let it = Installation::with_busybox();
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("{}/{name}", here.path().display());
    tree(&here.path().join("tree"));
    it.run(["run", "-d", "--name", "box", "--tmpfs", "/mem", "busybox", "sleep", "100000"]).ok();
    cp(&it, &at("tree"), "box:/srv").ok();
    let sh = |script: &str| it.run(["exec", "box", "sh", "-c", script]);
    sh("stat -c '%u:%g %a %h' /srv/file").ok().prints("0:0 640 2");
    sh("stat -c '%a' /srv/big; readlink /srv/link").ok().prints("4755\n/etc/../nowhere");
    cp(&it, "box:/srv", &at("back")).ok();
    assert_eq!(listing(&here.path().join("tree")), listing(&here.path().join("back")));
    assert_eq!(fs::metadata(at("back/big")).unwrap().mode() & 0o7000, 0, "no set-id bit");
    assert_eq!(fs::metadata(at("back/file")).unwrap().nlink(), 2);

    // What is mounted in the container is where the container sees it.
    cp(&it, &at("tree/file"), "box:/mem/").ok();
    sh("cat /mem/file").ok().prints("content");
    cp(&it, "box:/mem/file", &at("from-mem")).ok();
    assert_eq!(text(at("from-mem")), "content");

    // Docker's table; the other direction is a table of unit tests.
    sh("mkdir -p /d/holder/file; echo old >/there; ln -s /d /to-d; ln -s /gone /dangling").ok();
    for (source, destination, expected) in [
        ("file", "/new", Some("/new")),
        ("file", "/no/such", None),
        ("file", "/new2/", None),
        ("file", "/there", Some("/there")),
        ("file", "/there/", None),
        ("file", "/d", Some("/d/file")),
        ("file", "/to-d", Some("/d/file")),
        ("file", "/dangling", Some("/gone")),
        ("file", "/d/holder", None),
        ("sub", "/sub1", Some("/sub1/hard")),
        ("sub", "/d", Some("/d/sub/hard")),
        ("sub/.", "/d", Some("/d/hard")),
        ("sub", "/there", None),
    ] {
        let outcome = cp(&it, &at(&format!("tree/{source}")), &format!("box:{destination}"));
        match expected {
            Some(path) => {
                outcome.ok();
                it.run(["exec", "box", "cat", path]).ok().prints("content");
            }
            None => drop(outcome.code(125)),
        }
    }
    cp(&it, "box:/missing", &at("x")).fails(125, "/missing");
    cp(&it, "nobox:/x", &at("x")).fails(125, "nobox");
    cp(&it, &at("missing"), "box:/").fails(125, "missing");
    cp(&it, "box:/a", "box:/b").fails(125, "between containers");

    // Streams: owners are those of the archive; links are followed when asked.
    let archive = it.run(["cp", "box:/d", "-"]).ok().stdout;
    it.container(["cp", "-", "box:/mem"]).stdin(archive).run().ok();
    sh("cat /mem/d/file").ok().prints("content");
    it.container(["cp", "-", "box:/nodir"]).stdin(vec![0; 1024]).run().fails(125, "/nodir");
    it.container(["cp", "-", "box:/mem"]).stdin(vec![7; 4096]).run().fails(125, "damaged");
    sh("ln -s file /mem/l").ok();
    cp(&it, "box:/mem/l", &at("as-link")).code(0);
    assert!(fs::symlink_metadata(at("as-link")).unwrap().is_symlink());
    sh("echo 1 >/mem/file2; ln -sf file2 /mem/l").ok();
    it.run(["cp", "-qL", "box:/mem/l", &at("as-file")]).ok();
    assert_eq!(text(at("as-file")), "1\n");
    // A file that something is mounted on is written in place.
    cp(&it, &at("tree/file"), "box:/etc/hosts").ok();
    sh("cat /etc/hosts").ok().prints("content");
    // The rest of a copy that nobody takes does not stay.
    let begun: Running = it.container(["cp", "box:/", "-"]).spawn();
    begun.signal(Signal::INT);
    let _ = begun.wait(DEADLINE);
    sh("true").ok();
}

#[test]
fn a_hostile_container_leads_nowhere() {
    let it = Installation::with_busybox();
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("{}/{name}", here.path().display());
    let script = "mkdir -p /a/d; echo mine >/a/d/passwd; ln -s /proc/1/root/etc /a/magic; \
                  ln -s ../../../../../../etc /a/up; echo ready; \
                  while :; do mv /a/d /a/e; ln -s /etc /a/d; rm /a/d; mv /a/e /a/d; done";
    it.run(["run", "-d", "--name", "box", "busybox", "sh", "-c", script]).ok();
    wait_for("the program", DEADLINE, || {
        it.run(["logs", "box"]).text().contains("ready").then_some(())
    });
    let host = text("/etc/passwd");
    for round in 0..10 {
        let to = at(&format!("out-{round}"));
        // Any outcome is right but one: nothing of the host, nothing through a link.
        let _ = cp(&it, "box:/a", &to);
        // A link is copied as one; read through it here, it would lead to this host's file.
        if fs::symlink_metadata(format!("{to}/d")).is_ok_and(|found| found.is_dir()) {
            let found = fs::read_to_string(format!("{to}/d/passwd")).unwrap_or_default();
            assert!(found.is_empty() || found == "mine\n", "{found}");
        }
    }
    fs::write(at("mark"), b"mark").unwrap();
    for path in ["/a/magic", "/a/up"] {
        let _ = cp(&it, &at("mark"), &format!("box:{path}/"));
    }
    assert_eq!(text("/etc/passwd"), host);
    assert!(!Path::new("/etc/mark").exists());
    // Names are shown without what could fool a terminal.
    fs::write(at("bad\u{1b}[31m"), b"").unwrap();
    let said = it.run(["cp", &at("bad\u{1b}[31m"), "box:/nowhere/x"]).code(125);
    assert!(!said.errors().contains('\u{1b}'));
    it.run(["exec", "box", "true"]).ok();
}

#[test]
fn containers_that_do_not_run_are_read_and_written_too() {
    let it = Installation::with_busybox();
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("{}/{name}", here.path().display());
    fs::write(at("input"), b"from outside").unwrap();
    let script = "cat /input; echo out >/result; rm /bin/vi; echo bye; exit 3";
    it.run(["create", "--name", "box", "busybox", "sh", "-c", script]).ok();
    cp(&it, &at("input"), "box:/input").ok();
    assert_eq!(it.status("box").as_deref(), Some("created"));
    it.run(["start", "-a", "box"]).code(3).has("from outside");
    let before = it.inspect("box");
    cp(&it, "box:/result", &at("result")).ok();
    assert_eq!(text(at("result")), "out\n");
    let after = it.inspect("box");
    for field in ["status", "exit", "startedDate"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    let changes = it.run(["diff", "box"]).ok().text();
    let changes: Vec<&str> = changes.lines().collect();
    for line in ["C /bin", "D /bin/vi", "A /input", "A /result"] {
        assert!(changes.contains(&line), "no {line} in {changes:?}");
    }
    assert!(!changes.iter().any(|line| line.contains("/etc/hosts")), "{changes:?}");
    it.run(["export", "-o", &at("all.tar"), "box"]).ok();
    let names = Cmd::new("tar").args(["-tf", &at("all.tar")]).run().ok().text();
    let names: Vec<&str> = names.lines().collect();
    assert!(names.contains(&"result") && names.contains(&"bin/busybox"), "{names:?}");
    assert!(!names.contains(&"bin/vi"));

    // An image of it runs, and a second one on top.
    it.run([
        "commit",
        "-m",
        "why",
        "-a",
        "me",
        "-c",
        "CMD [\"cat\", \"/result\"]",
        "box",
        "mine:v1",
    ])
    .ok()
    .has("sha256:");
    it.run(["run", "--rm", "mine:v1"]).ok().prints("out");
    it.run(["run", "--rm", "mine:v1", "ls", "/bin/vi"]).fails(1, "vi");
    it.run(["commit", "-c", "RUN x", "box", "mine:v2"]).fails(125, "RUN x");
    it.run(["image", "save", "-o", &at("mine.tar"), "mine:v1"]).ok();

    // Another name, with all that it has.
    it.run(["rename", "box", "other"]).ok();
    assert_eq!((it.status("box"), it.status("other").as_deref()), (None, Some("stopped")));
    it.run(["logs", "other"]).ok().has("bye");
    it.run(["rename", "other", "other"]).fails(125, "exists");
    it.run(["start", "-a", "other"]).code(3);
    it.run(["run", "-d", "--name", "runs", "busybox", "sleep", "100000"]).ok();
    it.run(["rename", "runs", "walks"]).fails(125, "stop it first");
    it.run(["export", "runs"]).ok();
    it.run(["commit", "runs", "mine:v3"]).ok();
    it.run(["exec", "runs", "true"]).ok();
    it.run(["delete", "other"]).ok();
}

#[test]
fn a_service_that_dies_leaves_no_vm_of_a_copy() {
    let it = Installation::with_busybox();
    it.run(["create", "--name", "box", "busybox", "true"]).ok();
    let copy = it.container(["cp", "-", "box:/"]).spawn();
    wait_for("the copy's VM", DEADLINE, || {
        fs::read_to_string(it.container_dir("box").join("vm.json"))
            .is_ok_and(|spec| spec.contains("\"maintenance\":true"))
            .then_some(())
    });
    processes::kill(it.apiserver_pid(), Signal::KILL);
    drop(copy);
    wait_for("the death", DEADLINE, || {
        let running = it.processes().iter().any(|p| p.name == "container-apiserver");
        (!running).then_some(())
    });
    it.run(["system", "start"]).ok();
    assert_eq!(it.status("box").as_deref(), Some("created"));
    wait_for("the end of the copy's helper", Duration::from_secs(60), || {
        let copies = it.processes().iter().any(|p| p.arguments.ends_with("containers/box"));
        (!copies).then_some(())
    });
    it.run(["start", "-a", "box"]).ok();
    assert_eq!(it.status("box").as_deref(), Some("stopped"));
}
