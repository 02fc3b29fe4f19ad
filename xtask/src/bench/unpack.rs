//! A Debian image to EROFS, against `tar -x` of the same layers to the same disk.
//!
//! Ours is the creation of a container from an image that was only loaded, less that of
//! a second one, which finds the image unpacked: so it has everything that a user waits
//! for, and nothing that is not unpacking.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::Installation;

use super::Bench;
use super::figure::{Figure, Promise};
use super::starts::timed;
use crate::debian;
use crate::workspace::{make_dir, remove_dir, run};

/// Rounds of loading, unpacking both ways, and deleting.
pub fn unpack(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let archive = debian::image(bench.workspace)?;
    let folder = bench.workspace.target.join("bench/unpack");
    let layers: Vec<PathBuf> =
        ["base.tar", "python.tar"].iter().map(|name| archive.with_file_name(name)).collect();
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for round in 0..=bench.rounds {
        let took = (load_and_unpack(&archive)?, extract(&layers, &folder)?);
        // The first fills caches.
        if round > 0 {
            ours.push(took.0);
            peer.push(took.1);
        }
    }
    remove_dir(&folder)?;
    Ok(vec![Figure {
        name: "unpacking a Debian image (156 MiB in three layers) to EROFS".into(),
        unit: "ms",
        ours,
        peer: Some(("tar -x of the layers", peer)),
        promise: Promise::Ratio(1.2),
    }])
}

/// In an installation of its own each time, so that nothing is there already. It lies
/// on the disk that `tar` unpacks to.
fn load_and_unpack(archive: &Path) -> Result<f64> {
    let it = Installation::new();
    let path = archive.to_string_lossy();
    it.run(["image", "load", "--input", &path]).ok();
    let disks = it.app_root().join("images/erofs");
    let before = std::fs::read_dir(&disks).map_or(0, Iterator::count);
    ensure!(before == 0, "loading has unpacked the image already");
    let first = timed(&it, &["create", "--name", "first", debian::NAME], 0)?;
    let second = timed(&it, &["create", "--name", "second", debian::NAME], 0)?;
    Ok(first - second)
}

fn extract(layers: &[PathBuf], folder: &Path) -> Result<f64> {
    remove_dir(folder)?;
    make_dir(folder)?;
    let start = Instant::now();
    for layer in layers {
        run(Command::new("tar")
            .args(["--extract", "--exclude=./dev/*", "--directory"])
            .arg(folder)
            .arg("--file")
            .arg(layer))
        .context("tar -x")?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e3)
}
