//! Everything that differs between host architectures, in one table each.

use super::install::Features;
use super::{Accelerator, FirmwareFile};

/// What one architecture needs.
#[derive(Debug)]
pub struct Arch {
    /// The word after `qemu-system-`.
    pub qemu_name: &'static str,
    /// Debian's directory of libraries and of QEMU's modules.
    pub multiarch: &'static str,
    /// `-M` without properties.
    pub machine: &'static str,
    /// Machine properties, used where the machine has them. Each one removes a
    /// device that no guest of ours drives and that costs time at boot.
    pub machine_properties: &'static [(&'static str, &'static str)],
    /// `-cpu` under emulation.
    pub cpu_tcg: &'static str,
    /// `-cpu` under KVM.
    pub cpu_kvm: &'static str,
    /// The same where VMs may run in the VM: emulated and under KVM.
    pub cpus_nested: Option<[&'static str; 2]>,
    /// Firmware that a direct kernel start reads.
    pub firmware: &'static [FirmwareFile],
    /// The kernel's name of the serial console.
    pub console: &'static str,
    /// Command line words that only this architecture has.
    pub command_line: &'static str,
}

/// `q35`: `microvm` hangs at boot under emulation now and then. The kernel is
/// an uncompressed ELF file that is entered by its PVH note, so that nothing
/// unpacks it under emulation.
pub const X86_64: Arch = Arch {
    qemu_name: "x86_64",
    multiarch: "x86_64-linux-gnu",
    machine: "q35",
    machine_properties: &[
        ("smm", "off"),
        ("vmport", "off"),
        ("hpet", "off"),
        ("i8042", "off"),
        ("sata", "off"),
        ("usb", "off"),
        ("graphics", "off"),
    ],
    // Without la57 no guest pays for a fifth page table level; `svm` off keeps
    // nested guests out. `-svm` alone makes static glibc programs abort.
    // `erms` and `fsrm` make the kernel copy with `rep movsb`, which the emulator
    // runs byte by byte: without them streams are twice as fast.
    cpu_tcg: "max,-svm,-la57,-erms,-fsrm",
    // What the host's CPU could do, less VMs in VMs.
    cpu_kvm: "host,-vmx,-svm",
    cpus_nested: Some(["max,-la57,-erms,-fsrm", "host"]),
    firmware: &[
        FirmwareFile::required("bios-256k.bin"),
        FirmwareFile::required("linuxboot_dma.bin"),
        FirmwareFile::required("pvh.bin"),
        FirmwareFile::optional("kvmvapic.bin"),
    ],
    console: "ttyS0",
    // Patching the lock prefixes out of a one-CPU kernel costs 0.15 s emulated
    // and gains nothing there.
    command_line: "noreplace-smp",
};

/// `virt`: no firmware runs, the kernel is an `Image` that QEMU enters itself.
pub const AARCH64: Arch = Arch {
    qemu_name: "aarch64",
    multiarch: "aarch64-linux-gnu",
    machine: "virt",
    machine_properties: &[("gic-version", "max"), ("acpi", "off")],
    cpu_tcg: "max,pauth-impdef=on",
    cpu_kvm: "host",
    // The machine has no EL2 unless it is asked for.
    cpus_nested: None,
    firmware: &[],
    console: "ttyAMA0",
    command_line: "",
};

/// The architecture this program was built for: guests are of the same.
#[cfg(target_arch = "x86_64")]
pub const HOST: &Arch = &X86_64;
/// The architecture this program was built for: guests are of the same.
#[cfg(target_arch = "aarch64")]
pub const HOST: &Arch = &AARCH64;

impl Arch {
    /// The value of `-M`: the machine, its memory backend and those of its
    /// properties that this QEMU has.
    pub fn machine_argument(&self, features: &Features, memory_backend: &str) -> String {
        let mut value = format!("{},memory-backend={memory_backend}", self.machine);
        for (property, setting) in self.machine_properties {
            if features.machine_properties.contains(*property) {
                value.push_str(&format!(",{property}={setting}"));
            }
        }
        value
    }

    /// The value of `-cpu`; with `virtualization` one that can run VMs itself, where there is.
    pub fn cpu(&self, accelerator: Accelerator, virtualization: bool) -> &'static str {
        let nested = self.cpus_nested.filter(|_| virtualization);
        let [tcg, kvm] = nested.unwrap_or([self.cpu_tcg, self.cpu_kvm]);
        match accelerator {
            Accelerator::Kvm => kvm,
            Accelerator::Tcg => tcg,
        }
    }

    /// The guest kernel's command line: one constant, so that every VM of a
    /// kernel can come from one template. Nothing of a single container is on
    /// it.
    pub fn kernel_command_line(&self) -> String {
        let line = format!("console={} {COMMON_COMMAND_LINE} {}", self.console, self.command_line);
        line.trim_end().to_owned()
    }
}

/// * `quiet loglevel=4`: each line on an emulated serial port costs time.
/// * `panic=-1 oops=panic`: a guest kernel that failed reboots, and `-no-reboot`
///   turns that into the end of the VM.
/// * `cryptomgr.notests`: the self tests of the kernel's ciphers cost 0.3 s
///   emulated.
/// * `random.trust_cpu=on`: the host gives entropy again before user code runs.
/// * `page_reporting_order=5`: free memory is reported in pieces of 128 KiB, not of 2 MiB
///   alone: 97 % instead of 94 % of what was freed comes back.
const COMMON_COMMAND_LINE: &str = "quiet loglevel=4 panic=-1 oops=panic random.trust_cpu=on \
                                   cryptomgr.notests page_reporting.page_reporting_order=5";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_machine_properties_are_left_out() {
        let features = Features {
            machine_properties: ["hpet", "smm"].map(String::from).into(),
            ..Features::default()
        };
        assert_eq!(
            X86_64.machine_argument(&features, "ram"),
            "q35,memory-backend=ram,smm=off,hpet=off"
        );
    }

    #[test]
    fn vms_in_vms_are_masked_unless_wanted() {
        for accelerator in [Accelerator::Tcg, Accelerator::Kvm] {
            let cpu = X86_64.cpu(accelerator, false);
            assert!(cpu.contains(",-svm"), "{cpu}");
            let nested = X86_64.cpu(accelerator, true);
            assert!(!nested.contains("svm") && !nested.contains("vmx"), "{nested}");
            assert_eq!(AARCH64.cpu(accelerator, true), AARCH64.cpu(accelerator, false));
        }
        assert!(X86_64.cpu(Accelerator::Kvm, false).contains(",-vmx"));
        assert!(!AARCH64.machine_properties.iter().any(|(name, _)| *name == "virtualization"));
    }

    #[test]
    fn command_lines_fit_the_kernel() {
        for arch in [&X86_64, &AARCH64] {
            let line = arch.kernel_command_line();
            assert!(line.starts_with("console=tty") && line.len() < 512);
            assert!(!line.contains("  ") && !line.ends_with(' '));
        }
    }
}
