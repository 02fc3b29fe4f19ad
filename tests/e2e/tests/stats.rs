//! What is seen of a running container and of the service: `stats`, `update`, `system df`,
//! `system status`, `--trace`.

use std::process::Command;
use std::time::Duration;

use e2e::{DEADLINE, Installation, Terminal, wait_for};
use rustix::process::Signal;
use serde_json::Value;

/// The one row of `stats --format json`.
fn row(it: &Installation, id: &str) -> Value {
    let rows = it.run(["stats", "--format", "json", id]).ok().json();
    assert_eq!(rows.as_array().map(Vec::len), Some(1), "{rows}");
    rows[0].clone()
}

fn number(row: &Value, field: &str) -> u64 {
    row[field].as_u64().unwrap_or_else(|| panic!("no {field} in {row}"))
}

#[test]
fn stats_show_what_a_container_uses() {
    let it = Installation::with_busybox();
    it.run(["stats", "--no-stream", "nobody"]).fails(125, "nobody");
    it.run(["run", "-d", "--name", "busy", "busybox", "sh", "-c", "while :; do :; done"]).ok();
    let idle = ["run", "-d", "--name", "idle", "-m", "512m", "--network", "none"];
    it.run([&idle[..], &["busybox", "sleep", "1000"]].concat()).ok();

    let table = it.run(["stats", "--no-stream"]).ok().text();
    let mut lines = table.lines();
    let headings = lines.next().unwrap();
    for heading in
        ["Container ID", "Cpu %", "Memory Usage", "Host Memory", "Net Rx/Tx", "Block I/O", "Pids"]
    {
        assert!(headings.contains(heading), "{table}");
    }
    let cpu = |id: &str| -> f64 {
        let line = table.lines().find(|line| line.starts_with(id)).expect("a row");
        let word = line.split_whitespace().nth(1).expect("a share");
        word.strip_suffix('%').expect("a percentage").parse().expect("a number")
    };
    assert!(cpu("busy") > 40.0 && cpu("busy") < 250.0, "{table}");
    assert!(cpu("idle") < 20.0, "{table}");

    let idle = row(&it, "idle");
    assert_eq!(idle["id"], "idle");
    let limit = number(&idle, "memoryLimitBytes");
    assert!(limit <= 512 << 20 && limit > 256 << 20, "{idle}");
    assert!((1..limit).contains(&number(&idle, "memoryUsageBytes")), "{idle}");
    assert!(number(&idle, "hostMemoryBytes") > 1 << 20, "{idle}");
    assert_eq!(number(&idle, "numProcesses"), 1);
    assert!(idle["networkRxBytes"].is_null(), "{idle}");
    let before = number(&idle, "blockWriteBytes");
    it.run(["exec", "idle", "sh", "-c", "dd if=/dev/zero of=/root/f bs=1M count=8; sync"]).ok();
    assert!(number(&row(&it, "idle"), "blockWriteBytes") >= before + (8 << 20));

    it.run(["stop", "-t", "0", "idle"]).ok();
    let all = it.run(["stats", "--format", "json"]).ok().json();
    assert_eq!(all.as_array().map(Vec::len), Some(1), "{all}");
}

#[test]
fn stats_go_on_until_they_are_left() {
    let it = Installation::with_busybox();
    it.run(["run", "-d", "--name", "box", "busybox", "sleep", "1000"]).ok();
    let mut running = it.container(["stats"]).spawn();
    running.wait_for_stdout("MiB", DEADLINE);
    running.signal(Signal::INT);
    let output = running.wait(Duration::from_secs(5)).ok();
    assert!(!output.stdout.contains(&0x1b), "no terminal, no escapes: {output:?}");

    let mut command = Command::new(it.binaries().join("container"));
    command.args(["stats"]).env("CONTAINER_APP_ROOT", it.app_root());
    let mut terminal = Terminal::start(command, 24, 120);
    terminal.expect("\u{1b}[?1049h", DEADLINE);
    terminal.expect("box", DEADLINE);
    terminal.write(b"\x03");
    assert_eq!(terminal.wait(Duration::from_secs(5)), 0);
    terminal.expect("\u{1b}[?1049l", DEADLINE);

    // The end of all that were named is the end of it.
    let mut running = it.container(["stats", "box"]).spawn();
    running.wait_for_stdout("MiB", DEADLINE);
    it.run(["stop", "-t", "0", "box"]).ok();
    running.wait(DEADLINE).ok();
}

#[test]
fn limits_of_a_running_container_change_within_its_vm() {
    let it = Installation::with_busybox();
    it.run(["run", "-d", "--name", "box", "-m", "512m", "-c", "2", "busybox", "sleep", "1000"])
        .ok();
    it.run(["update", "-m", "128m", "-c", "1", "box"]).ok().prints("box");
    let about = it.inspect("box");
    assert_eq!(number(&about["currentResources"], "memoryInBytes"), 128 << 20, "{about}");
    assert_eq!(number(&about["currentResources"], "cpus"), 1);
    assert!(number(&row(&it, "box"), "memoryLimitBytes") <= 128 << 20);
    // More than that is not to be had, until it is again.
    let fill = ["exec", "box", "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"];
    assert_ne!(it.run(fill).code, Some(0));
    it.run(["update", "-m", "512m", "box"]).ok();
    wait_for("the memory's return", DEADLINE, || (it.run(fill).code == Some(0)).then_some(()));

    it.run(["update", "-m", "2g", "box"]).fails(125, "512 MiB");
    it.run(["update", "-c", "3", "box"]).fails(125, "3 CPUs");
    it.run(["update", "-m", "64m", "nobody"]).fails(125, "nobody");
    assert_eq!(number(&it.inspect("box")["currentResources"], "memoryInBytes"), 512 << 20);
    it.run(["stop", "-t", "0", "box"]).ok();
    it.run(["update", "-m", "64m", "box"]).fails(125, "running");
}

#[test]
fn usage_of_the_disk_is_told_and_given_back() {
    let it = Installation::with_busybox();
    it.run(["run", "--name", "box", "busybox", "true"]).ok();
    let usage = it.run(["system", "df", "--format", "json"]).ok().json();
    assert_eq!(number(&usage["images"], "total"), 1);
    assert!(number(&usage["images"], "sizeInBytes") > 100_000, "{usage}");
    assert_eq!(number(&usage["containers"], "total"), 1);
    assert_eq!(number(&usage["containers"], "active"), 0);
    let table = it.run(["system", "df"]).ok().text();
    for word in ["TYPE", "RECLAIMABLE", "Images", "Containers", "Templates", "Spares"] {
        assert!(table.contains(word), "{table}");
    }
    it.run(["system", "df", "--format", "yaml"]).ok().has("sizeInBytes");
    it.run(["system", "prune"]).ok().has("Reclaimed");
}

#[test]
fn a_trace_shows_all_processes_of_a_start() {
    let it = Installation::with_busybox();
    let path = it.scratch().join("trace.json");
    let run = |args: &[&str]| it.container(["run", "--rm", "--trace"]).arg(&path).args(args).run();
    run(&["busybox", "sh", "-c", "exit 3"]).code(3);
    let trace: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().expect("events");
    for program in ["container", "container-apiserver", "container-runtime-linux"] {
        let named =
            |event: &&Value| event["name"] == "process_name" && event["args"]["name"] == program;
        let pid = &events.iter().find(named).unwrap_or_else(|| panic!("no {program}"))["pid"];
        let spans = events.iter().filter(|event| event["ph"] == "X" && event["pid"] == *pid);
        assert!(spans.count() > 1, "{program} has no spans: {trace}");
    }
    let end = |event: &Value| event["ts"].as_f64().unwrap() + event["dur"].as_f64().unwrap();
    let spans = events.iter().filter(|event| event["ph"] == "X");
    let last = spans.map(end).fold(0.0, f64::max);
    assert!(last > 10_000.0 && last < 60e6, "{last} µs");

    // A program that is not there is a start that failed; it has a trace too.
    std::fs::remove_file(&path).unwrap();
    run(&["busybox", "no-such-program"]).fails(127, "no-such-program");
    assert!(path.exists());
    it.run(["run", "--rm", "--trace", "/nonexistent/trace", "busybox", "true"])
        .fails(125, "/nonexistent/trace");
}
