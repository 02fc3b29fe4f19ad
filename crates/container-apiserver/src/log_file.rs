//! The service's own log: JSON lines in a file of bounded size.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes after which the file becomes `<name>.1`, replacing the one before.
const MAX_LEN: u64 = 8 << 20;

/// A file that is rotated once it is long.
#[derive(Debug)]
struct Rotating {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Rotating {
    fn open(path: &Path) -> io::Result<Rotating> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let len = file.metadata()?.len();
        Ok(Rotating { path: path.to_owned(), file, len })
    }
}

impl Write for Rotating {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.len > MAX_LEN {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            std::fs::rename(&self.path, old)?;
            *self = Rotating::open(&self.path)?;
        }
        self.len += line.len() as u64;
        self.file.write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hands out the log to `tracing`, one whole line at a time.
#[derive(Clone, Debug)]
struct Shared(Arc<Mutex<Rotating>>);

impl Write for Shared {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends everything that is traced, and panics, to `apiserver.log` in `directory`. The level is
/// `info`, or what `CONTAINER_LOG` says (`debug`, `trace`, …).
pub fn init(directory: &Path) -> io::Result<()> {
    let shared = Shared(Arc::new(Mutex::new(Rotating::open(&directory.join(FILE))?)));
    let level = std::env::var("CONTAINER_LOG").ok().and_then(|level| level.parse().ok());
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        // A line that can't be written must not become one on a standard error that may be as full:
        // that would end the service.
        .log_internal_errors(false)
        .with_max_level(level.unwrap_or(tracing::Level::INFO))
        .with_writer(move || shared.clone())
        .init();
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Ok(())
}

/// The log's name in [`container_api::paths::AppRoot::logs`].
pub const FILE: &str = "apiserver.log";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_rotated_when_it_is_long() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        let mut log = Rotating::open(&path).unwrap();
        let line = vec![b'a'; 1 << 20];
        for _ in 0..12 {
            assert_eq!(log.write(&line).unwrap(), line.len());
        }
        let old = std::fs::metadata(directory.path().join("x.log.1")).unwrap().len();
        let new = std::fs::metadata(&path).unwrap().len();
        assert_eq!((old + new) >> 20, 12);
        assert!(old <= MAX_LEN + (1 << 20), "{old}");
    }
}
