//! Bind mounts: what a container sees and changes of the host, and what it can't.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use e2e::Installation;

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path.as_ref()).unwrap_or_else(|e| panic!("{:?}: {e}", path.as_ref()))
}

/// What a guest's root tries on its way out; each line must fail.
const ESCAPES: &str = r#"
fails() { if "$@" 2>/dev/null; then echo "worked: $*"; fi; }
mount -o remount,rw,bind /ro 2>/dev/null
fails touch /ro/new
fails sh -c 'echo x > /ro/file'
fails chmod 777 /ro/file
fails chown 5 /ro/file
fails touch -d 2001-01-01 /ro/file
fails rm /ro/file
fails mv /ro/file /ro/other
fails ln /ro/file /rw/hard
fails mkdir /ro/directory
mount -o remount,rw,bind /single 2>/dev/null
fails sh -c 'echo x > /single'
fails mknod /rw/device c 1 3
fails chmod 4755 /rw/tool
fails chmod 2755 /rw/tool
ln -s ../../../../../../../../etc/passwd /rw/up
ln -s /outside /rw/absolute
fails grep -q secret /rw/up
fails cat /rw/absolute/secret
fails cat /rw/planted/secret
fails cat /rw/../secret
echo done
"#;

#[test]
fn a_container_sees_and_changes_what_it_was_given_and_nothing_else() {
    let it = Installation::with_busybox();
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| here.path().join(name);
    for name in ["ro", "rw", "outside"] {
        fs::create_dir(at(name)).unwrap();
    }
    for name in ["ro/file", "rw/tool", "outside/secret", "single"] {
        fs::write(at(name), format!("{name}\n")).unwrap();
    }
    symlink(at("outside"), at("rw/planted")).unwrap();
    fs::set_permissions(at("rw/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    let before = fs::metadata(at("ro/file")).unwrap();
    let mount = |name: &str, rest: &str| format!("{}:/{name}{rest}", at(name).display());

    // Both ways, nested, and a file on a file.
    let script = "cat /ro/file /single; echo new > /rw/made; echo in > /rw/in/x; umask 0; \
                  mkdir /rw/sub; ls /rw; \
                  sync -f /rw || echo not synced";
    fs::create_dir(at("in")).unwrap();
    it.container(["run", "--rm", "--read-only", "-v", &mount("in", "").replace(":/in", ":/rw/in")])
        .args(["-v", &mount("ro", ":ro"), "-v", &mount("rw", ""), "-v", &mount("single", ":ro")])
        .args(["busybox", "sh", "-c", script])
        .run()
        .ok()
        .prints("ro/file\nsingle\nin\nmade\nplanted\nsub\ntool");
    assert_eq!(text(at("rw/made")), "new\n");
    assert_eq!(text(at("in/x")), "in\n");
    assert_eq!(fs::metadata(at("rw/made")).unwrap().uid(), rustix::process::getuid().as_raw());

    // As root in the guest, with all that it may have.
    it.container(["run", "--rm", "--cap-add", "ALL", "-v", &mount("ro", ":ro")])
        .args(["-v", &mount("rw", ""), "-v", &mount("single", ":ro")])
        .args(["busybox", "sh", "-c", ESCAPES])
        .run()
        .ok()
        .prints("done");
    let after = fs::metadata(at("ro/file")).unwrap();
    assert_eq!(
        (before.mode(), before.uid(), before.mtime()),
        (after.mode(), after.uid(), after.mtime())
    );
    assert_eq!(text(at("ro/file")), "ro/file\n");
    assert_eq!(text(at("single")), "single\n");
    assert_eq!(fs::metadata(at("rw/tool")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(text(at("outside/secret")), "outside/secret\n");
    assert!(!at("rw/device").exists() && !at("rw/hard").exists());

    // What is mounted is what was checked, also at a later start.
    let run = mount("ro", ":ro");
    it.run(["create", "--name", "box", "-v", &run, "busybox", "cat", "/ro/file"]).ok();
    let mounts = &it.inspect("box")["configuration"]["mounts"];
    assert_eq!(mounts[0]["destination"], "/ro", "{mounts}");
    it.run(["start", "-a", "box"]).ok().prints("ro/file");
    fs::rename(at("ro"), at("old")).unwrap();
    it.run(["start", "box"]).fails(125, "does not exist any more");
    fs::create_dir(at("ro")).unwrap();
    it.run(["start", "box"]).fails(125, "another file");
}

#[test]
fn what_can_not_be_mounted_is_refused() {
    let it = Installation::with_busybox();
    let here = tempfile::tempdir().unwrap();
    let link = here.path().join("link");
    symlink("/etc", &link).unwrap();
    let scratch = here.path().display();
    let refused = |mount: &str, why: &str| {
        it.run(["run", "--rm", "-v", mount, "busybox", "true"]).fails(125, why);
    };
    refused(&format!("{scratch}/none:/a"), "does not exist");
    refused(&format!("{}:/a", link.display()), "sensitive");
    for sensitive in ["/", "/etc", "/proc", "/sys/kernel", "/dev"] {
        refused(&format!("{sensitive}:/a"), "sensitive");
    }
    refused(&format!("{}:/a", it.app_root().display()), "belongs to this installation");
    refused("/dev/null:/a", "neither a directory nor a regular file");
    for target in ["/", "/proc/x", "/dev", "/sys"] {
        refused(&format!("{scratch}:{target}"), "nothing can be mounted at");
    }
    let twice = format!("{scratch}:/a");
    it.run(["run", "--rm", "-v", &twice, "-v", &twice, "busybox", "true"])
        .fails(125, "two mounts have the destination");
    let notify = format!("type=bind,source={scratch},target=/a,notify=maybe");
    it.run(["run", "--rm", "--mount", &notify, "busybox", "true"]).fails(125, "notify");
    fs::write(here.path().join("file"), "").unwrap();
    refused(&format!("{scratch}/file:/bin"), "can't be mounted on the directory");

    // A directory above the installation shows it empty.
    let above = it.app_root().parent().unwrap().display().to_string();
    let name = it.app_root().file_name().unwrap().to_string_lossy().into_owned();
    it.container(["run", "--rm", "-v", &format!("{above}:/above:ro"), "busybox"])
        .args(["ls", "-A", &format!("/above/{name}")])
        .run()
        .ok()
        .prints("");
}

#[test]
fn a_plain_users_files_stay_the_users() {
    let it = Installation::of_plain_user_with_busybox();
    let owner = fs::metadata(it.app_root()).unwrap().uid();
    let shared = it.scratch().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("there"), "there\n").unwrap();
    for path in [&shared, &shared.join("there")] {
        std::os::unix::fs::chown(path, Some(owner), Some(owner)).unwrap();
    }
    let mount = format!("{}:/shared", shared.display());
    let script = "cat /shared/there; touch /shared/made; stat -c %u /shared/there /shared/made; \
                  chown 5 /shared/made 2>/dev/null || echo refused";
    it.bare(["run", "--rm", "--network", "none", "-v", &mount, "busybox", "sh", "-c", script])
        .run()
        .ok()
        .prints("there\n0\n0\nrefused");
    assert_eq!(fs::metadata(shared.join("made")).unwrap().uid(), owner);
    it.bare(["system", "stop"]).run().ok();
}
