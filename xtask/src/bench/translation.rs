//! The size of the emulator's translation cache, chosen by real programs.
//!
//! A machine like ours, started by hand with another `tb-size` each time: the same kernel and
//! modules, a Debian image as our own EROFS disk, and a script as first process. Nothing of the
//! product is in between, so nothing of it needs a setting for this.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Image, Installation, Layer, processes};
use serde_json::json;

use super::figure::{Figure, Promise};
use super::{Bench, bare};
use crate::debian::Distribution;
use crate::stamp::Stamp;
use crate::workspace::{ARCH, make_dir, run, step};

/// MiB.
const SIZES: &[u32] = &[32, 64, 128, 256, 512];
const INIT: &str = include_str!("../../assets/translation.sh");
const PACKAGES: &[&str] = &["python3", "gcc", "libc6-dev", "sqlite3"];
/// What the script measures, and the memory.
const FIGURES: usize = 6;
const DEADLINE: Duration = Duration::from_secs(240);

/// Times of each program, and QEMU's memory, for each size.
pub fn translation_cache(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let folder = bench.workspace.target.join("bench/translation");
    make_dir(&folder)?;
    let disk = disk(&folder)?;
    let initramfs = initramfs(bench, &folder)?;
    let kernel = bench.workspace.bundle().join("vmlinux");
    let mut samples: BTreeMap<(u32, String), Vec<f64>> = BTreeMap::new();
    for round in 0..(bench.rounds / 3).max(1) {
        for &size in SIZES {
            let mut machine = machine(size, &kernel, &initramfs, &disk);
            let took = boot(&mut machine).with_context(|| format!("{size} MiB, round {round}"))?;
            for (name, value) in took {
                samples.entry((size, name)).or_default().push(value);
            }
        }
    }
    let figure = |((size, name), values): ((u32, String), Vec<f64>)| {
        let unit = if name.contains("memory") { "MiB" } else { "ms" };
        let name = format!("translation cache of {size} MiB: {name}");
        Figure::new(name, unit, values, Promise::Stated)
    };
    Ok(samples.into_iter().map(figure).collect())
}

fn machine(size: u32, kernel: &Path, initramfs: &Path, disk: &Path) -> Command {
    let mut command = Command::new(format!("qemu-system-{ARCH}"));
    command
        .args(["-M", "q35", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .args(["-cpu", "max,-svm,-la57", "-smp", "2", "-m", "1024"])
        .arg("-accel")
        .arg(format!("tcg,thread=multi,tb-size={size}"))
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 quiet panic=-1", "-device", "virtio-blk-pci,drive=disk"])
        .arg("-drive")
        .arg(format!("file={},if=none,id=disk,format=raw,readonly=on", disk.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

/// What the script says, and the machine's own memory when it is done.
fn boot(machine: &mut Command) -> Result<Vec<(String, f64)>> {
    let mut child = machine.spawn().context("run QEMU")?;
    let pid = child.id();
    let stdout = child.stdout.take().context("QEMU without output")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let end = Instant::now() + DEADLINE;
    let mut found = Vec::new();
    while let Ok(line) = lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["TOOK", name, ms] => found.push((name.to_owned(), ms.parse().context("a time")?)),
            ["DONE"] => {
                let kib = processes::own_kib(pid).unwrap_or(0);
                found.push(("QEMU's own memory".to_owned(), kib as f64 / 1024.0));
            }
            _ if !line.is_empty() => eprintln!("    {line}"),
            _ => {}
        }
    }
    // Off by itself, or too late.
    let _ = child.kill();
    child.wait().context("wait for QEMU")?;
    ensure!(found.len() == FIGURES, "the machine did not do all: {found:?}");
    Ok(found)
}

/// The distribution with the programs, as the EROFS disk that a container would get.
fn disk(folder: &Path) -> Result<PathBuf> {
    let disk = folder.join("programs.erofs");
    let stamp = Stamp::new(folder.join("programs.stamp")).word("packages", &PACKAGES.join(" "));
    if stamp.is_current() && disk.exists() {
        return Ok(disk);
    }
    let tar = folder.join("programs.tar");
    step(format!("mmdebstrap makes a Debian with {}", PACKAGES.join(", ")));
    Distribution::of_the_machine()?.root_file_system(PACKAGES, &tar)?;
    let it = Installation::new();
    let name = "docker.io/library/programs:latest";
    it.load(&Image::new(name, vec![Layer::File(tar)], json!({"Cmd": ["true"]})));
    it.run(["create", "--name", "programs", "programs"]).ok();
    let mut made = std::fs::read_dir(it.app_root().join("images/erofs"))?;
    let made = made.next().context("no EROFS image was made")??.path();
    // As long as all disks, and hardly filled.
    run(Command::new("cp").arg("--sparse=always").arg(&made).arg(&disk))?;
    stamp.write()?;
    Ok(disk)
}

/// Ours with busybox and another first process appended.
fn initramfs(bench: &Bench<'_>, folder: &Path) -> Result<PathBuf> {
    let busybox = std::fs::read(e2e::busybox::PROGRAM).context("read busybox")?;
    let bundle = bench.workspace.bundle().join("initramfs.cpio");
    let mut archive = std::fs::read(bundle).context("read the initramfs")?;
    archive.resize(archive.len().next_multiple_of(512), 0);
    archive.extend(bare::cpio(&[
        ("bin", 0o040_755, b""),
        ("bin/busybox", 0o100_755, &busybox),
        ("bin/sh", 0o120_777, b"busybox"),
        ("init", 0o100_755, INIT.as_bytes()),
    ]));
    let path = folder.join("initramfs.cpio");
    std::fs::write(&path, archive).context("write an initramfs")?;
    Ok(path)
}
