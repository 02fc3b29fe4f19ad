//! A VM to try things on, and its guest's shell on the console.

use std::path::PathBuf;
use std::time::Duration;

use container_runtime_linux::hypervisor::{
    Accelerator, Nic, Origin, QemuInstall, Source, VmConfig, VmStreams, install,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support;

/// Longer than any step takes on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// QEMU and a directory for what its VMs need.
pub struct Machine {
    /// Everything of its VMs.
    pub dir: tempfile::TempDir,
    /// QEMU.
    pub install: QemuInstall,
}

impl Machine {
    /// With the system's QEMU, or that of `CONTAINER_TEST_QEMU`.
    pub async fn new() -> Machine {
        let source = Source {
            binary: std::env::var_os("CONTAINER_TEST_QEMU").map(PathBuf::from),
            ..Source::default()
        };
        let install = install::discover(&source, &support::jail()).await;
        let install = install.expect("QEMU");
        let dir = tempfile::tempdir().expect("a directory");
        Machine { dir, install }
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A VM whose first program is this shell script.
    pub fn config(&self, script: &str) -> VmConfig {
        let script = format!("#!/bin/busybox sh\n{script}");
        support::initramfs(&self.path("initramfs.cpio"), &script);
        let origin = Origin::Cold {
            kernel: support::kernel(),
            initramfs: self.path("initramfs.cpio"),
            ram: None,
        };
        self.with_origin(origin)
    }

    /// A VM that comes from somewhere.
    pub fn with_origin(&self, origin: Origin) -> VmConfig {
        support::disk(&self.path("image.erofs"), b"IMAGE-A\n");
        VmConfig {
            install: self.install.clone(),
            jail: support::jail(),
            accelerator: Accelerator::Tcg,
            virtualization: false,
            origin,
            nic: Nic::None,
            more_nics: Vec::new(),
            memory_mib: 256,
            vcpus: 1,
            image: self.path("image.erofs"),
            upper: support::disk(&self.path("upper.img"), b"UPPER\n").into(),
            takes_plugs: false,
        }
    }
}

/// Reads the console until `text` was seen.
pub async fn console_until(streams: &mut VmStreams, text: &str) -> String {
    let mut seen = Vec::new();
    let read = async {
        let mut chunk = [0; 1024];
        while !String::from_utf8_lossy(&seen).contains(text) {
            match streams.console.read(&mut chunk).await {
                Ok(0) | Err(_) => break,
                Ok(count) => seen.extend_from_slice(&chunk[..count]),
            }
        }
    };
    let _ = tokio::time::timeout(LIMIT, read).await;
    let seen = String::from_utf8_lossy(&seen).into_owned();
    assert!(seen.contains(text), "the console has no {text:?}: {seen:?}");
    seen
}

/// The guest that inserts the bundle's modules whose names contain one of
/// these words, says `ready` and then executes what the console brings.
#[allow(dead_code, reason = "not every test's guest has a shell")]
pub fn shell(modules: &[&str]) -> String {
    let mut script = String::from(
        "/bin/busybox mkdir /proc /sys /tmp\n/bin/busybox mount -t proc proc /proc\n\
         /bin/busybox mount -t sysfs sysfs /sys\n/bin/busybox mount -t devtmpfs dev /dev\n\
         /bin/busybox mount -t tmpfs tmp /tmp\n/bin/busybox --install -s /bin\nstty -echo\n",
    );
    for module in support::modules(modules) {
        let name = module.file_name().expect("a name").to_string_lossy();
        script.push_str(&format!("insmod /modules/{name}\n"));
    }
    script.push_str("echo ready\nwhile read -r line; do eval \"$line\"; echo \"<$?>\"; done\n");
    script
}

/// Has the guest's shell execute a line; returns what it printed. The line
/// must succeed.
#[allow(dead_code, reason = "not every test's guest has a shell")]
pub async fn guest(streams: &mut VmStreams, line: &str) -> String {
    streams.console.write_all(format!("{line}\n").as_bytes()).await.expect("the console");
    let text = console_until(streams, ">\r\n").await;
    let output = text.strip_suffix("<0>\r\n").unwrap_or_else(|| panic!("{line}: {text}"));
    output.replace("\r\n", "\n").trim().to_owned()
}

/// A runtime whose thread is the test's.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}
