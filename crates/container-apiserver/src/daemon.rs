//! Leaving the caller's session, and telling the caller how it went.
//!
//! Everything here happens while the process has one thread: before the async runtime exists.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid};

/// How long the caller of `--daemon` waits for the service to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the service says when it answers; anything else is an error's line.
const READY: &[u8] = b"\0ready";

/// Whoever waits for the service to be ready.
#[derive(Debug, Default)]
pub struct Starter {
    pipe: Option<File>,
}

impl Starter {
    /// The service answers.
    pub fn ready(&mut self) {
        self.tell(READY);
        notify("READY=1");
    }

    /// The service can't start; true when somebody was told.
    pub fn failed(&mut self, line: &str) -> bool {
        let told = self.pipe.is_some();
        self.tell(line.as_bytes());
        told
    }

    fn tell(&mut self, bytes: &[u8]) {
        if let Some(mut pipe) = self.pipe.take() {
            let _ = pipe.write_all(bytes);
        }
    }
}

/// Tells a service manager (`sd_notify(3)`) something, when one listens.
pub fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let send = || -> io::Result<()> {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::ffi::OsStrExt;
        use std::os::unix::net::{SocketAddr, UnixDatagram};
        let address = match path.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&path)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.send_to_addr(state.as_bytes(), &address).map(drop)
    };
    if let Err(error) = send() {
        tracing::warn!(%error, "the service manager was not told {state}");
    }
}

/// What [`background`] returns to.
#[derive(Debug)]
pub enum Side {
    /// The process that serves.
    Service(Starter),
    /// The process that was started; `Ok` when the service answers, else one line.
    Caller(Result<(), String>),
}

/// Goes on in a new process and session, its output appended to `log`; the old process waits for
/// its word.
pub fn background(log: &Path) -> io::Result<Side> {
    let (reader, writer) = io::pipe()?;
    // SAFETY: the process has one thread, so the child may do anything that the parent may.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => {
            drop(writer);
            Ok(Side::Caller(await_word(OwnedFd::from(reader).into(), child)))
        }
        ForkResult::Child => {
            drop(reader);
            nix::unistd::setsid()?;
            let null = OpenOptions::new().read(true).open("/dev/null")?;
            let log = OpenOptions::new().append(true).create(true).mode(0o600).open(log)?;
            nix::unistd::dup2_stdin(null)?;
            nix::unistd::dup2_stdout(&log)?;
            nix::unistd::dup2_stderr(&log)?;
            Ok(Side::Service(Starter { pipe: Some(OwnedFd::from(writer).into()) }))
        }
    }
}

fn await_word(mut pipe: File, child: Pid) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    let mut word = Vec::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("no answer within {} s", PATIENCE.as_secs()));
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(nix::Error::EINTR) => continue,
            Ok(_) => {}
            Err(e) => return Err(e.to_string()),
        }
        let mut buffer = [0; 4096];
        match pipe.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(n) => word.extend_from_slice(&buffer[..n]),
        }
    }
    match word.as_slice() {
        READY => Ok(()),
        [] => Err(format!("it ended at once ({})", end_of(child))),
        line => Err(String::from_utf8_lossy(line).into_owned()),
    }
}

fn end_of(child: Pid) -> String {
    use nix::sys::wait::WaitStatus;
    // The pipe closes a moment before the process is gone.
    for _ in 0..50 {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => return format!("exit code {code}"),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return ExitStatus::from_raw(signal as i32).to_string();
            }
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    "it closed its report".into()
}

/// Closes what the caller left open, but for the standard streams and `kept` after them.
pub fn close_inherited(kept: usize) -> io::Result<()> {
    let names = std::fs::read_dir("/proc/self/fd")?;
    let open: Vec<i32> = names
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2 + kept as i32)
        .collect();
    for fd in open {
        // One of them was the directory's own, closed already.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}
