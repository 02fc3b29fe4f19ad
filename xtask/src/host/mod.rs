//! `make test-host`: what needs a whole host, proved in an emulated one.
//!
//! ```text
//! mmdebstrap ─► base.tar ─► base.ext4      the distribution with systemd and a plain user, cached
//! make install ─► product.ext4             what we install, and the tests, made each time
//!        both ─► QEMU, emulated, with SVM ─► verdicts on its second serial port
//! ```
//! Containers in the machine use its KVM, so their VMs run at its own speed. Writes to both
//! disks go to a temporary file that nobody sees again; the machine has no network card.

mod disks;
mod machine;
mod verdicts;

use anyhow::{Result, bail, ensure};

use crate::args::Args;
use crate::build;
use crate::workspace::{ARCH, Workspace, make_dir, step};
use machine::Machine;

/// What was asked for.
pub struct Options {
    /// Only these tests, by their names' beginnings; all when empty.
    names: Vec<String>,
    /// No tests: a root shell on the terminal.
    shell: bool,
}

impl Options {
    /// `[--shell] [NAME…]`.
    pub fn parse(mut args: Args) -> Result<Self> {
        let shell = args.flag("--shell");
        let names = args.rest();
        for name in &names {
            let plain = name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            ensure!(plain && !name.is_empty(), "{name:?} is not the name of a test");
        }
        ensure!(names.is_empty() || !shell, "a shell runs no tests: leave the names out");
        Ok(Self { names, shell })
    }
}

/// Makes the machine, boots it, and reads what its tests say.
pub fn test(workspace: &Workspace, options: &Options) -> Result<()> {
    ensure!(ARCH == "x86_64", "the emulated machine with SVM is an x86 one");
    build::all(workspace, ())?;
    let folder = workspace.target.join("host");
    make_dir(&folder)?;
    let base = disks::base(workspace, &folder)?;
    let product = disks::product(workspace, &folder)?;
    let machine = Machine { kernel: &folder.join("kernel"), base: &base, product: &product };
    if options.shell {
        step("booting the test host: log in is automatic, `poweroff` ends it");
        return machine.shell();
    }
    step(format!("booting the test host; its logs are in {}", folder.display()));
    let verdicts = verdicts::read(machine.tests(&options.names, &folder)?, &folder)?;
    println!("{} passed, {} failed", verdicts.passed, verdicts.failed.len());
    if !verdicts.failed.is_empty() {
        bail!("failed on the test host: {}", verdicts.failed.join(", "));
    }
    Ok(())
}
