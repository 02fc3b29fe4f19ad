//! The emulated machine.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::kvm::kernel_and_disk;

/// What the machine is made of.
pub struct Machine<'a> {
    /// The unpacked kernel package.
    pub kernel: &'a Path,
    /// The disk with the distribution.
    pub base: &'a Path,
    /// The disk with our installation.
    pub product: &'a Path,
}

/// A machine that runs; killed when it is dropped.
pub struct Running {
    /// QEMU, with the second serial port as its output.
    pub qemu: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Machine<'_> {
    /// Boots it to run `names`, its console written to a file in `folder`.
    pub fn tests(&self, names: &[String], folder: &Path) -> Result<Running> {
        let console = folder.join("console.log");
        let mut command = self.command(&format!("host-test={}", names.join(",")))?;
        command
            .args(["-serial", &format!("file:{}", console.display()), "-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        Ok(Running { qemu: command.spawn().context("run QEMU")? })
    }

    /// Boots it with its console on the terminal, and waits for its end.
    pub fn shell(&self) -> Result<()> {
        let mut command = self.command("host-shell")?;
        // Ctrl-C goes to the machine.
        command.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
        command.args(["-serial", "null"]);
        let mut running = Running { qemu: command.spawn().context("run QEMU")? };
        let status = running.qemu.wait().context("wait for QEMU")?;
        ensure!(status.success(), "the test host's QEMU: {status}");
        Ok(())
    }

    fn command(&self, asked: &str) -> Result<Command> {
        let (kernel, nvme) = kernel_and_disk(self.kernel)?;
        let root = if nvme { "/dev/nvme0n1" } else { "/dev/vda" };
        // Both emulated processors have this machine's counter, which the flags of theirs don't
        // tell: without the word time is an emulated device's, and VMs get a clock that stutters.
        let append = format!(
            "console=ttyS0 panic=-1 no_timer_check tsc=reliable root={root} rw quiet apparmor=1 \
             psi=1 {asked}"
        );
        // The kernel ends it with us, however that comes about.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-M", "q35", "-cpu", "max,-la57", "-smp", "2", "-m", "4096"])
            .args(["-accel", "tcg,thread=multi,tb-size=1024"])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(kernel)
            .args(["-append", &append]);
        disk(&mut command, "base", self.base, nvme);
        disk(&mut command, "product", self.product, nvme);
        Ok(command)
    }
}

/// Adds a disk whose changes are thrown away.
fn disk(command: &mut Command, name: &str, file: &Path, nvme: bool) {
    let driver = if nvme { "nvme" } else { "virtio-blk-pci" };
    let device = format!("{driver},drive={name},serial={name}");
    let file = file.display();
    let drive = format!("file={file},if=none,id={name},format=raw,cache=unsafe,snapshot=on");
    command.args(["-device", &device, "-drive", &drive]);
}
