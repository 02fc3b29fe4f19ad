//! The slim guest kernel of `make kernel` against the distribution's own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Installation, processes};

use super::figure::{Figure, Promise};
use super::starts::timed;
use super::{Bench, idle, ready};
use crate::slim;

/// What ours is compared with.
const PEER: &str = "the distribution's";
/// Idle containers, so that the template's memory is shared.
const IDLE: [&str; 3] = ["one", "two", "three"];
/// Until memory is given back.
const SETTLE: Duration = Duration::from_secs(12);

/// Boot time, memory, size and symbols of both kernels.
pub fn kernel(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let slim = slim::build(bench.workspace, false)?;
    let bundles = [slim.bundle, bench.workspace.bundle()];
    let mut figures = vec![boot(bench, &bundles)?];
    let [ours, stock] = bundles.each_ref().map(|bundle| idle_costs(bundle));
    for (ours, (what, unit, samples)) in ours?.into_iter().zip(stock?) {
        let figure = Figure::new(what, unit, ours.2, Promise::Stated);
        figures.push(figure.against(PEER, samples));
    }
    let sizes = bundles.each_ref().map(|bundle| size_mib(bundle));
    let [ours, stock] = sizes;
    let figure = Figure::new("kernel and initramfs", "MiB", vec![ours?], Promise::Stated);
    figures.push(figure.against(PEER, vec![stock?]));
    let map = std::fs::read_to_string(&slim.symbols).context("read System.map")?;
    let ours = functions(&map);
    let stock = stock_functions(&bundles[1])?;
    let figure = Figure::new("functions in the guest's kernel", "", vec![ours], Promise::Stated);
    figures.push(figure.against(PEER, vec![stock]));
    Ok(figures)
}

fn with_kernel(bundle: &Path, more: &str) -> Installation {
    Installation::with_config(&format!("kernel.path = {bundle:?}\nruntime.spare = 0\n{more}"))
}

/// Cold starts of a whole container, in turn.
fn boot(bench: &Bench<'_>, bundles: &[std::path::PathBuf; 2]) -> Result<Figure> {
    let both = bundles.each_ref().map(|bundle| with_kernel(bundle, "runtime.template = false\n"));
    let run = ["run", "--rm", "busybox", "true"];
    let mut samples = [Vec::new(), Vec::new()];
    // The first of each fills caches.
    for round in 0..=bench.rounds {
        for (it, samples) in both.iter().zip(&mut samples) {
            let took = timed(it, &run, 0)?;
            if round > 0 {
                samples.push(took);
            }
        }
    }
    let [ours, peer] = samples;
    let name = "cold `container run --rm IMAGE true`, slim kernel";
    Ok(Figure::new(name, "ms", ours, Promise::Stated).against(PEER, peer))
}

type Cost = (&'static str, &'static str, Vec<f64>);

/// Own memory of idle containers, what one's guest uses, and the size of the template.
fn idle_costs(bundle: &Path) -> Result<Vec<Cost>> {
    let it = with_kernel(bundle, "");
    ready::template(&it, "busybox")?;
    for name in IDLE {
        it.run(["run", "-d", "--name", name, "busybox", "sleep", "100000"]).ok();
    }
    std::thread::sleep(SETTLE);
    let own = |name: &str| {
        let pids = idle::pids(&it, name);
        let kib: u64 = pids.iter().filter_map(|pid| processes::own_kib(*pid)).sum();
        kib as f64 / 1024.0
    };
    let memory = IDLE.map(own).to_vec();
    let status = it.run(["system", "status", "--format", "json"]).ok().json();
    let template = status["templates"][0]["sizeInBytes"].as_f64().context("no template")?;
    Ok(vec![
        ("an idle container's own memory, slim kernel", "MiB", memory),
        ("its template on disk", "MiB", vec![template / 1_048_576.0]),
    ])
}

fn size_mib(bundle: &Path) -> Result<f64> {
    let len = |name: &str| {
        let path = bundle.join(name);
        let found = path.metadata().with_context(|| format!("look at {}", path.display()))?;
        Ok::<_, anyhow::Error>(found.len() as f64)
    };
    Ok((len("vmlinux")? + len("initramfs.cpio")?) / 1_048_576.0)
}

/// Lines of functions among those of a list of symbols.
fn functions(symbols: &str) -> f64 {
    let kind = |line: &&str| matches!(line.split_whitespace().nth(1), Some("t" | "T"));
    symbols.lines().filter(kind).count() as f64
}

/// Of a kernel that tells, with its modules.
fn stock_functions(bundle: &Path) -> Result<f64> {
    let it = with_kernel(bundle, "");
    let symbols = it.run(["run", "--rm", "busybox", "cat", "/proc/kallsyms"]).ok().text();
    let count = functions(&symbols);
    ensure!(count > 1000.0, "the guest's kernel does not list its functions");
    Ok(count)
}

#[cfg(test)]
mod tests {
    #[test]
    fn functions_are_counted() {
        let symbols = "0000 T start\n0000 t local [mod]\n0000 D data\n0000 W weak\n\nbroken";
        assert!((super::functions(symbols) - 2.0).abs() < f64::EPSILON);
    }
}
