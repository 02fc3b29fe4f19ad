//! From inside the jail of a hypervisor: as if QEMU had been taken over.

mod files;

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::libc::{self, c_long};

use crate::report::{Answer, number, options, tell};
use crate::sys::{self, call};

/// What is out there, to be found or not.
#[derive(Default)]
struct Outside {
    /// The descriptors that there should be.
    descriptors: Vec<i32>,
    /// One that is this VM's alone, open for reading and writing.
    own: Option<i32>,
    /// One that is shared with other VMs.
    shared: Option<i32>,
    tap: Option<i32>,
    /// Processes of the host, by the host's numbers.
    processes: Vec<i32>,
    /// Files of the host.
    files: Vec<PathBuf>,
    /// A socket in the host's abstract names.
    name: Option<String>,
}

/// `jail`: tries to get out.
pub fn attack(words: &[OsString]) -> Result<(), String> {
    let mut outside = Outside::default();
    for (option, value) in options(words)? {
        let text = value.to_str().unwrap_or_default();
        match option {
            "--fds" => {
                let numbers: Result<_, _> = text.split(',').map(str::parse).collect();
                outside.descriptors = numbers.map_err(|e| format!("--fds: {e}"))?;
            }
            "--out" => redirect(number(Some(value))?)?,
            "--own" => outside.own = Some(number(Some(value))?),
            "--shared" => outside.shared = Some(number(Some(value))?),
            "--tap" => outside.tap = Some(number(Some(value))?),
            "--pid" => outside.processes.push(number(Some(value))?),
            "--file" => outside.files.push(value.into()),
            "--abstract" => outside.name = Some(text.to_owned()),
            _ => return Err(format!("unknown option {option}")),
        }
    }
    tell("jail-privileges", privileges());
    tell("jail-files", files::of_the_host(&outside.files));
    tell("jail-writing", files::writing());
    tell("jail-descriptors", files::descriptors(&outside.descriptors));
    if let Some(fd) = outside.own {
        tell("jail-landlock", files::own(fd));
    }
    if let Some(fd) = outside.shared {
        tell("jail-shared", files::shared(fd));
    }
    tell("jail-processes", processes(&outside.processes));
    tell("jail-network", network(outside.name.as_deref()));
    tell("jail-namespaces", namespaces());
    tell("jail-calls", calls());
    if let Some(fd) = outside.tap {
        tell("jail-tap", tap(fd));
    }
    Ok(())
}

/// Answers go there.
fn redirect(fd: i32) -> Result<(), String> {
    // SAFETY: numbers alone; standard output is nobody's but this program's.
    match unsafe { libc::dup2(fd, libc::STDOUT_FILENO) } {
        -1 => Err(format!("--out: {}", Errno::last())),
        _ => Ok(()),
    }
}

fn privileges() -> Answer {
    let mut wrong = Vec::new();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let found = sys::status(set);
        if found.bytes().any(|digit| digit != b'0') || found.is_empty() {
            wrong.push(format!("{set} is {found}"));
        }
    }
    if sys::status("NoNewPrivs") != "1" {
        wrong.push("new privileges can be gained".into());
    }
    // SAFETY: numbers alone; where it succeeds, this process is root already.
    if unsafe { libc::setuid(0) } == 0 {
        wrong.push("setuid(0) succeeded".into());
    }
    Answer::of(wrong, "no capability in any set, no new privileges, setuid(0) refused")
}

/// Other processes: seen, signalled, traced, read.
fn processes(others: &[i32]) -> Answer {
    let mut through = Vec::new();
    // SAFETY: reads a number.
    let own = unsafe { libc::getpid() };
    let seen = fs::read_dir("/proc").into_iter().flatten().flatten();
    let seen = seen.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let strangers = seen.filter(|pid| *pid != own).count();
    if strangers > 0 {
        through.push(format!("{strangers} processes are seen"));
    }
    for &pid in others.iter().filter(|pid| **pid != own) {
        let succeeded: Vec<&str> = [
            // SAFETY: signal 0 asks whether there could be one.
            ("signalled", unsafe { libc::kill(pid, 0) } == 0),
            ("traced", seize(pid)),
            ("read", read_memory(pid)),
        ]
        .into_iter()
        .filter_map(|(what, done)| done.then_some(what))
        .collect();
        if !succeeded.is_empty() {
            through.push(format!("process {pid} can be {}", succeeded.join(", ")));
        }
    }
    Answer::of(
        through,
        format!("{} processes of the host can't be signalled, traced or read", others.len()),
    )
}

/// Traces without stopping, and lets go at once.
fn seize(pid: i32) -> bool {
    // SAFETY: numbers alone.
    unsafe {
        let done = libc::ptrace(libc::PTRACE_SEIZE, pid, 0 as c_long, 0 as c_long) == 0;
        if done {
            libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0 as c_long, 0 as c_long);
            libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL);
            libc::ptrace(libc::PTRACE_DETACH, pid, 0 as c_long, 0 as c_long);
        }
        done
    }
}

/// Whether the permission is there: an address that is not mapped gives another error.
fn read_memory(pid: i32) -> bool {
    let mut byte = 0_u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(8), iov_len: 1 };
    // SAFETY: writes at most one byte into a local.
    let done = unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) };
    done >= 0 || Errno::last() == Errno::EFAULT
}

/// Every kind of socket that leads somewhere.
fn network(name: Option<&str>) -> Answer {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream};
    let mut through = Vec::new();
    let families = [
        ("IPv4", libc::AF_INET, libc::SOCK_STREAM),
        ("IPv6", libc::AF_INET6, libc::SOCK_DGRAM),
        ("netlink", libc::AF_NETLINK, libc::SOCK_RAW),
        ("packet", libc::AF_PACKET, libc::SOCK_RAW),
        ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM),
        ("AF_ALG", libc::AF_ALG, libc::SOCK_SEQPACKET),
    ];
    for (family, number, kind) in families {
        // SAFETY: numbers alone.
        let socket = unsafe { libc::socket(number, kind, 0) };
        if socket >= 0 {
            through.push(format!("a socket of {family}"));
            // SAFETY: the descriptor that was just made.
            unsafe { libc::close(socket) };
        }
    }
    let address = name.and_then(|name| SocketAddr::from_abstract_name(name).ok());
    if address.is_some_and(|address| UnixStream::connect_addr(&address).is_ok()) {
        through.push("the host's abstract socket answers".into());
    }
    Answer::of(
        through,
        format!(
            "sockets of {} families refused, an abstract name of the host unknown",
            families.len()
        ),
    )
}

fn namespaces() -> Answer {
    let kinds = [
        ("user", libc::CLONE_NEWUSER),
        ("mount", libc::CLONE_NEWNS),
        ("net", libc::CLONE_NEWNET),
        ("pid", libc::CLONE_NEWPID),
        ("ipc", libc::CLONE_NEWIPC),
        ("uts", libc::CLONE_NEWUTS),
    ];
    let mut through = Vec::new();
    for (kind, flag) in kinds {
        // SAFETY: a number; this process alone changes where it succeeds.
        if unsafe { libc::unshare(flag) } == 0 {
            through.push(format!("a new {kind} namespace"));
        }
    }
    Answer::of(through, format!("{} kinds of new namespaces refused", kinds.len()))
}

/// Calls that the jail's filter has to refuse, with arguments that do nothing where it does not.
fn calls() -> Answer {
    let table = [
        call("ptrace", libc::SYS_ptrace, [-1, 0, 0, 0, 0]),
        call("pidfd_getfd", libc::SYS_pidfd_getfd, [-1, -1, 0, 0, 0]),
        call("kcmp", libc::SYS_kcmp, [-1, -1, -1, 0, 0]),
        call("mount", libc::SYS_mount, [0; 5]),
        call("fsopen", libc::SYS_fsopen, [0, -1, 0, 0, 0]),
        call("open_tree", libc::SYS_open_tree, [-1, 0, -1, 0, 0]),
        call("setns", libc::SYS_setns, [-1, 0, 0, 0, 0]),
        call("add_key", libc::SYS_add_key, [0; 5]),
        call("keyctl", libc::SYS_keyctl, [-1, 0, 0, 0, 0]),
        call("bpf", libc::SYS_bpf, [-1, 0, 0, 0, 0]),
        call("perf_event_open", libc::SYS_perf_event_open, [0, 0, -1, -1, -1]),
        call("userfaultfd", libc::SYS_userfaultfd, [-1, 0, 0, 0, 0]),
        call("init_module", libc::SYS_init_module, [0; 5]),
        call("kexec_load", libc::SYS_kexec_load, [0, 0, 0, -1, 0]),
        call("settimeofday", libc::SYS_settimeofday, [1, 1, 0, 0, 0]),
        call("syslog", libc::SYS_syslog, [-1, 0, 0, 0, 0]),
        call("open_by_handle_at", libc::SYS_open_by_handle_at, [-1, 0, 0, 0, 0]),
        call("fanotify_init", libc::SYS_fanotify_init, [-1, 0, 0, 0, 0]),
        call("io_uring_setup", libc::SYS_io_uring_setup, [0; 5]),
        call("clone3", libc::SYS_clone3, [0; 5]),
        call("personality", libc::SYS_personality, [0x0004_0000, 0, 0, 0, 0]),
    ];
    let mut through = sys::unfiltered(&table, &[Errno::EPERM, Errno::ENOSYS]);
    if sys::status("Seccomp") != "2" {
        through.push("no seccomp filter".into());
    }
    Answer::of(through, format!("{} system calls refused by the filter", table.len()))
}

/// What a tap's descriptor alone could change of it, capability or not: the jail's filter has to
/// refuse each before the kernel looks at it.
fn tap(fd: i32) -> Answer {
    let requests: [(&str, libc::c_ulong, c_long); 9] = [
        ("persistence", 0x4004_54cb, 0),
        ("the owner", 0x4004_54cc, 0),
        ("the link type", 0x4004_54cd, 1),
        ("the group", 0x4004_54ce, 0),
        ("the packet filter", 0x4010_54d5, 0),
        ("the queue", 0x4004_54d9, 0),
        ("steering", 0x8004_54e0, 0),
        ("the carrier", 0x4004_54e2, 0),
        ("what waits", libc::FIONREAD, 0),
    ];
    let mut through = Vec::new();
    for (what, request, argument) in requests {
        // SAFETY: these take a number, or an address, which is null and hence refused.
        match unsafe { libc::ioctl(fd, request, argument) } {
            0.. => through.push(format!("{what} of the tap can be asked or set")),
            _ if Errno::last() == Errno::EPERM => {}
            _ => through.push(format!("{what} of the tap: {}", Errno::last())),
        }
    }
    let mut address = [0_u8; 40];
    address[16..18].copy_from_slice(&1_u16.to_ne_bytes());
    address[18..24].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    // SAFETY: reads a `struct ifreq`, which is 40 bytes long.
    if unsafe { libc::ioctl(fd, libc::SIOCSIFHWADDR, address.as_ptr()) } == 0 {
        through.push("the tap's address can be set".into());
    }
    Answer::of(
        through,
        "persistence, owner, link, carrier, filters and address of the tap can't be set",
    )
}
