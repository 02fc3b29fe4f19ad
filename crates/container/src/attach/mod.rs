//! Being at a program's streams: the far ends go to the service, the near ones are pumped.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use container_api::types::{Stdio, TerminalSize};
use container_api::{ApiError, Result};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use pump::{Pump, Sink};
use terminal::RawMode;

pub mod conversation;
pub mod detach_keys;
pub mod pump;
pub mod signals;
pub mod terminal;

/// Bytes that a pipe to or from a program holds.
const PIPE_LEN: i32 = 256 << 10;

/// Streams that are made but not pumped yet.
#[derive(Debug, Default)]
pub struct Attachment {
    stdio: Stdio,
    size: Option<TerminalSize>,
    far: Vec<OwnedFd>,
    near: Near,
}

#[derive(Debug, Default)]
struct Near {
    /// The socket of a terminal.
    terminal: Option<OwnedFd>,
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    error: Option<OwnedFd>,
    interactive: bool,
}

/// Streams that are pumped.
#[derive(Debug)]
pub struct Running {
    raw: Option<RawMode>,
    terminal: bool,
    size: Option<TerminalSize>,
    input: Option<Pump>,
    output: Option<Pump>,
    error: Option<Pump>,
}

/// Docker's check, before anything is started: a terminal's input must be one.
pub fn check_terminal(interactive: bool, terminal: bool) -> Result<()> {
    if interactive && terminal && !io::stdin().is_terminal() {
        return Err(ApiError::invalid("the input device is not a TTY"));
    }
    Ok(())
}

impl Attachment {
    /// No streams at all. The size is still that of the user's terminal, for a program that has
    /// one of its own.
    pub fn none(terminal: bool) -> Attachment {
        Attachment { size: terminal.then(terminal::size).flatten(), ..Attachment::default() }
    }

    /// Output, error output and, when `interactive`, input; with a `terminal` one socket for all.
    pub fn new(interactive: bool, terminal: bool) -> io::Result<Attachment> {
        let mut new = Attachment::none(terminal);
        new.near.interactive = interactive;
        if terminal {
            let flags = SockFlag::SOCK_CLOEXEC;
            let (near, far) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?;
            new.stdio.stdin = true;
            new.near.terminal = Some(near);
            new.far.push(far);
            return Ok(new);
        }
        if interactive {
            let (reader, writer) = pipe()?;
            new.stdio.stdin = true;
            new.near.input = Some(writer);
            new.far.push(reader);
        }
        let (output, far) = pipe()?;
        new.near.output = Some(output);
        new.far.push(far);
        let (error, far) = pipe()?;
        new.near.error = Some(error);
        new.far.push(far);
        (new.stdio.stdout, new.stdio.stderr) = (true, true);
        Ok(new)
    }

    /// Which streams the call brings.
    pub fn stdio(&self) -> Stdio {
        self.stdio
    }

    /// The terminal's size.
    pub fn size(&self) -> Option<TerminalSize> {
        self.size
    }

    /// The descriptors of the call.
    pub fn far(&self) -> Vec<BorrowedFd<'_>> {
        self.far.iter().map(AsFd::as_fd).collect()
    }

    /// The service has its ends: closes ours of them and begins to pump.
    pub fn begin(self) -> io::Result<Running> {
        drop(self.far);
        let near = self.near;
        let terminal = near.terminal.is_some();
        let mut running = Running {
            raw: None,
            terminal,
            size: self.size,
            input: None,
            output: None,
            error: None,
        };
        if let Some(socket) = near.terminal {
            let stdin = io::stdin();
            if near.interactive && stdin.is_terminal() {
                running.raw = Some(RawMode::enter(stdin.as_fd())?);
            }
            running.output = Some(pump::output(socket.try_clone()?, Sink::stdout())?);
            if near.interactive {
                running.input = Some(pump::input(socket, true)?);
            }
        }
        if let Some(pipe) = near.output {
            running.output = Some(pump::output(pipe, Sink::stdout())?);
        }
        if let Some(pipe) = near.error {
            running.error = Some(pump::output(pipe, Sink::stderr())?);
        }
        if let Some(pipe) = near.input {
            running.input = Some(pump::input(pipe, false)?);
        }
        Ok(running)
    }
}

/// A pipe; the end to read comes first.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    // A larger one saves switches between processes; the usual one works too.
    let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_LEN));
    Ok((reader.into(), writer.into()))
}
