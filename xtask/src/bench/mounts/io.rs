//! How fast files are, in a bind mount and on the container's own disk.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use e2e::Installation;
use e2e::layer::Layer;
use e2e::layout::Image;
use serde_json::json;

use super::machine::Machine;
use crate::bench::figure::{Figure, Promise};
use crate::bench::{Bench, program};
use crate::debian::Distribution;
use crate::workspace::{make_dir, run, step};

/// The program that measures a file system.
pub const FILES: &str = include_str!("../../../assets/files.c");
const IMAGE: &str = "files";
/// What the guest program does, each with how many of its unit are in a run.
const OPERATIONS: [(&str, &str, &str, f64); 7] = [
    ("write", "sequential write, synced", "MiB/s", 64.0),
    ("read", "sequential read", "MiB/s", 64.0),
    ("random-write", "random writes of 4 KiB, synced at the end", "/s", 1000.0),
    ("random-read", "random reads of 4 KiB", "/s", 1000.0),
    ("many", "files created, looked at, deleted", "/s", 1000.0),
    ("unpack", "files of a source tree unpacked by tar", "/s", TREE as f64),
    ("git", "`git status` in a repository", "/s", 1.0),
];
/// Files of the source tree and the repository.
const TREE: usize = 1000;
/// What is promised of each.
const PROMISE: Promise = Promise::RatioAtLeast(0.95);

/// A bind mount, against the same file server under a bare QEMU.
pub fn share(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    measure(bench, "bind mount", "/share", "the file server under a bare QEMU")
}

/// A container's own disk, against a bare one.
pub fn disk(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    measure(bench, "own disk", "/disk", "virtio-blk under a bare QEMU")
}

fn measure(
    bench: &Bench<'_>,
    what: &str,
    directory: &str,
    peer: &'static str,
) -> Result<Vec<Figure>> {
    // An installation's thread has no network, which making the image needs.
    let archive = image(bench)?;
    // The arguments of a VM that boots say which shape the peer has to have.
    let it = Installation::without_mode();
    it.configure("runtime.template = false\nruntime.spare = 0\n");
    it.load_archive(&archive);
    let folder = |name: &str| -> Result<PathBuf> {
        let path = it.scratch().join(name);
        make_dir(&path)?;
        Ok(path)
    };
    let mount = format!("{}:/share", folder("ours")?.display());
    it.run(["create", "--name", "box", "-v", &mount, IMAGE, "sleep", "1000000"]).ok();
    // The disk as it was before anything was written.
    let disk = it.scratch().join("disk.img");
    let upper = it.container_dir("box").join("upper.img");
    run(Command::new("cp").arg("--sparse=always").arg(&upper).arg(&disk))?;
    it.run(["start", "box"]).ok();
    let qemu = it.qemus().into_iter().next().context("no QEMU runs")?;
    let cmdline = std::fs::read(format!("/proc/{}/cmdline", qemu.pid)).context("its arguments")?;
    let like: Vec<String> =
        cmdline.split(|byte| *byte == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    let erofs = disk_of_image(it.app_root())?;
    let mut machine = Machine::boot(bench, &like, &erofs, &disk, &folder("peers")?)?;
    let mut figures = Vec::new();
    for (operation, name, unit, count) in OPERATIONS {
        step(format!("{what}: {name}"));
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        // The first pair makes what is needed, and fills caches.
        for round in 0..=bench.rounds {
            let our = exec(&it, operation, directory)?;
            let their = machine.measure(operation, directory)?;
            if round > 0 {
                ours.push(count * 1e9 / our);
                theirs.push(count * 1e9 / their);
            }
        }
        let figure = Figure::new(format!("{what}: {name}"), unit, ours, PROMISE);
        figures.push(figure.against(peer, theirs));
    }
    Ok(figures)
}

/// Nanoseconds of an operation of the program, `/files` in the container `box`.
pub fn exec(it: &Installation, operation: &str, directory: &str) -> Result<f64> {
    let text = it.run(["exec", "box", "/files", operation, directory]).ok().text();
    let answer = text.strip_prefix('=').and_then(|answer| answer.parse().ok());
    answer.with_context(|| format!("{operation}: the container says {text:?}"))
}

/// The one image's file.
fn disk_of_image(app_root: &Path) -> Result<PathBuf> {
    let mut folders = vec![app_root.join("images")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).context("look for the image's disk")? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "erofs") {
                return Ok(path);
            }
        }
    }
    anyhow::bail!("the image has no disk")
}

/// Debian with git, the guest program, and a source tree as a tar. Made once.
fn image(bench: &Bench<'_>) -> Result<PathBuf> {
    let folder = bench.workspace.target.join("bench");
    make_dir(&folder)?;
    let base = folder.join("git.tar");
    if !base.exists() {
        step("mmdebstrap makes a file system with git");
        Distribution::of_the_machine()?.root_file_system(&["git"], &base)?;
    }
    let program = program::compiled(bench, "files", FILES)?;
    let program = std::fs::read(program).context("read the guest program")?;
    let tree = tree()?;
    let layer = Layer::build(|entries| {
        entries.file("files", 0o755, &program).file("tree.tar", 0o644, &tree);
        entries.dir("share").dir("disk");
    });
    let reference = format!("docker.io/library/{IMAGE}:latest");
    let image = Image::new(&reference, vec![Layer::File(base), layer], json!({ "Cmd": ["sh"] }));
    let archive = folder.join("files.oci.tar");
    image.write_archive(&archive)?;
    Ok(archive)
}

/// A source tree: small text files in directories of ten.
fn tree() -> Result<Vec<u8>> {
    let layer = Layer::build(|entries| {
        for number in 0..TREE {
            if number % 10 == 0 {
                entries.dir(&format!("part{}", number / 10));
            }
            let lines = 20 + number * 7 % 200;
            let text = format!("line of file {number}\n").repeat(lines);
            let name = format!("part{}/file{number}.c", number / 10);
            entries.file(&name, 0o644, text.as_bytes());
        }
    });
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut layer.open()?, &mut bytes).context("make a source tree")?;
    Ok(bytes)
}
