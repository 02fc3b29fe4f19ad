//! `system check`: on a whole installation every attack fails; where a layer is away, its row is
//! red.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use e2e::layer::Layer;
use e2e::layout::Image;
use e2e::{Installation, installation, processes, surface};

/// The longest that a whole check may take.
const WHOLE: Duration = Duration::from_secs(240);

/// Rows by area and check.
fn rows(value: &serde_json::Value) -> BTreeMap<(String, String), (String, String)> {
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
    let rows = value.as_array().unwrap().iter();
    rows.map(|row| {
        ((text(row, "area"), text(row, "check")), (text(row, "result"), text(row, "evidence")))
    })
    .collect()
}

/// What the probe says: its keys, and whether each held.
fn answers(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| {
            let mut parts = line.split('\t');
            Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
        })
        .collect()
}

fn probe() -> PathBuf {
    installation::binaries().join("container-probe")
}

/// A child that ends with the test.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn all_attacks_fail_and_nothing_is_left() {
    let it = Installation::with_busybox();
    let run = ["run", "-d", "--name", "bystander", "-m", "128m", "--network", "none"];
    it.run([&run[..], &["busybox", "sleep", "1000"]].concat()).ok();
    let network = |it: &Installation| it.run(["network", "list", "--quiet"]).ok().text();
    let images = |it: &Installation| it.run(["image", "list", "--quiet"]).ok().text();
    let before = (network(&it), images(&it));
    let output =
        it.container(["system", "check", "--security", "--format", "json"]).deadline(WHOLE).run();
    let rows = rows(&output.json());
    let red: Vec<_> =
        rows.iter().filter(|(_, (result, _))| !["pass", "not run"].contains(&&**result)).collect();
    assert!(red.is_empty(), "{red:#?}");
    let output = output.ok();
    assert!(rows.len() >= 40, "{rows:#?}");
    // What can't be tried here is said, and all else was.
    let root = processes::is_root();
    for ((area, check), (result, evidence)) in &rows {
        let may_not = match (&**area, &**check) {
            ("host", _) => !root,
            ("network", _) | ("jail", "a tap can't be changed") | ("templates", _) => true,
            ("limits", "processors are limited") => evidence.contains("too little"),
            _ => false,
        };
        assert!(result == "pass" || may_not, "{area}: {check}: {result}: {evidence}");
        assert!(!evidence.is_empty() && !evidence.contains('\n'), "{area}: {check}: {evidence}");
    }
    assert_eq!((network(&it), images(&it)), before);
    it.run(["list", "--all", "--quiet"]).ok().prints("bystander");
    it.run(["exec", "bystander", "true"]).ok();
    drop(output);

    let said = it.run(["system", "check", "bystander"]).ok().text();
    for words in ["capabilities: held (none in any set)", "seccomp: held", "No file.", "None."] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let posture = it.inspect("bystander")["posture"].clone();
    assert_eq!(posture["jail"].as_array().unwrap().len(), 12, "{posture}");
    assert_eq!(posture["virtualization"], false);
    it.run(["system", "check", "nobody"]).fails(125, "nobody");
    it.run(["system", "check", "--security", "bystander"]).code(125);
}

/// What a guest's programs reach is what the document says.
#[test]
fn the_documented_surface_is_the_guests() {
    let other = ["CONTAINER_TEST_KERNEL", "CONTAINER_TEST_QEMU"];
    if !cfg!(target_arch = "x86_64") || other.iter().any(|v| std::env::var_os(v).is_some()) {
        return;
    }
    let text = include_str!("../../../docs/security.md");
    assert_eq!(surface::list(), surface::documented(text).unwrap(), "cargo xtask surface");
}

/// The jail's attacks on a process that is in none: all of them succeed that this user may try.
#[test]
fn without_a_jail_every_row_is_red() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, [b'x'; 4096]).unwrap();
    let victim = Victim(Command::new(probe()).args(["sleep", "60"]).spawn().unwrap());
    let script = format!(
        "exec 8<>{0} 9<>{0}; exec {1} jail --fds 0,1,2,8 --own 8 --shared 9 --pid {2} --file {0}",
        file.display(),
        probe().display(),
        victim.0.id()
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let found = answers(&String::from_utf8_lossy(&output.stdout));
    for key in [
        "jail-privileges",
        "jail-files",
        "jail-writing",
        "jail-descriptors",
        "jail-landlock",
        "jail-shared",
        "jail-processes",
        "jail-network",
        "jail-calls",
    ] {
        assert_eq!(found.get(key).map(String::as_str), Some("open"), "{key}: {output:?}");
    }
    // Root can have namespaces; others where the host allows it.
    if processes::is_root() {
        assert_eq!(found["jail-namespaces"], "open", "{output:?}");
    }
    let door = Command::new(probe()).arg("knock").arg(&file).output().unwrap();
    assert_eq!(answers(&String::from_utf8_lossy(&door.stdout))["other-user"], "open");
}

/// The guest's attacks in a container that was given what they try to get.
#[test]
fn without_its_layers_a_guest_is_red() {
    let it = Installation::without_mode();
    it.configure(
        "security.virtualization = 'allow'\nruntime.spare = 0\nruntime.template = false\n",
    );
    let bytes = std::fs::read(probe()).unwrap();
    let layer = Layer::build(|entries| {
        entries.file("container-probe", 0o755, &bytes);
    });
    let config = serde_json::json!({"Entrypoint": ["/container-probe"]});
    it.load(&Image::new("docker.io/library/probe:latest", vec![layer], config));
    let shared = it.scratch().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("canary"), "canary").unwrap();
    let volume = format!("{}:/shared", shared.display());
    it.container(["run", "-d", "--name", "open", "-c", "1", "-m", "256m", "--virtualization"])
        .args(["--network", "none"])
        .args(["--cap-add", "ALL", "--security-opt", "seccomp=unconfined"])
        .args(["--masked-path", "/nothing", "--read-only-path", "/nothing", "-v", &volume])
        .args(["probe", "sleep", "1000"])
        .run()
        .ok();
    let exec = |words: &[&str]| {
        let words = [&["exec", "open", "/container-probe"][..], words].concat();
        answers(&it.run(words).ok().text())
    };
    let found = exec(&["guest", "--read-only", "/shared"]);
    assert_eq!(found["read-only-mount"], "open", "{found:?}");
    assert_eq!(found["kvm"], "open", "{found:?}");
    // What no configuration opens.
    for key in ["modules", "devices", "agent-ports", "vsock", "other-processes"] {
        assert_eq!(found[key], "held", "{key}: {found:?}");
    }
    // No network to try it from.
    assert_eq!(found["metadata"], "skipped", "{found:?}");
    let found = exec(&["defaults"]);
    for key in ["default-privileges", "default-calls", "masked-paths"] {
        assert_eq!(found[key], "open", "{key}: {found:?}");
    }
    assert!(!shared.join("canary").exists(), "the probe removes what it can");
}

/// A host that has no network namespaces, and a configuration that lets them be missing.
#[test]
fn a_layer_that_is_allowed_to_be_missing_is_red() {
    let script = "echo 0 > /proc/sys/user/max_net_namespaces && exec \"$@\"";
    let it = Installation::without_mode().behind(&[
        "unshare",
        "--user",
        "--map-user=5",
        "--map-group=5",
        "--keep-caps",
        "sh",
        "-c",
        script,
        "sh",
    ]);
    it.configure("security.allow_missing = ['net']\nruntime.spare = 0\nruntime.template = false\n");
    it.load(&e2e::busybox::image().unwrap());
    let run = ["run", "-d", "--name", "box", "-m", "128m", "--network", "none"];
    it.run([&run[..], &["busybox", "sleep", "1000"]].concat()).ok();
    let posture = it.inspect("box")["posture"].clone();
    assert_eq!(posture["allowedMissing"], serde_json::json!(["net"]));
    let state = |name: &str| {
        let layers = posture["jail"].as_array().unwrap();
        layers.iter().find(|layer| layer["name"] == name).unwrap()["state"].clone()
    };
    assert_eq!(state("net"), "allowedMissing", "{posture}");
    assert_eq!(state("pid"), "held", "{posture}");
    let said = it.run(["system", "check", "box"]).code(1).text();
    assert!(said.contains("net: MISSING, allowed by [security] allow_missing"), "{said}");
}
