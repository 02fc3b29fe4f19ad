//! How VMs of a test start: booted, from a template, or from a spare. The suite runs in all three
//! ways; `CONTAINER_TEST_START` says which. Without it the product decides, as it does for users.
//!
//! Making a template takes seconds, so tests in these ways share one: it is made once for the
//! binaries at hand, kept in the target directory, and linked into each installation.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::installation::{Installation, binaries, target};
use crate::{sha256_hex, wait_for};

/// The variable.
pub const VARIABLE: &str = "CONTAINER_TEST_START";

/// How long a template or a spare may take to be made, beside other tests.
const PATIENCE: Duration = Duration::from_secs(120);

/// How the VMs of an installation start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartMode {
    /// Every VM boots.
    Cold,
    /// Restored from a template, none ahead.
    Template,
    /// From a spare, where the shape is the default one.
    Spare,
}

impl StartMode {
    /// What the run was given.
    pub fn of_the_run() -> Option<Self> {
        match std::env::var(VARIABLE).ok()?.as_str() {
            "cold" => Some(Self::Cold),
            "template" => Some(Self::Template),
            "spare" => Some(Self::Spare),
            "" => None,
            other => panic!("{VARIABLE}={other}: it may be cold, template or spare"),
        }
    }

    /// The configuration for it.
    pub fn config(self) -> &'static str {
        match self {
            Self::Cold => "\nruntime.template = false\nruntime.spare = 0\n",
            Self::Template => "\nruntime.spare = 0\n",
            Self::Spare => "\nruntime.spare = 1\n",
        }
    }
}

/// Puts the shared templates into an app root that has none.
pub fn link_templates(app_root: &Path) {
    let shared = shared_templates();
    let own = app_root.join("templates");
    for template in std::fs::read_dir(&shared).expect("the shared templates").flatten() {
        let to = own.join(template.file_name());
        std::fs::create_dir_all(&to).expect("a template's folder");
        for file in std::fs::read_dir(template.path()).expect("a template").flatten() {
            let target = to.join(file.file_name());
            if std::fs::hard_link(file.path(), &target).is_err() {
                // Another file system.
                std::fs::copy(file.path(), &target).expect("copy a template");
            }
        }
    }
}

/// The folder with the templates of the default shape, made when they are missing.
fn shared_templates() -> PathBuf {
    let folder = target().expect("the target directory").join("tmp/templates").join(fingerprint());
    std::fs::create_dir_all(&folder).expect("a folder for templates");
    let lock = File::create(folder.with_extension("lock")).expect("a lock");
    flock(&lock, FlockOperation::LockExclusive).expect("lock the templates");
    let ready = folder.join("ready");
    if !ready.exists() {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder for templates");
        make(&ready);
    }
    ready
}

/// Of what a template is made from, so that no test waits for one that does not fit.
fn fingerprint() -> String {
    let mut words = String::new();
    let folder = binaries();
    let bundle = folder.join("../share/container/kernel");
    for file in [
        folder.join("container-apiserver"),
        folder.join("container-runtime-linux"),
        folder.join("container-jailer"),
        bundle.join("vmlinux"),
        bundle.join("initramfs.cpio"),
    ] {
        let about = std::fs::metadata(&file);
        let stamp = about.map(|about| (about.len(), about.mtime(), about.mtime_nsec()));
        words.push_str(&format!("{} {:?}\n", file.display(), stamp.ok()));
    }
    for name in ["CONTAINER_TEST_QEMU", "CONTAINER_TEST_KERNEL"] {
        words.push_str(&format!("{:?}\n", std::env::var_os(name)));
    }
    sha256_hex(words.as_bytes())[..16].to_owned()
}

fn make(ready: &Path) {
    let it = Installation::without_mode();
    it.configure("runtime.spare = 0\n");
    it.load(&crate::busybox::image().expect("the busybox image"));
    it.run(["run", "--rm", "busybox", "true"]).ok();
    it.wait_for_template();
    it.run(["system", "stop"]).ok();
    let half = ready.with_extension("half");
    crate::Cmd::new("cp").arg("-rT").arg(it.app_root().join("templates")).arg(&half).run().ok();
    std::fs::rename(half, ready).expect("rename the templates");
}

impl Installation {
    /// Waits until `system status` shows a template that can be used.
    #[track_caller]
    pub fn wait_for_template(&self) {
        self.wait_for_one_ready("templates");
    }

    /// Waits until `system status` shows a spare that can be taken.
    #[track_caller]
    pub fn wait_for_spare(&self) {
        self.wait_for_one_ready("spares");
    }

    #[track_caller]
    fn wait_for_one_ready(&self, what: &str) {
        wait_for(&format!("one of the {what}"), PATIENCE, || {
            let status = self.run(["system", "status", "--format", "json"]).ok().json();
            let list = status[what].as_array()?.clone();
            list.iter().any(|one| one["state"] == "ready").then_some(())
        });
    }
}
