//! What can go wrong with a VM.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Where a VM was when something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Checking the configuration.
    Prepare,
    /// Making the jail.
    Spawn,
    /// Waiting for QEMU to answer.
    Greet,
    /// Guest code may run.
    Running,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Phase::Prepare => "preparing the VM",
            Phase::Spawn => "making the jail",
            Phase::Greet => "starting QEMU",
            Phase::Running => "talking to QEMU",
        })
    }
}

/// A failed operation on a VM or on the QEMU installation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No QEMU for this architecture.
    #[error("{program} is not installed (package {package})")]
    NoQemu {
        /// The program that was looked for.
        program: String,
        /// Where distributions have it.
        package: &'static str,
    },
    /// A file that QEMU needs does not exist.
    #[error("QEMU's {what} {name} was not found in {searched:?}")]
    MissingFile {
        /// library or firmware.
        what: &'static str,
        /// Its name.
        name: String,
        /// Directories looked into.
        searched: Vec<PathBuf>,
    },
    /// The configuration asks for what this QEMU or host can't do.
    #[error("{0}")]
    Config(String),
    /// A system call failed.
    #[error("{phase}: {operation}")]
    Io {
        /// When.
        phase: Phase,
        /// What was done to what.
        operation: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The jailer refused; the line is its own. `code` as in `container-jailer`:
    /// 3 = AppArmor profile missing, 4 = a layer is missing.
    #[error("the jail can't be made: {line}")]
    Jail {
        /// The jailer's error line.
        line: String,
        /// Its exit code, where known.
        code: Option<i32>,
    },
    /// QEMU ended before it was ready.
    #[error("{phase}: QEMU ended ({status}): {stderr}")]
    Died {
        /// When.
        phase: Phase,
        /// Exit code or signal.
        status: String,
        /// The end of what it wrote, escaped.
        stderr: String,
    },
    /// An operation took too long.
    #[error("{phase}: {operation} took longer than {limit:?}")]
    TimedOut {
        /// When.
        phase: Phase,
        /// What.
        operation: String,
        /// The deadline.
        limit: Duration,
    },
    /// QEMU answered with an error.
    #[error("QEMU refused {command}: {description}")]
    Refused {
        /// QMP command.
        command: &'static str,
        /// QEMU's own text, escaped.
        description: String,
    },
    /// QEMU's answer is not what the protocol says.
    #[error("QEMU's answer to {command} makes no sense: {reason}")]
    Protocol {
        /// QMP command.
        command: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl Error {
    pub(super) fn io(
        phase: Phase,
        operation: impl Into<String>,
    ) -> impl FnOnce(io::Error) -> Error {
        let operation = operation.into();
        move |source| Error::Io { phase, operation, source }
    }
}

/// Text from QEMU or a guest as it may be shown: one line, no control
/// characters, at most `limit` characters of its end.
pub(super) fn shown(text: &str, limit: usize) -> String {
    let count = text.chars().count();
    text.chars()
        .skip(count.saturating_sub(limit))
        .map(|c| match c {
            '\n' => '\u{20}',
            c if c.is_control() => '\u{fffd}',
            // Bidirectional marks and isolates.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                '\u{fffd}'
            }
            c => c,
        })
        .collect::<String>()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn nothing_that_moves_a_cursor_is_shown() {
        assert_eq!(shown("a\n\u{1b}[2Jb\u{202e}c\n", 100), "a \u{fffd}[2Jb\u{fffd}c");
        assert_eq!(shown("abcdef", 3), "def");
    }
}
