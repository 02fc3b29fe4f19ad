//! How fast bytes go through a container's standard input and output, and files by `cp`.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::Installation;

use super::Bench;
use super::figure::{Figure, Promise};

/// MiB sent in each measurement.
const MIB: u64 = 256;
/// MiB of the file that is copied.
const COPIED_MIB: u64 = 1024;

/// In, out, and through `cat`.
pub fn stdio(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let it = Installation::with_busybox();
    it.run(["run", "-d", "--name", "box", "busybox", "sleep", "100000"]).ok();
    let container = it.binaries().join("container");
    let zeros = format!("head -c {} /dev/zero", MIB << 20);
    let exec = format!("{} exec -i box", container.display());
    let ways: [(&str, String); 3] = [
        ("stdin: `exec -i BOX cat >/dev/null`", format!("{zeros} | {exec} sh -c 'cat >/dev/null'")),
        (
            "stdout: `exec BOX dd if=/dev/zero bs=1M`",
            format!("{exec} dd if=/dev/zero bs=1M count={MIB} >/dev/null 2>&1 </dev/null"),
        ),
        ("both: `exec -i BOX cat`", format!("{zeros} | {exec} cat >/dev/null")),
    ];
    let mut figures = Vec::new();
    for (name, script) in ways {
        let mut ours = Vec::new();
        for _ in 0..(bench.rounds / 3).max(3) {
            let start = Instant::now();
            let status = Command::new("sh")
                .args(["-c", &script])
                .env("CONTAINER_APP_ROOT", it.app_root())
                .status()
                .context("run sh")?;
            ensure!(status.success(), "{script}: {status}");
            ours.push(MIB as f64 / start.elapsed().as_secs_f64());
        }
        figures.push(Figure::new(name, "MiB/s", ours, Promise::Stated));
    }
    Ok(figures)
}

/// `cp` of one large file, each way, against the same bytes through standard streams and onto a
/// file as well: what the channel gives.
pub fn copy(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let it = Installation::with_busybox();
    it.run([
        "run", "-d", "--name", "box", "--tmpfs", "/t", "-m", "3G", "busybox", "sleep", "100000",
    ])
    .ok();
    let container = it.binaries().join("container").display().to_string();
    let file = |name: &str| it.scratch().join(name).display().to_string();
    let (source, target) = (file("source"), file("target"));
    std::fs::write(&source, vec![0x5a; (COPIED_MIB << 20) as usize])?;
    let ways = [
        (
            "cp to a container",
            format!("{container} cp -q {source} box:/t/x"),
            format!("{container} exec -i box sh -c 'cat >/t/x' <{source}"),
        ),
        (
            "cp from a container",
            format!("{container} cp -q box:/t/x {target}"),
            format!("{container} exec box cat /t/x >{target}"),
        ),
    ];
    let timed = |script: &str| -> Result<f64> {
        let start = Instant::now();
        let mut sh = Command::new("sh");
        let status = sh.args(["-c", script]).env("CONTAINER_APP_ROOT", it.app_root()).status()?;
        ensure!(status.success(), "{script}: {status}");
        Ok(COPIED_MIB as f64 / start.elapsed().as_secs_f64())
    };
    let mut figures = Vec::new();
    for (name, ours, raw) in ways {
        let (mut samples, mut peers) = (Vec::new(), Vec::new());
        for _ in 0..bench.rounds {
            peers.push(timed(&raw)?);
            samples.push(timed(&ours)?);
        }
        let figure = Figure::new(name, "MiB/s", samples, Promise::RatioAtLeast(0.8));
        figures.push(figure.against("the channel", peers));
    }
    Ok(figures)
}
