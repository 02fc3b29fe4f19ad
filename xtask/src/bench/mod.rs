//! `make bench`: the promises of the specification as measurements, each against a peer
//! of the same run, interleaved, so that a machine's mood hits both alike.

mod audit;
mod bare;
mod figure;
mod idle;
mod jail;
mod kernel;
mod memory;
mod mounts;
mod network;
mod plot;
mod podman;
mod program;
mod ready;
mod restore;
mod returned;
mod soak;
mod start;
mod starts;
mod streams;
mod trace;
mod translation;
mod unpack;

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::json;

use crate::args::Args;
use crate::bench::figure::Figure;
use crate::workspace::{Workspace, output, step};
use crate::{build, debian};

/// What a benchmark needs.
pub struct Bench<'a> {
    workspace: &'a Workspace,
    /// Pairs to measure.
    rounds: usize,
}

/// One benchmark: its name and what measures it.
type Entry = (&'static str, fn(&Bench<'_>) -> Result<Vec<Figure>>);

const ALL: &[Entry] = &[
    ("cli", starts::command_line),
    ("list", starts::list),
    ("exec", starts::exec),
    ("cold-start", starts::cold_start),
    ("unpack", unpack::unpack),
    ("stdio", streams::stdio),
    ("copy", streams::copy),
    ("memory", memory::memory),
    ("audit", audit::audit),
    ("start", start::start),
    ("restore", restore::restore),
    ("jail", jail::jail),
    ("idle", idle::idle),
    ("hundred", idle::hundred),
    ("memory-return", returned::memory_return),
    ("soak", soak::soak),
    ("network", network::throughput),
    ("network-start", network::attach),
    ("network-trip", network::trip),
    ("network-lookup", network::lookup),
    ("network-load", network::load),
    ("mount-start", mounts::mount),
    ("volume-start", mounts::volume),
    ("mount-io", mounts::share),
    ("disk-io", mounts::disk),
    ("translation-cache", translation::translation_cache),
];

/// Those that run only when named: one writes into the source tree, one builds a kernel, the
/// others are parts of another.
const ON_DEMAND: &[Entry] = &[
    ("plot", plot::plot),
    ("kernel", kernel::kernel),
    ("start-back-to-back", start::back_to_back),
    ("start-template", start::from_template),
    ("jail-made", jail::made),
    ("jail-start", jail::start),
    ("jail-throughput", jail::throughput),
];

/// Runs the benchmarks named, or all; `--rounds N` pairs each (10 at least count).
pub fn run(workspace: &Workspace, mut args: Args) -> Result<()> {
    let rounds = match args.value("--rounds")? {
        Some(number) => number.parse().context("--rounds")?,
        None => 10,
    };
    let named = args.rest();
    let known = || ALL.iter().chain(ON_DEMAND);
    if let Some(unknown) = named.iter().find(|name| !known().any(|(known, _)| known == name)) {
        let names: Vec<&str> = known().map(|(name, _)| *name).collect();
        bail!("unknown benchmark {unknown:?}: there are {}", names.join(", "));
    }
    build::all(workspace, ())?;
    debian::image(workspace)?;
    let bench = Bench { workspace, rounds };
    let default = ALL.iter().filter(|_| named.is_empty());
    let chosen = known().filter(|(name, _)| named.iter().any(|wanted| wanted == name));
    let (mut figures, mut failed) = (Vec::new(), Vec::new());
    for (name, measure) in default.chain(chosen) {
        step(format!("benchmark {name}"));
        match attempt(|| measure(&bench)) {
            Ok(found) => {
                found.iter().for_each(|figure| println!("{figure}"));
                figures.extend(found);
            }
            Err(error) => {
                eprintln!("benchmark {name}: {error:#}");
                failed.push(*name);
            }
        }
        save(workspace, rounds, &figures)?;
    }
    show(workspace, &figures);
    ensure!(failed.is_empty(), "without figures: {}", failed.join(", "));
    Ok(())
}

/// The harness panics where a test would fail; the other benchmarks go on.
fn attempt<T>(measure: impl FnOnce() -> Result<T>) -> Result<T> {
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(measure));
    caught.unwrap_or_else(|_| Err(anyhow!("it panicked; see above")))
}

fn path(workspace: &Workspace) -> PathBuf {
    workspace.target.join("bench.json")
}

fn save(workspace: &Workspace, rounds: usize, figures: &[Figure]) -> Result<()> {
    let text = |program: &str, args: &[&str]| {
        output(std::process::Command::new(program).args(args)).unwrap_or_default()
    };
    let report = json!({
        "host": text("uname", &["-srm"]).trim(),
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "qemu": text("qemu-system-x86_64", &["--version"]).lines().next().unwrap_or_default(),
        "rounds": rounds,
        "figures": figures.iter().map(Figure::json).collect::<Vec<_>>(),
    });
    let path = path(workspace);
    std::fs::write(&path, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("write {}", path.display()))
}

fn show(workspace: &Workspace, figures: &[Figure]) {
    println!("\n| what | here | peer | ratio or bound | promised | |\n|---|---|---|---|---|---|");
    for figure in figures {
        println!("{}", figure.row());
    }
    println!("\nas JSON: {}", path(workspace).display());
}
