//! Virtual machines in containers: off unless asked for and granted, and what keeps them off.

use e2e::{DEADLINE, Installation, Terminal, debian, wait_for};

/// The first line of a refusal.
const REFUSAL: &str = "Error: unsupported: nested virtualization is not supported on the platform";

/// Runs a virtual machine, and prints what its program has computed.
const PROGRAM: &str = include_str!("../assets/kvm.pl");

/// An installation in which nobody is asked.
fn allowing() -> Installation {
    Installation::with_config("security.virtualization = 'allow'\nruntime.spare = 0\n")
}

#[test]
fn off_means_no_flags_no_device_and_no_modules() {
    let it = Installation::with_config("runtime.template = false\n");
    // With all that a container can be given.
    let all = ["--cap-add", "ALL", "--security-opt", "seccomp=unconfined"];
    it.run([&["run", "-d", "--name", "box"][..], &all, &["busybox", "sleep", "1000"]].concat())
        .ok();
    assert_eq!(it.inspect("box")["configuration"]["virtualization"], false);
    let sh = |script: &str| it.run(["exec", "box", "sh", "-c", script]);
    let flags = sh("grep -m 1 -E '^(flags|Features)' /proc/cpuinfo").ok().text();
    for flag in ["svm", "vmx"] {
        assert!(!flags.split_whitespace().any(|word| word == flag), "{flag} is in {flags}");
    }
    sh("test -e /dev/kvm").code(1);
    // A node of it leads nowhere, on a kernel with KVM too.
    let made = sh("mknod /dev/kvm c 10 232 && cat /dev/kvm").code(1);
    let said = made.errors();
    let blocked = ["Operation not permitted", "No such device"].iter().any(|e| said.contains(e));
    assert!(blocked, "{said}");
    // A kernel without modules lists none.
    sh("cat /proc/modules 2>/dev/null | grep -wE 'kvm|kvm_amd|kvm_intel'").code(1);
}

#[test]
fn the_guest_kernel_is_closed_once_a_program_can_load_modules() {
    let it = Installation::with_config("runtime.template = false\n");
    let all = ["--cap-add", "ALL", "--security-opt", "seccomp=unconfined"];
    let run = ["run", "--rm", "-c", "1", "-m", "256m"];
    let script = "for name in kernel/modules_disabled kernel/kptr_restrict kernel/panic_on_oops \
                  kernel/unprivileged_bpf_disabled kernel/kexec_load_disabled \
                  kernel/yama/ptrace_scope kernel/dmesg_restrict; do \
                  echo $name $(cat /proc/sys/$name 2>/dev/null || echo none); done
                  mkdir -p /tmp/s && mount -t securityfs none /tmp/s && cat /tmp/s/lockdown
                  grep -o 'oops=panic' /proc/cmdline";
    let command = ["busybox", "sh", "-c", script];
    let said = it.run([&run[..], &all, &command].concat()).ok().text();
    // A kernel without modules has no such switch, and needs none.
    let closed = ["kernel/modules_disabled 1", "kernel/modules_disabled none"];
    assert!(said.lines().any(|line| closed.contains(&line)), "{said}");
    for line in [
        "kernel/kptr_restrict 2",
        "kernel/panic_on_oops 1",
        "kernel/unprivileged_bpf_disabled 1",
        "kernel/kexec_load_disabled 1",
        "kernel/yama/ptrace_scope 1",
        "kernel/dmesg_restrict 1",
        "none [integrity] confidentiality",
        "oops=panic",
    ] {
        let absent = line.strip_suffix('1').map(|name| format!("{name}none"));
        let found = |l: &str| l == line || absent.as_deref() == Some(l);
        assert!(said.lines().any(found), "{line} is not in {said}");
    }
}

#[test]
fn every_way_of_starting_ends_with_a_closed_kernel() {
    let it = Installation::with_config("runtime.spare = 0\n");
    let run = |name: &str| {
        it.run(["run", "-d", "--name", name, "busybox", "sleep", "1000"]).ok();
        // Drivers that a boot leaves out come once the program runs.
        let closed = || {
            let script = "cat /proc/sys/kernel/modules_disabled 2>/dev/null || echo 1";
            let said = it.run(["exec", name, "sh", "-c", script]).ok().text();
            (said == "1").then_some(())
        };
        wait_for("a kernel that takes no modules", DEADLINE, closed);
    };
    run("cold");
    it.wait_for_template();
    run("restored");
    assert_eq!(it.inspect("restored")["vmOrigin"], "template");
    // What is plugged in and loaded afterwards still works.
    let update = it.run(["update", "-m", "512m", "restored"]);
    assert_eq!(update.code, Some(0), "{update:?}");
}

#[test]
fn policy_is_the_services_and_a_terminal_is_asked() {
    let it = Installation::with_config("security.virtualization = 'ask'\nruntime.spare = 0\n");
    let run = ["run", "--rm", "--virtualization", "busybox", "test", "-c", "/dev/kvm"];
    // Nobody is there who could be asked.
    let refused = it.run(run).code(125);
    let said = refused.errors();
    assert_eq!(said.lines().next(), Some(REFUSAL), "{said}");
    assert!(said.contains("confirmed on a terminal"), "{said}");
    it.run(["create", "--virtualization", "true", "busybox"]).code(125);
    assert_eq!(it.run(["list", "--all", "--quiet"]).ok().text(), "");
    for (answer, code) in [(&b"n\r"[..], 125), (b"yes\r", 0)] {
        let mut command = std::process::Command::new(it.binaries().join("container"));
        command.args(run).env("CONTAINER_APP_ROOT", it.app_root());
        let mut terminal = Terminal::start(command, 24, 200);
        terminal.expect("[y/N]", DEADLINE);
        terminal.write(answer);
        let ended = terminal.wait(DEADLINE);
        assert_eq!(ended, code, "{}", String::from_utf8_lossy(&terminal.shown));
    }
    // Both are on record.
    let trail = it.run(["system", "audit", "list", "--format", "json"]).ok().text();
    assert!(trail.contains("virtualizationConfirmed"), "{trail}");

    let it = Installation::with_config("security.virtualization = 'deny'\n");
    let said = it.run(run).code(125).errors();
    assert_eq!(said.lines().next(), Some(REFUSAL), "{said}");
    assert!(said.contains("the configuration denies it"), "{said}");
    it.run(["run", "--rm", "--virtualization=false", "busybox", "true"]).ok();
}

#[test]
fn a_start_is_checked_as_the_creation_was() {
    let it = allowing();
    it.run(["create", "--name", "box", "--virtualization", "busybox", "true"]).ok();
    assert_eq!(it.inspect("box")["configuration"]["virtualization"], true);
    it.run(["system", "stop"]).ok();
    it.configure("security.virtualization = 'deny'\n");
    let said = it.run(["start", "box"]).code(125).errors();
    assert_eq!(said.lines().next(), Some(REFUSAL), "{said}");
    // Its files are still its owner's.
    it.run(["cp", "box:/etc/passwd", "-"]).ok();
}

#[test]
fn a_kernel_without_kvm_is_named() {
    let it = allowing();
    let bundle = it.scratch().join("bundle");
    let from = e2e::installation::binaries().join("../share/container/kernel");
    e2e::Cmd::new("cp").arg("-rT").arg(from).arg(&bundle).run().ok();
    let record = bundle.join("bundle.json");
    let mut json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    json["virtualization"] = false.into();
    std::fs::write(&record, json.to_string()).unwrap();
    let said = it
        .container(["run", "--virtualization", "--kernel"])
        .arg(&bundle)
        .args(["busybox", "true"])
        .run()
        .code(125)
        .errors();
    assert_eq!(said.lines().next(), Some(REFUSAL), "{said}");
    assert!(said.contains("has no CONFIG_KVM"), "{said}");
}

#[test]
fn a_virtual_machine_runs_in_a_container() {
    let it = allowing();
    it.load_debian();
    let run = ["run", "--rm", "--virtualization"];
    let program = ["perl", "-e", PROGRAM];
    let said = it.run([&run[..], &[debian::NAME], &program].concat()).ok().text();
    assert_eq!(said.lines().collect::<Vec<_>>(), ["version 12", "result 42", "halted"]);
    // Without privileges, from a template, which is another one than that of other containers.
    let usual = ["run", "-d", "--name", "usual", "busybox", "sleep", "1000"];
    it.run(usual).ok();
    it.run(["run", "-d", "--name", "first", "--virtualization", "busybox", "sleep", "1000"]).ok();
    let ready = || {
        let status = it.run(["system", "status", "--format", "json"]).ok().json();
        let ready = |t: &&serde_json::Value| t["state"] == "ready";
        let all = status["templates"].as_array()?.iter().filter(ready).count();
        (all == 2).then_some(())
    };
    wait_for("two templates", DEADLINE * 2, ready);
    let more = ["--user", "1000:1000", "--name", "restored", debian::NAME];
    let restored = [&["run", "--virtualization"][..], &more, &program].concat();
    it.run(restored).ok().has("result 42");
    assert_eq!(it.inspect("restored")["configuration"]["virtualization"], true);
    it.run(["run", "--rm", "busybox", "test", "-e", "/dev/kvm"]).code(1);
}
