//! Reading on a second thread, so that decompressing and writing use two processors.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

const BUFFER_BYTES: usize = 512 << 10;
const BUFFERS: usize = 4;

/// A reader whose source is read on a thread of its own, up to 2 MiB ahead.
///
/// Dropping it tells the thread to end, which it does after the read that it is in.
#[derive(Debug)]
pub struct ReadAhead {
    filled: Receiver<io::Result<Vec<u8>>>,
    empty: Sender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
    ended: bool,
}

impl ReadAhead {
    /// Starts to read `source`.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn new(source: impl Read + Send + 'static) -> io::Result<Self> {
        let (fill, filled) = sync_channel(BUFFERS);
        let (empty, empties) = channel();
        for _ in 0..BUFFERS {
            // The receiver is alive: it is a local of this function.
            let _ = empty.send(vec![0; BUFFER_BYTES]);
        }
        thread::Builder::new()
            .name("layer-reader".into())
            .spawn(move || pump(source, &fill, &empties))?;
        Ok(Self { filled, empty, current: Vec::new(), position: 0, ended: false })
    }

    fn next_buffer(&mut self) -> io::Result<()> {
        let spent = std::mem::take(&mut self.current);
        self.position = 0;
        if spent.capacity() > 0 {
            // A thread that has ended needs no buffers.
            let _ = self.empty.send(spent);
        }
        match self.filled.recv() {
            Ok(Ok(buffer)) => {
                self.ended = buffer.is_empty();
                self.current = buffer;
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("the reading thread ended before the stream did")),
        }
    }
}

/// Fills buffers until the source ends (an empty buffer says so) or fails.
fn pump(
    mut source: impl Read,
    fill: &SyncSender<io::Result<Vec<u8>>>,
    empties: &Receiver<Vec<u8>>,
) {
    while let Ok(mut buffer) = empties.recv() {
        buffer.resize(BUFFER_BYTES, 0);
        let mut len = 0;
        let mut failure = None;
        while len < buffer.len() {
            match source.read(&mut buffer[len..]) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        buffer.truncate(len);
        let at_end = len == 0;
        if (len > 0 || failure.is_none()) && fill.send(Ok(buffer)).is_err() {
            return;
        }
        if let Some(error) = failure {
            let _ = fill.send(Err(error));
            return;
        }
        if at_end {
            return;
        }
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.position == self.current.len() {
            if self.ended || buf.is_empty() {
                return Ok(0);
            }
            self.next_buffer()?;
        }
        let len = buf.len().min(self.current.len() - self.position);
        buf[..len].copy_from_slice(&self.current[self.position..self.position + len]);
        self.position += len;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yields_the_same_bytes() {
        let data: Vec<u8> = (0..3_000_001u32).map(|i| (i % 251) as u8).collect();
        let mut reader = ReadAhead::new(io::Cursor::new(data.clone())).unwrap();
        let mut out = Vec::new();
        reader.read_to_end(&mut out).unwrap();
        assert!(out == data);
        assert_eq!(reader.read(&mut [0; 4]).unwrap(), 0);
    }

    struct FailsAfter(usize);

    impl Read for FailsAfter {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::Error::other("broken"));
            }
            let len = buf.len().min(self.0);
            self.0 -= len;
            Ok(len)
        }
    }

    #[test]
    fn passes_on_data_before_the_failure_and_the_failure() {
        let mut out = Vec::new();
        let error = ReadAhead::new(FailsAfter(700_000)).unwrap().read_to_end(&mut out).unwrap_err();
        assert_eq!((out.len(), error.to_string()), (700_000, "broken".into()));
    }

    struct Panics;

    impl Read for Panics {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("in the reading thread")
        }
    }

    #[test]
    fn a_dead_thread_is_an_error_not_an_end() {
        assert!(ReadAhead::new(Panics).unwrap().read(&mut [0; 1]).is_err());
    }
}
