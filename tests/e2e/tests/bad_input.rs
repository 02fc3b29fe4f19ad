//! Bad input: one clear line, the right exit code, and nothing changed.

use std::time::{Duration, Instant};

use e2e::{Cmd, Installation, busybox};

#[test]
fn wrong_words_are_refused_before_anything_happens() {
    let it = Installation::new();
    for args in [
        &["run"][..],
        &["run", "--no-such-flag", "busybox"],
        &["frobnicate"],
        &["run", "--memory", "lots", "busybox"],
        &["run", "--cpus", "none", "busybox"],
        &["run", "--ulimit", "nofile", "busybox"],
        &["run", "--tmpfs", "relative", "busybox"],
        &["run", "--platform", "a/b/c/d", "busybox"],
        &["logs", "-n", "many", "box"],
        &["stop", "-t", "-1", "box"],
        &["list", "--format", "xml"],
        &["exec", "box"],
    ] {
        let output = it.run(args);
        assert_eq!(output.code, Some(125), "{output:?}");
        assert_eq!(output.errors().trim_end().lines().count(), 1, "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
    // None of them started a service.
    assert!(it.processes().is_empty());
}

#[test]
fn later_parts_are_refused_by_name() {
    let it = Installation::new();
    for args in [
        &["run", "--gpus", "all", "busybox"][..],
        &["build", "."],
        &["image", "push", "x"],
        &["machine", "list"],
    ] {
        it.run(args).fails(125, "not supported yet");
    }
}

#[test]
fn images_names_and_sizes_that_can_not_be() {
    let it = Installation::new();
    // A registry where nobody listens: no test speaks to a public one.
    let nobody = e2e::registry::free_address();
    it.configure(&format!("registry.domain = '{nobody}'\n"));
    it.load(&busybox::image().unwrap());
    let busybox = it.run(["image", "list", "--quiet"]).ok().text();
    let busybox = busybox.lines().next().unwrap().to_owned();

    it.run(["run", "--rm", "unknown-image", "true"]).fails(125, "unknown-image");
    for reference in ["UPPER", "a b", "", ":tag", "a:b:c", "a@sha256:short", "-x/", "a//b"] {
        let output = it.run(["run", "--rm", "--", reference, "true"]);
        assert_eq!(output.code, Some(125), "{output:?}");
        assert_eq!(output.errors().trim_end().lines().count(), 1, "{output:?}");
    }
    for name in ["", "-x", "a b", "a/b", "..", "a\nb", "\u{1b}[31m", "ü", &"x".repeat(300)] {
        let output = it.container(["create", "--name"]).arg(name).args([&*busybox, "true"]).run();
        assert_eq!(output.code, Some(125), "name {name:?}: {output:?}");
        assert!(!output.errors().contains('\u{1b}'), "not escaped: {output:?}");
    }
    it.run(["create", "-m", "1m", &busybox, "true"]).fails(125, "memory");
    it.run(["create", "-m", "900t", &busybox, "true"]).fails(125, "memory");
    it.run(["create", "-c", "4096", &busybox, "true"]).fails(125, "cpu");
    it.run(["create", "--stop-signal", "SIGNOTHING", &busybox, "true"]).fails(125, "SIGNOTHING");
    it.run(["create", "--kernel", "/no/such/kernel", &busybox, "true"]).fails(125, "kernel");
    it.run(["create", "--env-file", "/no/such/file", &busybox, "true"]).fails(125, "/no/such/file");
    it.run(["list", "--all", "--quiet"]).ok().prints("");
    let containers = it.app_root().join("containers");
    assert_eq!(std::fs::read_dir(containers).map_or(0, Iterator::count), 0, "folders stay");
}

#[test]
fn the_least_memory_boots_and_less_is_refused() {
    let it = Installation::with_busybox();
    let output = it.run(["create", "-m", "8m", "busybox", "true"]);
    assert_eq!(output.code, Some(125), "{output:?}");
    // The message names the least; with that it runs.
    let errors = output.errors().to_lowercase();
    let least: u64 = errors
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .filter(|number| *number > 8)
        .max()
        .unwrap_or_else(|| panic!("no least size in {errors:?}"));
    it.run(["run", "--rm", "-m", &format!("{least}m"), "busybox", "echo", "boots"])
        .ok()
        .prints("boots");
}

#[test]
fn without_kernel_or_qemu_it_says_so() {
    let it = Installation::new();
    it.configure("kernel.path = '/no/such/bundle'\n");
    it.load(&busybox::image().unwrap());
    it.run(["run", "--rm", "busybox", "true"]).fails(125, "kernel");
    it.run(["system", "stop"]).ok();

    let it = Installation::new();
    it.configure("runtime.qemu = '/no/such/qemu'\n");
    it.load(&busybox::image().unwrap());
    it.run(["run", "--rm", "busybox", "true"]).fails(125, "qemu");
    it.run(["list", "--all", "--quiet"]).ok().prints("");
    it.run(["system", "status"]).ok();
}

#[test]
fn a_broken_configuration_is_named() {
    let it = Installation::new();
    std::fs::write(it.app_root().join("config.toml"), "[runtime]\naccelerator = 'magic'\n")
        .unwrap();
    it.run(["system", "start"]).fails(125, "config.toml");
    std::fs::write(it.app_root().join("config.toml"), "no toml").unwrap();
    it.run(["system", "start"]).fails(125, "config.toml");
    assert!(it.processes().is_empty());
    let _ = std::fs::remove_file(it.app_root().join("config.toml"));
    it.run(["system", "start"]).ok();
}

/// A small tmpfs as the app root: everything says that the disk is full, and stays whole.
#[test]
fn a_full_disk_is_reported_and_changes_nothing() {
    if !rustix::process::geteuid().is_root() {
        println!("only root can mount a small file system");
        return;
    }
    let it = Installation::new();
    let mounted = Mounted::new(it.app_root(), "size=24m,mode=700");
    let archive = it.scratch().join("image.tar");
    busybox::image().unwrap().write_archive(&archive).unwrap();
    it.container(["image", "load", "-i"]).arg(&archive).run().ok();
    let mut large = busybox::image().unwrap();
    large.reference = "docker.io/library/large:1".to_owned();
    let mut state = 7_u64;
    let noise: Vec<u8> = (0..40 << 20)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    large.layers.push(e2e::Layer::build(|e| _ = e.file("noise", 0o644, &noise)));
    large.write_archive(&archive).unwrap();
    it.container(["image", "load", "-i"]).arg(&archive).run().fails(125, "space");
    it.run(["image", "list", "--quiet"]).ok().prints("busybox:latest");
    it.run(["run", "--rm", "busybox", "echo", "still works"]).ok().prints("still works");
    it.stop().unwrap();
    drop(mounted);
}

/// A tmpfs over a folder, taken away on drop.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(folder: &std::path::Path, options: &str) -> Self {
        Cmd::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder).run().ok();
        Self(folder.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn ctrl_c_ends_every_wait() {
    let it = Installation::with_busybox();
    it.run(["run", "-d", "--name", "box", "busybox", "sleep", "1000"]).ok();
    for args in [&["logs", "-f", "box"][..], &["wait", "box"]] {
        let running = it.container(args).spawn();
        std::thread::sleep(Duration::from_millis(500));
        let start = Instant::now();
        running.signal(rustix::process::Signal::INT);
        let code = running.wait(Duration::from_secs(10)).code;
        assert!(matches!(code, Some(130) | None), "{args:?}: {code:?}");
        assert!(start.elapsed() < Duration::from_secs(3));
    }
    assert_eq!(it.status("box").as_deref(), Some("running"));
    // While the VM boots.
    let running =
        it.container(["run", "--rm", "--name", "early", "busybox", "sleep", "60"]).spawn();
    std::thread::sleep(Duration::from_millis(700));
    running.signal(rustix::process::Signal::INT);
    let output = running.wait(Duration::from_secs(30));
    assert_ne!(output.code, Some(0), "{output:?}");
    e2e::wait_for("the end of the container", Duration::from_secs(20), || {
        it.status("early").is_none().then_some(())
    });
}

#[test]
fn ten_thousand_variables_reach_the_first_process() {
    let it = Installation::with_busybox();
    let mut command = it.container(["run", "--rm"]);
    for number in 0..10_000 {
        command = command.arg("-e").arg(format!("V{number}=value {number}"));
    }
    command
        .args(["busybox", "sh", "-c", "env | grep -c ^V; echo $V9999"])
        .run()
        .ok()
        .prints("10000\nvalue 9999");
}
