//! Waiting until an installation is as a measurement wants it, and counting what it has.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use e2e::Installation;
use serde_json::Value;

/// How long a template or a spare may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What `system status` says.
pub fn status(it: &Installation) -> Value {
    it.run(["system", "status", "--format", "json"]).ok().json()
}

/// Starts `image` once, which makes its shape be used, and waits for that shape's template.
pub fn template(it: &Installation, image: &str) -> Result<()> {
    it.run(["run", "--rm", image, "true"]).ok();
    until(it, "a template", |status| is_ready(&status["templates"]))
}

/// Waits until nothing is being made and, when wanted, a spare is there.
pub fn rest(it: &Installation, spare: bool) -> Result<()> {
    until(it, if spare { "a spare" } else { "rest" }, |status| {
        is_quiet(&status["templates"])
            && is_quiet(&status["spares"])
            && (!spare || is_ready(&status["spares"]))
    })
}

fn is_ready(list: &Value) -> bool {
    list.as_array().is_some_and(|list| list.iter().any(|one| one["state"] == "ready"))
}

fn is_quiet(list: &Value) -> bool {
    list.as_array().is_none_or(|list| list.iter().all(|one| one["state"] != "being made"))
}

fn until(it: &Installation, what: &str, ready: impl Fn(&Value) -> bool) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = status(it);
        if ready(&status) {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("{what} is not there after {PATIENCE:?}: {status}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What there is of an installation when nothing happens in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rest {
    /// Processes.
    pub processes: usize,
    /// Folders and files in the app root, without the logs.
    pub files: usize,
    /// Of those, sockets.
    pub sockets: usize,
    /// KiB on the disk, without the logs, which are rotated.
    pub disk_kib: u64,
    /// Descriptors of the apiserver.
    pub descriptors: usize,
    /// Memory that is the apiserver's own, in KiB.
    pub memory_kib: u64,
}

impl Rest {
    /// Counts.
    pub fn of(it: &Installation) -> Self {
        let pid = it.apiserver_pid();
        let mut found = Self {
            processes: it.processes().len(),
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count),
            memory_kib: e2e::processes::own_kib(pid).unwrap_or(0),
            ..Self::default()
        };
        found.walk(it.app_root());
        found
    }

    fn walk(&mut self, folder: &Path) {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(about) = entry.metadata() else { continue };
            let path = entry.path();
            self.files += 1;
            self.disk_kib += about.blocks() / 2;
            self.sockets += usize::from(about.file_type().is_socket());
            if about.is_dir() && !path.ends_with("logs") {
                self.walk(&path);
            }
        }
    }

    /// Processes, files and sockets that were not there before.
    pub fn more_than(&self, before: &Self) -> usize {
        self.processes.saturating_sub(before.processes)
            + self.files.saturating_sub(before.files)
            + self.sockets.saturating_sub(before.sockets)
    }
}

/// The kernel's estimate of the memory that is free for programs, in KiB.
pub fn memory_available_kib() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read meminfo")?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    number.context("meminfo has no MemAvailable")
}
