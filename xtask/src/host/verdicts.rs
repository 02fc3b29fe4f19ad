//! What the machine's tests say, a line each:
//!
//! ```text
//! BEGIN NAME
//! any text                     what the test did: in the log, and shown when it failed
//! END NAME ok SECONDS
//! END NAME FAILED SECONDS WHY
//! DONE COUNT                   the last line
//! ```

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::machine::Running;

/// Everything together, on two emulated processors at worst.
const DEADLINE: Duration = Duration::from_secs(45 * 60);
/// A machine that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(10 * 60);
/// Longest line in bytes; the rest of it becomes the next.
const LONGEST: u64 = 64 << 10;
/// Lines of a failed test that are shown; the log has all.
const SHOWN: usize = 60;

/// How it went.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// Tests that held.
    pub passed: usize,
    /// Names of the others.
    pub failed: Vec<String>,
    count: Option<usize>,
    current: Option<String>,
    said: Vec<String>,
}

impl Verdicts {
    /// Takes one line; what is to be shown of it.
    fn line(&mut self, line: &str) -> Option<String> {
        let mut words = line.splitn(5, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("BEGIN"), Some(name), None, None) => {
                self.current = Some(name.to_owned());
                self.said.clear();
                None
            }
            (Some("END"), Some(name), Some(verdict), Some(seconds))
                if self.current.as_deref() == Some(name) =>
            {
                self.current = None;
                if verdict == "ok" {
                    self.passed += 1;
                    return Some(format!("test host::{name} ... ok ({seconds} s)"));
                }
                self.failed.push(name.to_owned());
                let mut shown: Vec<String> =
                    self.said.iter().rev().take(SHOWN).map(|line| format!("    {line}")).collect();
                shown.reverse();
                let why = words.next().unwrap_or("no reason was given");
                shown.push(format!("test host::{name} ... FAILED ({seconds} s): {why}"));
                Some(shown.join("\n"))
            }
            (Some("DONE"), Some(count), None, None) if self.current.is_none() => {
                self.count = count.parse().ok();
                None
            }
            _ => {
                self.said.push(line.to_owned());
                None
            }
        }
    }

    /// The machine is off: everything must have been said.
    fn complete(self) -> Result<Self> {
        if let Some(name) = &self.current {
            bail!("the test host ended in the middle of {name}");
        }
        let count = self.count.context("the test host ended before its tests did")?;
        ensure!(count > 0, "no test has such a name");
        let said = self.passed + self.failed.len();
        ensure!(said == count, "the test host ran {count} tests and told of {said}");
        Ok(self)
    }
}

/// Reads to the end, and writes everything to `tests.log` in `folder`.
pub fn read(mut machine: Running, folder: &Path) -> Result<Verdicts> {
    let output = machine.qemu.stdout.take().context("QEMU without output")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while matches!((&mut output).take(LONGEST).read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
            line.clear();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    let mut log = File::create(folder.join("tests.log")).context("create tests.log")?;
    let end = Instant::now() + DEADLINE;
    let mut verdicts = Verdicts::default();
    loop {
        let left = end.saturating_duration_since(Instant::now()).min(SILENCE);
        match lines.recv_timeout(left) {
            Ok(line) => {
                writeln!(log, "{line}").context("write tests.log")?;
                if let Some(shown) = verdicts.line(&line) {
                    println!("{shown}");
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return verdicts.complete(),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let at = verdicts.current.as_deref().unwrap_or("no test");
                bail!("the test host hangs in {at}: see console.log and tests.log");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(lines: &[&str]) -> Result<Verdicts> {
        let mut verdicts = Verdicts::default();
        for line in lines {
            verdicts.line(line);
        }
        verdicts.complete()
    }

    #[test]
    fn verdicts_are_counted_and_none_is_missing() {
        let good =
            after(&["BEGIN a", "x", "END a ok 3", "BEGIN b", "END b FAILED 4 it is", "DONE 2"]);
        let good = good.unwrap();
        assert_eq!((good.passed, good.failed), (1, vec!["b".to_owned()]));
        assert!(after(&["BEGIN a", "END a ok 3"]).is_err(), "no end");
        assert!(after(&["BEGIN a", "DONE 1"]).is_err(), "in the middle of a test");
        assert!(after(&["BEGIN a", "END a ok 3", "DONE 2"]).is_err(), "one is missing");
        assert!(after(&["DONE 0"]).is_err(), "none at all");
        assert!(after(&["BEGIN a", "END b ok 3", "DONE 1"]).is_err(), "another's verdict");
    }

    #[test]
    fn a_failure_shows_what_was_said() {
        let mut verdicts = Verdicts::default();
        assert_eq!(verdicts.line("BEGIN a"), None);
        assert_eq!(verdicts.line("+ container run"), None);
        let shown = verdicts.line("END a FAILED 12 no such thing").unwrap();
        assert!(shown.contains("+ container run"), "{shown}");
        assert!(shown.ends_with("test host::a ... FAILED (12 s): no such thing"), "{shown}");
    }
}
