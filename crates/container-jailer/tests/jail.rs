//! The jail from inside: busybox's shell looks around and tries to get out.

use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const JAIL_UID: &str = "64321";
const UNPRIVILEGED: u32 = 12_345;

/// Who starts the jailer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Caller {
    /// The user that runs the tests.
    Own,
    /// Another, where root runs them.
    Unprivileged,
}

fn is_root() -> bool {
    nix::unistd::getuid().is_root()
}

fn callers() -> Vec<Caller> {
    match is_root() {
        true => vec![Caller::Own, Caller::Unprivileged],
        false => vec![Caller::Own],
    }
}

/// A directory that every user can reach, with the jailer in it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
        let jailer = dir.path().join("container-jailer");
        // By another process: a program can't start while any process has it
        // open for writing, and other tests fork meanwhile.
        let source = env!("CARGO_BIN_EXE_container-jailer");
        let copied = Command::new("cp").arg(source).arg(jailer).status();
        assert!(copied.expect("cp").success());
        Place { dir }
    }

    fn jailer(&self, caller: Caller) -> Command {
        let jailer = self.dir.path().join("container-jailer");
        let mut command = match caller {
            Caller::Own => Command::new(jailer),
            Caller::Unprivileged => {
                let mut command = Command::new("setpriv");
                command.arg(format!("--reuid={UNPRIVILEGED}"));
                command.arg(format!("--regid={UNPRIVILEGED}"));
                command.arg("--clear-groups").arg(jailer);
                command
            }
        };
        if is_root() && caller == Caller::Own {
            command.args(["--host-uid", JAIL_UID, "--host-gid", JAIL_UID]);
        }
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    /// Runs a script in a jail with busybox and waits for it through its
    /// standard output.
    fn shell(&self, caller: Caller, options: &[&str], script: &str) -> Output {
        let mut command = self.jailer(caller);
        command.args(["--bind", busybox(), "/bin/busybox", "--env", "PATH=/bin"]);
        command.args(options);
        command.args(["--", "/bin/busybox", "sh", "-c", script]);
        command.output().expect("the jailer")
    }
}

fn busybox() -> &'static str {
    let paths = ["/bin/busybox", "/usr/bin/busybox"];
    let found = paths.into_iter().find(|path| Path::new(path).exists());
    found.expect("busybox (package busybox-static)")
}

fn stdout(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!error.contains("error "), "{error}");
    text
}

#[test]
fn the_program_is_nobody_and_sees_nothing() {
    let place = Place::new();
    for caller in callers() {
        let script = "busybox id -u; busybox id -g; busybox hostname; busybox find / -xdev; \
                      busybox ls /proc | busybox grep -v '^[0-9]'; \
                      busybox grep -E '^(Cap|NoNew|Seccomp:)' /proc/self/status; \
                      echo $$; ulimit -c; ulimit -n; busybox env | busybox sort";
        let output = place.shell(caller, &["--limit", "nofile=64"], script);
        let expected = "1000\n1000\njail\n/\n/proc\n/dev\n/dev/null\n/bin\n/bin/busybox\n\
                        self\nthread-self\n\
                        CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\n\
                        CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n\
                        CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n1\n0\n64\n";
        let text = stdout(&output);
        assert!(text.starts_with(expected), "{caller:?}: {text}");
        let environment = text.strip_prefix(expected).unwrap_or_default();
        let own = ["OLDPWD=", "PATH=/bin", "PWD=/", "SHLVL="];
        assert!(
            environment.lines().all(|line| own.iter().any(|o| line.starts_with(o))),
            "{environment}"
        );
    }
}

#[test]
fn ways_out_are_closed() {
    let place = Place::new();
    for caller in callers() {
        for attempt in [
            "busybox mount -t tmpfs x /proc",
            "busybox umount /proc",
            "busybox unshare -U busybox true",
            "busybox unshare -n busybox true",
            "busybox chroot / busybox true",
            "echo x > /file",
            "echo x > /bin/busybox",
            "busybox chmod 777 /bin/busybox",
            "busybox mknod /dev/x c 1 1",
            "busybox wget -q -O - http://127.0.0.1/",
            "busybox hostname other",
            "busybox adjtimex -f 1",
            "busybox dmesg",
            "busybox ls /proc/sys",
            "busybox su",
        ] {
            let script = format!("if {attempt} >/dev/null 2>&1; then echo out; else echo in; fi");
            let output = place.shell(caller, &[], &script);
            assert_eq!(stdout(&output), "in\n", "{caller:?}: {attempt}");
        }
    }
}

#[test]
fn shared_files_cannot_be_written_by_their_owner() {
    let place = Place::new();
    for caller in callers() {
        let shared = place.dir.path().join("shared");
        fs::write(&shared, "template").expect("a file");
        // The worst case: the jail's own uid owns the file.
        if is_root() {
            let uid = match caller {
                Caller::Own => JAIL_UID.parse().expect("a number"),
                Caller::Unprivileged => UNPRIVILEGED,
            };
            std::os::unix::fs::chown(&shared, Some(uid), Some(uid)).expect("its owner");
        }
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o644)).expect("its mode");
        let path = shared.to_str().expect("a path");
        // Without landlock too: the read-only mount alone must hold.
        let script = "busybox cat /proc/self/fd/9; busybox cat <&9; \
                      busybox chmod 666 /proc/self/fd/9 || echo no; \
                      busybox truncate -s 0 /proc/self/fd/9 || echo no; \
                      echo x >> /proc/self/fd/9 || echo no; echo x >&9 || echo no; \
                      busybox touch /proc/self/fd/9 || echo no; \
                      (: <>/proc/self/fd/9) || echo no; \
                      busybox fallocate -l 4096 /proc/self/fd/9 || echo no; \
                      busybox dd of=/proc/self/fd/9 conv=notrunc </bin/busybox || echo no; \
                      busybox mount -o remount,rw /proc/self/fd/9 || echo no";
        let output = place.shell(caller, &["--share", "9", path], script);
        let text = stdout(&output);
        assert_eq!(text, format!("templatetemplate{}", "no\n".repeat(9)), "{output:?}");
        assert_eq!(fs::read(&shared).expect("a file"), b"template");
        let mode = fs::metadata(&shared).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("Read-only file system"), "{error}");
    }
}

#[test]
fn root_shares_files_out_of_others_homes() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let home = place.dir.path().join("home");
    let shared = home.join("shared");
    fs::create_dir(&home).expect("a directory");
    fs::write(&shared, "kernel").expect("a file");
    for path in [&home, &shared] {
        std::os::unix::fs::chown(path, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).expect("an owner");
    }
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("its mode");
    let path = shared.to_str().expect("a path");
    let options = ["--share", "9", path, "--bind", path, "/kernel"];
    let script = "busybox cat /proc/self/fd/9 /kernel; busybox chmod 777 /kernel || echo no";
    let output = place.shell(Caller::Own, &options, script);
    assert_eq!(stdout(&output), "kernelkernelno\n", "{output:?}");
}

#[test]
fn only_named_descriptors_are_there() {
    let place = Place::new();
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let leak = fs::File::open("/etc/passwd").expect("a file");
    let directory = fs::File::open("/").expect("a directory");
    let kept = theirs.as_raw_fd();
    let number = kept.to_string();
    for caller in callers() {
        let script = format!("busybox ls /proc/$$/fd; echo hello >&{kept}");
        let mut command = place.jailer(caller);
        command.args(["--bind", busybox(), "/bin/busybox", "--env", "PATH=/bin"]);
        command.args(["--keep", &number, "--", "/bin/busybox", "sh", "-c", &script]);
        inherit(&mut command, &[kept, leak.as_raw_fd()]);
        let text = stdout(&command.output().expect("the jailer"));
        let mut listed: Vec<&str> = text.lines().collect();
        listed.sort();
        let mut expected = vec!["0", "1", "2", &number];
        expected.sort();
        assert_eq!(listed, expected);
        let mut heard = [0; 6];
        ours.read_exact(&mut heard).expect("a line");
        assert_eq!(&heard, b"hello\n");

        let mut command = place.jailer(caller);
        let way_out = directory.as_raw_fd();
        command.args(["--check", "--keep", &way_out.to_string()]);
        inherit(&mut command, &[way_out]);
        let output = command.output().expect("the jailer");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    }
}

#[test]
fn a_tap_leads_nowhere() {
    let place = Place::new();
    let device = fs::metadata("/dev/net/tun").expect("/dev/net/tun").permissions().mode();
    for caller in callers() {
        let script = "busybox readlink /proc/$$/fd/9 | busybox grep -o net/tun; busybox grep -c : /proc/self/net/dev; \
                      busybox grep -o tap0 /proc/self/net/dev; echo x >/proc/self/fd/9 || echo no";
        let output = place.shell(caller, &["--tap", "9"], script);
        if is_root() && caller == Caller::Unprivileged && device & 0o006 != 0o006 {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(text.contains("error tap: /dev/net/tun: "), "{text}");
            continue;
        }
        assert_eq!(stdout(&output), "net/tun\n2\ntap0\nno\n", "{caller:?}: {output:?}");
        let host = fs::read_to_string("/proc/net/dev").expect("the host's");
        assert!(!host.contains("tap0:"), "{host}");
    }
}

#[test]
fn two_calls_are_for_the_starter_to_answer() {
    let place = Place::new();
    for caller in callers() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let number = theirs.as_raw_fd().to_string();
        let mut command = place.jailer(caller);
        command.args(["--bind", busybox(), "/bin/busybox", "--env", "PATH=/bin"]);
        command.args(["--notify", &number, "--", "/bin/busybox", "sh", "-c"]);
        command.arg(
            "busybox ls /proc/$$/fd; busybox grep Seccomp_filters /proc/self/status; \
             echo x >/dev/null && echo written; (: <>/dev/null) || echo asked",
        );
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        inherit(&mut command, &[theirs.as_raw_fd()]);
        let child = command.spawn().expect("the jailer");
        drop((command, theirs));
        // With the message its listener goes, and nobody answers any more.
        let mut byte = [0];
        (&ours).read_exact(&mut byte).expect("the message that the listener came with");
        let output = child.wait_with_output().expect("its output");
        let expected = "0\n1\n2\nSeccomp_filters:\t2\nwritten\nasked\n";
        assert_eq!(stdout(&output), expected, "{caller:?}");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("Function not implemented"), "{error}");
    }
}

fn inherit(command: &mut Command, fds: &[RawFd]) {
    let fds = fds.to_vec();
    // SAFETY: only fcntl runs between fork and exec.
    unsafe {
        command.pre_exec(move || {
            for fd in &fds {
                nix::libc::fcntl(*fd, nix::libc::F_SETFD, 0);
            }
            Ok(())
        });
    }
}

#[test]
fn failures_name_their_step() {
    let place = Place::new();
    for caller in callers() {
        for (options, code, words) in [
            (vec!["--bind", "/nowhere", "/x", "--", "/x"], 1, "bind: /nowhere"),
            (vec!["--share", "9", "/nowhere", "--", "/x"], 1, "share: /nowhere"),
            (vec!["--share", "9", "/etc", "--", "/x"], 1, "not a regular file"),
            (vec!["--keep", "77", "--", "/x"], 1, "descriptor 77 is not open"),
            (vec!["--parent", "1", "--", "/x"], 1, "starter: the parent is"),
            (vec!["--nonsense"], 2, "unknown option"),
        ] {
            let output = place.jailer(caller).args(&options).output().expect("it");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(code), "{text}");
            assert!(text.contains(words) && text.lines().count() == 1, "{text}");
        }
        // The second process reports by itself; the first has succeeded by then.
        let output = place.jailer(caller).args(["--", "/nowhere"]).output();
        let text = String::from_utf8_lossy(&output.expect("it").stderr).into_owned();
        assert!(text.contains("error exec: /nowhere: "), "{text}");
    }
}

#[test]
fn check_builds_a_jail_and_runs_nothing() {
    let place = Place::new();
    for caller in callers() {
        let output = place.jailer(caller).arg("--check").output().expect("it");
        assert!(output.status.success(), "{output:?}");
        assert!(output.stderr.is_empty() && output.stdout.is_empty());
    }
}

#[test]
fn root_cannot_stay_root() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let jailer: PathBuf = place.dir.path().join("container-jailer");
    let output = Command::new(&jailer).arg("--check").output().expect("it");
    assert_eq!(output.status.code(), Some(2));
    let zero = ["--check", "--host-uid", "0", "--host-gid", "0"];
    let output = Command::new(&jailer).args(zero).output().expect("it");
    assert_eq!(output.status.code(), Some(2));
    let mut other = place.jailer(Caller::Unprivileged);
    let output = other.args(["--check", "--host-uid", "1", "--host-gid", "1"]);
    assert_eq!(output.output().expect("it").status.code(), Some(2));
}

/// A host without network namespaces: one whose limit of them is 0.
#[test]
fn a_missing_layer_is_refused_unless_allowed() {
    let place = Place::new();
    let jailer = place.dir.path().join("container-jailer");
    let jailer = jailer.display();
    for (options, code, words) in [
        ("", 4, "missing-layer net: "),
        ("--allow-missing ipc", 4, "missing-layer net: "),
        ("--allow-missing net", 0, ""),
    ] {
        let script =
            format!("echo 0 > /proc/sys/user/max_net_namespaces; exec {jailer} --check {options}");
        let output = Command::new("unshare")
            .args(["--user", "--map-user=5", "--map-group=5", "--keep-caps"])
            .args(["sh", "-c", &script])
            .output()
            .expect("unshare");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(words), "{text}");
    }
}
