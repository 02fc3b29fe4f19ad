//! Everything as a plain user: no root anywhere, not even for the jail. Networks, which need a
//! `/dev/net/tun` for everyone, have a test of their own.

use e2e::{Installation, busybox, processes};

/// A user that no file of this machine belongs to.
const UID: u32 = 12_345;

#[test]
fn a_plain_user_runs_containers() {
    let it = match rustix::process::geteuid().is_root() {
        true => Installation::of_user(UID),
        false => Installation::new(),
    };
    let archive = it.scratch().join("image.tar");
    busybox::image().unwrap().write_archive(&archive).unwrap();
    let home = it.scratch().to_owned();
    let container = |args: &[&str]| {
        it.container(args).env("HOME", &home).env_remove("XDG_RUNTIME_DIR").env_remove("USER")
    };
    container(&["image", "load", "--input"]).arg(&archive).run().ok();
    container(&["run", "--rm", "--network", "none", "busybox", "sh", "-c", "id -u; exit 23"])
        .run()
        .code(23)
        .prints("0");
    container(&["run", "-d", "--name", "box", "--network", "none", "busybox", "sleep", "1000"])
        .run()
        .ok();
    container(&["exec", "box", "true"]).run().ok();

    // No process of the installation is root's, and QEMU is in its jail.
    for process in it.processes() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
        let uids = status.lines().find(|line| line.starts_with("Uid:")).unwrap().to_owned();
        assert!(!uids.split_whitespace().any(|word| word == "0"), "{process:?}: {uids}");
    }
    let qemu = it.qemus();
    assert_eq!(qemu.len(), 1);
    let status = std::fs::read_to_string(format!("/proc/{}/status", qemu[0].pid)).unwrap();
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    assert!(status.contains("Seccomp:\t2"), "{status}");
    container(&["stop", "-t", "1", "box"]).run().ok();
    assert!(!processes::exists(qemu[0].pid));
    container(&["delete", "box"]).run().ok();
    container(&["system", "stop"]).run().ok();
}
