//! What a block volume adds to a start: one with it and one without, in turns.

use anyhow::Result;
use e2e::{Installation, busybox};

use super::figure::{Figure, Promise};
use super::starts::{Pairs, pairs, timed};
use super::{Bench, ready};
use crate::workspace::step;

/// Where VMs come from, and what is promised there.
const WAYS: [(&str, &str, bool, Promise); 2] = [
    ("a spare", "runtime.spare = 1\n", true, Promise::AtMost(5.0)),
    ("a template", "runtime.spare = 0\n", false, Promise::Stated),
];

/// From a spare and from a template.
pub fn start(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (name, config, spare, promise) in WAYS {
        step(format!("starts from {name}, with and without a volume"));
        let it = Installation::without_mode();
        it.configure(config);
        it.load(&busybox::image()?);
        it.run(["volume", "create", "data"]).ok();
        let plain = ["run", "--rm", busybox::NAME, "true"];
        let mounted = ["run", "--rm", "-v", "data:/m", busybox::NAME, "true"];
        ready::template(&it, busybox::NAME)?;
        let Pairs { with, without, added } = pairs(bench, |with_volume| {
            ready::rest(&it, spare)?;
            timed(&it, if with_volume { &mounted } else { &plain }, 0)
        })?;
        let name = format!("`run --rm -v VOLUME` from {name}");
        figures.push(
            Figure::new(name.clone(), "ms", with, Promise::Stated)
                .against("without the volume", without),
        );
        let name = format!("{name}: what the volume adds, by pairs");
        figures.push(Figure::new(name, "ms", added, promise));
    }
    Ok(figures)
}
