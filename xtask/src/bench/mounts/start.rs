//! What a bind mount, or a block volume, adds to a start: one with it and one without, in turns.

use anyhow::Result;
use e2e::{Installation, busybox};

use crate::bench::figure::{Figure, Promise};
use crate::bench::starts::{Pairs, pairs, timed};
use crate::bench::{Bench, ready};
use crate::workspace::step;

/// Where VMs come from.
const WAYS: [(&str, &str, bool); 2] =
    [("a spare", "runtime.spare = 1\n", true), ("a template", "runtime.spare = 0\n", false)];

/// What is mounted.
struct Kind {
    name: &'static str,
    /// The other side of a pair.
    without: &'static str,
    /// What stands for the source in a command.
    source: &'static str,
    /// Of a start from a spare, in milliseconds.
    promised: f64,
    /// Makes it, and says what it is called.
    make: fn(&Installation) -> String,
}

/// A directory of the host.
pub fn mount(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let make = |it: &Installation| it.scratch().display().to_string();
    start(
        bench,
        &Kind {
            name: "mount",
            without: "without the mount",
            source: "DIRECTORY",
            promised: 200.0,
            make,
        },
    )
}

/// A block volume.
pub fn volume(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let make = |it: &Installation| {
        it.run(["volume", "create", "data"]).ok();
        "data".to_owned()
    };
    start(
        bench,
        &Kind {
            name: "volume",
            without: "without the volume",
            source: "VOLUME",
            promised: 5.0,
            make,
        },
    )
}

/// From a spare and from a template.
fn start(bench: &Bench<'_>, kind: &Kind) -> Result<Vec<Figure>> {
    let Kind { name: what, without: peer, source, promised, make } = kind;
    let mut figures = Vec::new();
    for (name, config, spare) in WAYS {
        step(format!("starts from {name}, with and without a {what}"));
        let it = Installation::without_mode();
        it.configure(config);
        it.load(&busybox::image()?);
        let volume = format!("{}:/m", make(&it));
        let plain = ["run", "--rm", busybox::NAME, "true"];
        let mounted = ["run", "--rm", "-v", &volume, busybox::NAME, "true"];
        ready::template(&it, busybox::NAME)?;
        let Pairs { with, without, added } = pairs(bench, |with_it| {
            ready::rest(&it, spare)?;
            timed(&it, if with_it { &mounted } else { &plain }, 0)
        })?;
        let name = format!("`run --rm -v {source}` from {name}");
        figures.push(Figure::new(name.clone(), "ms", with, Promise::Stated).against(peer, without));
        let promise = if spare { Promise::AtMost(*promised) } else { Promise::Stated };
        let name = format!("{name}: what the {what} adds, by pairs");
        figures.push(Figure::new(name, "ms", added, promise));
    }
    Ok(figures)
}
