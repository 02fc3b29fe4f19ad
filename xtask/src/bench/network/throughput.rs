//! How much goes from container to container, and from the host into a published port, against
//! bare QEMUs on a bridge, with one program in all guests and on the host (`assets/transfer.c`).

use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::busybox;
use e2e::layer::Layer;
use e2e::layout::Image;
use e2e::world::Place;
use serde_json::json;

use super::bare::Machines;
use super::{NETWORK, Site};
use crate::bench::figure::{Figure, Promise};
use crate::bench::{Bench, program};

/// Where the program serves in guests.
pub const PORT: u16 = 5001;
/// A transfer, in MiB: about a second of an emulated guest.
const SIZE: u64 = 128;
/// The program that transfers.
pub const TRANSFER: &str = include_str!("../../../assets/transfer.c");

/// Both of them.
pub fn throughput(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let transfer = program::compiled(bench, "transfer", TRANSFER)?;
    // The arguments of a VM that boots say which shape the peer has to have.
    let site = Site::new("runtime.template = false\nruntime.spare = 0\n");
    site.it.load(&image(&transfer)?);
    for (name, port) in [("one", 6001), ("two", 6002)] {
        let publish = format!("{port}:{PORT}");
        let options = ["run", "-d", "--name", name, "--network", NETWORK, "-p", &publish];
        let serve = ["transfer", "/transfer", "serve", &PORT.to_string()];
        site.it.run([&options[..], &serve].concat()).ok();
    }
    let qemu = site.it.qemus().into_iter().next().context("no QEMU runs")?;
    let cmdline = std::fs::read(format!("/proc/{}/cmdline", qemu.pid)).context("its arguments")?;
    let like: Vec<String> =
        cmdline.split(|byte| *byte == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    let machines = Machines::boot(bench, &site.world.neighbour, &like, &transfer, 2)?;
    let (host, beyond) = (&site.world.host, &site.world.neighbour);
    let [first, second] = &machines.addresses[..] else { unreachable!("two were asked for") };
    let inside = site.address("one");
    let port = PORT.to_string();
    let neighbours = pairs(
        bench,
        || speed(host, &transfer, &["relay", "127.0.0.1", "6002"], &[&inside, &port]),
        || speed(beyond, &transfer, &["relay", second, &port], &[first, &port]),
    )?;
    let published = pairs(
        bench,
        || speed(host, &transfer, &["send", "127.0.0.1", "6001"], &[]),
        || speed(beyond, &transfer, &["send", first, &port], &[]),
    )?;
    let figure = |name: &str, (ours, peer)| {
        Figure::new(name, "MiB/s", ours, Promise::RatioAtLeast(0.9))
            .against("bare QEMU on a bridge", peer)
    };
    Ok(vec![
        figure("TCP, container to container", neighbours),
        figure("TCP, host to published port", published),
    ])
}

fn image(transfer: &Path) -> Result<Image> {
    let bytes = std::fs::read(transfer).context("read the program that transfers")?;
    let layer = Layer::build(|entries| {
        entries.file("transfer", 0o755, &bytes);
    });
    let layers = vec![busybox::layer()?, layer];
    Ok(Image::new("docker.io/library/transfer:latest", layers, json!({ "Cmd": ["sh"] })))
}

/// Ours and the peer's in turns, after one of each.
fn pairs(
    bench: &Bench<'_>,
    ours: impl Fn() -> Result<f64>,
    peer: impl Fn() -> Result<f64>,
) -> Result<(Vec<f64>, Vec<f64>)> {
    ours()?;
    peer()?;
    let (mut our, mut their) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        our.push(ours()?);
        their.push(peer()?);
    }
    Ok((our, their))
}

/// MiB a second of one transfer.
fn speed(place: &Place, transfer: &Path, before: &[&str], after: &[&str]) -> Result<f64> {
    let program = transfer.to_string_lossy();
    let size = SIZE.to_string();
    let output = place.command(&program).args(before).arg(&size).args(after).run();
    ensure!(output.code == Some(0), "transfer {before:?}: {}", output.errors());
    let nanoseconds: f64 = output.text().parse().context("what transfer says")?;
    Ok(SIZE as f64 * 1e9 / nanoseconds)
}
