//! Processes, threads, signals, time, and what they talk through.

use super::{CHILD, PATH, SCRATCH};
use crate::sys;
use nix::libc;
use nix::pty::{Winsize, openpty};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, signal, sigprocmask};
use nix::sys::wait::waitpid;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, setpgid, setsid};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Starts and ends all kinds of them.
pub fn start() {
    forked(|| {
        let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    });
    forked(|| {
        let _ = setsid();
        let _ = terminal();
    });
    signalled();
    programs();
    let _ = channels();
    let _ = std::thread::Builder::new()
        .spawn(|| std::thread::sleep(Duration::from_micros(100)))
        .map(|thread| {
            let _ = thread.join();
        });
    for clock in [ClockId::CLOCK_REALTIME, ClockId::CLOCK_MONOTONIC, ClockId::CLOCK_BOOTTIME] {
        let _ = clock_gettime(clock);
    }
    let _ = nix::sys::utsname::uname();
    let _ = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
}

/// Forks, as shells do, and waits.
fn forked(work: impl FnOnce()) {
    match sys::fork(0, None) {
        Ok(sys::Forked::Child) => {
            work();
            // SAFETY: ends the child without what its parent has for its exit.
            unsafe { libc::_exit(0) }
        }
        Ok(sys::Forked::Parent { pid, .. }) => {
            let _ = waitpid(Pid::from_raw(pid), None);
        }
        Err(_) => {}
    }
}

extern "C" fn handler(_: i32) {}

fn signalled() {
    let myself = Pid::this();
    // SAFETY: the handler does nothing.
    let _ = unsafe { signal(Signal::SIGUSR1, SigHandler::Handler(handler)) };
    let _ = kill(myself, Signal::SIGUSR1);
    let mut set = SigSet::empty();
    set.add(Signal::SIGUSR1);
    let _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None);
    let _ = kill(myself, Signal::SIGUSR1);
    let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&set), None);
    if let Ok(sys::Forked::Child) = sys::fork(0, None).inspect(|forked| {
        if let sys::Forked::Parent { pid, pidfd } = forked {
            let _ = sys::pidfd_send_signal(pidfd, libc::SIGTERM);
            let _ = waitpid(Pid::from_raw(*pid), None);
        }
    }) {
        std::thread::sleep(Duration::from_secs(1));
        // SAFETY: ends the child, should the signal not have come.
        unsafe { libc::_exit(0) }
    }
}

fn programs() {
    let _ = Command::new(PATH).arg(CHILD).env("A", "b").stdin(Stdio::null()).output();
    let _ = Command::new("not-there").status();
    let at = |name: &str| Path::new(SCRATCH).join(name);
    let executable = |path: &Path, content: &[u8]| -> io::Result<()> {
        fs::write(path, content)?;
        fs::set_permissions(path, Permissions::from_mode(0o755))
    };
    let _ = fs::create_dir_all(SCRATCH);
    let script: PathBuf = at("script");
    if executable(&script, format!("#!{PATH} {CHILD}\n").as_bytes()).is_ok() {
        let _ = Command::new(script).stdout(Stdio::null()).status();
    }
    let (linker, dynamic) = (at("linker"), at("dynamic"));
    let linked = linker.as_os_str().as_encoded_bytes();
    if executable(&linker, &elf(None)).is_ok() && executable(&dynamic, &elf(Some(linked))).is_ok() {
        let _ = Command::new(dynamic).status();
    }
}

/// The smallest program, which ends at once; with `linker`, one that the kernel
/// has to load that for.
fn elf(linker: Option<&[u8]>) -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    const CODE: (u16, &[u8]) = (62, &[0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05]);
    #[cfg(target_arch = "aarch64")]
    const CODE: (u16, &[u8]) =
        (183, &[0x00, 0, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0, 0, 0xd4]);
    const HEADER: u64 = 64;
    const PROGRAM_HEADER: u64 = 56;
    let (machine, code) = CODE;
    let segments = 1 + u64::from(linker.is_some());
    let entry = HEADER + segments * PROGRAM_HEADER;
    let name = linker.map(|path| [path, b"\0"].concat()).unwrap_or_default();
    let name_at = entry + code.len() as u64;
    let end = name_at + name.len() as u64;
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend(3u16.to_le_bytes()); // a shared object, loaded anywhere
    bytes.extend(machine.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    for word in [entry, HEADER, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(0u32.to_le_bytes());
    for half in [HEADER as u16, PROGRAM_HEADER as u16, segments as u16, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    let mut segment = |kind: u32, flags: u32, at: u64, len: u64, align: u64| {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        for word in [at, at, at, len, len, align] {
            bytes.extend(word.to_le_bytes());
        }
    };
    if linker.is_some() {
        segment(3, 4, name_at, name.len() as u64, 1);
    }
    segment(1, 5, 0, end, 4096);
    bytes.extend(code);
    bytes.extend(name);
    bytes
}

fn terminal() -> nix::Result<()> {
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let pair = openpty(Some(&size), None)?;
    sys::ioctl_int(&pair.slave, libc::TIOCSCTTY, 0)?;
    let settings = nix::sys::termios::tcgetattr(&pair.slave)?;
    nix::sys::termios::tcsetattr(&pair.slave, nix::sys::termios::SetArg::TCSANOW, &settings)?;
    let (mut host, mut program) = (File::from(pair.master), File::from(pair.slave));
    let mut buffer = [0; 256];
    let _ = host.write_all(b"in\n").and_then(|()| program.read(&mut buffer));
    let _ = program.write_all(b"out\n").and_then(|()| host.read(&mut buffer));
    Ok(())
}

/// Each channel is written before it is read, so nothing waits.
fn channels() -> io::Result<()> {
    let mut buffer = [0; 64];
    let (reader, writer) = nix::unistd::pipe()?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&reader, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    talk(writer, reader, || {
        let _ = epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO);
    })?;
    let (one, other) = UnixStream::pair()?;
    talk(one.into(), other.into(), || {})?;
    let path = Path::new(SCRATCH).join("socket");
    let listener = UnixListener::bind(&path)?;
    let client = UnixStream::connect(&path)?;
    let (server, _) = listener.accept()?;
    talk(client.into(), server.into(), || {})?;
    EventFd::new()?.write(1)?;
    File::open("/dev/urandom")?.read_exact(&mut buffer)?;
    // SAFETY: the buffer is as long as said.
    unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    Ok(())
}

fn talk(writer: OwnedFd, reader: OwnedFd, between: impl FnOnce()) -> io::Result<()> {
    nix::unistd::write(writer.as_fd(), b"word")?;
    between();
    nix::unistd::read(reader.as_fd(), &mut [0; 16])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_programs_run() {
        let dir = tempfile::tempdir().unwrap();
        let run = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
            assert!(Command::new(&path).status().unwrap().success(), "{name}");
            path
        };
        let linker = run("linker", &elf(None));
        run("dynamic", &elf(Some(linker.as_os_str().as_encoded_bytes())));
    }
}
