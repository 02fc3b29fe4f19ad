//! `[limits]`: what containers may have together, and how many processes one may have.

use e2e::Installation;

const SLEEP: [&str; 3] = ["busybox", "sleep", "10000"];

#[test]
fn what_runs_is_counted_and_one_more_is_refused() {
    let it = Installation::with_busybox();
    it.run(["system", "stop"]).ok();
    it.configure("limits.containers = 2\nlimits.memory = '512m'\nlimits.processes = 40\n");
    let run = |name: &str, memory: &str| {
        let words = ["run", "-d", "--memory", memory, "--name", name];
        it.run([&words[..], &SLEEP].concat())
    };
    run("one", "128m").ok();
    // More than all may have is refused at once, and leaves nothing.
    let over = run("over", "1g").fails(125, "more than [limits] gives to all containers");
    assert_eq!(over.errors().lines().count(), 1, "{over:?}");
    // Beside what runs it does not fit now, but may later.
    run("two", "500m").fails(125, "limits.memory is 512 MiB, of which 128 are in use");
    run("three", "128m").ok();
    run("four", "128m").fails(125, "limits.containers = 2, and 2 run");
    assert!(it.run(["exec", "one", "true"]).code == Some(0), "what runs is left alone");
    it.run(["update", "--memory", "500m", "one"]).fails(125, "limits.memory");
    it.run(["stop", "-t", "0", "one"]).ok();
    run("five", "128m").ok();
    // Processes.
    let most = "cat /sys/fs/cgroup/pids.max 2>/dev/null; \
                for n in $(seq 60); do busybox sleep 100 & done 2>&1; echo done";
    let said = it.run(["exec", "five", "sh", "-c", most]);
    assert!(format!("{said:?}").contains("fork"), "{said:?}");
    it.run(["create", "--pids-limit", "41", "busybox"]).fails(125, "limits.processes = 40");
}

#[test]
fn a_full_share_of_the_disk_makes_nothing_more() {
    let it = Installation::with_busybox();
    let words = ["run", "-d", "--pids-limit", "30", "--name", "writer"];
    it.run([&words[..], &SLEEP].concat()).ok();
    assert_eq!(it.inspect("writer")["configuration"]["pidsLimit"], 30);
    let write = "dd if=/dev/urandom of=/big bs=1M count=24 && sync";
    it.run(["exec", "writer", "sh", "-c", write]).ok();
    it.run(["system", "stop"]).ok();
    it.configure("limits.disk = '16m'\n");
    it.run(["create", "busybox"]).fails(125, "limits.disk is 16 MiB");
    it.run(["start", "writer"]).fails(125, "limits.disk is 16 MiB");
    it.run(["volume", "create", "vol"]).fails(125, "limits.disk is 16 MiB");
    it.run(["delete", "writer"]).ok();
    it.run(["create", "busybox"]).ok();
}

#[test]
fn one_that_holds_too_much_memory_is_restarted() {
    let it = Installation::with_busybox();
    // A file in memory is held, and is gone with the first run.
    let fill = "test -e /again || { touch /again; dd if=/dev/zero of=/dev/shm/big bs=1M count=48; }; \
                exec sleep 10000";
    let words = ["run", "-d", "--name", "full", "--memory", "128m", "--restart-memory", "35:2s"];
    it.run([&words[..], &["busybox", "sh", "-c", fill]].concat()).ok();
    let first = it.inspect("full")["startedDate"].clone();
    e2e::wait_for("a restart", e2e::DEADLINE, || {
        let full = it.inspect("full");
        (full["status"] == "running" && full["startedDate"] != first).then_some(())
    });
    assert_eq!(it.run(["exec", "full", "ls", "/dev/shm"]).ok().text(), "");
    let log = it.run(["system", "logs", "--last", "5m"]).ok().text();
    assert!(log.contains("memory is nearly full"), "{log}");
    it.run(["run", "--rm", "--restart-memory", "90:1m", "busybox"]).fails(125, "exclude");
    it.run(["run", "--restart-memory", "90", "busybox"]).fails(125, "PERCENT:DURATION");
}
