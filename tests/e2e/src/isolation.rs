//! A network of each test's own: nothing that a test starts meets the machine's.
//!
//! ```text
//! the test's thread ── its own network namespace (loopback alone) and mount namespace
//!        └ everything that it spawns: services, registries, clients
//! ```
//! Containers have the default network there, which leads nowhere; a test of what is outside makes
//! a [`crate::World`] beside it. A test that runs as a plain user stays in the machine's network:
//! its own services have namespaces of their own anyhow.

use std::process::Command;
use std::sync::Mutex;

use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::processes::is_root;

/// The network of the machine, as the first call found it.
static MACHINE: Mutex<Option<std::path::PathBuf>> = Mutex::new(None);

/// Moves the calling thread, unless it is there already, into a network and a mount namespace of
/// its own. What it starts from now on, threads too, is there with it. `/dev/net/tun` is open to
/// everybody there, as it is wherever udev runs.
pub fn isolate() {
    if !is_root() {
        return;
    }
    {
        let mut machine = MACHINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let here = std::fs::read_link("/proc/thread-self/ns/net").expect("a network namespace");
        if *machine.get_or_insert_with(|| here.clone()) != here {
            return;
        }
    }
    let flags = UnshareFlags::NEWNET | UnshareFlags::NEWNS;
    // SAFETY: no descriptor table is unshared; the thread's root and working directory become its
    // own, and nothing here relies on their being shared.
    unsafe { unshare_unsafe(flags) }.expect("namespaces of the test's own");
    let folder = tempfile::Builder::new().prefix("container-tun-").tempdir().expect("tempdir");
    let script = format!(
        "set -e; mount --make-rprivate /; ip link set lo up; \
         [ \"$(stat -c %a /dev/net/tun)\" = 666 ] && exit; \
         mknod -m 666 {0}/tun c 10 200; mount --bind {0}/tun /dev/net/tun",
        folder.path().display()
    );
    let set_up = Command::new("sh").args(["-c", &script]).status().expect("run sh");
    assert!(set_up.success(), "a network of the test's own: {set_up}");
}
