//! What a network adds to a start: one with it and one without, in turns.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::busybox;

use super::{NETWORK, Site};
use crate::bench::Bench;
use crate::bench::figure::{Figure, Promise};
use crate::bench::ready;
use crate::bench::starts::{Pairs, pairs};
use crate::workspace::step;

/// What a container is on when nothing is said.
const DEFAULT: &str = "default";

/// From a spare, on the default network and on another, which was then joined last: that is where
/// a spare's tap waits. From a template, on the default network.
pub fn attach(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let (spare, none) = ("runtime.spare = 1\n", "runtime.spare = 0\n");
    let ways = [
        ("a spare", spare, DEFAULT),
        ("a spare, on another network", spare, NETWORK),
        ("a template", none, DEFAULT),
    ];
    let mut figures = Vec::new();
    for (name, config, network) in ways {
        step(format!("starts from {name}, with and without a network"));
        let site = Site::new(config);
        ready::template(&site.it, busybox::NAME)?;
        // The network is up, and where the next spare's tap waits.
        start(&site, network)?;
        let Pairs { with, without, added } = pairs(bench, |networked| {
            ready::rest(&site.it, config == spare)?;
            start(&site, if networked { network } else { "none" })
        })?;
        let name = format!("`run --rm` from {name}");
        figures.push(
            Figure::new(name.clone(), "ms", with, Promise::Stated)
                .against("--network none", without),
        );
        let name = format!("{name}: what the network adds, by pairs");
        figures.push(Figure::new(name, "ms", added, Promise::AtMost(15.0)));
    }
    Ok(figures)
}

/// Milliseconds of one start.
fn start(site: &Site, network: &str) -> Result<f64> {
    let words = site.world.host.prefix();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg(site.it.binaries().join("container"));
    command.args(["run", "--rm", "--network", network, busybox::NAME, "true"]);
    command.env("CONTAINER_APP_ROOT", site.it.app_root());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let begin = Instant::now();
    let status = command.status().context("run a container")?;
    let took = begin.elapsed().as_secs_f64() * 1e3;
    ensure!(status.success(), "a start on network {network}: {status}");
    Ok(took)
}
