//! How long commands take: the command line itself, a list, an exec, a cold start.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::Installation;

use super::Bench;
use super::bare::Bare;
use super::figure::{Figure, Promise};

/// Runs `container ARGS…`; milliseconds.
pub fn timed(it: &Installation, args: &[&str], code: i32) -> Result<f64> {
    let mut command = std::process::Command::new(it.binaries().join("container"));
    command.args(args).env("CONTAINER_APP_ROOT", it.app_root());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let start = Instant::now();
    let status = command.status().context("run container")?;
    let took = start.elapsed().as_secs_f64() * 1e3;
    ensure!(status.code() == Some(code), "container {}: {status}", args.join(" "));
    Ok(took)
}

fn repeat(count: usize, mut measure: impl FnMut() -> Result<f64>) -> Result<Vec<f64>> {
    measure()?;
    (0..count).map(|_| measure()).collect()
}

/// Milliseconds of starts with something, of starts without it, and what it adds.
pub struct Pairs {
    pub with: Vec<f64>,
    pub without: Vec<f64>,
    pub added: Vec<f64>,
}

/// `start` with something and without it, in turns; each is the first one every other time, after
/// one pair that fills caches.
pub fn pairs(bench: &Bench<'_>, mut start: impl FnMut(bool) -> Result<f64>) -> Result<Pairs> {
    let mut pairs = Pairs { with: Vec::new(), without: Vec::new(), added: Vec::new() };
    for round in 0..=bench.rounds * 2 {
        let (with, without) = if round % 2 == 0 {
            let with = start(true)?;
            (with, start(false)?)
        } else {
            let without = start(false)?;
            (start(true)?, without)
        };
        if round > 0 {
            pairs.with.push(with);
            pairs.without.push(without);
            pairs.added.push(with - without);
        }
    }
    Ok(pairs)
}

/// The start of the program alone.
pub fn command_line(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let it = Installation::new();
    let ours = repeat(bench.rounds * 5, || timed(&it, &["--version"], 0))?;
    Ok(vec![Figure {
        name: "CLI start (`container --version`)".into(),
        unit: "ms",
        ours,
        peer: None,
        promise: Promise::AtMost(5.0),
    }])
}

/// A list of one running container and two that are not.
pub fn list(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let it = Installation::with_busybox();
    it.run(["run", "-d", "--name", "box", "busybox", "sleep", "100000"]).ok();
    for name in ["one", "two"] {
        it.run(["create", "--name", name, "busybox", "true"]).ok();
    }
    let ours = repeat(bench.rounds * 5, || timed(&it, &["list", "--all"], 0))?;
    Ok(vec![Figure {
        name: "`container list --all`, three containers".into(),
        unit: "ms",
        ours,
        peer: None,
        promise: Promise::AtMost(15.0),
    }])
}

/// Another process in a container that runs.
pub fn exec(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let it = Installation::with_busybox();
    it.run(["run", "-d", "--name", "box", "busybox", "sleep", "100000"]).ok();
    let ours = repeat(bench.rounds * 3, || timed(&it, &["exec", "box", "true"], 0))?;
    Ok(vec![Figure {
        name: "`container exec BOX true`".into(),
        unit: "ms",
        ours,
        peer: None,
        promise: Promise::AtMost(80.0),
    }])
}

/// A whole container in a new VM, against a bare one.
pub fn cold_start(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let it = Installation::with_config("runtime.template = false\nruntime.spare = 0\n");
    it.run(["run", "-d", "--name", "shape", "busybox", "sleep", "100000"]).ok();
    let qemu = it.qemus().into_iter().next().context("no QEMU runs")?;
    let cmdline = std::fs::read(format!("/proc/{}/cmdline", qemu.pid)).context("its arguments")?;
    let cmdline: Vec<String> =
        cmdline.split(|byte| *byte == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    let bare = Bare::like(bench.workspace, &cmdline)?;
    it.run(["delete", "--force", "shape"]).ok();
    let run = ["run", "--rm", "busybox", "true"];
    // One of each to fill caches.
    timed(&it, &run, 0)?;
    bare.boot()?;
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        ours.push(timed(&it, &run, 0)?);
        peer.push(bare.boot()?);
    }
    Ok(vec![Figure {
        name: "cold `container run --rm IMAGE true`".into(),
        unit: "ms",
        ours,
        peer: Some(("bare QEMU to the first process and off", peer)),
        promise: Promise::Ratio(1.25),
    }])
}
