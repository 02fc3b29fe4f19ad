//! The audit trail: complete, without secrets, and every change to it is found.

use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::{DEADLINE, Installation, processes, wait_for};
use rustix::process::Signal;
use serde_json::Value;

/// The trail's newest file.
fn newest(it: &Installation) -> PathBuf {
    let folder = it.app_root().join("audit");
    let files = std::fs::read_dir(folder).expect("the trail").map(|e| e.expect("a file").path());
    files.max().expect("a file")
}

fn operations(it: &Installation) -> Vec<Value> {
    let listed = it.run(["system", "audit", "list", "--format", "json"]).ok().json();
    listed.as_array().expect("a list").clone()
}

fn lines(file: &Path) -> Vec<String> {
    std::fs::read_to_string(file).expect("a trail").lines().map(String::from).collect()
}

fn write(file: &Path, lines: &[String]) {
    std::fs::write(file, lines.join("\n") + "\n").expect("write a trail");
}

#[test]
fn what_is_done_is_recorded_and_any_change_to_it_is_found() {
    let elsewhere = tempfile::tempdir().unwrap();
    let anchor = elsewhere.path().join("heads");
    let it = Installation::with_config(&format!(
        "audit.anchor = '{}'\naudit.anchor_seconds = 1\naudit.syslog = false",
        anchor.display()
    ));
    let secret = "TOKEN=hunter2";
    it.run(["run", "-d", "--name", "box", "-e", secret, "busybox", "sleep", "1000"]).ok();
    it.run(["exec", "-e", secret, "box", "true"]).ok();
    it.run(["run", "--name", "box", "busybox", "true"]).fails(125, "box");
    it.run(["delete", "--force", "box"]).ok();

    let all = operations(&it);
    let find = |operation: &str| {
        let found = all.iter().filter(|row| row["operation"] == operation);
        found.cloned().collect::<Vec<_>>()
    };
    let (creations, starts) = (find("create"), find("start"));
    assert_eq!((creations.len(), starts.len()), (2, 1), "{all:?}");
    assert_eq!(creations[0]["subject"], "box");
    assert_eq!(creations[0]["arguments"]["environment"][0], "TOKEN");
    assert_eq!(creations[0]["arguments"]["command"][0], "sleep");
    assert_eq!(creations[0]["result"]["result"], "ok");
    assert_ne!(creations[1]["result"]["result"], "ok");
    let requester = &starts[0]["requester"];
    assert_eq!(requester["uid"], rustix::process::geteuid().as_raw());
    let program = it.binaries().join("container");
    assert_eq!(requester["executable"].as_str(), program.to_str());
    assert_eq!((find("exec").len(), find("delete").len()), (1, 1));
    // Reading leaves nothing.
    assert!(find("list").is_empty() && find("inspect").is_empty());
    it.run(["system", "audit", "list", "--subject", "box", "-n", "1"]).ok().has("delete");

    let head = it.run(["system", "audit", "head"]).ok().text().trim().to_owned();
    it.run(["system", "audit", "verify", "--head", &head]).ok().has("intact");
    it.stop().unwrap();
    let file = newest(&it);
    let whole = lines(&file);
    assert!(!whole.join("").contains("hunter2"), "a secret is in the trail");
    let found = |changed: &[String], what: &str| {
        write(&file, changed);
        it.run(["system", "audit", "verify"]).fails(125, what);
    };
    let mut edited = whole.clone();
    let start = edited.iter_mut().find(|line| line.contains("\"operation\":\"start\"")).unwrap();
    *start = start.replace("\"uid\":", "\"uid\":1");
    // Found by the record after it, or by the head that was kept of it.
    found(&edited, "is not ");
    let mut gap = whole.clone();
    gap.remove(3);
    found(&gap, "was expected");
    let mut moved = whole.clone();
    moved.swap(2, 3);
    found(&moved, "broken");
    // The chain can't tell these two; the heads that were kept elsewhere can.
    found(&whole[..4], "was anchored");
    let heads = std::fs::read(&anchor).unwrap();
    std::fs::remove_file(&file).unwrap();
    it.run(["system", "start"]).ok();
    it.stop().unwrap();
    it.run(["system", "audit", "verify"]).fails(125, "anchored");
    // That chain has left heads of its own.
    std::fs::write(&anchor, heads).unwrap();
    write(&file, &whole);
    it.run(["system", "audit", "verify"]).ok().has("intact");
}

#[test]
fn a_killed_service_leaves_a_trail_that_goes_on() {
    let it = Installation::with_busybox();
    let ignores = "trap '' TERM; echo ready; while :; do sleep 1; done";
    it.run(["run", "-d", "--name", "box", "busybox", "sh", "-c", ignores]).ok();
    let mut logs = it.container(["logs", "-f", "box"]).spawn();
    logs.wait_for_stdout("ready", DEADLINE);
    // A decision that gets no result.
    let stopping = it.container(["stop", "-t", "600", "box"]).spawn();
    wait_for("the decision", DEADLINE, || {
        operations(&it).iter().any(|row| row["operation"] == "stop").then_some(())
    });
    processes::kill(it.apiserver_pid(), Signal::KILL);
    stopping.wait(DEADLINE);
    // What a write that was cut short would have left.
    let file = newest(&it);
    let mut text = std::fs::read(&file).unwrap();
    text.extend_from_slice(b"{\"sequence\":");
    wait_for("the death", DEADLINE, || {
        let running = it.processes().iter().any(|p| p.name == "container-apiserver");
        (!running).then_some(())
    });
    std::fs::write(&file, &text).unwrap();
    it.run(["system", "start"]).ok();
    it.run(["delete", "--force", "box"]).ok();
    let all = operations(&it);
    let stop = all.iter().find(|row| row["operation"] == "stop").expect("the stop");
    assert!(stop.get("result").is_none(), "{stop}");
    assert!(lines(&file).iter().any(|line| line.contains("\"droppedBytes\":12")));
    it.run(["system", "audit", "verify"]).ok().has("intact");
    // Somebody who follows sees what is done from now on.
    let mut follow = it.container(["system", "audit", "follow"]).spawn();
    wait_for("a record", Duration::from_secs(60), || {
        it.run(["image", "tag", "busybox", "again"]).ok();
        follow.is_running().then_some(())
    });
    it.run(["image", "tag", "busybox", "another"]).ok();
    follow.wait_for_stdout("another", DEADLINE);
    follow.signal(Signal::INT);
    follow.wait(DEADLINE);
}
