//! The container's `/dev`.

use super::DEVPTS;
use super::child::mount_on;
use super::paths::mount_system_tmpfs;
use crate::device_filter::{KVM_MINOR, MISC};
use crate::failure::{Context, Failure};
use crate::modules::KVM;
use crate::sys;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;
use vminitd_protocol::message::ErrorCode::Mount;

/// Size of `/dev/shm` when nothing else is asked for, in bytes.
const DEFAULT_SHM: u64 = 64 << 20;

const SHM_FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Character devices of major 1 and 5 that every container has.
const NODES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Builds it at `dev`, outside the container.
pub fn build(dev: &str) -> Result<(), Failure> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME;
    mount_system_tmpfs(dev, flags, "mode=755,size=65536k")?;
    let old = umask(Mode::empty());
    let result = fill(dev);
    umask(old);
    result
}

fn fill(dev: &str) -> Result<(), Failure> {
    let mode = Mode::from_bits_truncate(0o666);
    for (name, major, minor) in NODES {
        mknod(format!("{dev}/{name}").as_str(), SFlag::S_IFCHR, mode, makedev(major, minor))
            .context(Mount, || format!("create /dev/{name}"))?;
    }
    for (target, name) in LINKS {
        symlink(target, format!("{dev}/{name}"))
            .context(Mount, || format!("create /dev/{name}"))?;
    }
    let [pts, shm, mqueue] = ["pts", "shm", "mqueue"].map(|name| format!("{dev}/{name}"));
    for dir in [&pts, &shm, &mqueue] {
        fs::create_dir(dir).context(Mount, || format!("create {dir}"))?;
    }
    let path = |path: &str| CString::new(path).expect("no NUL in a constant");
    sys::open_tree(&path(DEVPTS))
        .and_then(|devpts| sys::move_mount(devpts, &path(&pts)))
        .context(Mount, || "mount devpts at /dev/pts")?;
    mount_system_tmpfs(&shm, SHM_FLAGS, &format!("mode=1777,size={DEFAULT_SHM}"))?;
    // A kernel without POSIX queues has none to offer.
    let _ = mount_on("mqueue", &mqueue, "mqueue", SHM_FLAGS, "");
    Ok(())
}

/// Inside the container: what the request says of `/dev`. `terminal` is the
/// number of the first process's terminal.
pub fn adapt(terminal: Option<u32>, shm_size: u64, kvm: bool) -> Result<(), Failure> {
    if kvm {
        make_node(KVM, SFlag::S_IFCHR, 0o666, makedev(MISC, KVM_MINOR))
            .context(Mount, || "create /dev/kvm")?;
    }
    if ![0, DEFAULT_SHM].contains(&shm_size) {
        let (none, data) = (None::<&str>, format!("size={shm_size}"));
        mount(none, "/dev/shm", none, SHM_FLAGS | MsFlags::MS_REMOUNT, Some(data.as_str()))
            .context(Mount, || format!("give /dev/shm {shm_size} bytes"))?;
    }
    match terminal {
        None => Ok(()),
        Some(number) => console(number).context(Mount, || "mount the terminal at /dev/console"),
    }
}

/// With exactly this mode.
fn make_node(path: &str, kind: SFlag, mode: u32, device: u64) -> nix::Result<()> {
    let old = umask(Mode::empty());
    let made = mknod(path, kind, Mode::from_bits_truncate(mode), device);
    umask(old);
    made
}

fn console(number: u32) -> nix::Result<()> {
    make_node("/dev/console", SFlag::S_IFREG, 0o600, 0)?;
    let path = CString::new(format!("/dev/pts/{number}")).expect("no NUL in a number");
    sys::move_mount(sys::open_tree(&path)?, c"/dev/console")
}
