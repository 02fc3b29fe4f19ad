//! Hunts requests that the jail allows and QEMU never makes: a filter around the jail tells of
//! each request that gets through.

#[allow(dead_code, reason = "the jailer itself uses the rest")]
#[path = "../src/ioctl.rs"]
mod ioctl;
#[path = "../src/listener.rs"]
mod listener;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::{self, sock_filter};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A start takes about a second; nothing is concluded from its time.
const DEADLINE: Duration = Duration::from_secs(120);
/// What the jailer itself asks when it makes the tap: TUNSETIFF, SIOCSIFFLAGS.
const OF_THE_JAILER: [u32; 2] = [0x4004_54ca, 0x8914];

#[test]
fn qemu_uses_each_request_of_a_tap() {
    let (tell, listener) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let mut command = qemu_in_a_jail();
    // The filter is this thread's and its children's; QEMU ends with it.
    let starter = thread::spawn(move || {
        tell.send(listen()).expect("who listens");
        let mut jailer = command.spawn().expect("the jailer");
        let _ = ended.recv();
        let _ = jailer.kill();
        let _ = jailer.wait();
    });
    let listener = listener.recv().expect("a listener").expect("a filter with a listener");
    let wanted: BTreeSet<u32> = ioctl::TAP.iter().map(|(number, _)| *number).collect();
    let mut seen = BTreeSet::new();
    let until = Instant::now() + DEADLINE;
    while !seen.is_superset(&wanted) && Instant::now() < until {
        let request = next(&listener).expect("the listener");
        seen.extend(request.filter(|request| !OF_THE_JAILER.contains(request)));
    }
    drop(end);
    // What ends is still answered, or it would wait for ever.
    while !starter.is_finished() {
        let _ = next(&listener);
    }
    starter.join().expect("the starter");
    assert_eq!(seen, wanted, "used and allowed");
}

/// A machine with a network card, which asks its tap all there is before a guest runs.
fn qemu_in_a_jail() -> Command {
    let name = format!("qemu-system-{}", std::env::consts::ARCH);
    let qemu = ["/usr/bin", "/usr/local/bin"].map(|folder| format!("{folder}/{name}"));
    let qemu = qemu.into_iter().find(|path| Path::new(path).exists()).expect(&name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_container-jailer"));
    if nix::unistd::getuid().is_root() {
        command.args(["--host-uid", "64321", "--host-gid", "64321"]);
    }
    let accelerator = format!("accel-tcg-{}.so", std::env::consts::ARCH);
    let mut files = vec![qemu.clone()];
    let modules = [format!("/usr/lib/{}-linux-gnu/qemu/{accelerator}", std::env::consts::ARCH)];
    let firmware = ["/usr/share/seabios/bios-256k.bin".to_owned()];
    files.extend(modules.into_iter().chain(firmware).filter(|path| Path::new(path).exists()));
    files.extend(libraries(&qemu));
    for file in files {
        command.args(["--bind", &file, &file]);
    }
    let machine = if cfg!(target_arch = "x86_64") { "q35" } else { "virt" };
    command.args(["--tap", "9", "--", &qemu, "-nodefaults", "-no-user-config", "-S"]);
    command.args(["-display", "none", "-accel", "tcg", "-m", "64M", "-M", machine]);
    command.args(["-netdev", "tap,id=net0,fd=9,vhost=off"]);
    command.args(["-device", "virtio-net-pci,netdev=net0,romfile="]);
    command.current_dir("/").stdin(Stdio::null());
    command
}

/// What a program loads, the loader included.
fn libraries(program: &str) -> Vec<String> {
    let output = Command::new("ldd").arg(program).output().expect("ldd");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(String::from).collect()
}

/// From now on each `ioctl` of this thread and its children waits until the listener lets it
/// through. What another filter refuses is not told.
fn listen() -> io::Result<OwnedFd> {
    let op = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_ioctl as u32),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    nix::sys::prctl::set_no_new_privs()?;
    Ok(listener::install(&mut program)?)
}

/// The number of the next request, which is let through; none comes within a while, or its
/// caller has gone.
fn next(listener: &OwnedFd) -> io::Result<Option<u32>> {
    let mut polled = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::from(100u8))?;
    if !polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN)) {
        return Ok(None);
    }
    // SAFETY: it holds numbers alone, and the kernel wants them all 0.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    let fd = listener.as_raw_fd();
    // SAFETY: the kernel writes one structure of that size.
    if unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) } != 0 {
        return Ok(None);
    }
    let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    let mut answer = libc::seccomp_notif_resp { id: call.id, val: 0, error: 0, flags };
    // SAFETY: the kernel reads one structure of that size.
    unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
    Ok(Some(call.data.args[1] as u32))
}
