//! Copying between the user's descriptors and the program's streams.
//!
//! Threads with blocking reads and writes: nobody then sets `O_NONBLOCK` on descriptors that
//! belong to the user's shell, and a read that never ends does not keep the process alive.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use tokio::sync::oneshot;

use super::detach_keys::DetachKeys;

/// Bytes copied at once.
const CHUNK: usize = 64 << 10;

/// Why a pump stopped.
#[derive(Debug)]
pub enum Stopped {
    /// Its source has ended.
    End,
    /// Nobody reads what it writes.
    NoReader,
    /// The user typed the detach keys.
    Detached,
    /// Reading or writing failed.
    Failed(io::Error),
}

/// A pump that runs.
#[derive(Debug)]
pub struct Pump {
    /// Why it stopped, once it has.
    pub stopped: oneshot::Receiver<Stopped>,
    state: Arc<State>,
}

/// What a pump tells while it works, and after.
#[derive(Debug, Default)]
pub struct State {
    bytes: AtomicU64,
    writing: AtomicBool,
}

impl State {
    /// Bytes read so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Pump {
    /// How far it is: changes as long as bytes move.
    pub fn progress(&self) -> u64 {
        self.state.bytes()
    }

    /// The counter, which outlives the pump.
    pub fn counter(&self) -> Arc<State> {
        self.state.clone()
    }

    /// Whether it waits for whoever reads what it writes.
    pub fn is_writing(&self) -> bool {
        self.state.writing.load(Ordering::Relaxed)
    }
}

/// Where a pump writes.
#[derive(Debug)]
pub enum Sink {
    /// A descriptor of our own, closed when the pump stops.
    Owned(OwnedFd),
    /// Our standard output; written without its buffer.
    Stdout(io::Stdout),
    /// Our standard error.
    Stderr(io::Stderr),
}

impl Sink {
    /// Our standard output.
    pub fn stdout() -> Sink {
        Sink::Stdout(io::stdout())
    }

    /// Our standard error.
    pub fn stderr() -> Sink {
        Sink::Stderr(io::stderr())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Sink::Owned(fd) => fd.as_fd(),
            Sink::Stdout(stdout) => stdout.as_fd(),
            Sink::Stderr(stderr) => stderr.as_fd(),
        }
    }
}

/// Copies the program's output, read from `source`, to `sink`.
pub fn output(source: OwnedFd, sink: Sink) -> io::Result<Pump> {
    start("output", move |state| copy(source.as_fd(), sink.fd(), state, None))
}

/// [`output`] without the first `skip` bytes, which were shown before.
pub fn output_after(skip: u64, source: OwnedFd, sink: Sink) -> io::Result<Pump> {
    start("output", move |state| {
        let mut left = skip;
        let mut rest = |bytes: &[u8], out: &mut Vec<u8>| {
            let known = left.min(bytes.len() as u64);
            left -= known;
            out.extend_from_slice(&bytes[known as usize..]);
            false
        };
        copy(source.as_fd(), sink.fd(), state, Some(&mut rest))
    })
}

/// Copies our standard input to `sink`; with `keys`, until they are typed. The end of the input is
/// passed on by closing `sink`, or, when it is a socket, the half of it.
pub fn input(sink: OwnedFd, keys: bool) -> io::Result<Pump> {
    start("input", move |state| {
        let stdin = io::stdin();
        let mut detach = DetachKeys::default();
        let mut look = |typed: &[u8], out: &mut Vec<u8>| detach.feed(typed, out);
        let filter: Option<&mut Filter<'_>> = if keys { Some(&mut look) } else { None };
        let stopped = copy(stdin.as_fd(), sink.as_fd(), state, filter);
        if matches!(stopped, Stopped::End) {
            let _ = write_all(sink.as_fd(), detach.rest());
        }
        // Fails for a pipe, which closing ends.
        let _ = shutdown(sink.as_raw_fd(), Shutdown::Write);
        stopped
    })
}

/// Passes bytes on, changed; true when the copy is to stop.
type Filter<'a> = dyn FnMut(&[u8], &mut Vec<u8>) -> bool + 'a;

fn start(name: &str, work: impl FnOnce(&State) -> Stopped + Send + 'static) -> io::Result<Pump> {
    let state = Arc::new(State::default());
    let (done, stopped) = oneshot::channel();
    let shared = state.clone();
    std::thread::Builder::new().name(name.into()).stack_size(128 << 10).spawn(move || {
        let _ = done.send(work(&shared));
    })?;
    Ok(Pump { stopped, state })
}

fn copy(
    source: BorrowedFd<'_>,
    sink: BorrowedFd<'_>,
    state: &State,
    mut filter: Option<&mut Filter<'_>>,
) -> Stopped {
    let mut buffer = vec![0; CHUNK];
    let mut changed = Vec::new();
    loop {
        let n = match read(source, &mut buffer) {
            Ok(0) => return Stopped::End,
            Ok(n) => n,
            // A terminal that was hung up, or a socket whose other end was killed.
            Err(e) if matches!(e.raw_os_error(), Some(nix::libc::EIO | nix::libc::ECONNRESET)) => {
                return Stopped::End;
            }
            Err(error) => return Stopped::Failed(error),
        };
        state.bytes.fetch_add(n as u64, Ordering::Relaxed);
        let mut detached = false;
        let bytes = match &mut filter {
            Some(filter) => {
                changed.clear();
                detached = filter(&buffer[..n], &mut changed);
                &changed[..]
            }
            None => &buffer[..n],
        };
        state.writing.store(true, Ordering::Relaxed);
        let written = write_all(sink, bytes);
        state.writing.store(false, Ordering::Relaxed);
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Stopped::NoReader,
            Err(error) => return Stopped::Failed(error),
            Ok(()) if detached => return Stopped::Detached,
            Ok(()) => {}
        }
    }
}

fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match nix::unistd::read(fd, buffer) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => wait_for(fd, PollFlags::POLLIN)?,
            other => return other.map_err(io::Error::from),
        }
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(fd, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => wait_for(fd, PollFlags::POLLOUT)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Somebody else made the descriptor non-blocking.
fn wait_for(fd: BorrowedFd<'_>, flags: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(fd, flags)], PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn output_is_copied_whole_and_ends_with_its_source() {
        let (source, mut program) = io::pipe().unwrap();
        let (mut shown, sink) = io::pipe().unwrap();
        let pump = output(source.into(), Sink::Owned(sink.into())).unwrap();
        let data: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
        let sent = data.clone();
        let writer = std::thread::spawn(move || program.write_all(&sent).unwrap());
        let mut received = Vec::new();
        shown.read_to_end(&mut received).unwrap();
        writer.join().unwrap();
        assert!(received == data);
        assert_eq!(pump.progress(), 300_000);
        assert!(matches!(pump.stopped.blocking_recv().unwrap(), Stopped::End));
    }

    #[test]
    fn a_reader_that_has_gone_is_told_apart() {
        let (source, mut program) = io::pipe().unwrap();
        let (shown, sink) = io::pipe().unwrap();
        drop(shown);
        let pump = output(source.into(), Sink::Owned(sink.into())).unwrap();
        program.write_all(b"x").unwrap();
        assert!(matches!(pump.stopped.blocking_recv().unwrap(), Stopped::NoReader));
    }

    #[test]
    fn a_descriptor_that_does_not_block_is_waited_for() {
        let (source, mut program) = io::pipe().unwrap();
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        fcntl(&source, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let (mut shown, sink) = io::pipe().unwrap();
        let _pump = output(source.into(), Sink::Owned(sink.into())).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        program.write_all(b"late").unwrap();
        let mut received = [0; 4];
        shown.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"late");
    }
}
