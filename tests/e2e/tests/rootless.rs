//! Everything as a plain user: no root anywhere, not even for the jail. Networks, which need a
//! `/dev/net/tun` for everyone, have a test of their own.

use e2e::{Installation, processes};

#[test]
fn a_plain_user_runs_containers() {
    let it = Installation::of_plain_user_with_busybox();
    it.bare(["run", "--rm", "--network", "none", "busybox", "sh", "-c", "id -u; exit 23"])
        .run()
        .code(23)
        .prints("0");
    it.bare(["run", "-d", "--name", "box", "--network", "none", "busybox", "sleep", "1000"])
        .run()
        .ok();
    it.bare(["exec", "box", "true"]).run().ok();

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
    it.bare(["stop", "-t", "1", "box"]).run().ok();
    assert!(!processes::exists(qemu[0].pid));
    it.bare(["delete", "box"]).run().ok();
    it.bare(["system", "stop"]).run().ok();
}
