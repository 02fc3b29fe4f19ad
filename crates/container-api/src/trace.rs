//! Where the time of one start goes, told by every process that takes part.
//!
//! The caller makes a file and hands its descriptor on with its requests; each process appends
//! one line of JSON a span, timed by the host's monotonic clock, which all share. The caller reads
//! the lines at the end.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// One span.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The program.
    pub process: String,
    /// Its process id.
    pub pid: u32,
    /// What took the time.
    pub name: String,
    /// Monotonic clock in nanoseconds.
    pub begin_ns: u64,
    /// Monotonic clock in nanoseconds.
    pub end_ns: u64,
}

/// The monotonic clock in nanoseconds.
pub fn now_ns() -> u64 {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

/// A file that spans are appended to. One that can't be written to loses them: a trace is no
/// reason for a start to fail.
#[derive(Debug)]
pub struct Trace {
    file: File,
    process: &'static str,
}

impl Trace {
    /// Spans of `process` go to `file`, which must be open for appending.
    pub fn new(file: OwnedFd, process: &'static str) -> Trace {
        Trace { file: file.into(), process }
    }

    /// A span that ends now.
    pub fn span(&self, name: &str, begin_ns: u64) {
        self.span_until(name, begin_ns, now_ns());
    }

    /// A span that ended at `end_ns`.
    pub fn span_until(&self, name: &str, begin_ns: u64, end_ns: u64) {
        let span = Span {
            process: self.process.into(),
            pid: std::process::id(),
            name: name.into(),
            begin_ns,
            end_ns,
        };
        if let Ok(mut line) = serde_json::to_vec(&span) {
            line.push(b'\n');
            let _ = (&self.file).write_all(&line);
        }
    }
}
