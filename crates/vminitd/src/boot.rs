//! From the kernel's hand-over to a guest that waits for its host.
//!
//! The initramfs can't be the root of a container's mount namespace
//! (`pivot_root` refuses it), so PID 1 moves to a tmpfs first.

use crate::failure::{Context, Failure};
use crate::files::{read_kernel, write_kernel};
use crate::modules::Initramfs;
use crate::{cgroup, loopback, sys};
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, chroot};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use vminitd_protocol::message::ErrorCode::{Internal, Mount, Unsupported};
use vminitd_protocol::{AGENT_PORT, BULK_PORT};

/// How long the ports may take to appear once the drivers are loaded.
const PORT_LIMIT: Duration = Duration::from_secs(20);

/// Kernel parameters of every guest. The protected_* are what systemd sets:
/// the kernel's own defaults are open.
const SYSCTLS: &[(&str, &str)] = &[
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_symlinks", "1"),
    ("fs/protected_fifos", "1"),
    ("fs/protected_regular", "2"),
    ("kernel/dmesg_restrict", "1"),
    // Of the kernel's addresses nobody learns, and its programs and its successor are root's,
    // or nobody's, to load.
    ("kernel/kptr_restrict", "2"),
    ("kernel/perf_event_paranoid", "3"),
    ("kernel/unprivileged_bpf_disabled", "1"),
    ("kernel/kexec_load_disabled", "1"),
    // Processes are traced by their parents, or with a capability.
    ("kernel/yama/ptrace_scope", "1"),
    // There is no program that loads modules on demand.
    ("kernel/modprobe", "\n"),
    // Docker's defaults: any port, and `ping` without a capability.
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    // The host alone says which addresses and routes there are, and keeps others from having
    // them: an address counts at once, and nobody is asked for more. For NICs, which come later.
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("vm/max_map_count", "262144"),
];

/// Mount points and places for files, in this order.
const DIRECTORIES: &[&str] = &[
    "proc",
    "sys",
    "dev",
    "run",
    "run/lower",
    "run/upper",
    "run/root",
    "run/etc",
    "run/pts",
    "run/ahead",
    "run/ahead/proc",
    "run/ahead/sys",
    "run/ahead/dev",
];

/// What a booted guest has.
pub struct Booted {
    /// Port for control messages.
    pub agent: OwnedFd,
    /// Port for streams.
    pub bulk: OwnedFd,
    /// What the boot has left out.
    pub initramfs: Initramfs,
}

/// Boots.
///
/// # Errors
/// A [`Failure`] when the guest can't work at all: no mounts, no ports.
pub fn boot() -> Result<Booted, Failure> {
    let mut initramfs = Initramfs::open().internal("open the initramfs")?;
    move_to_tmpfs()?;
    mount_kernel_file_systems()?;
    // Namespaces, mounts and cgroups end with waits for all CPUs, otherwise tens
    // of milliseconds each, in the path of every start and exit.
    let _ = write_kernel("/sys/kernel/rcu_expedited", "1");
    initramfs.load_modules();
    protect_self();
    let [agent, bulk] = open_ports()?;
    Ok(Booted { agent, bulk, initramfs })
}

/// What the host need not wait for: done while it reads the greeting.
///
/// # Errors
/// A [`Failure`] when no container can run here.
pub fn prepare() -> Result<(), Failure> {
    cgroup::create_parent()?;
    for (name, value) in SYSCTLS {
        // A kernel without one of them is as it is.
        let _ = write_kernel(format!("/proc/sys/{name}"), value);
    }
    loopback::up()?;
    cgroup::create()
}

fn mount_at(kind: &str, target: &str, flags: MsFlags, data: &str) -> Result<(), Failure> {
    mount(Some(kind), target, Some(kind), flags, Some(data))
        .context(Mount, || format!("mount {kind} at {target}"))
}

fn move_to_tmpfs() -> Result<(), Failure> {
    fs::create_dir_all("/root").internal("create /root")?;
    mount_at("tmpfs", "/root", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=755")?;
    chdir("/root").internal("enter the tmpfs")?;
    let none = None::<&str>;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).context(Mount, || "move the tmpfs to /")?;
    chroot(".").internal("chroot to the tmpfs")?;
    chdir("/").internal("enter /")?;
    for dir in DIRECTORIES {
        fs::create_dir(dir).context(Internal, || format!("create /{dir}"))?;
    }
    Ok(())
}

fn mount_kernel_file_systems() -> Result<(), Failure> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    mount_at("proc", "/proc", plain, "")?;
    mount_at("sysfs", "/sys", plain, "")?;
    mount_at("devtmpfs", "/dev", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=755")?;
    mount_at("cgroup2", "/sys/fs/cgroup", plain, "")
}

/// Keeps PID 1 alive when memory runs out and out of reach of those it starts;
/// children inherit this until they exec.
fn protect_self() {
    let _ = write_kernel("/proc/self/oom_score_adj", "-1000");
    let _ = sys::prctl(libc::PR_SET_DUMPABLE, 0);
    // What a process gets without --ulimit: a low soft limit, because programs
    // that close every possible descriptor exist, and room to raise it.
    let files = libc::rlimit { rlim_cur: 1024, rlim_max: 1 << 20 };
    // SAFETY: the structure outlives the call.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files) };
}

fn open_ports() -> Result<[OwnedFd; 2], Failure> {
    let deadline = Instant::now() + PORT_LIMIT;
    let mut pause = Duration::from_micros(500);
    loop {
        let found = find_ports().unwrap_or_default();
        if let [Some(agent), Some(bulk)] = found {
            return Ok([open_port(&agent)?, open_port(&bulk)?]);
        }
        if Instant::now() > deadline {
            return Err(Failure::new(Unsupported, "virtio-serial ports are missing"));
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// The device nodes of the ports that exist, and are called as ours.
fn find_ports() -> io::Result<[Option<PathBuf>; 2]> {
    let mut found = [None, None];
    for entry in fs::read_dir("/sys/class/virtio-ports")?.flatten() {
        let name = read_kernel(entry.path().join("name")).unwrap_or_default();
        if let Some(at) = [AGENT_PORT, BULK_PORT].iter().position(|port| *port == name) {
            let node = Path::new("/dev").join(entry.file_name());
            found[at] = node.exists().then_some(node);
        }
    }
    Ok(found)
}

fn open_port(path: &Path) -> Result<OwnedFd, Failure> {
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).context(Internal, || format!("open {}", path.display()))
}
