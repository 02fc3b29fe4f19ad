//! Whom the files of a bind mount belong to, in the container and on the host, and what of them
//! never comes to the host.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use e2e::Installation;

/// The first id of a plain user's range, and how many it has.
const FIRST: u32 = 300_000;
const COUNT: u32 = 65_536;

/// A directory of the installation that belongs to `owner`.
fn directory(it: &Installation, name: &str, owner: u32) -> PathBuf {
    let path = it.scratch().join(name);
    fs::create_dir(&path).unwrap();
    chown(&path, Some(owner), Some(owner)).unwrap();
    path
}

fn file(path: &Path, mode: u32, owner: u32) {
    fs::write(path, format!("{}\n", path.file_name().unwrap().display())).unwrap();
    chown(path, Some(owner), Some(owner)).unwrap();
    // Behind the owner: a change of it takes set-user-id bits away.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[track_caller]
fn owners(path: PathBuf) -> (u32, u32) {
    let found = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (found.uid(), found.gid())
}

/// The fields of a process's status.
fn status(pid: u32) -> impl Fn(&str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    move |name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().to_owned()
    }
}

#[test]
fn a_mount_has_owners_of_its_own() {
    let it = Installation::with_busybox();
    let mapped = directory(&it, "mapped", 1500);
    file(&mapped.join("there"), 0o640, 1500);
    file(&mapped.join("other"), 0o644, 33);
    file(&mapped.join("twin"), 0o600, 1000);
    let plain = directory(&it, "plain", 1500);
    let ranges = directory(&it, "ranges", 1500);
    file(&ranges.join("hosts"), 0o644, 0);
    let mount = |path: &Path, rest: &str| {
        let name = path.file_name().unwrap().display();
        format!("type=bind,source={},target=/{name}{rest}", path.display())
    };
    it.container(["run", "-d", "--name", "box", "--network", "none"])
        .args(["--mount", &mount(&mapped, ",uid=1000,gid=1000")])
        .args(["--mount", &mount(&plain, "")])
        .args(["--mount", &mount(&ranges, ",idmap=0:1500:1;1:200000:10")])
        .args(["busybox", "sleep", "1000"])
        .run()
        .ok();

    // The image's user owns what the sharing user has, without any right of root's.
    let script = "stat -c %u:%g /mapped /mapped/there /mapped/other /mapped/twin; \
                  cat /mapped/there; cat /mapped/twin 2>&1; cd /mapped; touch made; mkdir sub; \
                  ln -s made link; mv made moved; ln moved hard; chmod 600 moved; chown 0 moved \
                  2>/dev/null || echo kept";
    it.run(["exec", "--user", "1000:1000", "box", "sh", "-c", script]).ok().prints(
        "1000:1000\n1000:1000\n33:33\n65534:65534\nthere\n\
         cat: can't open '/mapped/twin': Permission denied\nkept",
    );
    for name in ["moved", "sub", "link", "hard"] {
        assert_eq!(owners(mapped.join(name)), (1500, 1500), "{name}");
    }

    // So do root's files there; elsewhere they stay root's, and none crosses over.
    let script = "touch /mapped/roots /plain/roots; chown 33 /mapped/moved; chown 1000 /mapped/sub; \
                  stat -c %u /mapped/roots /mapped/moved /mapped/sub /plain /plain/roots; \
                  ln /mapped/there /plain/there 2>/dev/null || echo apart";
    let seen = "1000\n33\n1000\n1500\n0\napart";
    it.run(["exec", "box", "sh", "-c", script]).ok().prints(seen);
    assert_eq!(owners(mapped.join("roots")), (1500, 1500));
    assert_eq!(owners(mapped.join("moved")), (33, 1500));
    assert_eq!(owners(mapped.join("sub")), (1500, 1500));
    assert_eq!(owners(plain.join("roots")), (0, 0));

    // With ranges nobody else exists.
    let script = "cd /ranges; touch made; touch given; chown 5:6 given; chown 11 made 2>&1; \
                  stat -c %u:%g . made given hosts; chmod 777 .";
    it.run(["exec", "box", "sh", "-c", script])
        .ok()
        .prints("chown: made: Operation not permitted\n0:0\n0:0\n5:6\n65534:65534");
    it.run(["exec", "--user", "20", "box", "sh", "-c", "touch /ranges/x 2>&1 || true"])
        .ok()
        .has("Operation not permitted");
    assert_eq!(owners(ranges.join("made")), (1500, 1500));
    assert_eq!(owners(ranges.join("given")), (200_004, 200_005));
    assert!(!ranges.join("x").exists());

    // Who serves all this has the rights for it, and none besides.
    let servers: Vec<_> =
        it.processes().into_iter().filter(|p| p.name == "container-files").collect();
    assert_eq!(servers.len(), 2, "{servers:?}");
    for server in &servers {
        let status = status(server.pid);
        let serves = servers.iter().any(|other| other.pid == server.parent);
        // CHOWN, DAC_OVERRIDE, FOWNER, SETGID, SETUID; who waits has nothing.
        let rights = if serves { "00000000000000cb" } else { "0000000000000000" };
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(status(set), rights, "{set} of {server:?}");
        }
        assert_eq!(status("CapInh"), "0000000000000000");
        if serves {
            assert_eq!((status("NoNewPrivs"), status("Seccomp")), ("1".into(), "2".into()));
        }
    }

    // The same after a restart; what is said twice or not at all is refused.
    it.run(["stop", "-t", "0", "box"]).ok();
    it.run(["start", "box"]).ok();
    it.run(["exec", "box", "stat", "-c", "%u", "/mapped/there"]).ok().prints("1000");
    let shown = &it.inspect("box")["configuration"]["mounts"][2]["idmap"][1];
    assert_eq!((&shown["host"], &shown["count"]), (&200_000.into(), &10.into()), "{shown}");
    for (wrong, why) in [
        ("uid=x", "uid is a number"),
        ("idmap=0:0", "GUEST:HOST:COUNT"),
        ("idmap=0:5:1;0:6:1", "overlap"),
        ("idmap=0:5:1,uid=5", "instead of uid"),
    ] {
        let mount = mount(&plain, &format!(",{wrong}"));
        it.run(["run", "--rm", "--mount", &mount, "busybox", "true"]).fails(125, why);
    }
}

#[test]
fn a_plain_users_other_ids_come_from_the_range() {
    let it = Installation::of_plain_user_with_ids(FIRST, COUNT);
    let user = fs::metadata(it.app_root()).unwrap().uid();
    let shared = directory(&it, "shared", user);
    file(&shared.join("strangers"), 0o600, 0);
    let source = shared.display();
    let run = |mount: &str, options: &[&str], script: &str| {
        let command = it.bare(["run", "--rm", "--network", "none", "--mount", mount]);
        command.args(options).args(["busybox", "sh", "-c", script]).run()
    };
    let mount = format!("type=bind,source={source},target=/m");
    let script = "cd /m; touch mine given; chown 5:6 given; chmod 777 .; stat -c %u:%g mine given \
                  strangers; cat strangers 2>&1; chown 5 strangers 2>&1";
    run(&mount, &[], script).code(1).prints(
        "0:0\n5:6\n65534:65534\ncat: can't open 'strangers': Permission denied\n\
         chown: strangers: Operation not permitted",
    );
    assert_eq!(owners(shared.join("mine")), (user, user));
    assert_eq!(owners(shared.join("given")), (FIRST + 4, FIRST + 5));
    assert_eq!(owners(shared.join("strangers")), (0, 0));
    run(&mount, &["--user", "1000:1000"], "touch /m/users; ln -s a /m/link").ok();
    assert_eq!(owners(shared.join("users")), (FIRST + 999, FIRST + 999));
    assert_eq!(owners(shared.join("link")), (FIRST + 999, FIRST + 999));

    // An image's user is the user, and so is root.
    let as_user = format!("{mount},uid=1000,gid=1000");
    let script = "cd /m; touch app; stat -c %u . mine app given";
    run(&as_user, &["--user", "1000:1000"], script).ok().prints("1000\n1000\n1000\n5");
    assert_eq!(owners(shared.join("app")), (user, user));

    // Ranges name ids of the host, which have to be the user's.
    let ranges = format!("{mount},idmap=7:{user}:1;100:{FIRST}:10");
    run(&ranges, &[], "stat -c %u /m/mine /m/given /m/users").ok().prints("7\n104\n65534");
    let beyond = FIRST + COUNT;
    let ranges = format!("{mount},idmap=0:{user}:1;1:{beyond}:1");
    run(&ranges, &[], "true").fails(125, "neither yours nor in your range");
    it.bare(["system", "stop"]).run().ok();
}

#[test]
fn a_plain_user_without_a_range_is_told_how_to_get_one() {
    let it = Installation::of_plain_user_with_busybox();
    let user = fs::metadata(it.app_root()).unwrap().uid();
    let shared = directory(&it, "shared", user);
    file(&shared.join("strangers"), 0o600, 0);
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
    let mount = format!("type=bind,source={},target=/m", shared.display());
    let run = |mount: &str, options: &[&str], script: &str| {
        let command = it.bare(["run", "--network", "none", "--mount", mount]);
        command.args(options).args(["busybox", "sh", "-c", script]).run()
    };
    let script = "cd /m; touch made; chown 5 made 2>&1; chown 6 made 2>&1; cat strangers 2>&1; \
                  echo x 2>&1 >> strangers; chown 0:0 made && echo mine";
    run(&mount, &["--name", "box"], script).ok().has("chown: made: Operation not permitted").has(
        "cat: can't open 'strangers': Permission denied\n\
         sh: can't create strangers: Permission denied\nmine",
    );
    // One line, however many ids were refused.
    let logs = it.bare(["system", "logs"]).run().ok().text();
    let said = logs.lines().filter(|line| line.contains("usermod --add-subuids"));
    assert_eq!(said.count(), 1, "{logs}");

    // Nobody else can be the owner, but for the one who is said to be.
    let script = "touch /m/x 2>&1; mkdir /m/x 2>&1; ln -s a /m/x 2>&1; mkfifo /m/x 2>&1";
    let refused = run(&mount, &["--rm", "--user", "1000"], script).code(1).text();
    assert_eq!(refused.matches("Operation not permitted").count(), 4, "{refused}");
    let as_user = format!("{mount},uid=1000,gid=1000");
    run(&as_user, &["--rm", "--user", "1000:1000"], "touch /m/app; cat /m/made").ok();
    assert_eq!(owners(shared.join("app")), (user, user));
    let ranges = format!("{mount},idmap=0:{user}:1;1:{FIRST}:1");
    run(&ranges, &["--rm"], "true").fails(125, "usermod --add-subuids");
    it.bare(["system", "stop"]).run().ok();
}

/// What a guest's root does to have something dangerous on the host. Each line says what came of
/// it.
const DANGERS: &str = r"
import os, stat
os.umask(0)
os.chdir('/m')
def attempt(what, do):
    try:
        do()
        print(what, 'done')
    except OSError as error:
        print(what, error.strerror)
def make(path, mode):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
attempt('create', lambda: make('created', 0o6755))
attempt('mkdir', lambda: os.mkdir('directory', 0o6755))
attempt('node', lambda: os.mknod('node', stat.S_IFREG | 0o6755))
attempt('fifo', lambda: os.mknod('fifo', stat.S_IFIFO | 0o6644))
attempt('character', lambda: os.mknod('character', stat.S_IFCHR | 0o666, os.makedev(1, 3)))
attempt('block', lambda: os.mknod('block', stat.S_IFBLK | 0o666, os.makedev(8, 0)))
attempt('chmod', lambda: os.chmod('created', 0o4755))
attempt('directory chmod', lambda: os.chmod('directory', 0o2755))
for name in ['security.capability', 'security.selinux', 'trusted.x', 'system.posix_acl_access']:
    attempt(name, lambda: os.setxattr('created', name, b'\1\0\0\2' + b'\0' * 16))
def write(path):
    with open(path, 'ab') as file:
        file.write(b'evil')
attempt('write', lambda: write('program'))
attempt('again', lambda: os.chmod('program', 0o4755))
attempt('shorten', lambda: os.truncate('shortened', 1))
attempt('device', lambda: open('device', 'rb'))
print(next(line.split()[3] for line in open('/proc/mounts') if line.split()[1] == '/m'))
";

#[test]
fn nothing_dangerous_comes_to_the_host() {
    let it = Installation::new();
    it.load_debian();
    let shared = directory(&it, "shared", 0);
    for name in ["program", "shortened", "kept"] {
        file(&shared.join(name), 0o6755, 0);
    }
    let device = shared.join("device");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &device,
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::from_raw_mode(0o666),
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    let mount = format!("{}:/m", shared.display());
    let output = it
        .container(["run", "--rm", "--cap-add", "ALL", "-v", &mount, "debian-python"])
        .args(["python3", "-c", DANGERS])
        .run()
        .ok();
    let text = output.text();
    let said = |what: &str, result: &str| {
        assert!(text.lines().any(|line| line == format!("{what} {result}")), "{what}: {text}");
    };
    for what in ["create", "mkdir", "node", "fifo", "write", "shorten"] {
        said(what, "done");
    }
    for what in ["character", "block", "chmod", "directory chmod", "again"] {
        said(what, "Operation not permitted");
    }
    for name in ["security.capability", "security.selinux", "trusted.x", "system.posix_acl_access"]
    {
        assert!(!text.contains(&format!("{name} done")), "{text}");
    }
    said("device", "Permission denied");
    let options = text.lines().last().unwrap();
    assert!(options.contains("nosuid") && options.contains("nodev"), "{options}");

    let mode = |name: &str| fs::symlink_metadata(shared.join(name)).unwrap().mode() & 0o7777;
    for (name, wanted) in [
        ("created", 0o755),
        ("directory", 0o755),
        ("node", 0o755),
        ("fifo", 0o644),
        // What a guest wrote is no set-user-id program any more; what it left alone is.
        ("program", 0o755),
        ("shortened", 0o755),
        ("kept", 0o6755),
    ] {
        assert_eq!(mode(name), wanted, "{name}: {:o}", mode(name));
    }
    assert!(!shared.join("character").exists() && !shared.join("block").exists());
    let mut names = [0u8; 256];
    let len = rustix::fs::listxattr(shared.join("created"), &mut names[..]).unwrap();
    assert!(!String::from_utf8_lossy(&names[..len]).contains("capability"));
}
