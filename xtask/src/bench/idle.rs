//! What containers that do nothing cost, one by one and a hundred at once.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::{Installation, processes};

use super::Bench;
use super::figure::{Figure, Promise};
use super::ready;

/// How long CPU time is counted for.
const WATCH: Duration = Duration::from_secs(20);
/// Until memory is given back, late drivers are loaded, and an idle VM has been trimmed.
const SETTLE: Duration = Duration::from_secs(45);
/// The same where an earlier trim may have been a moment before.
const SETTLE_AGAIN: Duration = Duration::from_secs(100);
/// Containers at once.
const MANY: usize = 100;

/// Own memory and CPU time of idle containers, each with a program started in it. Three, so that
/// the template's memory is shared.
pub fn idle(_: &Bench<'_>) -> Result<Vec<Figure>> {
    let it = Installation::with_busybox();
    ready::template(&it, "busybox")?;
    ready::rest(&it, true)?;
    for name in ["one", "two", "three"] {
        it.run(["run", "-d", "--name", name, "busybox", "sleep", "100000"]).ok();
        ready::rest(&it, true)?;
    }
    std::thread::sleep(SETTLE);
    let (mut memory, mut share) = (Vec::new(), Vec::new());
    for name in ["one", "two", "three"] {
        let pids = pids(&it, name);
        memory.push(
            pids.iter().filter_map(|pid| processes::own_kib(*pid)).sum::<u64>() as f64 / 1024.0,
        );
        let used = || pids.iter().filter_map(|pid| processes::cpu_time(*pid)).sum::<Duration>();
        let (before, begin) = (used(), Instant::now());
        std::thread::sleep(WATCH);
        share.push((used() - before).as_secs_f64() / begin.elapsed().as_secs_f64() * 100.0);
    }
    Ok(vec![
        Figure::new("an idle container's own memory", "MiB", memory, Promise::AtMost(36.0)),
        Figure::new("an idle container's share of a core", "%", share, Promise::AtMost(0.5)),
    ])
}

/// The helper and the hypervisor of a container.
pub fn pids(it: &Installation, name: &str) -> [u32; 2] {
    let about = it.inspect(name);
    ["runtimePid", "hypervisorPid"].map(|field| {
        let pid = about[field].as_u64().unwrap_or_else(|| panic!("no {field} in {about}"));
        u32::try_from(pid).expect("a process id")
    })
}

/// A hundred idle containers at once: started one after another, asked, stopped together.
pub fn hundred(_: &Bench<'_>) -> Result<Vec<Figure>> {
    let it = Installation::with_busybox();
    ready::template(&it, "busybox")?;
    ready::rest(&it, true)?;
    let before = ready::memory_available_kib()?;
    let began = Instant::now();
    let (mut failed, mut silent) = (0, 0);
    for number in 0..MANY {
        let name = format!("box-{number}");
        let run = it.run(["run", "-d", "--name", &name, "busybox", "sleep", "100000"]);
        failed += usize::from(run.code != Some(0));
    }
    let started = began.elapsed().as_secs_f64();
    for number in 0..MANY {
        let exec = it.run(["exec", &format!("box-{number}"), "true"]);
        silent += usize::from(exec.code != Some(0));
    }
    std::thread::sleep(SETTLE_AGAIN);
    let fallen = before.saturating_sub(ready::memory_available_kib()?) as f64 / 1_048_576.0;
    let began = Instant::now();
    it.run(["stop", "--all", "-t", "0"]).ok();
    let stopped = began.elapsed().as_secs_f64();
    ensure!(it.run(["list", "--quiet"]).ok().text().is_empty(), "some still run");
    let figure = |name: &str, unit, value: f64, promise| {
        Figure::new(format!("{MANY} idle containers: {name}"), unit, vec![value], promise)
    };
    Ok(vec![
        figure("that did not start", "", failed as f64, Promise::AtMost(0.0)),
        figure("that did not answer exec", "", silent as f64, Promise::AtMost(0.0)),
        figure("time to start them, one by one", "s", started, Promise::Stated),
        figure("fall of MemAvailable", "GiB", fallen, Promise::AtMost(4.0)),
        figure("stop --all -t 0", "s", stopped, Promise::AtMost(15.0)),
    ])
}
