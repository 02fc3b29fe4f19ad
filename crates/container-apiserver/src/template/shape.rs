//! What a VM boots with, and the key that names it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use container_api::images::{
    BUNDLE_INITRAMFS, BUNDLE_KERNEL, BUNDLE_KVM_INITRAMFS, BUNDLE_RECORD, KernelBundle,
};
use container_api::ram::sha256;
use container_api::runtime::ProbeReport;
use container_api::types::Resources;
use serde::{Deserialize, Serialize};

use crate::kernel::Kernel;

/// Version of what a template depends on that stands nowhere else.
const FORMAT: u32 = 1;

/// What a template is made of; kept beside it (JSON).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shape {
    /// A digest of all that follows.
    pub key: String,
    /// The same without the memory.
    pub family: String,
    /// CPUs and RAM of the VM.
    pub resources: Resources,
    /// Whether it has a NIC.
    pub nic: bool,
    /// Whether VMs can be run in it: its CPU and its initramfs are others then.
    #[serde(default)]
    pub virtualization: bool,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// [`ProbeReport::template_identity`].
    pub identity: String,
}

impl Shape {
    /// The shape of VMs that boot `kernel` here.
    pub fn new(
        kernel: &Kernel,
        report: &ProbeReport,
        resources: Resources,
        virtualization: bool,
    ) -> io::Result<Shape> {
        let (identity, nic) = (&report.template_identity, report.tap);
        Self::of(&kernel.directory, identity, nic, resources, virtualization)
    }

    fn of(
        bundle: &Path,
        identity: &str,
        nic: bool,
        resources: Resources,
        virtualization: bool,
    ) -> io::Result<Shape> {
        let files = bundle_identity(bundle, virtualization)?;
        let parts = (FORMAT, files, identity, nic, resources.cpus, virtualization);
        let family = sha256(&serde_json::to_vec(&parts)?);
        let key = sha256(format!("{family} {}", resources.memory_in_bytes).as_bytes());
        Ok(Shape {
            key,
            family,
            resources,
            nic,
            virtualization,
            bundle: bundle.to_owned(),
            identity: identity.to_owned(),
        })
    }

    /// Whether the bundle is still what it was.
    pub fn is_current(&self) -> bool {
        Self::of(&self.bundle, &self.identity, self.nic, self.resources, self.virtualization)
            .is_ok_and(|now| now == *self)
    }

    /// Whether a VM of this shape may serve where `wanted` is asked for: of the same family, and
    /// not more than twice as large.
    pub fn may_serve(&self, wanted: &Shape) -> bool {
        let (have, want) = (self.resources.memory_in_bytes, wanted.resources.memory_in_bytes);
        self.family == wanted.family && have >= want && have / 2 <= want
    }
}

/// The digests in a bundle's record when it is younger than the files, which it is when our own
/// code has written them; else what the file system says of them.
fn bundle_identity(bundle: &Path, virtualization: bool) -> io::Result<Vec<String>> {
    let record = bundle.join(BUNDLE_RECORD).metadata().ok().map(|found| changed(&found));
    let kvm = virtualization && bundle.join(BUNDLE_KVM_INITRAMFS).exists();
    let initramfs = if kvm { BUNDLE_KVM_INITRAMFS } else { BUNDLE_INITRAMFS };
    let files = [BUNDLE_KERNEL, initramfs];
    let found = files.map(|name| bundle.join(name).metadata());
    let [kernel, initramfs] = found;
    let found = [kernel?, initramfs?];
    if let Some(record) = record
        && found.iter().all(|file| changed(file) <= record)
        && let Ok(bundle) = KernelBundle::read(bundle)
        && let [Some(kernel), Some(initramfs)] = files.map(|name| bundle.digests.get(name))
    {
        return Ok(vec![kernel.clone(), initramfs.clone()]);
    }
    let stamp = |file: &std::fs::Metadata| {
        format!("{} {} {} {:?}", file.dev(), file.ino(), file.len(), changed(file))
    };
    Ok(found.iter().map(stamp).collect())
}

fn changed(file: &std::fs::Metadata) -> (i64, i64) {
    (file.ctime(), file.ctime_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::fs;

    fn resources(mib: u64) -> Resources {
        Resources { cpus: 1, memory_in_bytes: mib << 20 }
    }

    fn bundle(directory: &Path, kernel: &str) {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join(BUNDLE_KERNEL), kernel).unwrap();
        fs::write(directory.join(BUNDLE_INITRAMFS), "i").unwrap();
    }

    fn record(directory: &Path) {
        let digests = [BUNDLE_KERNEL, BUNDLE_INITRAMFS]
            .map(|name| (name.to_owned(), sha256(&fs::read(directory.join(name)).unwrap())));
        let record = KernelBundle {
            path: directory.to_owned(),
            version: "6".into(),
            architecture: "amd64".into(),
            source: "x".into(),
            digests: BTreeMap::from(digests),
            virtualization: false,
        };
        let text = serde_json::to_vec(&record).unwrap();
        fs::write(directory.join(BUNDLE_RECORD), text).unwrap();
    }

    #[test]
    fn copies_of_a_bundle_are_one_shape_and_changes_make_another() {
        let directory = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| directory.path().join(name));
        for path in [&a, &b] {
            bundle(path, "k");
            record(path);
        }
        let of = |path: &Path| Shape::of(path, "qemu", true, resources(512), false).unwrap();
        let first = of(&a);
        assert_eq!(first.key, of(&b).key);
        assert!(first.is_current());
        bundle(&b, "other");
        record(&b);
        assert_ne!(first.key, of(&b).key);
        // The record says nothing of files that are younger.
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(a.join(BUNDLE_KERNEL), "k").unwrap();
        assert!(!first.is_current());
        fs::remove_file(a.join(BUNDLE_KERNEL)).unwrap();
        assert!(!first.is_current());
        for other in [
            Shape::of(&b, "other", true, resources(512), false).unwrap(),
            Shape::of(&b, "qemu", false, resources(512), false).unwrap(),
            Shape::of(&b, "qemu", true, resources(512), true).unwrap(),
        ] {
            assert_ne!(other.family, of(&b).family);
        }
    }

    #[test]
    fn a_larger_shape_may_serve_up_to_twice_the_memory() {
        let directory = tempfile::tempdir().unwrap();
        bundle(directory.path(), "k");
        let of = |mib| Shape::of(directory.path(), "qemu", true, resources(mib), false).unwrap();
        assert!(of(512).may_serve(&of(512)) && of(512).may_serve(&of(256)));
        assert!(!of(512).may_serve(&of(255)) && !of(512).may_serve(&of(513)));
        let nested = Shape::of(directory.path(), "qemu", true, resources(512), true).unwrap();
        assert!(!of(512).may_serve(&nested) && !nested.may_serve(&of(512)));
        let mut other = of(512);
        other.family.push('x');
        assert!(!other.may_serve(&of(512)));
    }
}
