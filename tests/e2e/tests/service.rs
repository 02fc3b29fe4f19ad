//! The service: started, stopped, killed; and what of a container survives which death.

use std::time::{Duration, Instant};

use e2e::{DEADLINE, Installation, busybox, processes, wait_for};
use rustix::process::Signal;

/// "Within a second" of the promise, and what a busy emulating machine adds.
const SOON: Duration = Duration::from_secs(3);

#[test]
fn it_starts_says_what_it_is_and_stops() {
    let it = Installation::new();
    it.run(["system", "status"]).fails(125, "system start");
    it.run(["system", "start"]).ok();
    it.run(["system", "start"]).ok();
    let status = it.run(["system", "status", "--format", "json"]).ok().json();
    assert_eq!(status["appRoot"].as_str(), it.app_root().to_str());
    assert_eq!(status["status"], "running");
    assert!(matches!(status["accelerator"].as_str(), Some("kvm" | "tcg")), "{status}");
    assert!(status["acceleratorReason"].as_str().is_some_and(|reason| !reason.is_empty()));
    assert!(processes::exists(it.apiserver_pid()));
    it.run(["system", "status"]).ok().has("running");
    it.run(["system", "version"]).ok().has(env!("CARGO_PKG_VERSION"));
    it.run(["system", "version", "--format", "json"]).ok().json();
    let logs = |predicate: &str| it.run(["system", "logs", "--predicate", predicate]);
    let began = "process == 'container-apiserver' AND message CONTAINS 'the service answers'";
    logs(began).ok().has("the service answers");
    let others = logs(&format!("NOT ({began})")).ok().text();
    assert!(!others.contains("the service answers"), "{others}");
    logs("size > 3").fails(125, "size");
    let pid = it.apiserver_pid();
    it.run(["system", "stop"]).ok();
    wait_for("the end of the apiserver", SOON, || (!processes::exists(pid)).then_some(()));
    it.run(["system", "status"]).fails(125, "system start");
    wait_for("the end of its processes", SOON, || it.processes().is_empty().then_some(()));
}

#[test]
fn run_starts_it_and_several_live_side_by_side() {
    let one = Installation::with_busybox();
    // Sockets end at 107 bytes, app roots do not.
    let deep = format!("{}/root", "a-rather-long-name-of-a-folder/".repeat(6));
    let two = Installation::with_app_root(&deep);
    two.load(&busybox::image().unwrap());
    assert!(two.app_root().as_os_str().len() > 150);
    one.run(["run", "-d", "--name", "box", "busybox", "sleep", "1000"]).ok();
    two.run(["run", "-d", "--name", "box", "busybox", "sleep", "1000"]).ok();
    assert_ne!(one.apiserver_pid(), two.apiserver_pid());
    // The flag says the same as the variable, and wins.
    one.container(["--app-root"]).arg(two.app_root()).args(["delete", "--force", "box"]).run().ok();
    assert_eq!(two.status("box"), None);
    assert_eq!(one.status("box").as_deref(), Some("running"));
    // `system stop` ends what runs.
    one.run(["system", "stop"]).ok();
    wait_for("the end of its processes", SOON, || one.processes().is_empty().then_some(()));
    two.run(["list"]).ok();
}

#[test]
fn a_killed_apiserver_comes_back_to_its_containers() {
    let it = Installation::with_busybox();
    let script = "i=0; while [ $i -lt 600 ]; do i=$((i+1)); echo tick $i; sleep 0.1; \
                  test -e /tmp/end && exit 11; done";
    it.run(["run", "-d", "--name", "box", "busybox", "sh", "-c", script]).ok();
    let old = it.apiserver_pid();
    let qemu = it.qemus()[0].pid;
    processes::kill(old, Signal::KILL);
    wait_for("the death", SOON, || (!processes::exists(old)).then_some(()));
    assert!(processes::exists(qemu), "the VM died with the apiserver");

    // Without the runtime directory that a login would have.
    let logs = it.container(["logs", "box"]).env_remove("XDG_RUNTIME_DIR").run();
    if logs.code != Some(0) {
        it.container(["system", "start"]).env_remove("XDG_RUNTIME_DIR").run().ok();
    }
    assert_ne!(it.apiserver_pid(), old);
    assert_eq!(it.status("box").as_deref(), Some("running"));
    let mut follow = it.container(["logs", "-f", "box"]).spawn();
    follow.wait_for_stdout("tick 1\n", DEADLINE);
    let waiting = it.container(["wait", "box"]).spawn();
    it.run(["exec", "box", "touch", "/tmp/end"]).ok();
    waiting.wait(DEADLINE).ok().prints("11");
    let text = follow.wait(DEADLINE).ok().text();
    // Nothing was lost while no apiserver ran.
    for (number, line) in text.lines().enumerate() {
        assert_eq!(line, format!("tick {}", number + 1));
    }
    assert_eq!(it.inspect("box")["exit"]["exitCode"], 11);
}

#[test]
fn a_container_that_ends_while_no_apiserver_runs_is_found_ended() {
    let it = Installation::with_busybox();
    it.run(["run", "-d", "--name", "box", "busybox", "sh", "-c", "sleep 1; exit 4"]).ok();
    processes::kill(it.apiserver_pid(), Signal::KILL);
    wait_for("the VM's end", DEADLINE, || it.qemus().is_empty().then_some(()));
    it.run(["system", "start"]).ok();
    wait_for("the record", DEADLINE, || {
        (it.status("box").as_deref() == Some("stopped")).then_some(())
    });
    it.run(["wait", "box"]).ok().prints("4");
}

#[test]
fn a_killed_vm_or_helper_becomes_an_exit_record() {
    let it = Installation::with_busybox();
    for victim in ["QEMU", "helper"] {
        it.run(["run", "-d", "--name", "box", "busybox", "sleep", "1000"]).ok();
        let of_the_kind = if victim == "QEMU" { it.qemus() } else { it.helpers() };
        let pid = of_the_kind.first().expect("the victim").pid;
        let follow = it.container(["logs", "-f", "box"]).spawn();
        let waiting = it.container(["wait", "box"]).spawn();
        let executing = it.container(["exec", "box", "sleep", "1000"]).spawn();
        std::thread::sleep(Duration::from_secs(1));
        let start = Instant::now();
        processes::kill(pid, Signal::KILL);
        wait_for("the record", SOON, || {
            (it.status("box").as_deref() == Some("stopped")).then_some(())
        });
        println!("{victim}: recorded after {:?}", start.elapsed());
        assert!(it.qemus().is_empty(), "{victim}: {:#?}", it.qemus());
        let exit = it.inspect("box")["exit"].clone();
        assert!(exit["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{exit}");
        follow.wait(DEADLINE);
        waiting.wait(DEADLINE).ok();
        assert_ne!(executing.wait(DEADLINE).code, Some(0));
        // It can be started again, and deleted.
        it.run(["start", "box"]).ok();
        it.run(["delete", "--force", "box"]).ok();
        assert!(!it.container_dir("box").exists());
    }
}

#[test]
fn stale_state_is_reconciled_after_a_power_loss() {
    let it = Installation::with_busybox();
    it.run(["run", "-d", "--name", "box", "busybox", "sleep", "1000"]).ok();
    it.run(["create", "--name", "other", "busybox", "true"]).ok();
    // Everything dies at once, and sockets and locks stay.
    for process in it.processes() {
        processes::kill(process.pid, Signal::KILL);
    }
    wait_for("the end", SOON, || it.processes().is_empty().then_some(()));
    // A folder of a container that was never recorded, and a half-written image.
    std::fs::create_dir_all(it.container_dir("half-made")).unwrap();
    let ingest = it.app_root().join("images/content/ingest");
    std::fs::create_dir_all(&ingest).unwrap();
    std::fs::write(ingest.join("unfinished"), [0; 100]).unwrap();

    it.run(["system", "start"]).ok();
    assert_eq!(it.status("box").as_deref(), Some("stopped"));
    assert_eq!(it.status("other").as_deref(), Some("created"));
    let reason = it.inspect("box")["exit"]["reason"].clone();
    assert!(reason.as_str().is_some_and(|reason| !reason.is_empty()));
    it.run(["start", "--attach", "other"]).ok();
    it.run(["start", "box"]).ok();
    it.run(["delete", "--force", "box", "other"]).ok();
}

#[test]
fn the_foreground_service_stops_on_a_signal() {
    let it = Installation::new();
    let running = it.container(["system", "start", "--foreground"]).spawn();
    wait_for("the service", DEADLINE, || {
        (it.run(["system", "status"]).code == Some(0)).then_some(())
    });
    running.signal(Signal::TERM);
    running.wait(Duration::from_secs(20)).ok();
    assert!(it.processes().is_empty());
}

#[test]
fn only_the_owner_may_speak_to_it() {
    if !rustix::process::geteuid().is_root() {
        println!("this needs a second user: root alone can play one");
        return;
    }
    let it = Installation::new();
    it.run(["system", "start"]).ok();
    // Even where the folder's modes would let him in.
    for folder in [it.scratch(), it.app_root()] {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(folder, mode).unwrap();
    }
    let socket = it.app_root().join("apiserver.sock");
    let _ =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).unwrap().permissions());
    let stranger = |args: &[&str]| {
        e2e::Cmd::new("setpriv")
            .args(["--reuid=54321", "--regid=54321", "--clear-groups", "--"])
            .arg(it.binaries().join("container"))
            .args(args)
            .env("CONTAINER_APP_ROOT", it.app_root())
            .env("HOME", "/nonexistent")
            .run()
    };
    let output = stranger(&["list"]);
    assert_eq!(output.code, Some(125), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    it.run(["list"]).ok();
}
