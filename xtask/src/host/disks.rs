//! The machine's two disks: the distribution, and what we install.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::debian::Distribution;
use crate::install;
use crate::kernel;
use crate::stamp::Stamp;
use crate::workspace::{Workspace, make_dir, output, remove_dir, run, step};

/// What the machine has beside the essential packages.
const PACKAGES: &[&str] = &[
    "apparmor",
    "dbus",
    "dbus-user-session",
    "iproute2",
    "kmod",
    "libpam-systemd",
    "login",
    "mount",
    "nftables",
    "passt",
    "passwd",
    "procps",
    "python3",
    "qemu-system-x86",
    "systemd",
    "systemd-sysv",
    "udev",
    "uidmap",
    "util-linux",
];

/// Run by mmdebstrap once the packages are there, with the root's path.
const CUSTOMIZE: &str = include_str!("../../assets/host/customize.sh");
/// Makes a disk of a tree, as somebody who may give files to any user.
const DISK: &str = include_str!("../../assets/host/disk.sh");
/// What runs in the machine.
const TESTS: &[(&str, &str)] = &[
    ("run.py", include_str!("../../assets/host/run.py")),
    ("host.py", include_str!("../../assets/host/host.py")),
    ("login.py", include_str!("../../assets/host/login.py")),
    ("service.py", include_str!("../../assets/host/service.py")),
    ("memory.py", include_str!("../../assets/host/memory.py")),
];

/// Writes the tools of this module below `folder` and says where one is.
fn script(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join(name);
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", path.display()))?;
    Ok(path)
}

/// The disk with the distribution, made once.
pub fn base(workspace: &Workspace, folder: &Path) -> Result<PathBuf> {
    let (tar, disk) = (folder.join("base.tar"), folder.join("base.ext4"));
    let unpacked = folder.join("kernel");
    let packages = kernel::of_the_machine(workspace)?;
    let names: Vec<String> =
        packages.files.iter().map(|file| file.to_string_lossy().into_owned()).collect();
    let root = Stamp::new(folder.join("base.tar.stamp"))
        .word("packages", &PACKAGES.join(" "))
        .word("customize", CUSTOMIZE);
    let made = Stamp::new(folder.join("base.ext4.stamp"))
        .word("packages", &PACKAGES.join(" "))
        .word("customize", CUSTOMIZE)
        .word("disk", DISK)
        .word("kernel", &names.join(" "));
    if made.is_current() && disk.exists() {
        return Ok(disk);
    }
    if !root.is_current() || !tar.exists() {
        step("test host: mmdebstrap makes a system with systemd and a login");
        let hook = script(folder, "customize.sh", CUSTOMIZE)?;
        Distribution::of_the_machine()?.customized_root(PACKAGES, Some(&hook), &tar)?;
        root.write()?;
    }
    step("test host: its disk");
    remove_dir(&unpacked)?;
    packages.unpack(&unpacked)?;
    let modules = ["usr/lib/modules", "lib/modules"].map(|below| unpacked.join(below));
    let modules = modules.iter().find(|path| path.is_dir()).context("a kernel without modules")?;
    make(folder, &disk, "8G", "host", &[&tar, modules])?;
    made.write()?;
    Ok(disk)
}

/// The disk with our installation and the tests, mounted at `/usr/local`.
pub fn product(workspace: &Workspace, folder: &Path) -> Result<PathBuf> {
    let staged = folder.join("product");
    remove_dir(&staged)?;
    install::install(workspace, &install::Options::new("/usr/local", &staged))?;
    let tree = staged.join("usr/local");
    let tests = tree.join("test");
    make_dir(&tests)?;
    for (name, text) in TESTS {
        script(&tests, name, text)?;
    }
    e2e::busybox::write_archive(&tests.join("busybox.tar"))?;
    let disk = folder.join("product.ext4");
    make(folder, &disk, "1G", "product", &[&tree])?;
    remove_dir(&staged)?;
    Ok(disk)
}

/// Runs `disk.sh DISK SIZE LABEL SOURCE…`: as root, else as root of a user namespace with the
/// caller's further ids, since only such a one may make files of several owners.
fn make(folder: &Path, disk: &Path, size: &str, label: &str, sources: &[&Path]) -> Result<()> {
    let script = script(folder, "disk.sh", DISK)?;
    let is_root = output(Command::new("id").arg("-u"))?.trim() == "0";
    let mut command = Command::new(if is_root { "sh" } else { "unshare" });
    if !is_root {
        command.args(["--user", "--map-root-user", "--map-auto", "--", "sh"]);
    }
    command.arg(script).arg(disk).args([size, label]).args(sources);
    run(&mut command)
}
