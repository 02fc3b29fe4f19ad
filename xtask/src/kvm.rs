//! `make test-kvm`: the KVM path, proved inside an emulated machine that offers SVM.
//!
//! The outer machine is a small installation of this distribution with QEMU in it and
//! our binaries installed. It boots from an ext4 disk with a plain QEMU, loads kvm-amd,
//! and runs `container` with the accelerator left at `auto`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::debian::Distribution;
use crate::stamp::Stamp;
use crate::workspace::{ARCH, Workspace, make_dir, remove_dir, run, step};
use crate::{build, install, kernel};

/// What the outer machine runs as its first process.
const INIT: &str = include_str!("../assets/kvm-init.sh");

/// What the outer machine has beside the essential packages.
const PACKAGES: &[&str] = &["qemu-system-x86", "busybox-static", "kmod", "mount", "procps"];

/// Everything together, on two emulated processors at worst.
const DEADLINE: Duration = Duration::from_secs(600);

/// The lines that the outer machine must print, and what each proves.
const PROOFS: &[(&str, &str)] = &[
    ("PROOF kvm-device", "the outer machine has a /dev/kvm"),
    ("PROOF accelerator=kvm", "system status says that KVM was chosen"),
    ("PROOF run=42", "a container ran and its exit code came back"),
    ("PROOF qemu-kvm", "its QEMU was started with KVM"),
    ("PROOF svm-masked", "its CPU can't run virtual machines"),
];

/// Boots the outer machine and checks what it prints.
pub fn test(workspace: &Workspace, (): ()) -> Result<()> {
    ensure!(ARCH == "x86_64", "the emulated machine with SVM is an x86 one");
    build::all(workspace, ())?;
    let folder = workspace.target.join("kvm");
    make_dir(&folder)?;
    let root = root(workspace, &folder)?;
    let disk = disk(&root, &folder)?;
    step("booting the outer machine (emulated, with SVM)");
    let said = boot(&folder.join("kernel"), &disk)?;
    let mut missing = Vec::new();
    for (line, what) in PROOFS {
        let proved = said.iter().any(|found| found.contains(line));
        println!("test kvm::{line:?} ({what}) ... {}", if proved { "ok" } else { "FAILED" });
        if !proved {
            missing.push(*what);
        }
    }
    println!("{} passed, {} failed", PROOFS.len() - missing.len(), missing.len());
    if !missing.is_empty() {
        bail!("not proved: {}", missing.join("; "));
    }
    Ok(())
}

/// The outer machine's root: the distribution, QEMU, kvm's modules, our installation.
fn root(workspace: &Workspace, folder: &Path) -> Result<PathBuf> {
    let tar = folder.join("outer.tar");
    let root = folder.join("root");
    let stamp = Stamp::new(folder.join("outer.stamp")).word("packages", &PACKAGES.join(" "));
    if !stamp.is_current() || !tar.exists() {
        step("outer machine: mmdebstrap makes a root with QEMU in it");
        remove_dir(&root)?;
        Distribution::of_the_machine()?.root_file_system(PACKAGES, &tar)?;
        stamp.write()?;
    }
    if !root.join("usr/bin").exists() {
        remove_dir(&root)?;
        make_dir(&root)?;
        run(Command::new("tar")
            .args(["--extract", "--exclude=./dev/*", "--directory"])
            .arg(&root)
            .arg("--file")
            .arg(&tar))?;
    }
    let unpacked = folder.join("kernel");
    kernel::of_the_machine(workspace)?.unpack(&unpacked)?;
    copy_modules(&unpacked, &root)?;
    install::binaries(workspace, &root.join("usr/local"))?;
    let test = root.join("test");
    make_dir(&test)?;
    e2e::busybox::write_archive(&test.join("busybox.tar"))?;
    write_program(&test.join("init"), INIT)?;
    Ok(root)
}

/// The kernel's KVM modules and what they depend on.
fn copy_modules(unpacked: &Path, root: &Path) -> Result<()> {
    for below in ["lib/modules", "usr/lib/modules"] {
        let from = unpacked.join(below);
        let Ok(entries) = std::fs::read_dir(&from) else { continue };
        for entry in entries {
            let version = entry?.file_name();
            let to = root.join("usr/lib/modules").join(&version);
            for part in ["kernel/arch/x86/kvm", "kernel/virt", "kernel/drivers/crypto/ccp"] {
                let source = from.join(&version).join(part);
                if source.exists() {
                    let target = to.join(part);
                    make_dir(target.parent().context("a folder")?)?;
                    run(Command::new("cp").arg("-rT").arg(&source).arg(&target))?;
                }
            }
            for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
                let source = from.join(&version).join(list);
                if source.exists() {
                    std::fs::copy(&source, to.join(list)).context("copy a list of modules")?;
                }
            }
        }
    }
    Ok(())
}

fn write_program(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", path.display()))
}

fn disk(root: &Path, folder: &Path) -> Result<PathBuf> {
    let disk = folder.join("outer.ext4");
    let _ = std::fs::remove_file(&disk);
    run(Command::new("/sbin/mkfs.ext4")
        .args(["-q", "-E", "root_owner=0:0", "-d"])
        .arg(root)
        .arg(&disk)
        .arg("4G"))?;
    Ok(disk)
}

/// Boots and returns the console's lines.
fn boot(unpacked: &Path, disk: &Path) -> Result<Vec<String>> {
    let (kernel, nvme) = kernel_and_disk(unpacked)?;
    let (device, name) = match nvme {
        true => ("nvme,drive=disk,serial=outer", "/dev/nvme0n1"),
        false => ("virtio-blk-pci,drive=disk", "/dev/vda"),
    };
    let append = format!("console=ttyS0 quiet panic=-1 root={name} rw init=/test/init");
    let child = Command::new("qemu-system-x86_64")
        .args(["-M", "q35", "-cpu", "max,-la57", "-smp", "2", "-m", "2048"])
        .args(["-accel", "tcg,thread=multi,tb-size=512"])
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .args(["-append", &append, "-device", device])
        .arg("-drive")
        .arg(format!("file={},if=none,id=disk,format=raw,cache=unsafe", disk.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("run QEMU")?;
    console(child)
}

/// The kernel file, and whether its disk driver is NVMe (built in at Debian) or virtio
/// (built in at Ubuntu): the outer machine has no initramfs.
pub fn kernel_and_disk(unpacked: &Path) -> Result<(PathBuf, bool)> {
    let boot = unpacked.join("boot");
    let mut kernel = None;
    let mut nvme = true;
    for entry in std::fs::read_dir(&boot).context("read the unpacked kernel")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("vmlinuz-") {
            kernel = Some(path);
        } else if name.starts_with("config-") {
            nvme = !std::fs::read_to_string(&path)?.contains("CONFIG_VIRTIO_BLK=y");
        }
    }
    Ok((kernel.context("the kernel package has no vmlinuz")?, nvme))
}

fn console(mut child: Child) -> Result<Vec<String>> {
    let stdout = child.stdout.take().context("QEMU without output")?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let end = Instant::now() + DEADLINE;
    let mut lines = Vec::new();
    while let Ok(line) = receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
        println!("    {line}");
        lines.push(line);
    }
    let late = Instant::now() >= end;
    let _ = child.kill();
    child.wait().context("wait for QEMU")?;
    ensure!(!late, "the outer machine did not end within {DEADLINE:?}");
    Ok(lines)
}
