//! A helper's directory: its lock, its log, and what it is told there.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow, bail};
use container_api::paths::container_files as names;
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;

/// Longest `config.json` or `vm.json` in bytes.
const MAX_CONFIG: u64 = 32 << 20;
/// Size in bytes above which the helper's own log is begun anew.
const MAX_LOG: u64 = 1 << 20;

/// The lock that says that this process serves what is in the directory; its pid is in the file.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not read")] Flock<File>);

/// Takes a directory's lock.
///
/// # Errors
/// When another process has it.
pub fn lock(directory: &Path) -> Result<Lock> {
    let path = directory.join(names::RUNTIME_LOCK);
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| anyhow!(errno))
        .with_context(|| format!("another helper serves {}", directory.display()))?;
    lock.set_len(0)?;
    writeln!(lock, "{}", std::process::id())?;
    Ok(Lock(lock))
}

/// Reads one of the files that the helper is told by.
///
/// # Errors
/// When it can't be read or is not what it should be.
pub fn read_json<T: DeserializeOwned>(directory: &Path, name: &str) -> Result<T> {
    let path = directory.join(name);
    let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    if file.metadata()?.len() > MAX_CONFIG {
        bail!("{} is too large", path.display());
    }
    let reader = io::BufReader::new(file);
    serde_json::from_reader(reader).with_context(|| format!("reading {}", path.display()))
}

/// The helper's own log, in the directory that it serves.
#[derive(Clone, Debug)]
pub struct Log(Arc<Mutex<File>>);

impl Log {
    /// Begins to log in a directory; once a process.
    ///
    /// # Errors
    /// When the file can't be opened.
    pub fn begin(directory: &Path) -> Result<Log> {
        let log = Log(Arc::new(Mutex::new(open_log(directory)?)));
        let level = match std::env::var_os("CONTAINER_DEBUG") {
            Some(_) => tracing::Level::DEBUG,
            None => tracing::Level::INFO,
        };
        let writer = log.clone();
        tracing_subscriber::fmt()
            .json()
            // A line that can't be written must not become one on a standard error that may be as
            // full: that would end this process.
            .log_internal_errors(false)
            .with_max_level(level)
            .with_writer(move || writer.clone())
            .init();
        Ok(log)
    }

    /// Goes on in another directory; last words to the standard error output go there too.
    ///
    /// # Errors
    /// When the file can't be opened.
    pub fn move_to(&self, directory: &Path) -> Result<()> {
        let file = open_log(directory)?;
        nix::unistd::dup2_stderr(&file).context("moving the standard error output")?;
        *self.0.lock().expect("no holder panics") = file;
        Ok(())
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no holder panics").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn open_log(directory: &Path) -> Result<File> {
    let path = directory.join(names::RUNTIME_LOG);
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).mode(0o600).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    if file.metadata()?.len() > MAX_LOG {
        file.set_len(0)?;
    }
    Ok(file)
}
