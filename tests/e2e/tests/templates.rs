//! Templates and spares: made once, used, mended, never shared where it matters.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::SystemTime;

use e2e::{DEADLINE, Installation, processes, wait_for};
use serde_json::Value;

/// Starts a container that stays; how its VM came to be.
fn origin_of(it: &Installation, name: &str) -> String {
    it.run(["run", "-d", "--name", name, "busybox", "sleep", "1000"]).ok();
    it.inspect(name)["vmOrigin"].as_str().expect("an origin").to_owned()
}

fn status(it: &Installation) -> Value {
    it.run(["system", "status", "--format", "json"]).ok().json()
}

/// The folders below `templates`.
fn templates(it: &Installation) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(it.app_root().join("templates"));
    entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[test]
fn a_shape_boots_once_and_is_restored_from_then_on() {
    let it = Installation::with_config("runtime.spare = 0\n");
    assert_eq!(origin_of(&it, "first"), "cold");
    it.wait_for_template();
    assert_eq!(origin_of(&it, "second"), "template");
    assert_eq!(origin_of(&it, "third"), "template");
    it.run(["exec", "second", "sh", "-c", "echo $((6 * 7))"]).ok().prints("42");
    assert_eq!(templates(&it).len(), 1);
    let status_now = status(&it);
    assert_eq!(status_now["templates"].as_array().map(Vec::len), Some(1), "{status_now}");
    assert_eq!(status_now["spares"], serde_json::json!([]));
    it.run(["system", "status"]).ok().has("ready");
    let usage = it.run(["system", "df", "--format", "json"]).ok().json();
    assert_eq!(usage["templates"]["total"], 1, "{usage}");
    assert!(usage["templates"]["sizeInBytes"].as_u64().is_some_and(|size| size > 1 << 20));

    // What runs from it goes on without it, also over the service's death.
    processes::kill(it.apiserver_pid(), rustix::process::Signal::KILL);
    it.run(["system", "start"]).ok();
    it.run(["exec", "third", "true"]).ok();
    assert_eq!(origin_of(&it, "fourth"), "template");
    it.run(["delete", "--all", "--force"]).ok();
    it.run(["system", "prune"]).ok().has("1 template");
    assert_eq!(templates(&it), Vec::<PathBuf>::new());
    assert_eq!(origin_of(&it, "fifth"), "cold");
}

#[test]
fn a_spare_is_taken_once_and_followed_by_another() {
    let it = Installation::with_config("runtime.spare = 1\n");
    it.run(["system", "start"]).ok();
    it.wait_for_spare();
    let shown = status(&it)["spares"][0].clone();
    assert!(shown["memoryInBytes"].as_u64().is_some_and(|held| held > 1 << 20), "{shown}");
    // Its network card has no queue for commands (VIRTIO_NET_F_CTRL_VQ is bit 17), and is down in a
    // container that has no network.
    let program = "cd /sys/class/net/eth0 && test $(cut -c18 device/features) = 0 || exit 8
                   exit $(($(cat flags) & 1 ? 1 : 9))";
    it.run(["run", "--rm", "--network", "none", "busybox", "sh", "-c", program]).code(9);
    it.wait_for_spare();
    assert_eq!(origin_of(&it, "one"), "spare");
    assert_eq!(it.inspect("one")["status"], "running");
    it.wait_for_spare();
    assert_eq!(origin_of(&it, "two"), "spare");
    let hosts = ["one", "two"].map(|id| it.run(["exec", id, "hostname"]).ok().text());
    assert_eq!(hosts, ["one", "two"]);
    // Each has its own disk.
    it.run(["exec", "one", "sh", "-c", "echo of one >/root/f; sync"]).ok();
    it.run(["exec", "two", "test", "-e", "/root/f"]).code(1);
    it.run(["stop", "-t", "0", "one"]).ok();
    it.wait_for_spare();
    it.run(["start", "one"]).ok();
    it.run(["exec", "one", "cat", "/root/f"]).ok().prints("of one");
    assert_eq!(it.inspect("one")["vmOrigin"], "spare");
    // A dead spare is no loss.
    it.wait_for_spare();
    let serving: Vec<u32> = it.qemus().iter().map(|qemu| qemu.pid).collect();
    for process in it.processes() {
        if process.name.starts_with("qemu-system") && !serving.contains(&process.pid) {
            processes::kill(process.pid, rustix::process::Signal::KILL);
        }
    }
    it.run(["run", "--rm", "busybox", "echo", "fine"]).ok().prints("fine");
    it.wait_for_spare();
    it.run(["system", "prune"]).ok();
}

#[test]
fn starts_that_follow_each_other_take_vms_restored_beside_them() {
    let it = Installation::with_config("runtime.spare = 1\n");
    it.run(["system", "start"]).ok();
    it.wait_for_spare();
    let names = ["c0", "c1", "c2", "c3", "c4"];
    let origins = names.map(|name| origin_of(&it, name));
    assert_eq!(origins[0], "spare");
    // The second finds that nothing has been begun for it.
    assert!(origins[2..].iter().all(|origin| origin == "spare"), "{origins:?}");
    for name in names {
        it.run(["exec", name, "hostname"]).ok().prints(name);
    }
    // With the last one it is quiet enough to make one warm.
    it.wait_for_spare();
    it.run(["delete", "--all", "--force"]).ok();
}

#[test]
fn a_container_with_a_bind_mount_takes_a_spare_of_its_own_kind() {
    let it = Installation::with_config("runtime.spare_idle_seconds = 600\n");
    let source = it.scratch().join("source");
    std::fs::create_dir(&source).expect("a folder");
    let volume = format!("{}:/data", source.display());
    let own_kind = || {
        let status = status(&it);
        let spares = status["spares"].as_array()?;
        let found = spares.iter().find(|s| s["mappable"] == true && s["state"] == "ready")?;
        found["memoryInBytes"].as_u64()
    };
    it.run(["run", "--rm", "-v", &volume, "busybox", "true"]).ok();
    let held = wait_for("a spare for bind mounts", DEADLINE, own_kind);
    // Its RAM is a copy, which counts.
    assert!(held > 32 << 20, "{held}");
    // It is not for those who can do without.
    assert_eq!(origin_of(&it, "plain"), "template");
    let run = ["run", "-d", "--name", "mounted", "-v", &volume, "busybox", "sleep", "1000"];
    it.run(run).ok();
    assert_eq!(it.inspect("mounted")["vmOrigin"], "spare");
    it.run(["exec", "mounted", "sh", "-c", "echo of the guest >/data/f"]).ok();
    assert_eq!(std::fs::read_to_string(source.join("f")).expect("the file"), "of the guest\n");
}

#[test]
fn a_damaged_template_is_never_used_and_mended() {
    let it = Installation::with_config("runtime.spare = 0\n");
    assert_eq!(origin_of(&it, "first"), "cold");
    it.wait_for_template();
    it.run(["delete", "--all", "--force"]).ok();
    it.run(["system", "stop"]).ok();
    let folder = templates(&it).pop().expect("a template");
    damage(&folder.join("ram"));
    it.run(["system", "start"]).ok();
    assert_eq!(origin_of(&it, "second"), "cold");
    it.run(["system", "logs"]).ok().has("template");
    it.wait_for_template();
    assert_eq!(origin_of(&it, "third"), "template");
}

/// Turns one byte round, in a place that holds something.
fn damage(path: &std::path::Path) {
    let file = File::options().read(true).write(true).open(path).expect("the RAM");
    let mut block = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut block, at).expect("the RAM");
        assert!(read > 0, "nothing but zeros");
        if let Some(index) = block[..read].iter().rposition(|byte| *byte != 0) {
            file.write_at(&[!block[index]], at + index as u64).expect("write to the RAM");
            return;
        }
        at += read as u64;
    }
}

#[test]
fn no_vm_changes_the_template_that_it_starts_from() {
    let it = Installation::with_config("runtime.spare = 0\n");
    assert_eq!(origin_of(&it, "first"), "cold");
    it.wait_for_template();
    assert_eq!(origin_of(&it, "box"), "template");
    assert_eq!(origin_of(&it, "sibling"), "template");
    let ram = templates(&it).pop().expect("a template").join("ram");
    let before = sha256_of(&ram);
    let fill = ["exec", "box", "dd", "if=/dev/zero", "of=/dev/null", "bs=400M", "count=1"];
    it.run(fill).ok();
    let qemu =
        it.qemus().into_iter().map(|qemu| qemu.pid).max_by_key(|pid| processes::ram_kib(*pid));
    let qemu = qemu.expect("a VM that holds memory");
    let held = || processes::ram_kib(qemu).expect("what it holds");
    wait_for("the memory that was freed", DEADLINE, || (held() < 100 << 10).then_some(()));
    assert_eq!(sha256_of(&ram), before);
    it.run(["exec", "sibling", "sh", "-c", "echo $((6 * 7))"]).ok().prints("42");
    it.run(["delete", "--force", "box"]).ok();
    assert_eq!(origin_of(&it, "later"), "template");
}

fn sha256_of(path: &std::path::Path) -> String {
    e2e::sha256_hex(&std::fs::read(path).expect("the RAM"))
}

const SECRETS: &str = include_str!("../assets/secrets.py");
/// Clones of one template.
const CLONES: usize = 20;

#[test]
fn clones_of_a_template_share_no_secrets() {
    compare("runtime.spare = 0\n", "template");
}

#[test]
fn spares_share_no_secrets() {
    compare("runtime.spare = 1\n", "spare");
}

fn compare(config: &str, origin: &str) {
    let it = Installation::without_mode();
    it.configure(config);
    it.load_debian();
    it.run(["run", "--rm", e2e::debian::NAME, "true"]).ok();
    it.wait_for_template();
    let clones: Vec<BTreeMap<String, String>> =
        (0..CLONES).map(|number| secrets(&it, &format!("clone-{number}"), origin)).collect();
    for name in clones[0].keys() {
        let values: Vec<&str> = clones.iter().map(|clone| &*clone[name]).collect();
        match name.as_str() {
            // An image may bring none.
            "machine-id" if values.iter().all(|value| *value == "none") => {}
            "clock" => {}
            // The stack's address has 22 random bits under emulation too: twenty of them may meet.
            "stack" | "heap" | "libraries" | "syn-cookie" => {
                assert!(meetings(&values, |a, b| a == b) <= 2, "{name}: {values:#?}");
            }
            // Secrets with a clock in them, whose reading took its time.
            name if name.starts_with('~') => {
                assert!(meetings(&values, near) <= 2, "{name}: {values:#?}");
            }
            name => assert_eq!(meetings(&values, |a, b| a == b), 0, "{name}: {values:#?}"),
        }
    }
}

/// Pairs of values that are the same.
fn meetings(values: &[&str], same: impl Fn(&str, &str) -> bool) -> usize {
    let others = |(at, one): (usize, &&str)| {
        values[at + 1..].iter().filter(|other| same(one, other)).count()
    };
    values.iter().enumerate().map(others).sum()
}

/// Within 20 ms of a clock of 64 ns: of twenty random numbers no two are, of twenty equal ones all.
fn near(one: &str, other: &str) -> bool {
    let number = |text: &str| text.parse::<u32>().expect("a number");
    let apart = number(one).wrapping_sub(number(other));
    apart.min(apart.wrapping_neg()) < 312_500
}

/// What one clone tells about itself.
fn secrets(it: &Installation, name: &str, origin: &str) -> BTreeMap<String, String> {
    if origin == "spare" {
        it.wait_for_spare();
    }
    // The container may set its own network's switches: its paths are none of the usual ones.
    it.run([
        "run",
        "-d",
        "--name",
        name,
        "--read-only-path",
        "/srv",
        "--cap-add",
        "NET_ADMIN",
        e2e::debian::NAME,
        "python3",
        "-c",
        SECRETS,
    ])
    .ok();
    let text = wait_for("the clone's secrets", DEADLINE, || {
        let output = it.run(["logs", name]).ok();
        let text = output.text();
        assert!(!output.errors().contains("Traceback"), "{output:?}");
        text.ends_with("done").then_some(text)
    });
    let about = it.inspect(name);
    assert_eq!(about["vmOrigin"], origin, "{about}");
    it.run(["delete", "--force", name]).ok();
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    let found: BTreeMap<String, String> =
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    assert!(found.len() >= 15, "{found:#?}");
    let clock: f64 = found["clock"].parse().expect("a time");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time");
    assert!((now.as_secs_f64() - clock).abs() < 30.0, "the clock is {clock}");
    found
}
