//! The peer of a cold start: plain QEMU, the same kernel and initramfs, to the first
//! process and out again.
//!
//! The initramfs is ours with one file appended: another `/init`, a static program of
//! one system call, which powers off. So kernel, modules and archive are the same, and
//! the peer does nothing that a shell or a larger program would cost.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::workspace::{ARCH, Workspace, make_dir, run};

const INIT: &str = include_str!("../../assets/poweroff.c");

/// A bare machine that is ready to be measured.
pub struct Bare {
    arguments: Vec<String>,
}

impl Bare {
    /// For the shape that `cmdline`, the arguments of a QEMU of ours, has.
    pub fn like(workspace: &Workspace, cmdline: &[String]) -> Result<Self> {
        let folder = workspace.target.join("bench");
        make_dir(&folder)?;
        let initramfs = initramfs(workspace, &folder)?;
        Ok(Self { arguments: shape(workspace, cmdline, &initramfs)? })
    }

    /// Boots and waits for the end; milliseconds.
    pub fn boot(&self) -> Result<f64> {
        let start = Instant::now();
        let status = Command::new(format!("qemu-system-{ARCH}"))
            .args(&self.arguments)
            .stdin(Stdio::null())
            .status()
            .context("run QEMU")?;
        ensure!(status.success(), "bare QEMU: {status}");
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }
}

/// The arguments of a QEMU with our kernel and that initramfs, for the shape that `cmdline`, the
/// arguments of a QEMU of ours that booted, has.
pub fn shape(workspace: &Workspace, cmdline: &[String], initramfs: &Path) -> Result<Vec<String>> {
    let value = |name: &str| -> Result<String> {
        let at = cmdline.iter().position(|word| word == name);
        let word = at.and_then(|at| cmdline.get(at + 1));
        word.cloned().with_context(|| format!("our QEMU has no {name}"))
    };
    let accelerator = value("-accel")?;
    let accelerator = accelerator.split(',').next().unwrap_or("tcg").to_owned();
    let mut arguments: Vec<String> = ["-M", "q35", "-nodefaults", "-display", "none"]
        .into_iter()
        .chain(["-no-reboot", "-serial", "null", "-accel", &accelerator])
        .map(str::to_owned)
        .collect();
    for name in ["-cpu", "-smp", "-m", "-append"] {
        arguments.extend([name.to_owned(), value(name)?]);
    }
    let kernel = workspace.bundle().join("vmlinux");
    for (name, path) in [("-kernel", kernel.as_path()), ("-initrd", initramfs)] {
        arguments.extend([name.to_owned(), path.to_string_lossy().into_owned()]);
    }
    Ok(arguments)
}

/// Our initramfs with more files (name, mode, content), which take the place of its own.
pub fn archive(workspace: &Workspace, files: &[(&str, u32, &[u8])]) -> Result<Vec<u8>> {
    let mut archive =
        std::fs::read(workspace.bundle().join("initramfs.cpio")).context("read the initramfs")?;
    archive.resize(archive.len().next_multiple_of(512), 0);
    archive.extend(cpio(files));
    Ok(archive)
}

fn initramfs(workspace: &Workspace, folder: &Path) -> Result<PathBuf> {
    let source = folder.join("poweroff.c");
    std::fs::write(&source, INIT).context("write the bare init")?;
    let program = folder.join("poweroff");
    run(Command::new("gcc")
        .args(["-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-o"])
        .arg(&program)
        .arg(&source))?;
    let archive = archive(workspace, &[("init", 0o100_755, &std::fs::read(&program)?)])?;
    let path = folder.join("bare.cpio");
    std::fs::write(&path, archive).context("write the bare initramfs")?;
    Ok(path)
}

/// A cpio archive in the kernel's "newc" form.
pub fn cpio(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    let end: (&str, u32, &[u8]) = ("TRAILER!!!", 0, b"");
    for (number, (name, mode, content)) in files.iter().chain([&end]).enumerate() {
        let fields = [
            number as u32 + 0x0010_0000,
            *mode,
            0,
            0,
            1,
            0,
            content.len() as u32,
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ];
        archive.extend_from_slice(b"070701");
        for field in fields {
            archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}
