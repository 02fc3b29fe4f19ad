//! What jail and filters take of the throughput of a disk and of a network.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::layer::Layer;
use e2e::layout::Image;
use e2e::{Installation, busybox};
use serde_json::json;

use super::sides::{Sides, WITHOUT};
use crate::bench::figure::{Figure, Promise};
use crate::bench::network::PORT;
use crate::bench::{Bench, mounts, network, program};
use crate::workspace::step;

/// New VMs on both sides, for the chance in where a VM's memory and translated code lie.
const VMS: usize = 4;
const NETWORK: &str = "measured";
/// MiB of one transfer.
const SIZE: u64 = 64;
/// Of all throughput, in percent.
const PROMISED: f64 = 2.0;

/// What is measured: its name, and an operation of the guest program, or a transfer into the guest.
const KINDS: [(&str, Option<&str>); 4] = [
    ("own disk, sequential write", Some("write")),
    ("own disk, sequential read", Some("read")),
    ("own disk, random reads of 4 KiB", Some("random-read")),
    ("TCP, host to guest", None),
];

/// VMs that booted: those from a template have one filter more, which forbids nothing, on both
/// sides.
pub fn throughput(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let files = program::compiled(bench, "files", mounts::FILES)?;
    let transfer = program::compiled(bench, "transfer", network::TRANSFER)?;
    let sides = Sides::new(bench, "runtime.template = false\nruntime.spare = 0\n")?;
    for (jailed, subnet) in [(true, "10.78.1.0/24"), (false, "10.78.2.0/24")] {
        let it = sides.side(jailed);
        it.load(&image(&files, &transfer)?);
        it.run(["network", "create", "--subnet", subnet, NETWORK]).ok();
    }
    // Of each kind: nanoseconds with and without.
    let mut samples = vec![(Vec::new(), Vec::new()); KINDS.len()];
    for vm in 0..VMS {
        step(format!("throughput with and without the jail, VMs {} of {VMS}", vm + 1));
        let targets = [start(&sides.with)?, start(&sides.without)?];
        sides.check()?;
        for ((_, operation), (with, without)) in KINDS.iter().zip(&mut samples) {
            let measure = |jailed: bool| match operation {
                Some(operation) => mounts::exec(sides.side(jailed), operation, "/disk"),
                None => of_network(&transfer, &targets[usize::from(!jailed)]),
            };
            // The first pair makes what is needed, and fills caches.
            for round in 0..=bench.rounds {
                let (mut our, mut their) = (0.0, 0.0);
                for jailed in [round % 2 == 0, round % 2 != 0] {
                    *(if jailed { &mut our } else { &mut their }) = measure(jailed)?;
                }
                if round > 0 {
                    with.push(our);
                    without.push(their);
                }
            }
        }
        for jailed in [true, false] {
            sides.side(jailed).run(["delete", "--force", "box"]).ok();
        }
    }
    Ok(KINDS.iter().zip(samples).flat_map(|((name, kind), s)| figures(name, *kind, s)).collect())
}

fn figures(name: &str, kind: Option<&str>, (with, without): (Vec<f64>, Vec<f64>)) -> [Figure; 2] {
    let (unit, amount) = match kind {
        Some("random-read") => ("/s", 1000.0),
        _ => ("MiB/s", SIZE as f64),
    };
    let speed = |times: &[f64]| times.iter().map(|ns| amount * 1e9 / ns).collect();
    let lost = with.iter().zip(&without).map(|(with, without)| (1.0 - without / with) * 100.0);
    let lost = lost.collect();
    [
        Figure::new(name, unit, speed(&with), Promise::Stated).against(WITHOUT, speed(&without)),
        Figure::new(
            format!("{name}: what jail and filters take of it, by pairs"),
            "%",
            lost,
            Promise::AtMost(PROMISED),
        ),
    ]
}

/// The container that is measured; its address.
fn start(it: &Installation) -> Result<String> {
    let port = PORT.to_string();
    let options = ["run", "-d", "--name", "box", "--network", NETWORK];
    it.run([&options[..], &["throughput", "/transfer", "serve", &port]].concat()).ok();
    let address = it.inspect("box")["networks"][0]["ipv4Address"].clone();
    let address = address.as_str().and_then(|address| address.split('/').next());
    address.map(str::to_owned).context("the container has no address")
}

/// Nanoseconds of a transfer from here.
fn of_network(transfer: &Path, address: &str) -> Result<f64> {
    let mut command = Command::new(transfer);
    command.args(["send", address, &PORT.to_string(), &SIZE.to_string()]);
    let output = command.output().context("transfer")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "transfer to {address}: {errors}");
    String::from_utf8_lossy(&output.stdout).trim().parse().context("what transfer says")
}

fn image(files: &Path, transfer: &Path) -> Result<Image> {
    let read = |path: &Path| std::fs::read(path).context("read a guest program");
    let (files, transfer) = (read(files)?, read(transfer)?);
    let layer = Layer::build(|entries| {
        entries.file("files", 0o755, &files).file("transfer", 0o755, &transfer).dir("disk");
    });
    let layers = vec![busybox::layer()?, layer];
    Ok(Image::new("docker.io/library/throughput:latest", layers, json!({ "Cmd": ["sh"] })))
}
