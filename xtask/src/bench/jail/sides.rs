//! Two installations: one as built, and one whose hypervisors are in no jail.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::Installation;
use e2e::processes::Process;

use crate::bench::{Bench, program};
use crate::build;
use crate::workspace::make_dir;

const OPEN_JAIL: &str = include_str!("../../../assets/open-jail.c");
/// The program that makes jails.
pub const JAILER: &str = "container-jailer";
/// The other side of a pair.
pub const WITHOUT: &str = "without jail and filters";
/// Those that a jail has of its own.
const NAMESPACES: [&str; 7] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];

/// Both sides.
pub struct Sides {
    /// As built.
    pub with: Installation,
    /// Without the jail.
    pub without: Installation,
}

impl Sides {
    /// With the same configuration each.
    pub fn new(bench: &Bench<'_>, config: &str) -> Result<Self> {
        let open = open_installation(bench)?;
        let (with, without) =
            (Installation::without_mode(), Installation::without_mode().with_binaries(open));
        with.configure(config);
        without.configure(config);
        Ok(Self { with, without })
    }

    /// The one with the jail, or the other.
    pub fn side(&self, jailed: bool) -> &Installation {
        if jailed { &self.with } else { &self.without }
    }

    /// Fails unless the VMs that run now are what each side says that it is.
    pub fn check(&self) -> Result<()> {
        for jailed in [true, false] {
            let qemus = self.side(jailed).qemus();
            ensure!(!qemus.is_empty(), "no QEMU runs");
            for qemu in qemus {
                look(&qemu, jailed)?;
            }
        }
        Ok(())
    }
}

/// Whether a QEMU is as confined as it should be. Its parent is the helper.
fn look(qemu: &Process, jailed: bool) -> Result<()> {
    let about = std::fs::read_to_string(format!("/proc/{}/status", qemu.pid));
    let about = about.context("read QEMU's status")?;
    let field = |name: &str| {
        let line = about.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        line.with_context(|| format!("QEMU's status has no {name}"))
    };
    let filters: u32 = field("Seccomp_filters")?.parse().context("Seccomp_filters")?;
    let capabilities = u64::from_str_radix(field("CapEff")?, 16).context("CapEff")?;
    let namespace = |pid: u32, name: &str| {
        let link = format!("/proc/{pid}/ns/{name}");
        std::fs::read_link(&link).with_context(|| format!("read {link}"))
    };
    let mut own = 0;
    for name in NAMESPACES {
        own += usize::from(namespace(qemu.pid, name)? != namespace(qemu.parent, name)?);
    }
    let found = format!("{filters} filters, {own} namespaces, capabilities {capabilities:x}");
    if jailed {
        ensure!(filters >= 2 && own == NAMESPACES.len() && capabilities == 0, "no jail: {found}");
    } else {
        // The listener of a restored VM is a filter, which forbids nothing.
        ensure!(filters <= 1 && own == 0, "not without a jail: {found}");
    }
    Ok(())
}

/// A copy of what was built, with the other program in the jailer's place; the folder of its
/// programs.
fn open_installation(bench: &Bench<'_>) -> Result<PathBuf> {
    let folder = bench.workspace.target.join("bench/open-jail");
    let programs = folder.join("release");
    make_dir(&programs)?;
    let release = bench.workspace.release();
    let kept = build::HELPERS.iter().filter(|name| **name != JAILER);
    for name in kept.chain([&build::COMMAND, &build::PLUGIN.1, &build::PROBE]) {
        replace(&release.join(name), &programs.join(name))?;
    }
    let open = program::compiled(bench, "open-jail.program", OPEN_JAIL)?;
    replace(&open, &programs.join(JAILER))?;
    let share = folder.join("share");
    let _ = std::fs::remove_file(&share);
    std::os::unix::fs::symlink(bench.workspace.target.join("share"), &share)
        .context("link the kernel")?;
    Ok(programs)
}

/// By a new file: the old one may be running.
fn replace(from: &Path, to: &Path) -> Result<()> {
    let _ = std::fs::remove_file(to);
    std::fs::copy(from, to).with_context(|| format!("copy {}", from.display())).map(drop)
}
