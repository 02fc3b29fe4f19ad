//! Mounts in one another, mounts that clash, sources with odd names, and sources that go away.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use e2e::{DEADLINE, Installation, processes, wait_for};

/// What is mounted where, and that each is written on its own.
const LOOK: &str = r#"
for place in /a /a/t /a/v /t /t/b /t/v /w /w/b /w/t; do
    awk -v place=$place '$2 == place { printf "%s %s\n", $2, $3 }' /proc/mounts
    echo "$place" > $place/name
done
for place in /a /a/t /a/v /t /t/b /t/v /w /w/b /w/t; do cat $place/name; done | tr '\n' ' '
"#;

#[test]
fn mounts_lie_in_one_another_whatever_their_order() {
    let it = Installation::with_busybox();
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| here.path().join(name);
    for name in ["a", "tb", "wb"] {
        fs::create_dir(at(name)).unwrap();
    }
    let bind = |name: &str, place: &str| format!("{}:{place}", at(name).display());
    // Every kind in every other, the inner ones first.
    let (a, tb, wb) = (bind("a", "/a"), bind("tb", "/t/b"), bind("wb", "/w/b"));
    it.container(["run", "--rm", "--network", "none", "--tmpfs", "/a/t", "-v", "one:/a/v"])
        .args(["-v", &a, "-v", &tb, "-v", "two:/t/v", "--tmpfs", "/t"])
        .args(["-v", &wb, "--tmpfs", "/w/t", "-v", "three:/w"])
        .args(["busybox", "sh", "-c", LOOK])
        .run()
        .ok()
        .prints(
            "/a virtiofs\n/a/t tmpfs\n/a/v ext4\n/t tmpfs\n/t/b virtiofs\n/t/v ext4\n/w ext4\n\
             /w/b virtiofs\n/w/t tmpfs\n/a /a/t /a/v /t /t/b /t/v /w /w/b /w/t ",
        );
    let text = |name: &str| fs::read_to_string(at(name)).unwrap();
    assert_eq!(
        (&*text("a/name"), &*text("tb/name"), &*text("wb/name")),
        ("/a\n", "/t/b\n", "/w/b\n")
    );
    // Only the places are there.
    for place in ["a/t", "a/v"] {
        assert_eq!(fs::read_dir(at(place)).unwrap().count(), 0, "{place}");
    }

    // What lies in a read-only mount is written all the same.
    fs::create_dir(at("ro")).unwrap();
    fs::create_dir(at("ro/v")).unwrap();
    let ro = format!("{}:/ro:ro", at("ro").display());
    let script = "echo x > /ro/v/file; cat /ro/v/file; touch /ro/file 2>&1";
    let output = it
        .container(["run", "--rm", "-v", "one:/ro/v", "-v", &ro, "busybox", "sh", "-c", script])
        .run()
        .code(1);
    output.prints("x\ntouch: /ro/file: Read-only file system");
    it.container(["run", "--rm", "-v", "one:/ro/none", "-v", &ro, "busybox", "true"])
        .run()
        .fails(125, "/ro/none");
    assert!(!at("ro/none").exists());
}

#[test]
fn two_mounts_at_one_place_are_refused() {
    let it = Installation::with_busybox();
    let here = tempfile::tempdir().unwrap();
    let bind = format!("type=bind,source={},target=/p", here.path().display());
    let kinds = [&bind[..], "type=volume,source=v,target=//p", "type=tmpfs,target=/p/."];
    for one in kinds {
        for other in kinds {
            it.run(["run", "--rm", "--mount", one, "--mount", other, "busybox", "true"])
                .fails(125, "two mounts have the destination /p");
        }
    }
    it.run(["volume", "list", "--quiet"]).ok().prints("");
    for place in ["/proc/x", "/sys"] {
        let tmpfs = format!("type=tmpfs,target={place}");
        it.run(["run", "--rm", "--mount", &tmpfs, "busybox", "true"])
            .fails(125, "nothing can be mounted at");
    }
    // What a user mounts goes before what every container gets.
    let hosts = here.path().join("hosts");
    fs::write(&hosts, "192.0.2.1 elsewhere\n").unwrap();
    let hosts = format!("{}:/etc/hosts:ro", hosts.display());
    it.run(["run", "--rm", "-v", &hosts, "busybox", "cat", "/etc/hosts"])
        .ok()
        .prints("192.0.2.1 elsewhere");
}

#[test]
fn a_source_may_have_any_name() {
    let it = Installation::with_busybox();
    let here = tempfile::tempdir().unwrap();
    let names: [&[u8]; 5] = [b"a:b", b"line\nbreak", b"\xff\xfe", b"quote\",comma", b" blank "];
    for name in names {
        let path = here.path().join(OsString::from_vec(name.to_vec()));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "seen\n").unwrap();
        let quoted = path.into_os_string().into_vec();
        let quoted = quoted.iter().flat_map(|byte| match byte {
            b'"' => vec![b'"', b'"'],
            byte => vec![*byte],
        });
        let mount = [b"type=bind,\"source=".to_vec(), quoted.collect(), b"\",target=/m".to_vec()];
        it.container(["run", "--rm", "--network", "none", "--mount"])
            .arg(OsString::from_vec(mount.concat()))
            .args(["busybox", "cat", "/m/file"])
            .run()
            .ok()
            .prints("seen");
    }
    // One that `-v` can't take is not mistaken for another.
    let colon = format!("{}:/m", here.path().join("a:b").display());
    it.run(["run", "--rm", "-v", &colon, "busybox", "true"]).fails(125, "not absolute");
}

#[test]
fn a_source_that_disappears_harms_nobody() {
    let it = Installation::with_busybox();
    let here = tempfile::tempdir().unwrap();
    let (gone, stays) = (here.path().join("gone"), here.path().join("stays"));
    for path in [&gone, &stays] {
        fs::create_dir(path).unwrap();
        fs::write(path.join("file"), "there\n").unwrap();
    }
    let mount = |path: &Path, place: &str| format!("{}:{place}", path.display());
    it.container(["run", "-d", "--name", "box", "-v", &mount(&gone, "/gone")])
        .args(["-v", &mount(&stays, "/stays"), "busybox", "sleep", "1000"])
        .run()
        .ok();
    let sh = |script: &str| it.run(["exec", "box", "sh", "-c", script]);
    sh("cat /gone/file").ok().prints("there");
    fs::remove_dir_all(&gone).unwrap();
    sh("ls /gone; cat /gone/file 2>&1; touch /gone/new 2>&1; cat /stays/file")
        .ok()
        .has("cat: can't open '/gone/file': No such file or directory")
        .has("touch: /gone/new: No such file or directory")
        .has("there");

    // The server of the files too: the guest's calls could wait for ever, so the container ends.
    for server in it.processes().iter().filter(|p| p.name == "container-files") {
        processes::kill(server.pid, rustix::process::Signal::KILL);
    }
    wait_for("the end of the container", DEADLINE, || {
        (it.status("box").as_deref() == Some("stopped")).then_some(())
    });
    let reason = it.inspect("box")["exit"]["reason"].clone();
    assert!(reason.as_str().is_some_and(|why| why.contains("bind mounts")), "{reason}");
    it.run(["start", "box"]).fails(125, "does not exist any more");
    it.run(["run", "--rm", "-v", &mount(&stays, "/m"), "busybox", "cat", "/m/file"])
        .ok()
        .prints("there");
}
