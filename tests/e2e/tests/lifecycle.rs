//! Containers from `create` to `delete`.

use std::time::{Duration, Instant};

use e2e::{DEADLINE, Installation, wait_for};
use serde_json::json;

#[test]
fn a_container_keeps_its_files_from_start_to_start() {
    let it = Installation::with_busybox();
    let script = "echo run >>/root/count; wc -l </root/count; exit 5";
    it.run(["create", "--name", "box", "busybox", "sh", "-c", script]).ok().prints("box");
    assert_eq!(it.status("box").as_deref(), Some("created"));
    it.run(["exec", "box", "true"]).fails(125, "not running");
    it.run(["start", "--attach", "box"]).code(5).prints("1");
    it.run(["start", "--attach", "box"]).code(5).prints("2");
    assert_eq!(it.status("box").as_deref(), Some("stopped"));
    it.run(["logs", "box"]).ok().prints("1\n2");
    it.run(["start", "box"]).ok().prints("box");
    it.run(["wait", "box"]).ok().prints("5");
    it.run(["delete", "box"]).ok().prints("box");
    assert_eq!(it.status("box"), None);
    assert!(!it.container_dir("box").exists());
}

#[test]
fn stop_is_polite_first_and_kill_is_not() {
    let it = Installation::with_busybox();
    let polite = "trap 'echo bye; exit 0' TERM; trap 'exit 4' USR1; echo up; \
                  while :; do sleep 0.1; done";
    let up = |name: &str, script: &str| {
        it.run(["run", "-d", "--name", name, "busybox", "sh", "-c", script]).ok();
        wait_for("the program", DEADLINE, || {
            it.run(["logs", name]).text().contains("up").then_some(())
        });
    };
    up("polite", polite);
    it.run(["stop", "polite"]).ok().prints("polite");
    it.run(["logs", "polite"]).ok().prints("up\nbye");
    assert_eq!(it.inspect("polite")["exit"]["exitCode"], 0);

    it.run(["start", "polite"]).ok();
    wait_for("the program", DEADLINE, || {
        (it.run(["logs", "polite"]).text().matches("up").count() == 2).then_some(())
    });
    it.run(["stop", "--signal", "USR1", "polite"]).ok();
    assert_eq!(it.inspect("polite")["exit"]["exitCode"], 4);

    up("stubborn", "trap '' TERM; echo up; while :; do sleep 1; done");
    let start = Instant::now();
    it.run(["stop", "-t", "1", "stubborn"]).ok();
    assert!(start.elapsed() < Duration::from_secs(20));
    assert_eq!(it.inspect("stubborn")["exit"]["exitCode"], 137);

    it.run(["start", "stubborn"]).ok();
    it.run(["kill", "stubborn"]).ok().prints("stubborn");
    it.run(["wait", "stubborn"]).ok().prints("137");
    // Stopping what has stopped is no error; killing it is.
    it.run(["stop", "stubborn"]).ok();
    it.run(["kill", "stubborn"]).fails(125, "not running");
    it.run(["stop", "--all"]).ok();
}

#[test]
fn lists_in_every_form() {
    let it = Installation::with_busybox();
    it.run(["create", "--name", "one", "-l", "key=value", "busybox", "true"]).ok();
    it.run(["run", "-d", "--name", "two", "busybox", "sleep", "1000"]).ok();

    it.run(["list", "--quiet"]).ok().prints("two");
    it.run(["ls", "-a", "-q"]).ok().prints("one\ntwo");
    let table = it.run(["list", "--all"]).ok().text();
    let lines: Vec<&str> = table.lines().collect();
    for column in ["ID", "IMAGE", "OS", "ARCH", "STATE"] {
        assert!(lines[0].contains(column), "no column {column} in {:?}", lines[0]);
    }
    assert!(lines[1].starts_with("one") && lines[2].starts_with("two"), "{table}");

    let list = it.run(["list", "--all", "--format", "json"]).ok().json();
    assert_eq!(list[0]["configuration"]["id"], "one");
    assert_eq!(list[0]["configuration"]["labels"], json!({"key": "value"}));
    assert_eq!(list[1]["status"], "running");
    assert!(list[1]["startedDate"].is_string());
    it.run(["list", "--format", "yaml"]).ok().has("two");
    it.run(["list", "--format", "toml"]).ok().has("two");

    let inspected = it.run(["inspect", "one", "two"]).ok().json();
    assert_eq!(inspected.as_array().map(Vec::len), Some(2));
    // A unique beginning names a container, as an id would.
    assert_eq!(it.inspect("tw")["configuration"]["id"], "two");
}

#[test]
fn what_state_forbids_is_refused_and_changes_nothing() {
    let it = Installation::with_busybox();
    it.run(["run", "-d", "--name", "box", "busybox", "sleep", "1000"]).ok();
    it.run(["start", "box"]).fails(125, "running");
    it.run(["delete", "box"]).fails(125, "running");
    it.run(["create", "--name", "box", "busybox", "true"]).fails(125, "box");
    it.run(["image", "delete", "busybox"]).fails(125, "box");
    assert_eq!(it.status("box").as_deref(), Some("running"));
    it.run(["exec", "box", "true"]).ok();
    for command in ["start", "stop", "kill", "delete", "inspect", "logs", "wait"] {
        it.run([command, "nobody"]).fails(125, "nobody");
    }
    it.run(["delete", "--force", "box"]).ok();
    it.run(["image", "delete", "busybox"]).ok();
    it.run(["list", "--all", "--quiet"]).ok().prints("");
}

#[test]
fn prune_removes_what_has_stopped() {
    let it = Installation::with_busybox();
    it.run(["run", "-d", "--name", "runs", "busybox", "sleep", "1000"]).ok();
    for name in ["one", "two"] {
        it.run(["create", "--name", name, "busybox", "true"]).ok();
    }
    it.run(["start", "-a", "one"]).ok();
    it.run(["prune"]).ok().has("one");
    let left = it.run(["list", "--all", "--quiet"]).ok().text();
    assert!(left.contains("runs") && !left.lines().any(|line| line == "one"), "{left}");
    it.run(["delete", "--all", "--force"]).ok();
    it.run(["list", "--all", "--quiet"]).ok().prints("");
}

#[test]
fn logs_are_followed_cut_and_kept_when_nobody_looks() {
    let it = Installation::with_busybox();
    let script = "for i in 1 2 3 4 5; do echo line $i; sleep 0.2; done; echo error >&2; \
                  read go; echo last";
    // The command goes away while the container runs: nothing is lost.
    let mut running =
        it.container(["run", "-i", "--name", "box", "busybox", "sh", "-c", script]).spawn();
    running.wait_for_stdout("line 2", DEADLINE);
    running.signal(rustix::process::Signal::KILL);
    drop(running);
    assert_eq!(it.status("box").as_deref(), Some("running"));

    let output = wait_for("line 5", DEADLINE, || {
        let output = it.run(["logs", "box"]).ok();
        output.text().contains("line 5").then_some(output)
    });
    assert_eq!(output.text(), "line 1\nline 2\nline 3\nline 4\nline 5");
    it.run(["logs", "-n", "2", "box"]).ok().has("line 5");

    let mut follow = it.container(["logs", "-f", "box"]).spawn();
    follow.wait_for_stdout("line 5", DEADLINE);
    it.run(["stop", "-t", "1", "box"]).ok();
    follow.wait(DEADLINE).ok();
    it.run(["logs", "--boot", "box"]).ok();
}

#[test]
fn logs_are_rotated_by_size() {
    let it = Installation::new();
    it.configure("log.max_size = '64k'\nlog.max_files = 2\n");
    it.load(&e2e::busybox::image().unwrap());
    let script = "i=0; while [ $i -lt 20000 ]; do echo a line of output number $i; \
                  i=$((i+1)); done";
    it.run(["run", "--name", "box", "busybox", "sh", "-c", script]).ok();
    let text = it.run(["logs", "-n", "3", "box"]).ok().text();
    assert!(text.ends_with("number 19999"), "{text}");
    let kept: u64 = std::fs::read_dir(it.container_dir("box"))
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("output.log"))
        .map(|entry| entry.metadata().unwrap().len())
        .sum();
    assert!(kept <= 3 * (64 << 10), "{kept} bytes are kept");
}

#[test]
fn exec_runs_beside_the_program_and_can_be_left_alone() {
    let it = Installation::with_busybox();
    it.run(["run", "-d", "--name", "box", "busybox", "sleep", "1000"]).ok();
    it.run(["exec", "-d", "box", "sh", "-c", "sleep 0.3; echo done >/root/done"]).ok();
    wait_for("the detached process", DEADLINE, || {
        (it.run(["exec", "box", "cat", "/root/done"]).code == Some(0)).then_some(())
    });
    // Several at once.
    let many: Vec<_> = (0..4)
        .map(|number| {
            let script = format!("sleep 0.5; echo {number}");
            it.container(["exec", "box", "sh", "-c", &script]).spawn()
        })
        .collect();
    for (number, running) in many.into_iter().enumerate() {
        running.wait(DEADLINE).ok().prints(&number.to_string());
    }
    // The container's end ends them.
    let running = it.container(["exec", "box", "sleep", "1000"]).spawn();
    std::thread::sleep(Duration::from_secs(1));
    it.run(["stop", "-t", "1", "box"]).ok();
    assert_ne!(running.wait(DEADLINE).code, Some(0));
}
