//! Another QEMU and another guest kernel beside the machine's own: those of the
//! distribution's backports, downloaded and unpacked, never installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::{self, Apt};
use crate::debian::Distribution;
use crate::workspace::{ARCH, Workspace, make_dir, output, remove_dir, step};
use crate::{build, kernel};

/// Prepares both and says how to test with them.
pub fn prepare(workspace: &Workspace, (): ()) -> Result<()> {
    let folder = workspace.target.join("variant");
    make_dir(&folder)?;
    let apt = backports(&folder.join("apt"))?;
    let qemu = qemu(&apt, &folder.join("qemu"))?;
    let bundle = guest_kernel(workspace, &apt, &folder)?;
    println!("make test QEMU={} KERNEL={}", qemu.display(), bundle.display());
    Ok(())
}

/// An apt with the machine's own sources and their backports.
fn backports(state: &Path) -> Result<Apt> {
    let distribution = Distribution::of_the_machine()?;
    let release = format!("{}-backports", distribution.codename());
    let mut lines: Vec<String> = Vec::new();
    for source in distribution.sources()? {
        let mut more = source.clone();
        if !source.suite.contains('-') {
            more.suite.clone_from(&release);
            lines.push(more.line());
        }
        lines.push(source.line());
    }
    let apt = Apt::with_sources(state, &lines, &release)?;
    apt.update()?;
    Ok(apt)
}

/// QEMU with every library that the machine does not have, or has too old.
fn qemu(apt: &Apt, folder: &Path) -> Result<PathBuf> {
    let root = folder.join("root");
    if root.exists() {
        return Ok(root);
    }
    step("QEMU of the backports, unpacked without installing it");
    let system = if ARCH == "aarch64" { "qemu-system-arm" } else { "qemu-system-x86" };
    let packages = apt.install_set(&[system, "seabios"])?;
    let files = apt.download(&packages, &folder.join("packages"))?;
    let fresh = folder.join("root.new");
    remove_dir(&fresh)?;
    apt::unpack(&files, &fresh)?;
    // One folder of firmware, since the packages' links lead to where they install.
    let (from, to) = (fresh.join("usr/share/seabios"), fresh.join("usr/share/qemu"));
    for entry in std::fs::read_dir(&from).context("read the firmware")? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let _ = std::fs::remove_file(&target);
        std::fs::copy(entry.path(), target).context("copy the firmware")?;
    }
    std::fs::rename(&fresh, &root).context("rename the unpacked QEMU")?;
    let program = root.join(format!("usr/bin/qemu-system-{ARCH}"));
    let version = output(
        Command::new(&program)
            .arg("--version")
            .env("LD_LIBRARY_PATH", root.join(format!("usr/lib/{ARCH}-linux-gnu"))),
    )?;
    println!("{}", version.lines().next().unwrap_or_default());
    Ok(root)
}

fn guest_kernel(workspace: &Workspace, apt: &Apt, folder: &Path) -> Result<PathBuf> {
    let packages = kernel::Packages::download(apt, &folder.join("kernel"))?;
    let init = build::guest(workspace, ())?;
    build::host(workspace)?;
    let bundle = folder.join("bundle");
    packages.make_bundle(&workspace.release().join("container-images"), &init, &bundle)?;
    Ok(bundle)
}
