//! What a program in a container may do and see, and what its QEMU may on the host.

use e2e::{Installation, processes};

/// Docker's fourteen capabilities as the kernel prints them.
const DEFAULT_CAPABILITIES: &str = "00000000a80425fb";

/// The value of a field in what `/proc/self/status` printed.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find(|line| line.starts_with(&format!("{name}:")));
    line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim()).unwrap_or_default()
}

#[test]
fn the_defaults_are_those_of_a_careful_runtime() {
    let it = Installation::with_busybox();
    let run = ["run", "-d", "--name", "box", "-c", "1", "-m", "256m", "--network", "none"];
    it.run([&run[..], &["busybox", "sleep", "1000"]].concat()).ok();
    let sh = |script: &str| it.run(["exec", "box", "sh", "-c", script]);

    let status = sh("cat /proc/self/status").ok().text();
    for name in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(field(&status, name), DEFAULT_CAPABILITIES, "{name}");
    }
    // Set-id programs of images work, as with Docker, while the capabilities that they live
    // on are granted; see below for the other case.
    assert_eq!(field(&status, "NoNewPrivs"), "0");
    let first = sh("cat /proc/1/status").ok().text();
    assert_eq!(field(&first, "CapEff"), DEFAULT_CAPABILITIES);
    assert_eq!(field(&first, "Name"), "sleep");

    // Another user has none.
    let status = it.run(["exec", "-u", "app", "box", "cat", "/proc/self/status"]).ok().text();
    assert_eq!(field(&status, "CapEff"), "0000000000000000");

    // Masked and read-only paths.
    sh("wc -c </proc/kcore 2>/dev/null || echo 0; wc -c </proc/keys; ls /sys/firmware | wc -l")
        .ok()
        .prints("0\n0\n0");
    sh("echo 1 >/proc/sys/kernel/sysrq").code(1);
    sh("echo x >/proc/sysrq-trigger").code(1);
    sh("mount -t tmpfs x /tmp").code(1);
    sh("mknod /tmp/disk b 254 0 && cat /tmp/disk").code(1);
    sh("touch /sys/fs/cgroup/x").code(1);

    // A machine of its own: memory, processors, no network but loopback.
    let total: u64 = sh("grep MemTotal /proc/meminfo | tr -dc 0-9").ok().text().parse().unwrap();
    assert!((150_000..=262_144).contains(&total), "{total} KiB");
    sh("nproc").ok().prints("1");
    // A card that leads nowhere may be there, without an address.
    sh("ip -o addr | grep inet | awk '{print $2}' | sort -u").ok().prints("lo");
    sh("ping -c 1 -W 2 127.0.0.1 >/dev/null").ok();
    sh("ls /proc | grep -c '^[0-9]'; hostname; stat -c %a /tmp /dev/shm").ok().has("box");
    sh("test -c /dev/null && test -c /dev/zero && test -c /dev/urandom && test -e /dev/fd").ok();
    sh("df -k /dev/shm | tail -n 1 | awk '{print $2}'").ok().prints("65536");
    sh("grep -c . /etc/hosts; cat /etc/hostname").ok().has("box");
    // The program sees none of vminitd's own processes or files.
    sh("ls / | grep -E 'init|vminitd|modules'").code(1);
}

#[test]
fn flags_change_what_a_program_may() {
    let it = Installation::with_busybox();
    let run = |flags: &[&str], script: &str| {
        it.container(["run", "--rm"]).args(flags).args(["busybox", "sh", "-c", script]).run()
    };
    let output = run(
        &[
            "--cap-drop",
            "ALL",
            "--cap-add",
            "NET_ADMIN",
            "--cap-add",
            "CAP_CHOWN",
            "--ulimit",
            "nofile=123:456",
            "--ulimit",
            "core=0",
            "--read-only",
            "--tmpfs",
            "/scratch:size=1m,mode=700",
            "--shm-size",
            "2m",
            "--masked-path",
            "/etc/group",
            "--read-only-path",
            "/home",
        ],
        "grep -E 'CapEff|NoNewPrivs' /proc/self/status; ulimit -n; ulimit -Hn; ulimit -c
         touch /root/x 2>&1 | tail -c 23
         touch /scratch/y && stat -c %a /scratch
         dd if=/dev/zero of=/scratch/big bs=1k count=2000 2>/dev/null || echo full
         df -k /dev/shm | tail -n 1 | awk '{print $2}'
         wc -c </etc/group
         touch /home/z 2>&1 | tail -c 23",
    );
    let text = output.ok().text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "CapEff:\t0000000000001001",
            "NoNewPrivs:\t1",
            "123",
            "456",
            "0",
            " Read-only file system",
            "700",
            "full",
            "2048",
            "0",
            " Read-only file system",
        ]
    );
    run(&["--cap-drop", "CHOWN"], "chown app /etc/passwd").code(1);
    run(&["--cap-add", "ALL"], "grep CapEff /proc/self/status").ok().has("ff");
    run(&["--cap-add", "FLY"], "true").fails(125, "FLY");
}

#[test]
fn qemu_runs_in_an_empty_jail() {
    let it = Installation::with_busybox();
    it.run(["run", "-d", "--name", "box", "busybox", "sleep", "1000"]).ok();
    let qemus = it.qemus();
    assert_eq!(qemus.len(), 1, "{qemus:#?}");
    let pid = qemus[0].pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&status, name), "0000000000000000", "{name}");
    }
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    assert_eq!(field(&status, "Seccomp"), "2");
    for uid in field(&status, "Uid").split_whitespace() {
        assert_ne!(uid, "0", "QEMU runs as root");
    }
    for namespace in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let of = |pid: &str| {
            std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).expect("a namespace")
        };
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace} is shared with the host");
    }
    // Its root holds nothing of the host, and nothing can be written there.
    let root = format!("/proc/{pid}/root");
    for absent in ["home", "root", "etc/passwd", "etc/shadow", "bin/sh", "sys/kernel", "run"] {
        assert!(!std::path::Path::new(&root).join(absent).exists(), "{absent} is in the jail");
    }
    assert!(it.inspect("box")["hypervisorPid"].as_u64().is_some_and(|shown| {
        shown == u64::from(pid) || !processes::exists(u32::try_from(shown).unwrap_or_default())
    }));
    // The VM's parent in the tree is its helper: nothing lies between them.
    assert!(
        it.processes()
            .iter()
            .any(|process| process.pid == qemus[0].parent
                && process.name.starts_with("container-run"))
    );
}

#[test]
fn a_guest_panic_becomes_an_exit_record() {
    let it = Installation::with_busybox();
    // Other masked and read-only paths leave the trigger writable.
    it.run([
        "run",
        "--name",
        "box",
        "--read-only-path",
        "/nothing",
        "--masked-path",
        "/nothing",
        "busybox",
        "sh",
        "-c",
        "echo c >/proc/sysrq-trigger; sleep 60",
    ])
    .code(125);
    let shown = it.inspect("box");
    assert_eq!(shown["status"], "stopped");
    let reason = shown["exit"]["reason"].as_str().unwrap_or_default().to_lowercase();
    assert!(reason.contains("panic"), "{reason}");
    it.run(["logs", "--boot", "box"]).ok().has("Kernel panic");
    assert!(it.qemus().is_empty());
}

/// Makes calls by number, and prints each one's error: keyctl, unshare of a user namespace, mount,
/// io_uring_setup, clone3, sockets of two families, personality, and a call that nobody has.
const CALLS: &str = r#"
use Errno; use POSIX;
my $arm = (POSIX::uname())[4] eq "aarch64";
sub call {
    my ($name, $x86, $generic, @arguments) = @_;
    $! = 0;
    my $answer = syscall($arm ? $generic : $x86, @arguments);
    my ($error) = $answer < 0 ? grep { $!{$_} } sort keys %! : "ok";
    print "$name $error\n";
}
call("keyctl", 250, 219, 0, -3, 1);
call("unshare", 272, 97, 0x10000000);
call("mount", 165, 40, 0, 0, 0, 0, 0);
call("io_uring", 425, 425, 1, 0);
call("clone3", 435, 435, 0, 0);
call("inet", 41, 198, 2, 1, 0);
call("alg", 41, 198, 38, 5, 0);
call("personality", 135, 92, 0x0040000);
call("sync", 162, 81);
call("none", 4000, 4000);
"#;

#[test]
fn system_calls_are_filtered() {
    let it = Installation::with_busybox();
    it.load_debian();
    let calls = |flags: &[&str]| {
        it.container(["run", "--rm"])
            .args(flags)
            .args([e2e::debian::NAME, "perl", "-e", CALLS])
            .run()
            .ok()
            .text()
    };
    let seccomp = |flags: &[&str]| {
        it.container(["run", "--rm"])
            .args(flags)
            .args(["busybox", "grep", "-E", "^(Seccomp|NoNewPrivs):", "/proc/self/status"])
            .run()
            .ok()
            .text()
    };
    assert_eq!(
        calls(&[]).lines().collect::<Vec<_>>(),
        [
            "keyctl EPERM",
            "unshare EPERM",
            "mount EPERM",
            "io_uring EPERM",
            "clone3 ENOSYS",
            "inet ok",
            "alg EPERM",
            "personality EPERM",
            "sync ok",
            "none ENOSYS",
        ]
    );
    // Without it the kernel itself answers.
    let unconfined = calls(&["--security-opt", "seccomp=unconfined"]);
    for line in ["keyctl ok", "personality ok", "clone3 EINVAL"] {
        assert!(unconfined.contains(line), "{line} is not in {unconfined}");
    }
    // Programs of a distribution go on working.
    let script = "set -e; dpkg --list >/dev/null; dpkg --verify bash
        python3 -c 'import subprocess, threading
t = threading.Thread(target=print, args=(\"thread\",)); t.start(); t.join()
subprocess.run([\"true\"], check=True)'";
    it.run(["run", "--rm", e2e::debian::NAME, "sh", "-c", script]).ok().prints("thread");

    assert_eq!(seccomp(&[]), "NoNewPrivs:\t0\nSeccomp:\t2");
    let unconfined = ["--security-opt", "seccomp=unconfined"];
    assert_eq!(seccomp(&unconfined), "NoNewPrivs:\t0\nSeccomp:\t0");
    let none = ["--security-opt", "no-new-privileges", "--init", "--user", "app"];
    assert_eq!(seccomp(&none), "NoNewPrivs:\t1\nSeccomp:\t2");

    // A profile of the user's, for the first process, its init, and what is executed later.
    let file = it.scratch().join("profile.json");
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
    std::fs::write(&file, profile).unwrap();
    let option = format!("seccomp={}", file.display());
    let run = ["run", "-d", "--init", "--name", "box", "--security-opt", &option, "busybox"];
    it.run([&run[..], &["sleep", "1000"]].concat()).ok();
    let made = it.run(["exec", "box", "mkdir", "/tmp/x"]).code(1);
    assert!(made.errors().contains("No space left on device"), "{}", made.errors());
    it.run(["exec", "box", "grep", "^Seccomp:", "/proc/1/status"]).ok().prints("Seccomp:\t2");
    let about = it.inspect("box").to_string();
    assert!(about.contains("SCMP_ACT_ALLOW") && about.contains("mkdirat"), "{about}");

    // What is not understood is refused, before anything is made.
    for option in ["apparmor=unconfined", "seccomp=/nowhere/profile.json", "label=disable"] {
        it.run(["run", "--security-opt", option, "busybox", "true"]).fails(125, option);
    }
    std::fs::write(&file, r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#).unwrap();
    it.run(["run", "--security-opt", &option, "busybox", "true"]).fails(125, "SCMP_ACT_NOTIFY");
}
