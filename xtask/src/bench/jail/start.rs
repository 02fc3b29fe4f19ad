//! What jail and filters add to a start.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::busybox;

use super::sides::{Sides, WITHOUT};
use crate::bench::figure::{Figure, Promise};
use crate::bench::starts::{Pairs, pairs, timed};
use crate::bench::{Bench, ready};
use crate::workspace::step;

/// Where VMs come from, and whether that is a spare.
const WAYS: [(&str, &str, bool); 2] = [
    ("a spare, one start a second", "runtime.spare = 1\n", true),
    ("a template", "runtime.spare = 0\n", false),
];
const PACE: Duration = Duration::from_secs(1);
/// What both add together, in milliseconds.
const PROMISED: f64 = 10.0;

/// From a spare and from a template.
pub fn start(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (name, config, spare) in WAYS {
        step(format!("starts from {name}, with and without the jail"));
        let sides = Sides::new(bench, config)?;
        for jailed in [true, false] {
            sides.side(jailed).load(&busybox::image()?);
            ready::template(sides.side(jailed), busybox::NAME)?;
        }
        look(&sides, spare)?;
        let command = ["run", "--rm", busybox::NAME, "true"];
        let twice = Bench { workspace: bench.workspace, rounds: bench.rounds * 2 };
        let Pairs { with, without, added } = pairs(&twice, |jailed| {
            let it = sides.side(jailed);
            ready::rest(it, spare)?;
            let begin = Instant::now();
            let took = timed(it, &command, 0)?;
            if spare {
                std::thread::sleep(PACE.saturating_sub(begin.elapsed()));
            }
            Ok(took)
        })?;
        look(&sides, spare)?;
        let name = format!("`run --rm` from {name}");
        figures.push(Figure::new(&name, "ms", with, Promise::Stated).against(WITHOUT, without));
        let name = format!("{name}: what jail and filters add, by pairs");
        figures.push(Figure::new(name, "ms", added, Promise::AtMost(PROMISED)));
    }
    Ok(figures)
}

/// Fails unless a VM of each side has come from where it should, and is confined as it should be.
fn look(sides: &Sides, spare: bool) -> Result<()> {
    let origin = if spare { "spare" } else { "template" };
    for jailed in [true, false] {
        let it = sides.side(jailed);
        ready::rest(it, spare)?;
        it.run(["run", "-d", "--name", "look", busybox::NAME, "sleep", "100000"]).ok();
        let came_from = it.inspect("look")["vmOrigin"].clone();
        ensure!(came_from == origin, "a VM came from {came_from}, not from a {origin}");
    }
    sides.check()?;
    for jailed in [true, false] {
        sides.side(jailed).run(["delete", "--force", "look"]).ok();
    }
    Ok(())
}
