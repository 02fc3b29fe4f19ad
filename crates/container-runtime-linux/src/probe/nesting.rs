//! Whether VMs of this host can run VMs themselves.
//!
//! Emulated ones can: QEMU emulates SVM, and no hypervisor of the host is exposed. With KVM the
//! guest's VMs are the host kernel's to run, so its age and what the CPU leaks count.

use std::fs;
use std::path::{Path, PathBuf};

use container_api::types::Accelerator;

/// The oldest host kernel: the first of a series that is still maintained whose nested
/// virtualization is on by default with both vendors.
const OLDEST_KERNEL: (u32, u32) = (5, 10);

/// Longest text of the host's kernel that a message repeats, in characters.
const MAX_TEXT: usize = 120;

/// What stands in the way, one line each; nothing where a guest may run VMs.
pub fn obstacles(accelerator: Option<Accelerator>) -> Vec<String> {
    match (accelerator, std::env::consts::ARCH) {
        (Some(accelerator), "x86_64") => Host { root: PathBuf::from("/") }.obstacles(accelerator),
        (Some(_), arch) => vec![format!("there is no nested virtualization on {arch} yet")],
        (None, _) => vec!["no virtual machine can run here".into()],
    }
}

/// The host, or what a test puts in its place.
struct Host {
    root: PathBuf,
}

impl Host {
    fn obstacles(&self, accelerator: Accelerator) -> Vec<String> {
        match accelerator {
            Accelerator::Tcg => Vec::new(),
            Accelerator::Kvm => {
                let mut found = Vec::new();
                found.extend(self.cpu());
                found.extend(self.kernel());
                found.extend(self.vulnerabilities());
                found
            }
        }
    }

    /// The CPU's extension, and whether the host's KVM hands it on.
    fn cpu(&self) -> Option<String> {
        let info = self.text("proc/cpuinfo");
        let flags = info.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
        let module = match (has("vmx"), has("svm")) {
            (true, _) => "kvm_intel",
            (_, true) => "kvm_amd",
            _ => return Some("the host's CPU has neither VMX nor SVM".into()),
        };
        let nested = self.text(&format!("sys/module/{module}/parameters/nested"));
        match nested.as_str() {
            "1" | "Y" | "y" => None,
            "" => Some(format!("the host has not loaded {module}, or it can't nest")),
            _ => Some(format!("the host's {module} does not nest: load it with nested=1")),
        }
    }

    fn kernel(&self) -> Option<String> {
        let release = self.text("proc/sys/kernel/osrelease");
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        let mut number = || numbers.next().and_then(Result::ok).unwrap_or(0);
        let version = (number(), number());
        let (major, minor) = OLDEST_KERNEL;
        (version < OLDEST_KERNEL)
            .then(|| format!("the host's kernel {} is older than {major}.{minor}", short(&release)))
    }

    /// What the host's kernel says that its CPU still leaks.
    fn vulnerabilities(&self) -> Vec<String> {
        let directory = self.root.join("sys/devices/system/cpu/vulnerabilities");
        let Ok(entries) = fs::read_dir(&directory) else {
            return vec!["the host's kernel does not say how vulnerable its CPU is".into()];
        };
        let mut found: Vec<String> = entries
            .flatten()
            .filter_map(|entry| {
                let text = read(&entry.path());
                let name = entry.file_name();
                let name = name.to_string_lossy();
                is_vulnerable(&text)
                    .then(|| format!("the host's CPU: {}: {}", short(&name), short(&text)))
            })
            .collect();
        found.sort();
        found
    }

    fn text(&self, path: &str) -> String {
        read(&self.root.join(path))
    }
}

/// `Vulnerable…`, `KVM: Vulnerable`, and L1TF whose flushes are off (`VMX: vulnerable`). Threads
/// of one core that share buffers (`SMT vulnerable`) are the scheduler's business.
fn is_vulnerable(text: &str) -> bool {
    text.starts_with("Vulnerable")
        || text.contains(": Vulnerable")
        || text.contains("VMX: vulnerable")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn short(text: &str) -> String {
    let cut: String = text.chars().take(MAX_TEXT).collect();
    container_api::escape::escape(&cut).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake(tempfile::TempDir);

    impl Fake {
        /// A host on which nothing stands in the way.
        fn new() -> Fake {
            let fake = Fake(tempfile::tempdir().unwrap());
            fake.write("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu vmx sse\n");
            fake.write("proc/sys/kernel/osrelease", "6.1.0-9-amd64\n");
            fake.write("sys/module/kvm_intel/parameters/nested", "Y\n");
            fake.vulnerability("mds", "Mitigation: Clear CPU buffers; SMT vulnerable");
            fake.vulnerability("meltdown", "Not affected");
            fake
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn vulnerability(&self, name: &str, text: &str) {
            self.write(&format!("sys/devices/system/cpu/vulnerabilities/{name}"), text);
        }

        fn obstacles(&self) -> Vec<String> {
            Host { root: self.0.path().to_owned() }.obstacles(Accelerator::Kvm)
        }
    }

    #[test]
    fn a_good_host_has_none_and_emulation_never() {
        assert_eq!(Fake::new().obstacles(), [""; 0]);
        let nowhere = Host { root: "/nowhere".into() };
        assert_eq!(nowhere.obstacles(Accelerator::Tcg), [""; 0]);
    }

    #[test]
    fn each_is_named() {
        let fake = Fake::new();
        fake.write("sys/module/kvm_intel/parameters/nested", "N");
        fake.write("proc/sys/kernel/osrelease", "5.4.0-1-generic");
        fake.vulnerability("mds", "Vulnerable: Clear CPU buffers attempted, no microcode");
        fake.vulnerability("l1tf", "Mitigation: PTE Inversion; VMX: vulnerable, SMT disabled");
        fake.vulnerability("itlb_multihit", "KVM: Vulnerable");
        let found = fake.obstacles();
        assert_eq!(found.len(), 5, "{found:#?}");
        for (line, word) in found.iter().zip(["nested=1", "5.4", "itlb_multihit", "l1tf", "mds"]) {
            assert!(line.contains(word), "{line}");
        }
        fake.write("proc/cpuinfo", "flags\t\t: fpu sse\n");
        assert!(fake.obstacles()[0].contains("neither VMX nor SVM"));
        fake.write("proc/cpuinfo", "flags\t\t: fpu svm\n");
        assert!(fake.obstacles()[0].contains("kvm_amd"));
        let empty = Host { root: "/nowhere".into() }.obstacles(Accelerator::Kvm);
        assert!(empty.iter().any(|line| line.contains("does not say")), "{empty:?}");
    }
}
