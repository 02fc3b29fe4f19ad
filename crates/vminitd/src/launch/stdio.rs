//! A process's streams: pipes, or a terminal in the container's devpts.

use super::DEVPTS;
use crate::failure::{Context, Failure};
use crate::sys;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::pipe2;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use vminitd_protocol::message::ErrorCode::Exhausted;
use vminitd_protocol::message::{ProcessSpec, TerminalSize};

/// Pipe size in bytes: large enough that a reader and a writer on one CPU take
/// turns seldom.
const PIPE_SIZE: i32 = 256 << 10;

/// The process's ends.
#[derive(Debug)]
pub struct ChildEnds {
    /// Descriptors for 0, 1 and 2.
    pub fds: [OwnedFd; 3],
    /// Number of its terminal in devpts.
    pub terminal: Option<u32>,
}

/// Our ends, each with its stream number on the bulk port.
#[derive(Debug, Default)]
pub struct GuestEnds {
    /// We write, the process reads.
    pub input: Option<(u32, OwnedFd)>,
    /// The process writes, we read: stdout, then stderr.
    pub outputs: [Option<(u32, OwnedFd)>; 2],
    /// Master of the terminal, which is also input and the first output.
    pub terminal: Option<OwnedFd>,
}

/// Makes what the process asks for.
pub fn create(process: &ProcessSpec) -> Result<(ChildEnds, GuestEnds), Failure> {
    match process.terminal {
        Some(size) => terminal(process, size),
        None => pipes(process),
    }
    .context(Exhausted, || "create the process's streams")
}

fn pipes(process: &ProcessSpec) -> nix::Result<(ChildEnds, GuestEnds)> {
    let stdio = process.stdio.unwrap_or_default();
    let mut ends = GuestEnds::default();
    let stdin = match stdio.stdin {
        None => null()?,
        Some(stream) => {
            let (read, write) = pipe()?;
            ends.input = Some((stream, nonblocking(write)?));
            read
        }
    };
    let mut output = |index: usize, stream: Option<u32>| {
        let Some(stream) = stream else { return null() };
        let (read, write) = pipe()?;
        ends.outputs[index] = Some((stream, nonblocking(read)?));
        Ok(write)
    };
    let fds = [stdin, output(0, stdio.stdout)?, output(1, stdio.stderr)?];
    Ok((ChildEnds { fds, terminal: None }, ends))
}

fn pipe() -> nix::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    // Refused beyond a quota; the default size works as well.
    let _ = fcntl(&read, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    Ok((read, write))
}

fn nonblocking(fd: OwnedFd) -> nix::Result<OwnedFd> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(fd)
}

fn null() -> nix::Result<OwnedFd> {
    open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
}

fn terminal(process: &ProcessSpec, size: TerminalSize) -> nix::Result<(ChildEnds, GuestEnds)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let master = open(format!("{DEVPTS}/ptmx").as_str(), flags, Mode::empty())?;
    let (mut unlock, mut number) = (0i32, 0u32);
    sys::ioctl_ref(&master, libc::TIOCSPTLCK, &mut unlock)?;
    sys::ioctl_ref(&master, libc::TIOCGPTN, &mut number)?;
    // By the master, not by a path that a container could have laid.
    let peer_flags = (OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).bits();
    let peer = sys::ioctl_int(&master, libc::TIOCGPTPEER, peer_flags as u64)?;
    // SAFETY: the call has just made this descriptor.
    let peer = unsafe { OwnedFd::from_raw_fd(peer) };
    resize(&master, size)?;

    let duplicate = |fd: &OwnedFd| fd.try_clone().map_err(|_| nix::errno::Errno::EMFILE);
    let mut ends = GuestEnds::default();
    if let Some(stream) = process.stdio.and_then(|stdio| stdio.terminal) {
        ends.input = Some((stream, duplicate(&master)?));
        ends.outputs[0] = Some((stream, duplicate(&master)?));
    }
    ends.terminal = Some(master);
    let fds = [duplicate(&peer)?, duplicate(&peer)?, peer];
    Ok((ChildEnds { fds, terminal: Some(number) }, ends))
}

/// Gives a terminal a size; its foreground processes get SIGWINCH.
pub fn resize(master: impl AsFd, size: TerminalSize) -> nix::Result<()> {
    let clamp = |n: u32| n.min(u16::MAX.into()) as u16;
    let mut size = libc::winsize {
        ws_row: clamp(size.rows),
        ws_col: clamp(size.columns),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    sys::ioctl_ref(master, libc::TIOCSWINSZ, &mut size).map(drop)
}
