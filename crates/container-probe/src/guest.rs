//! From inside a VM: what root with all capabilities may not do, and what a program may not with
//! the defaults.

mod network;

use std::ffi::{CString, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;

use crate::report::{Answer, options, tell};
use crate::sys::{self, call};

/// Where attempts are made that need a place.
const PLACE: &str = "/attempt";
/// The tag of the file system that serves bind mounts.
const SHARES: &str = "container";

/// The capabilities of a container that asks for none (Docker's fourteen), as the kernel prints
/// them.
const DEFAULT_CAPABILITIES: &str = "00000000a80425fb";

/// `guest`: as root with all capabilities and no filter.
pub fn attack(words: &[OsString]) -> Result<(), String> {
    let (mut read_only, mut host, mut foreign) = (None, Vec::new(), Vec::new());
    for (option, value) in options(words)? {
        let address = || {
            let text = value.to_str().unwrap_or_default();
            text.parse::<SocketAddr>().map_err(|e| format!("{text}: {e}"))
        };
        match option {
            "--read-only" => read_only = Some(PathBuf::from(value)),
            "--host" => host.push(address()?),
            "--foreign" => foreign.push(address()?),
            _ => return Err(format!("unknown option {option}")),
        }
    }
    fs::create_dir_all(PLACE).map_err(|e| format!("{PLACE}: {e}"))?;
    if let Some(path) = read_only {
        tell("read-only-mount", write_to(&path));
    }
    tell("kvm", kvm());
    tell("modules", modules());
    tell("devices", devices());
    tell("agent-ports", agent_ports());
    tell("vsock", vsock());
    tell("other-processes", other_processes());
    network::attack(&host, &foreign);
    Ok(())
}

/// Every way to change what lies behind a read-only mount: as it is, mounted writable again, and
/// through a mount of the whole file system that serves it.
fn write_to(mount: &Path) -> Answer {
    let mut through = Vec::new();
    let mut tried = 0;
    let mut attempt = |way: &str, place: &Path| {
        let changes = changes(place);
        tried += changes.len();
        through.extend(changes.iter().filter(|c| c.1).map(|(what, _)| format!("{way}: {what}")));
    };
    attempt("as it is", mount);
    let remounted = sys::mount("", mount, "", libc::MS_REMOUNT | libc::MS_BIND);
    attempt("remounted", mount);
    let whole = sys::mount("", mount, "", libc::MS_REMOUNT);
    let again = Path::new(PLACE).join("shares");
    let _ = fs::create_dir(&again);
    let mounted = sys::mount(SHARES, &again, "virtiofs", 0);
    if mounted.is_ok() {
        attempt("through a mount of its own", &again.join("0"));
    }
    let told = |done: Result<(), Errno>| done.map_or_else(|e| format!("{e:?}"), |()| "done".into());
    let ways = format!(
        "{tried} writes refused by the host; remounts {} and {}, the shares mounted again: {}",
        told(remounted),
        told(whole),
        told(mounted)
    );
    Answer::of(through, ways)
}

/// What can be changed in a directory with a file `canary`.
fn changes(place: &Path) -> [(&'static str, bool); 3] {
    let append =
        |name: &str| OpenOptions::new().create(true).append(true).open(place.join(name)).is_ok();
    [
        ("a new file", append("attempt")),
        ("a file that is there", append("canary")),
        ("a removal", fs::remove_file(place.join("canary")).is_ok()),
    ]
}

/// `/dev/kvm`, a node of its own making, and the CPU's flags.
fn kvm() -> Answer {
    let mut through = Vec::new();
    let node = Path::new(PLACE).join("kvm");
    let _ = sys::device(&node, libc::S_IFCHR, 10, 232);
    for path in [Path::new("/dev/kvm"), &node] {
        if File::open(path).is_ok() {
            through.push(format!("{} opens", path.display()));
        }
    }
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpu.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    for flag in ["vmx", "svm"] {
        if flags.split_whitespace().any(|word| word == flag) {
            through.push(format!("the CPU has {flag}"));
        }
    }
    Answer::of(through, "no /dev/kvm, a node of it does not open, the CPU has neither vmx nor svm")
}

/// A module that is none: a kernel that takes modules says that it is malformed.
fn modules() -> Answer {
    let none = CString::default();
    let image = [0_u8; 64];
    // SAFETY: reads as many bytes as said, and a string that ends.
    let done =
        unsafe { libc::syscall(libc::SYS_init_module, image.as_ptr(), image.len(), none.as_ptr()) };
    judge_module(if done < 0 { Err(Errno::last()) } else { Ok(()) })
}

fn judge_module(done: Result<(), Errno>) -> Answer {
    match done {
        Err(errno @ (Errno::EPERM | Errno::ENOSYS)) => {
            Answer::Held(format!("init_module: {errno}"))
        }
        Err(errno) => Answer::Open(format!("init_module looked at the module: {errno}")),
        Ok(()) => Answer::Open("init_module succeeded".into()),
    }
}

/// The memory of the machine, and its disks below the container's root.
fn devices() -> Answer {
    let (mut through, mut tried) = (Vec::new(), 0);
    let disks = fs::read_to_string("/proc/partitions").unwrap_or_default();
    let disks = disks.lines().skip(2).filter_map(|line| {
        let mut words = line.split_whitespace();
        let (major, minor) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((words.nth(1)?.to_owned(), libc::S_IFBLK, major, minor))
    });
    let memory = [("mem", 1), ("port", 4), ("kmsg", 11)];
    let memory = memory.map(|(name, minor)| (name.to_owned(), libc::S_IFCHR, 1, minor));
    for (name, kind, major, minor) in memory.into_iter().chain(disks.take(16)) {
        let node = Path::new(PLACE).join(&name);
        tried += 1;
        let _ = sys::device(&node, kind, major, minor);
        if File::open(&node).is_ok() {
            through.push(format!("{name} opens"));
        }
    }
    Answer::of(through, format!("{tried} devices of memory and disks do not open"))
}

/// The ports on which the agent speaks with the host.
fn agent_ports() -> Answer {
    let list = fs::read_to_string("/proc/devices").unwrap_or_default();
    let major = list.lines().find_map(|line| {
        let (major, name) = line.trim().split_once(' ')?;
        (name == "virtio-portsdev").then(|| major.parse::<u32>().ok())?
    });
    let Some(major) = major else {
        return Answer::Skipped("this kernel names no virtio-serial ports".into());
    };
    let mut through = Vec::new();
    for minor in 0..4 {
        let node = Path::new(PLACE).join(format!("port{minor}"));
        let _ = sys::device(&node, libc::S_IFCHR, major, minor);
        match OpenOptions::new().read(true).write(true).open(&node) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => {}
            // Busy, or not there: it was looked for.
            Err(error) => through.push(format!("port {minor} is not kept away: {error}")),
            Ok(_) => through.push(format!("port {minor} opens")),
        }
    }
    Answer::of(through, "4 nodes of virtio-serial ports do not open")
}

/// A way to the host without a network.
fn vsock() -> Answer {
    // SAFETY: numbers alone.
    let socket = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0) };
    if socket < 0 {
        return Answer::Held(format!("a vsock: {}", Errno::last()));
    }
    // SAFETY: an address of zeros is one.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = libc::VMADDR_CID_HOST;
    address.svm_port = 1024;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: an address of that length.
    let done = unsafe { libc::connect(socket, (&raw const address).cast(), len) };
    match (done, Errno::last()) {
        (0, _) => Answer::Open("the host answers on a vsock".into()),
        // Something is there that refuses.
        (_, errno @ (Errno::ECONNRESET | Errno::ECONNREFUSED)) => {
            Answer::Open(format!("there is a vsock device: {errno}"))
        }
        (_, errno) => Answer::Held(format!("a vsock to the host: {errno}")),
    }
}

/// Processes of the guest outside of the container.
fn other_processes() -> Answer {
    let (mut through, mut seen) = (Vec::new(), 0);
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.parse::<u32>().is_err() {
            continue;
        }
        seen += 1;
        let program = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let program = program.trim();
        if program != "container-probe" && !program.is_empty() {
            through.push(format!("process {name} is {program}"));
        }
    }
    Answer::of(through, format!("{seen} processes, all of the container itself"))
}

/// `defaults`: as a container that asks for nothing.
pub fn defaults() -> Result<(), String> {
    tell("default-privileges", privileges());
    tell("default-calls", calls());
    tell("masked-paths", masked());
    Ok(())
}

fn privileges() -> Answer {
    let mut wrong = Vec::new();
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let found = sys::status(set);
        if found != DEFAULT_CAPABILITIES {
            wrong.push(format!("{set} is {found}"));
        }
    }
    if sys::status("Seccomp") != "2" {
        wrong.push("no seccomp filter".into());
    }
    Answer::of(wrong, format!("capabilities {DEFAULT_CAPABILITIES}, a seccomp filter"))
}

/// What Docker's default profile refuses.
fn calls() -> Answer {
    let table = [
        call("keyctl", libc::SYS_keyctl, [-1, 0, 0, 0, 0]),
        call("add_key", libc::SYS_add_key, [0; 5]),
        call("bpf", libc::SYS_bpf, [-1, 0, 0, 0, 0]),
        call("perf_event_open", libc::SYS_perf_event_open, [0, 0, -1, -1, -1]),
        call("userfaultfd", libc::SYS_userfaultfd, [-1, 0, 0, 0, 0]),
        call("io_uring_setup", libc::SYS_io_uring_setup, [0; 5]),
        call("unshare", libc::SYS_unshare, [libc::CLONE_NEWUSER as libc::c_long, 0, 0, 0, 0]),
        call("mount", libc::SYS_mount, [0; 5]),
        call("init_module", libc::SYS_init_module, [0; 5]),
        call("kexec_load", libc::SYS_kexec_load, [0, 0, 0, -1, 0]),
        call("open_by_handle_at", libc::SYS_open_by_handle_at, [-1, 0, 0, 0, 0]),
        call("personality", libc::SYS_personality, [0x0004_0000, 0, 0, 0, 0]),
    ];
    let through = sys::unfiltered(&table, &[Errno::EPERM]);
    Answer::of(through, format!("{} system calls refused by the filter", table.len()))
}

fn masked() -> Answer {
    let mut through = Vec::new();
    for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"] {
        let mut byte = [0];
        let read = match fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_some(),
            Err(_) => File::open(path).is_ok_and(|mut f| f.read(&mut byte).is_ok_and(|n| n > 0)),
        };
        if read {
            through.push(format!("{path} can be read"));
        }
    }
    for path in ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/bus/none"] {
        if OpenOptions::new().write(true).create(true).truncate(false).open(path).is_ok() {
            through.push(format!("{path} can be written"));
        }
    }
    Answer::of(through, "4 paths hidden, 3 read-only")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_takes_modules_is_found() {
        assert!(matches!(judge_module(Err(Errno::EPERM)), Answer::Held(_)));
        assert!(matches!(judge_module(Err(Errno::ENOSYS)), Answer::Held(_)));
        assert!(matches!(judge_module(Err(Errno::ENOEXEC)), Answer::Open(_)));
        assert!(matches!(judge_module(Ok(())), Answer::Open(_)));
    }

    #[test]
    fn a_directory_that_can_be_written_is_found() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("canary"), "x").unwrap();
        assert!(changes(place.path()).iter().all(|(_, done)| *done));
        assert!(!changes(Path::new("/proc/self/nothing")).iter().any(|(_, done)| *done));
    }
}
