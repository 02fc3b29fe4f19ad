//! Restart policies: who comes back, when, and who stays away.

use std::time::Duration;

use e2e::{DEADLINE, Installation, processes, wait_for};
use rustix::process::Signal;

fn runs(it: &Installation, id: &str) -> usize {
    it.run(["logs", id]).ok().text().lines().filter(|line| *line == "run").count()
}

fn wait_for_runs(it: &Installation, id: &str, count: usize) {
    wait_for("another run", DEADLINE, || (runs(it, id) >= count).then_some(()));
}

fn wait_for_status(it: &Installation, id: &str, status: &str) {
    wait_for(status, DEADLINE, || (it.status(id).as_deref() == Some(status)).then_some(()));
}

#[test]
fn failures_are_repeated_as_often_as_asked() {
    let it = Installation::with_busybox();
    let script = ["sh", "-c", "echo run; exit 3"];
    it.container(["run", "-d", "--name", "box", "--restart", "on-failure:2", "busybox"])
        .args(script)
        .run()
        .ok();
    wait_for_runs(&it, "box", 3);
    wait_for_status(&it, "box", "stopped");
    let inspected = it.inspect("box");
    assert_eq!(inspected["restartCount"], 2, "{inspected}");
    assert_eq!(inspected["exit"]["exitCode"], 3, "{inspected}");
    assert_eq!(inspected["configuration"]["restart"]["name"], "on-failure");
    // By hand it begins anew; a success ends it.
    let quiet = ["run", "-d", "--name", "good", "--restart", "on-failure", "busybox", "true"];
    it.run(quiet).ok();
    wait_for_status(&it, "good", "stopped");
    assert!(it.inspect("good").get("restartCount").is_none());
    it.run(["run", "--rm", "--restart", "always", "busybox", "true"]).fails(125, "--rm");
    it.run(["run", "--restart", "sometimes", "busybox", "true"]).fails(125, "--restart");
}

#[test]
fn what_should_always_run_comes_back_unless_it_was_stopped() {
    let it = Installation::with_busybox();
    let script = "echo run; sleep 100000";
    for (name, policy) in [("always", "always"), ("unless", "unless-stopped")] {
        let args =
            ["run", "-d", "--name", name, "--restart", policy, "busybox", "sh", "-c", script];
        it.run(args).ok();
        wait_for_runs(&it, name, 1);
    }
    for qemu in it.qemus() {
        processes::kill(qemu.pid, Signal::KILL);
    }
    for name in ["always", "unless"] {
        wait_for_runs(&it, name, 2);
        wait_for_status(&it, name, "running");
    }
    // Stopped by hand, they stay so.
    it.run(["stop", "-t", "0", "always", "unless"]).ok();
    assert_eq!(it.status("always").as_deref(), Some("stopped"));
    it.run(["restart", "-t", "0", "unless"]).ok();
    assert_eq!(it.status("unless").as_deref(), Some("running"));
    wait_for_runs(&it, "unless", 3);
    assert_eq!((it.status("always").as_deref(), runs(&it, "always")), (Some("stopped"), 2));
    // The end of the service is nobody's wish that a container ends.
    it.run(["system", "stop"]).ok();
    it.run(["system", "start"]).ok();
    wait_for_runs(&it, "unless", 4);
    wait_for_runs(&it, "always", 3);
    wait_for_status(&it, "unless", "running");
    it.run(["kill", "unless"]).ok();
    wait_for_status(&it, "unless", "stopped");
    it.run(["delete", "--force", "always"]).ok();
    it.run(["system", "stop"]).ok();
    it.run(["system", "start"]).ok();
    // Long enough for the first pause to be over many times.
    let settled = std::time::Instant::now() + Duration::from_secs(2);
    wait_for("a moment without a restart", DEADLINE, || {
        assert_eq!(it.status("unless").as_deref(), Some("stopped"));
        (std::time::Instant::now() > settled).then_some(())
    });
}
