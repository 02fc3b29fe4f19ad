//! A thousand starts and stops in a row: what grows.

use anyhow::Result;
use e2e::Installation;

use super::Bench;
use super::figure::{Figure, Promise};
use super::ready::{self, Rest};

/// Starts before the first count, so that caches and pools are full.
const WARM: usize = 50;

/// Differences between a count early on and one at the end.
pub fn soak(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let it = Installation::with_busybox();
    let starts = bench.rounds * 100;
    let mut failed = 0;
    let mut run = |count: usize| {
        for _ in 0..count {
            let output = it.run(["run", "--rm", "busybox", "true"]);
            if output.code != Some(0) {
                failed += 1;
                eprintln!("{output:?}");
            }
        }
    };
    run(WARM);
    ready::rest(&it, true)?;
    let before = Rest::of(&it);
    run(starts);
    ready::rest(&it, true)?;
    let after = Rest::of(&it);
    let growth = |name: &str, unit, before: f64, after: f64, bound| {
        let name = format!("growth over {starts} starts and stops: {name}");
        Figure::new(name, unit, vec![after - before], Promise::AtMost(bound))
    };
    let mib = |kib: u64| kib as f64 / 1024.0;
    let count = |number: usize| number as f64;
    Ok(vec![
        growth("failures", "", 0.0, count(failed), 0.0),
        growth("processes", "", count(before.processes), count(after.processes), 0.0),
        growth("files", "", count(before.files), count(after.files), 0.0),
        growth("sockets", "", count(before.sockets), count(after.sockets), 0.0),
        growth(
            "the apiserver's descriptors",
            "",
            count(before.descriptors),
            count(after.descriptors),
            0.0,
        ),
        // An allocator's arenas and a database's log breathe.
        growth("the apiserver's memory", "MiB", mib(before.memory_kib), mib(after.memory_kib), 2.0),
        growth("disk", "MiB", mib(before.disk_kib), mib(after.disk_kib), 8.0),
    ])
}
