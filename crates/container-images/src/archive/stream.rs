//! A caller's descriptor: a file, a pipe or a socket at whose other end someone may be slow, gone or
//! hostile. Waiting for it ends when the operation is cancelled.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::Error;
use crate::meter::Meter;

/// How often a wait looks whether the operation was cancelled, in milliseconds.
const LOOK: u16 = 200;
/// Bytes that a pipe takes without blocking once it polls writable (`PIPE_BUF`).
const PIPE_ROOM: usize = 4096;

/// Reads from a caller's descriptor.
#[derive(Debug)]
pub struct CallerReader {
    file: File,
    meter: Arc<Meter>,
}

/// Writes to a caller's descriptor.
#[derive(Debug)]
pub struct CallerWriter {
    file: File,
    meter: Arc<Meter>,
    at_once: usize,
}

impl CallerReader {
    /// Wraps `fd`; bytes are counted in `meter`.
    pub fn new(fd: OwnedFd, meter: Arc<Meter>) -> CallerReader {
        CallerReader { file: fd.into(), meter }
    }

    /// The file's length, when it is one.
    pub fn file_len(&self) -> Option<u64> {
        self.file.metadata().ok().filter(|m| m.is_file()).map(|m| m.len())
    }
}

impl CallerWriter {
    /// Wraps `fd`; bytes are counted in `meter`.
    pub fn new(fd: OwnedFd, meter: Arc<Meter>) -> CallerWriter {
        let file = File::from(fd);
        let is_file = file.metadata().is_ok_and(|m| m.is_file());
        CallerWriter { file, meter, at_once: if is_file { 1 << 20 } else { PIPE_ROOM } }
    }
}

fn wait(file: &File, flags: PollFlags, meter: &Meter) -> io::Result<()> {
    loop {
        meter.check().map_err(io::Error::other)?;
        let mut fds = [PollFd::new(file.as_fd(), flags)];
        match poll(&mut fds, PollTimeout::from(LOOK)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

impl Read for CallerReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            wait(&self.file, PollFlags::POLLIN, &self.meter)?;
            match self.file.read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(n) => {
                    self.meter.advance(n as u64);
                    return Ok(n);
                }
                other => return other,
            }
        }
    }
}

impl Write for CallerWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        loop {
            wait(&self.file, PollFlags::POLLOUT, &self.meter)?;
            match self.file.write(&buf[..buf.len().min(self.at_once)]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(n) => {
                    self.meter.advance(n as u64);
                    return Ok(n);
                }
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The operation's own error, when that is what ended the reading or writing.
pub(crate) fn archive_error(operation: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |error| crate::error::unwrap_io(error, |source| Error::Archive { operation, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_silent_pipe_can_be_cancelled_in_both_directions() {
        let (reader, writer) = io::pipe().unwrap();
        let meter = Arc::new(Meter::new("Loading image"));
        let mut input = CallerReader::new(reader.try_clone().unwrap().into(), meter.clone());
        let mut output = CallerWriter::new(writer.try_clone().unwrap().into(), meter.clone());
        let canceller = std::thread::spawn({
            let meter = meter.clone();
            move || {
                std::thread::sleep(Duration::from_millis(50));
                meter.cancel();
            }
        });
        let start = Instant::now();
        let error = input.read(&mut [0; 10]).unwrap_err();
        assert!(matches!(archive_error("reading")(error), Error::Cancelled));
        // More than the pipe holds.
        let error = output.write_all(&vec![0; 1 << 20]).unwrap_err();
        assert!(matches!(archive_error("writing")(error), Error::Cancelled));
        assert!(start.elapsed() < Duration::from_secs(10));
        canceller.join().unwrap();
    }
}
