//! How long it takes to make a jail like QEMU's, and until it is gone: for a program that does
//! nothing. Short enough to be seen through what the rest of a start varies by.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::busybox;
use rustix::process::{Pid, WaitOptions, waitpid};

use super::sides::{JAILER, Sides, WITHOUT};
use crate::bench::figure::{Figure, Promise};
use crate::bench::{Bench, program};
use crate::workspace::step;

const NOTHING: &str = "int main(void) { return 0; }\n";
/// Pairs for each round.
const PAIRS: usize = 10;

/// With the files of a QEMU that runs and a shared file. A tap is left out: both sides make it, and
/// the kernel takes tens of milliseconds to let it go.
pub fn made(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    step("a jail for a program that does nothing");
    let nothing = program::compiled(bench, "nothing", NOTHING)?;
    let sides = Sides::new(bench, "runtime.template = false\nruntime.spare = 0\n")?;
    let it = &sides.with;
    it.load(&busybox::image()?);
    it.run(["run", "-d", "--name", "box", busybox::NAME, "sleep", "100000"]).ok();
    let qemu = it.qemus().into_iter().next().context("no QEMU runs")?;
    let files = files(qemu.pid)?;
    it.run(["delete", "--force", "box"]).ok();
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..=bench.rounds * PAIRS {
        for jailed in [round % 2 == 0, round % 2 != 0] {
            let took = one(&sides.side(jailed).binaries().join(JAILER), &nothing, &files)?;
            // The first pair fills caches.
            if round > 0 {
                if jailed { &mut with } else { &mut without }.push(took);
            }
        }
    }
    let name = format!("a jail of {} files made and gone", files.len());
    Ok(vec![Figure::new(name, "ms", with, Promise::Stated).against(WITHOUT, without)])
}

/// The files in the jail of a QEMU, by their paths there.
fn files(pid: u32) -> Result<BTreeSet<PathBuf>> {
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo"));
    let mounts = mounts.context("read QEMU's mounts")?;
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let files: BTreeSet<PathBuf> = places
        .filter(|place| place != Path::new("/") && place != Path::new("/proc"))
        .filter(|place| !place.starts_with("/dev"))
        .collect();
    ensure!(!files.is_empty(), "QEMU has no files: {mounts}");
    Ok(files)
}

/// Milliseconds until the program has been executed and all is gone.
fn one(jailer: &Path, nothing: &Path, files: &BTreeSet<PathBuf>) -> Result<f64> {
    let mut command = Command::new(jailer);
    command.args(["--host-uid", "65534", "--host-gid", "65534", "--small-pages"]);
    command.args(["--share", "8"]).arg(nothing).arg("--bind").arg(nothing).arg("/nothing");
    for place in files {
        // One that is only there in a jail, such as firmware: any file will do.
        let source = if place.is_file() { place } else { nothing };
        command.arg("--bind").arg(source).arg(place);
    }
    command.args(["--", "/nothing"]).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let begin = Instant::now();
    let mut first = command.spawn().context("start the jailer")?;
    let mut said = String::new();
    let status = first.stderr.as_mut().context("the jailer's status")?;
    // Until the program, which has this, too, has ended.
    status.read_to_string(&mut said).context("read the jailer's status")?;
    let ended = first.wait().context("wait for the jailer")?;
    let pid = said.trim().strip_prefix("pid ").and_then(|number| number.parse().ok());
    let pid = pid.and_then(Pid::from_raw).with_context(|| format!("{ended}: {said}"))?;
    let status = waitpid(Some(pid), WaitOptions::empty()).context("wait for the program")?;
    let took = begin.elapsed().as_secs_f64() * 1e3;
    ensure!(status.is_some_and(|(_, status)| status.exit_status() == Some(0)), "it failed: {said}");
    Ok(took)
}
