//! What the host lacks for a while, and a registry that lies: descriptors, the right
//! time. After each: nothing is lost, leaked or untrue.

use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::serve::{Manners, Serve};
use e2e::{Installation, Layer, Output, wait_for};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// VMs that boot, and nothing in the background that is made while something is missing.
const PLAIN: &str = "runtime.template = false\nruntime.spare = 0\n";

/// It has worked, or was refused in one line.
#[track_caller]
fn works_or_is_refused(output: &Output) {
    match output.code {
        Some(0) => {}
        Some(125) => assert_eq!(output.errors().trim_end().lines().count(), 1, "{output:?}"),
        _ => panic!("neither done nor refused: {output:?}"),
    }
}

/// Lets a process open so many files from now on.
fn limit_files(pid: u32, most: u64) {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("its limits");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let hard = line.split_whitespace().nth(4).expect("the hard limit");
    let wanted = Rlimit { current: Some(most), maximum: hard.parse().ok() };
    let pid = Pid::from_raw(pid.cast_signed());
    prlimit(pid, Resource::Nofile, wanted).expect("limit open files");
}

fn open_files(pid: u32) -> u64 {
    let folder = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a process's files");
    folder.count() as u64
}

#[test]
fn the_services_may_run_out_of_descriptors() {
    let it = Installation::with_config(PLAIN);
    it.run(["run", "-d", "--name", "first", "busybox", "sleep", "100000"]).ok();
    it.run(["volume", "create", "data"]).ok();
    let apiserver = it.apiserver_pid();
    let images = it.process("container-images").pid;
    let mut made = Vec::new();
    for (service, more) in [(apiserver, 4), (apiserver, 12), (images, 2)] {
        limit_files(service, open_files(service) + more);
        let name = format!("at-{service}-{more}");
        let created = it.run(["create", "--name", &name, "busybox", "true"]);
        works_or_is_refused(&created);
        if created.code == Some(0) {
            made.push(name);
        }
        works_or_is_refused(&it.run(["list"]));
        works_or_is_refused(&it.run(["exec", "first", "true"]));
        works_or_is_refused(&it.run(["image", "list"]));
        works_or_is_refused(&it.run(["volume", "list"]));
        limit_files(service, 4096);
        it.comes_to_rest(&format!("{more} more files of {service}"));
    }
    assert_eq!(it.apiserver_pid(), apiserver, "the service lives through it");
    assert_eq!(it.status("first").as_deref(), Some("running"));
    it.run(["exec", "first", "true"]).ok();
    for name in made {
        assert_eq!(it.status(&name).as_deref(), Some("created"));
    }
}

/// A library that moves the time of day of whatever loads it by what a file says, in seconds.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    char text[32] = {0};
    int file = clock == CLOCK_REALTIME ? open(OFFSET, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        if (read(file, text, sizeof text - 1) > 0) time->tv_sec += atol(text);
        close(file);
    }
    return result;
}
"#;

/// Builds [`CLOCK`] for the file `offset`.
fn moved_clock(it: &Installation, offset: &Path) -> PathBuf {
    let (source, library) = (it.scratch().join("clock.c"), it.scratch().join("clock.so"));
    std::fs::write(&source, CLOCK).expect("write a source");
    let define = format!("-DOFFSET=\"{}\"", offset.display());
    let built = e2e::Cmd::new("cc").args(["-shared", "-fPIC", "-O", &define, "-o"]);
    built.arg(&library).arg(&source).run().ok();
    library
}

#[test]
fn clocks_may_jump() {
    let it = Installation::with_config(PLAIN);
    it.run(["system", "stop"]).ok();
    let offset = it.scratch().join("offset");
    let say = |seconds: i64| std::fs::write(&offset, seconds.to_string()).expect("an offset");
    say(0);
    let library = moved_clock(&it, &offset);
    it.container(["system", "start"]).env("LD_PRELOAD", &library).run().ok();
    let run =
        ["run", "-d", "--name", "first", "--cap-add", "SYS_TIME", "busybox", "sleep", "100000"];
    it.run(run).ok();
    const YEAR: i64 = 365 * 24 * 3600;
    for (number, jump) in [YEAR, -YEAR].into_iter().enumerate() {
        say(jump);
        let name = format!("at-{number}");
        it.run(["create", "--name", &name, "busybox", "true"]).ok();
        let created = it.inspect(&name)["configuration"]["creationDate"].to_string();
        let year = |text: &str| text.trim_matches('"')[..4].parse::<i64>().expect("a year");
        let first = it.inspect("first")["configuration"]["creationDate"].to_string();
        assert_eq!((year(&created) - year(&first)).signum(), jump.signum(), "{created} {first}");
        // The guest's own clock goes elsewhere, and its host doesn't mind.
        it.run(["exec", "first", "date", "-s", "@86400"]).ok();
        it.run(["exec", "first", "true"]).ok();
        it.run(["stop", "-t", "1", "first"]).ok();
        it.run(["start", "first"]).ok();
        it.comes_to_rest(&format!("a jump of {jump} s"));
        it.run(["delete", &name]).ok();
        it.run(["system", "audit", "verify"]).ok();
    }
    assert_eq!(it.status("first").as_deref(), Some("running"));
}

#[test]
fn a_registry_that_lies_or_stalls_leaves_nothing() {
    let it = Installation::with_config(PLAIN);
    let folder = it.scratch().join("served");
    std::fs::create_dir(&folder).expect("a folder");
    let noise: Vec<u8> =
        (0..1 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let layers = vec![Layer::build(|entries| _ = entries.file("noise", 0o644, &noise))];
    let image = e2e::Image::new("served:1", layers, serde_json::json!({}));
    image.write_layout(&folder).expect("a layout");
    let liars = [
        ("corrupts", Manners { corrupts: true, ..Manners::default() }),
        ("goes on", Manners { goes_on: true, ..Manners::default() }),
    ];
    for (name, manners) in liars {
        let server = Serve::start(&folder, manners);
        it.run(["image", "pull", &server.reference("served:1")]).code(125);
        it.comes_to_rest(&format!("a registry that {name}"));
    }
    for (name, manners) in [
        ("falls short", Manners { falls_short: true, ..Manners::default() }),
        ("stalls", Manners { stalls_after: Some(64 << 10), ..Manners::default() }),
    ] {
        let server = Serve::start(&folder, manners);
        let pull = it.container(["image", "pull", &server.reference("served:1")]).spawn();
        wait_for("the pull of a blob", Duration::from_secs(60), || {
            server.seen().iter().any(|seen| seen.path.contains("/blobs/")).then_some(())
        });
        pull.interrupt();
        let output = pull.wait(Duration::from_secs(60));
        assert!(matches!(output.code, Some(125 | 130)), "{name}: {output:?}");
        it.comes_to_rest(&format!("a registry that {name}"));
    }
    let names = it.run(["image", "list", "--quiet"]).ok().text();
    assert!(!names.contains("served"), "{names}");
    let honest = Serve::start(&folder, Manners::default());
    it.run(["image", "pull", &honest.reference("served:1")]).ok();
    it.run(["system", "check", "--state", "--deep"]).ok();
}
