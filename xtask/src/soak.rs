//! `make soak`: every process is killed at many moments, which takes hours, and a database's VM fifty
//! times. The tests are those of `make test`, which has a few moments only.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::args::Args;
use crate::workspace::{self, Workspace, step};
use crate::{build, debian};

/// Moments for each process.
const MOMENTS: u64 = 200;
/// Processes that one test kills in turn.
const VICTIMS: u64 = 3;

/// `--moments N` for each process, `--seed N`; other words are names of tests.
pub fn run(workspace: &Workspace, mut args: Args) -> Result<()> {
    let number = |text: Option<String>, or: u64| match text {
        Some(text) => text.parse::<u64>().with_context(|| format!("{text:?} is no number")),
        None => Ok(or),
    };
    let moments = number(args.value("--moments")?, MOMENTS)?;
    let seed = args.value("--seed")?;
    build::all(workspace, ())?;
    let debian = debian::image(workspace)?;
    let names = args.rest();
    let begun = Instant::now();
    let nextest = || {
        let mut tests = workspace.cargo();
        tests.args(["nextest", "run", "--profile", "soak", "--no-fail-fast"]);
        tests.args(["--success-output=final", "--package", "e2e"]);
        tests.env("CONTAINER_TEST_BIN_DIR", workspace.release());
        tests.env("CONTAINER_TEST_DEBIAN", &debian);
        tests
    };
    if names.is_empty() {
        step("a database whose VM is killed");
        workspace::run(nextest().args(["--test", "crash", "--run-ignored", "only"]))?;
    }
    step(format!("faults: {moments} moments for each process"));
    let mut tests = nextest();
    tests.args(["--test", "faults", "--test", "faults_of_the_host"]).args(names);
    tests.env("CONTAINER_TEST_FAULTS", (moments * VICTIMS).to_string());
    if let Some(seed) = seed {
        tests.env("CONTAINER_TEST_SEED", seed);
    }
    workspace::run(&mut tests)?;
    step(format!("it took {} min", begun.elapsed().as_secs() / 60));
    Ok(())
}
