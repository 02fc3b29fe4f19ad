//! The way out of a network: one `pasta` for each.
//!
//! `pasta` is a process of the host's network namespace that turns packets into its own sockets.
//! It gets a user namespace of its own, where as root it is nobody, and a network namespace to make
//! its tap in; we move that tap to where it belongs. So it can configure neither networks nor the
//! host. It is in a session of its own and survives the service; the folder of sockets keeps its
//! process's number.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use container_api::error::{ApiError, ErrorCode, Result};
use netlink_packet_route::link::LinkAttribute;
use nix::libc;
use serde::{Deserialize, Serialize};

use super::host;
use super::namespace::{Privilege, failed, sysctl};
use super::netlink::{self, Netlink, Route};
use super::rules::UPLINK;
use super::tap;

/// How long `pasta` may take to make its tap.
const START: Duration = Duration::from_secs(5);
/// The user that `pasta` is as root, where that one may make taps.
const NOBODY: u32 = 65534;

/// Addresses between the namespace and `pasta` (RFC 7335's block; nothing else has them).
const INSIDE4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 2);
const BEYOND4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 1);
const INSIDE6: Ipv6Addr = Ipv6Addr::new(0xfd63, 0x6f6e, 0x7461, 0x696f, 0, 0, 0, 2);
const BEYOND6: Ipv6Addr = Ipv6Addr::new(0xfd63, 0x6f6e, 0x7461, 0x696f, 0, 0, 0, 1);

/// A process, told apart from a later one with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pid: i32,
    /// When it was started, in the kernel's ticks.
    started: u64,
}

impl Process {
    fn of(pid: i32) -> Option<Process> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything.
        let (_, rest) = stat.rsplit_once(") ")?;
        let mut words = rest.split(' ');
        let state = words.next()?;
        let started = words.nth(18)?.parse().ok()?;
        (state != "Z" && state != "X").then_some(Process { pid, started })
    }

    /// A descriptor that becomes readable when it ends; `None`: it has.
    pub(super) fn open(self) -> Option<OwnedFd> {
        let pid = rustix::process::Pid::from_raw(self.pid)?;
        let handle =
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::NONBLOCK).ok()?;
        (Process::of(self.pid) == Some(self)).then_some(handle)
    }

    /// Ends it.
    pub(super) fn kill(self) {
        if let Some(handle) = self.open() {
            let _ = rustix::process::pidfd_send_signal(&handle, rustix::process::Signal::KILL);
        }
    }
}

fn record(run: &Path, network: &str) -> PathBuf {
    run.join(format!("uplink-{network}.json"))
}

/// The one that an earlier service started, if it lives.
pub(super) fn find(run: &Path, network: &str) -> Option<Process> {
    let process: Process =
        serde_json::from_slice(&std::fs::read(record(run, network)).ok()?).ok()?;
    process.open().map(|_| process)
}

/// The networks that an uplink is noted for.
pub(super) fn noted(run: &Path) -> Vec<String> {
    let names = std::fs::read_dir(run).into_iter().flatten().flatten();
    names
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some(name.strip_prefix("uplink-")?.strip_suffix(".json")?.to_owned())
        })
        .collect()
}

/// Forgets it.
pub(super) fn forget(run: &Path, network: &str) {
    let _ = std::fs::remove_file(record(run, network));
}

/// What a new uplink is made with.
pub(super) struct Plan<'a> {
    pub(super) pasta: &'a Path,
    pub(super) run: &'a Path,
    pub(super) network: &'a str,
    pub(super) privilege: Privilege,
    pub(super) host: &'a host::State,
}

/// Starts `pasta` and moves its tap into `namespace`, where [`configure`] is to follow. Blocking,
/// and within the host's network namespace.
pub(super) fn start(plan: &Plan<'_>, namespace: &OwnedFd) -> Result<(Child, Process)> {
    let what = format!("cannot start the uplink of network {}", plan.network);
    let mut child = spawn(plan).map_err(|error| error.context(&what))?;
    let moved = Process::of(child.0.id() as i32)
        .ok_or_else(|| ApiError::internal("pasta ended at once"))
        .and_then(|process| {
            fetch(&mut child.0, &child.1, namespace)?;
            let bytes = serde_json::to_vec(&process).unwrap_or_default();
            std::fs::write(record(plan.run, plan.network), bytes)
                .map_err(failed("cannot note pasta's number"))?;
            Ok(process)
        });
    match moved {
        Ok(process) => Ok((child.0, process)),
        Err(error) => {
            let _ = child.0.kill();
            let _ = child.0.wait();
            let said = std::fs::read_to_string(log(plan)).unwrap_or_default();
            let last = said.lines().rfind(|line| !line.contains("to syslog"));
            let error = match last {
                Some(line) => error.context(format!("pasta said {line:?}")),
                None => error,
            };
            Err(error.context(what))
        }
    }
}

fn log(plan: &Plan<'_>) -> PathBuf {
    plan.run.join(format!("uplink-{}.log", plan.network))
}

fn arguments(plan: &Plan<'_>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = [
        "--foreground",
        // Nothing of the host's loopback, in neither direction.
        "--no-map-gw",
        "-t",
        "none",
        "-u",
        "none",
        "-T",
        "none",
        "-U",
        "none",
        "--no-dhcp",
        "--no-dhcpv6",
        "--no-ra",
        "--netns-only",
        "--no-netns-quit",
        "-I",
        UPLINK,
        "-n",
        "30",
    ]
    .map(OsString::from)
    .into();
    let addresses: [(&str, IpAddr); 4] = [
        ("-a", INSIDE4.into()),
        ("-g", BEYOND4.into()),
        ("-a", INSIDE6.into()),
        ("-g", BEYOND6.into()),
    ];
    for (option, address) in addresses {
        if leads(plan.host, address) {
            arguments.extend([option.into(), address.to_string().into()]);
        }
    }
    match (plan.host.leads4, plan.host.leads6) {
        (true, false) => arguments.push("-4".into()),
        (false, true) => arguments.push("-6".into()),
        _ => {}
    }
    // A descriptor rather than the path of a process: profiles and ptrace rules hide those.
    arguments.extend(["--netns".into(), "/proc/self/fd/0".into()]);
    arguments
}

fn leads(host: &host::State, address: IpAddr) -> bool {
    if address.is_ipv4() { host.leads4 } else { host.leads6 }
}

/// Whether nobody is somebody in our own user namespace.
fn nobody_exists() -> bool {
    ["uid_map", "gid_map"].into_iter().all(|map| {
        let text = std::fs::read_to_string(format!("/proc/self/{map}")).unwrap_or_default();
        text.lines().any(|line| {
            let mut words = line.split_whitespace().map(str::parse::<u32>);
            let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
                (words.next(), words.next(), words.next())
            else {
                return false;
            };
            first <= NOBODY && NOBODY - first < count
        })
    })
}

/// Starts it with a user and a network namespace of its own. Answer: that network namespace too.
fn spawn(plan: &Plan<'_>) -> Result<(Child, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair().map_err(failed("cannot make a pair of sockets"))?;
    ours.set_read_timeout(Some(START)).map_err(failed("cannot bound a wait"))?;
    let log = File::create(log(plan)).map_err(failed("cannot make pasta's log"))?;
    let outside = match plan.privilege {
        Privilege::Root if tap::for_everybody() && nobody_exists() => NOBODY,
        // Without capabilities, and confined by pasta itself, but with the device's owner's name.
        Privilege::Root | Privilege::User => 0,
    };
    let mut command = Command::new(plan.pasta);
    command
        .args(arguments(plan))
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failed("cannot use pasta's log"))?)
        .stderr(log)
        .current_dir("/")
        .env_clear();
    let (socket, other) = (theirs.as_raw_fd(), ours.as_raw_fd());
    // SAFETY: the closure makes system calls alone, on descriptors that outlive it.
    unsafe { command.pre_exec(move || isolate(socket, other)) };
    // `spawn` returns once the program runs; until then someone must answer the child.
    let answering = std::thread::spawn(move || answer(ours, outside));
    let child = command.spawn();
    drop(theirs);
    let answered = answering
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that waited for pasta failed")));
    match (child, answered) {
        (Ok(child), Ok(namespace)) => Ok((child, namespace)),
        (Ok(mut child), Err(error)) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(failed("cannot confine pasta")(error))
        }
        (Err(error), _) => Err(failed("cannot confine or start pasta")(error)),
    }
}

/// The parent's half of [`isolate`].
fn answer(mut socket: UnixStream, outside: u32) -> io::Result<OwnedFd> {
    let mut pid = [0; 4];
    socket.read_exact(&mut pid)?;
    let pid = i32::from_ne_bytes(pid);
    std::fs::write(format!("/proc/{pid}/uid_map"), format!("0 {outside} 1"))?;
    std::fs::write(format!("/proc/{pid}/gid_map"), format!("0 {outside} 1"))?;
    socket.write_all(&[1])?;
    let mut byte = [0];
    let mut space = nix::cmsg_space!(RawFd);
    let mut slices = [io::IoSliceMut::new(&mut byte)];
    let message = nix::sys::socket::recvmsg::<()>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        nix::sys::socket::MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    for control in message.cmsgs()? {
        if let nix::sys::socket::ControlMessageOwned::ScmRights(descriptors) = control
            && let [descriptor] = descriptors[..]
        {
            // SAFETY: the kernel has just made this descriptor for us.
            return Ok(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    }
    Err(io::Error::from(io::ErrorKind::UnexpectedEof))
}

/// In the forked child, before it becomes `pasta`: a session, a user namespace whose identities the
/// parent maps, and a network namespace of that as standard input. It makes system calls only.
fn isolate(socket: RawFd, other: RawFd) -> io::Result<()> {
    let check = |result: libc::c_long| match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    };
    // SAFETY: plain system calls; each pointer is to a live local of the size given.
    unsafe {
        // Else it would wait for itself when the parent gives up.
        libc::close(other);
        check(libc::setsid().into())?;
        check(libc::unshare(libc::CLONE_NEWUSER).into())?;
        let pid = libc::getpid().to_ne_bytes();
        check(libc::write(socket, pid.as_ptr().cast(), 4) as libc::c_long)?;
        let mut byte = [0u8];
        if libc::read(socket, byte.as_mut_ptr().cast(), 1) != 1 {
            return Err(io::Error::from_raw_os_error(libc::EPROTO));
        }
        // Groups can't be dropped where they can't be set (rootless); there are none to gain.
        libc::setgroups(0, std::ptr::null());
        check(libc::setresgid(0, 0, 0).into())?;
        check(libc::setresuid(0, 0, 0).into())?;
        // A process that shares the descriptors makes the namespace; this one stays on the host's.
        let flags = (libc::CLONE_FILES | libc::SIGCHLD) as libc::c_ulong;
        let maker = check(libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0))?;
        if maker == 0 {
            let made = libc::unshare(libc::CLONE_NEWNET) == 0;
            let path = c"/proc/self/ns/net".as_ptr();
            let opened = made && {
                let fd = libc::open(path, libc::O_RDONLY | libc::O_CLOEXEC);
                fd >= 0 && libc::dup2(fd, 0) == 0
            };
            libc::_exit(i32::from(!opened));
        }
        let mut status = 0;
        check(libc::waitpid(maker as libc::pid_t, &mut status, 0).into())?;
        if status != 0 {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        send_stdin(socket)
    }
}

/// Sends descriptor 0.
///
/// # Safety
/// To be called in a forked child with a socket.
unsafe fn send_stdin(socket: RawFd) -> io::Result<()> {
    let mut byte = [0u8];
    let mut slice = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // Aligned as a control message wants it, and larger than one descriptor needs.
    let mut control = [0u64; 8];
    // SAFETY: all zeros are a valid msghdr; its pointers are to locals that outlive the call, and
    // the control buffer has room for the one message that is written into it.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut slice;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(header).cast::<libc::c_int>().write_unaligned(0);
        match libc::sendmsg(socket, &message, libc::MSG_NOSIGNAL) {
            1 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Waits until `pasta` has made its tap and closed itself in, then moves the tap.
fn fetch(child: &mut Child, made: &OwnedFd, namespace: &OwnedFd) -> Result<()> {
    let made = made.try_clone().map_err(failed("cannot use pasta's namespace"))?;
    let pid = child.id();
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            nix::sched::setns(made, nix::sched::CloneFlags::CLONE_NEWNET)
                .map_err(|error| failed("cannot enter pasta's namespace")(error.into()))?;
            let mut netlink = Netlink::open().map_err(failed("cannot look for pasta's tap"))?;
            let begin = Instant::now();
            loop {
                let link = netlink.link(UPLINK).map_err(failed("cannot look for pasta's tap"))?;
                // Closed in by seccomp it configures no more. Not every build is.
                let ready = confined(pid) || begin.elapsed() > Duration::from_millis(500);
                if let Some(link) = link.filter(|_| ready) {
                    let to = LinkAttribute::NetNsFd(namespace.as_raw_fd());
                    return netlink
                        .apply(vec![netlink::set_link(link.index, vec![to])])
                        .map_err(failed("cannot move pasta's tap"));
                }
                if matches!(child.try_wait(), Ok(Some(_))) {
                    return Err(ApiError::new(ErrorCode::Unavailable, "pasta has ended"));
                }
                if begin.elapsed() > START {
                    return Err(ApiError::new(ErrorCode::Timeout, "pasta has made no tap"));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        there
            .join()
            .unwrap_or_else(|_| Err(ApiError::internal("the thread that moves taps failed")))
    })
}

fn confined(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|v| v.trim() == "2"))
}

/// Addresses and default routes over the uplink; in the network's namespace. A family that the host
/// doesn't lead out has none, so that containers are told at once.
pub(super) fn configure(netlink: &mut Netlink, host: &host::State, mtu: u32) -> Result<()> {
    let link = netlink.link(UPLINK).map_err(failed("cannot find the uplink"))?;
    let index = link.ok_or_else(|| ApiError::not_found("the uplink is gone"))?.index;
    sysctl(&[(&format!("ipv6/conf/{UPLINK}/disable_ipv6"), "0")])?;
    let mut changes = vec![netlink::set_link(index, vec![LinkAttribute::Mtu(mtu.min(65_520))])];
    let families: [(IpAddr, IpAddr, u8, IpAddr); 2] = [
        (INSIDE4.into(), BEYOND4.into(), 30, Ipv4Addr::UNSPECIFIED.into()),
        (INSIDE6.into(), BEYOND6.into(), 64, Ipv6Addr::UNSPECIFIED.into()),
    ];
    let families = families.into_iter().filter(|(inside, ..)| leads(host, *inside));
    let mut routes = Vec::new();
    for (inside, beyond, prefix, all) in families {
        changes.push(netlink::address(index, inside, prefix));
        routes.push(netlink::route(&Route {
            destination: all,
            prefix: 0,
            link: index,
            gateway: Some(beyond),
            source: None,
        }));
    }
    changes.push(netlink::up(index));
    netlink
        .apply(changes)
        .and_then(|()| netlink.apply(routes))
        .map_err(failed("cannot set up the uplink"))
}

/// Whether the namespace has an uplink; there.
pub(super) fn present(netlink: &mut Netlink) -> bool {
    matches!(netlink.link(UPLINK), Ok(Some(_)))
}

/// A duplicate, as an error that says what for.
pub(super) fn duplicate(namespace: &OwnedFd) -> Result<OwnedFd> {
    namespace.as_fd().try_clone_to_owned().map_err(failed("cannot duplicate a namespace"))
}
