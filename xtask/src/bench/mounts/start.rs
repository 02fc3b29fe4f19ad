//! What a bind mount adds to a start: one with it and one without, in turns.

use anyhow::Result;
use e2e::{Installation, busybox};

use crate::bench::figure::{Figure, Promise};
use crate::bench::starts::{Pairs, pairs, timed};
use crate::bench::{Bench, ready};
use crate::workspace::step;

/// Where VMs come from, and whether a mount keeps the promise there.
const WAYS: [(&str, &str, bool, Promise); 2] = [
    ("a spare", "runtime.spare = 1\n", true, Promise::AtMost(200.0)),
    ("a template", "runtime.spare = 0\n", false, Promise::Stated),
];

/// From a spare and from a template.
pub fn start(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (name, config, spare, promise) in WAYS {
        step(format!("starts from {name}, with and without a bind mount"));
        let it = Installation::without_mode();
        it.configure(config);
        it.load(&busybox::image()?);
        let mount = format!("{}:/m", it.scratch().display());
        let plain = ["run", "--rm", busybox::NAME, "true"];
        let mounted = ["run", "--rm", "-v", &mount, busybox::NAME, "true"];
        ready::template(&it, busybox::NAME)?;
        let Pairs { with, without, added } = pairs(bench, |with_mount| {
            ready::rest(&it, spare)?;
            timed(&it, if with_mount { &mounted } else { &plain }, 0)
        })?;
        let name = format!("`run --rm -v DIRECTORY` from {name}");
        figures.push(
            Figure::new(name.clone(), "ms", with, Promise::Stated)
                .against("without the mount", without),
        );
        let name = format!("{name}: what the mount adds, by pairs");
        figures.push(Figure::new(name, "ms", added, promise));
    }
    Ok(figures)
}
