//! What makes the state of a VM fit another VM, beside the guest's own files.

use container_api::types::Accelerator;
use sha2::{Digest, Sha256};

use crate::hypervisor::{QemuInstall, qemu};

/// A digest of everything on this host that a VM's saved state depends on:
/// QEMU and its files, the accelerator, the CPU, the kernel (which decides what
/// taps can do) and our own command line. In hex.
pub fn of(install: &QemuInstall, accelerator: Accelerator) -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let install_words = serde_json::to_string(install).unwrap_or_default();
    let command = [false, true].map(|nested| qemu::command_identity(install, accelerator, nested));
    let accelerator = accelerator.to_string();
    let [plain, nested] = &command;
    digest(&[&install_words, &accelerator, &processor(&cpu), release.trim(), plain, nested])
}

fn digest(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Model and features of the first processor; what changes while the host runs
/// (its clock) is left out.
fn processor(cpuinfo: &str) -> String {
    const FIELDS: [&str; 6] =
        ["model name", "flags", "CPU implementer", "CPU part", "CPU variant", "Features"];
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let lines = first.lines().filter(|line| {
        let name = line.split(':').next().unwrap_or_default().trim();
        FIELDS.contains(&name)
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_its_model_and_features() {
        let cpuinfo = "processor\t: 0\nmodel name\t: X\ncpu MHz\t\t: 1.5\nflags\t\t: a b\n\n\
                       processor\t: 1\nmodel name\t: X\n";
        assert_eq!(processor(cpuinfo), "model name\t: X\nflags\t\t: a b");
    }

    #[test]
    fn every_part_counts() {
        assert_eq!(digest(&["a", "b"]), digest(&["a", "b"]));
        assert_ne!(digest(&["a", "b"]), digest(&["ab", ""]));
        assert_eq!(digest(&["a"]).len(), 64);
    }
}
