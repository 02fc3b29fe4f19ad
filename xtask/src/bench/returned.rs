//! Memory that a guest's process has freed: how much of it the host has again.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{Installation, processes};

use super::Bench;
use super::figure::{Figure, Promise};
use super::{idle, ready};

/// MiB that a process in the guest fills and frees.
const MIB: u64 = 512;
/// What the promise allows.
const WITHIN: Duration = Duration::from_secs(10);

/// On a VM of each kind.
pub fn memory_return(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let ways = [
        ("cold", "runtime.template = false\n"),
        ("template", "runtime.spare = 0\n"),
        ("spare", "runtime.spare = 1\n"),
    ];
    let mut figures = Vec::new();
    for (origin, config) in ways {
        let mut shares = Vec::new();
        for _ in 0..(bench.rounds / 3).max(1) {
            shares.push(measure(origin, config)?);
        }
        let name = format!("{MIB} MiB freed in a guest ({origin}): back on the host in 10 s");
        figures.push(Figure::new(name, "%", shares, Promise::AtLeast(95.0)));
    }
    Ok(figures)
}

fn measure(origin: &str, config: &str) -> Result<f64> {
    let it = Installation::with_config(config);
    if origin != "cold" {
        ready::template(&it, "busybox")?;
        ready::rest(&it, origin == "spare")?;
    }
    it.run(["run", "-d", "--name", "box", "busybox", "sleep", "100000"]).ok();
    let said = it.inspect("box")["vmOrigin"].clone();
    ensure!(said == origin, "the VM is of {said}, not of {origin}");
    // What a start leaves to be done is done, and its memory is back.
    std::thread::sleep(WITHIN);
    let [_, hypervisor] = idle::pids(&it, "box");
    let own = || processes::ram_kib(hypervisor).unwrap_or(0);
    let before = own();
    let peak = processes::peak_ram_kib(hypervisor, || {
        let block = format!("bs={MIB}M");
        it.run(["exec", "box", "dd", "if=/dev/zero", "of=/dev/null", &block, "count=1"]).ok();
    });
    ensure!(peak > before + MIB * 1024 * 9 / 10, "the guest took {} KiB alone", peak - before);
    std::thread::sleep(WITHIN);
    Ok(peak.saturating_sub(own()) as f64 / (peak - before) as f64 * 100.0)
}
