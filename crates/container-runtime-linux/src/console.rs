//! The guest's console: kept, bounded, in `boot.log`, and its end in memory, where a panic's
//! message is looked for.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use container_api::paths::container_files;
use tokio::net::UnixStream;

/// Most bytes of `boot.log`.
const MAX_FILE: u64 = 4 << 20;
/// What of the console is kept in memory, in bytes: a panic with its registers and call trace.
const KEPT: usize = 16 << 10;

#[derive(Debug)]
struct Inner {
    file: Option<File>,
    room: u64,
    tail: VecDeque<u8>,
    fetched: bool,
}

/// The console's log.
#[derive(Debug)]
pub struct BootLog {
    inner: Mutex<Inner>,
}

impl BootLog {
    /// Begins a new log in a container's directory. A log that can't be written is lost, no more.
    pub fn create(directory: &Path) -> Arc<BootLog> {
        let file = create(directory);
        let inner = Inner { file, room: MAX_FILE, tail: VecDeque::new(), fetched: false };
        Arc::new(BootLog { inner: Mutex::new(inner) })
    }

    /// Another VM follows: what the last one said stays in the file and is no longer its end.
    pub fn begin_again(&self) {
        self.write(b"\n--- another VM ---\n");
        self.inner().tail.clear();
    }

    /// Goes on in another directory, with the end of what was said so far.
    pub fn move_to(&self, directory: &Path) {
        let file = create(directory);
        let mut inner = self.inner();
        (inner.file, inner.room) = (file, MAX_FILE);
        let tail = inner.tail.make_contiguous().to_vec();
        drop(inner);
        self.write(&tail);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// Appends the guest's bytes as they are.
    pub fn write(&self, bytes: &[u8]) {
        let mut inner = self.inner();
        let n = bytes.len().min(usize::try_from(inner.room).unwrap_or(usize::MAX));
        inner.room -= n as u64;
        if let Some(file) = &mut inner.file
            && let Err(error) = file.write_all(&bytes[..n])
        {
            tracing::warn!(%error, "the boot log can't be written any more");
            inner.file = None;
        }
    }

    /// The end of what came over the console.
    pub fn tail(&self) -> String {
        let mut inner = self.inner();
        String::from_utf8_lossy(inner.tail.make_contiguous()).into_owned()
    }

    /// True for the first caller: the kernel's own log is appended once.
    pub fn begin_fetch(&self) -> bool {
        !std::mem::replace(&mut self.inner().fetched, true)
    }

    fn console(&self, bytes: &[u8]) {
        self.write(bytes);
        let mut inner = self.inner();
        inner.tail.extend(bytes);
        let excess = inner.tail.len().saturating_sub(KEPT);
        inner.tail.drain(..excess);
    }
}

fn create(directory: &Path) -> Option<File> {
    let path = directory.join(container_files::BOOT_LOG);
    let mut options = File::options();
    let file = options.create(true).write(true).truncate(true).mode(0o600).open(path);
    file.inspect_err(|error| tracing::warn!(%error, "the boot log can't be opened")).ok()
}

/// Reads the console until the VM has gone. It is always read: a guest whose console is full waits.
pub async fn copy(console: UnixStream, log: Arc<BootLog>) {
    let mut buffer = [0; 2048];
    while console.readable().await.is_ok() {
        match console.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => log.console(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test(flavor = "current_thread")]
    async fn file_and_memory_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let log = BootLog::create(dir.path());
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let writer = std::thread::spawn(move || {
            for _ in 0..6 << 10 {
                theirs.write_all(&[b'x'; 1024]).unwrap();
            }
            theirs.write_all(b"the end").unwrap();
        });
        copy(UnixStream::from_std(ours).unwrap(), log.clone()).await;
        writer.join().unwrap();
        assert!(log.tail().ends_with("xthe end"));
        assert_eq!(log.tail().len(), KEPT);
        let len = std::fs::metadata(dir.path().join("boot.log")).unwrap().len();
        assert_eq!(len, MAX_FILE);
    }

    #[test]
    fn a_log_survives_its_vm_and_its_directory() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let log = BootLog::create(old.path());
        log.console(b"first");
        log.begin_again();
        log.console(b"second");
        assert_eq!(log.tail(), "second");
        log.move_to(new.path());
        log.console(b" third");
        let read = |dir: &Path| std::fs::read_to_string(dir.join("boot.log")).unwrap();
        assert_eq!(read(old.path()), "first\n--- another VM ---\nsecond");
        assert_eq!(read(new.path()), "second third");
    }
}
