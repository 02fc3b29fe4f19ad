//! What other processes have to tell the audit trail: packets that were denied, signatures of an
//! SSH agent.
//!
//! ```text
//! container-network, the helpers ──a file each──► observed/ ──once a second──► the trail
//! ```
//! A file is there as a whole or not at all, and stays until it is read: neither side needs the
//! other to live. There are at most [`MAX_WAITING`]; what finds no room is merged by its writer and
//! goes with the next.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::types::Timestamp;

/// Most files that wait to be read.
pub const MAX_WAITING: usize = 256;
/// Most details of one observation.
pub const MAX_DETAILS: usize = 16;
/// Most counters of one observation.
const MAX_COUNTS: usize = 32;
/// Longest name of a counter, detail or container, in characters.
const MAX_TEXT: usize = 256;
/// Longest file in bytes.
const MAX_FILE: u64 = 64 << 10;
/// Most observations that one writer keeps for want of room.
const MAX_PENDING: usize = 1024;
/// Begins the names of files that are being written.
const UNFINISHED: &str = ".new-";

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum What {
    /// Packets, and questions for names, that a network's rules have denied. Counted by reason;
    /// the details are names that were asked for.
    DeniedPackets,
    /// Requests to the user's SSH agent. Counted by what came of them; the details are keys'
    /// fingerprints.
    SshAgent,
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            What::DeniedPackets => "denied packets",
            What::SshAgent => "ssh agent",
        })
    }
}

/// What one container did of one kind, within a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Observation {
    /// The container's id.
    pub subject: String,
    /// Of which kind.
    pub what: What,
    /// How often, by reason or outcome.
    pub counts: BTreeMap<String, u64>,
    /// Of what, as far as there is room: at most [`MAX_DETAILS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
    /// The first of it.
    pub since: Timestamp,
    /// The last of it.
    pub until: Timestamp,
}

impl Observation {
    /// Of now, with nothing in it.
    pub fn new(subject: &str, what: What) -> Observation {
        let now = Timestamp::now();
        let subject = short(subject);
        let (counts, details) = Default::default();
        Observation { subject, what, counts, details, since: now, until: now }
    }

    /// Counts so many more.
    pub fn count(&mut self, reason: &str, times: u64) {
        let reason = short(reason);
        if self.counts.len() < MAX_COUNTS || self.counts.contains_key(&reason) {
            let count = self.counts.entry(reason).or_default();
            *count = count.saturating_add(times);
        }
    }

    /// Notes what it was about.
    pub fn detail(&mut self, text: &str) {
        let text = short(text);
        if self.details.len() < MAX_DETAILS && !self.details.contains(&text) {
            self.details.push(text);
        }
    }

    /// Adds another one of the same container and kind.
    pub fn merge(&mut self, other: &Observation) {
        other.counts.iter().for_each(|(reason, times)| self.count(reason, *times));
        other.details.iter().for_each(|text| self.detail(text));
        self.since = self.since.min(other.since);
        self.until = self.until.max(other.until);
    }

    /// As this, within all bounds.
    fn bounded(&self) -> Observation {
        let mut bounded = Observation::new(&self.subject, self.what);
        (bounded.since, bounded.until) = (self.since, self.until);
        bounded.merge(self);
        bounded
    }
}

fn short(text: &str) -> String {
    let shown = crate::escape::escape(text);
    match shown.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown.into_owned(),
    }
}

/// A writer's way into the folder.
#[derive(Debug)]
pub struct Outbox {
    folder: PathBuf,
    /// What found no room.
    pending: Mutex<BTreeMap<(String, What), Observation>>,
}

impl Outbox {
    /// Into `folder`, which is made when it is needed.
    pub fn new(folder: PathBuf) -> Outbox {
        Outbox { folder, pending: Mutex::default() }
    }

    /// Tells the trail. What can't be written now goes with the next one.
    ///
    /// # Errors
    /// Why it can't; it is not lost then.
    pub fn note(&self, observation: &Observation) -> io::Result<()> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (observation.subject.clone(), observation.what);
        if let Some(other) = pending.get_mut(&key) {
            other.merge(observation);
        } else if pending.len() < MAX_PENDING {
            pending.insert(key, observation.bounded());
        } else {
            return Err(io::Error::other("too much waits to be told"));
        }
        drop(pending);
        self.flush()
    }

    /// Tries again what found no room.
    ///
    /// # Errors
    /// Why there is none.
    pub fn flush(&self) -> io::Result<()> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(entry) = pending.first_entry() {
            write(&self.folder, entry.get())?;
            entry.remove();
        }
        Ok(())
    }
}

fn write(folder: &Path, observation: &Observation) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    if fs::read_dir(folder)?.count() >= MAX_WAITING {
        return Err(io::Error::other("the audit trail's service does not read what it is told"));
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("{}-{}-{number}", observation.until, std::process::id());
    let unfinished = folder.join(format!("{UNFINISHED}{name}"));
    let text = serde_json::to_vec(observation)?;
    let written = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&unfinished)?;
        file.write_all(&text)?;
        fs::rename(&unfinished, folder.join(&name))
    };
    written().inspect_err(|_| _ = fs::remove_file(&unfinished))
}

/// What waits in `folder`, oldest first, with its files: the reader removes them. A file that is no
/// observation has none.
///
/// # Errors
/// Those of the folder; a missing one has nothing.
pub fn waiting(folder: &Path) -> io::Result<Vec<(PathBuf, Option<Observation>)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for entry in entries.take(2 * MAX_WAITING) {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            found.push(entry.path());
        }
    }
    found.sort();
    let with_content = |path: PathBuf| {
        let observation = read(&path);
        (path, observation)
    };
    Ok(found.into_iter().map(with_content).collect())
}

fn read(path: &Path) -> Option<Observation> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut text).ok()?;
    parse(&text)
}

/// Reads one file's bytes: within all bounds, or nothing.
pub fn parse(text: &[u8]) -> Option<Observation> {
    let observation: Observation = serde_json::from_slice(text).ok()?;
    Some(observation.bounded())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(subject: &str, packets: u64) -> Observation {
        let mut it = Observation::new(subject, What::DeniedPackets);
        it.count("egress", packets);
        it
    }

    #[test]
    fn what_is_told_is_read_once_it_is_whole() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("observed");
        assert!(waiting(&folder).unwrap().is_empty());
        let outbox = Outbox::new(folder.clone());
        let first = denied("box", 3);
        outbox.note(&first).unwrap();
        outbox.note(&denied("other", 1)).unwrap();
        fs::write(folder.join(".new-x"), "{").unwrap();
        fs::write(folder.join("0"), "{").unwrap();
        let found = waiting(&folder).unwrap();
        let read: Vec<_> = found.iter().map(|(_, o)| o.as_ref().map(|o| &*o.subject)).collect();
        assert_eq!(read, [None, Some("box"), Some("other")]);
        assert_eq!(found[1].1.as_ref(), Some(&first));
    }

    #[test]
    fn what_finds_no_room_is_merged_and_goes_later() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("observed");
        let outbox = Outbox::new(folder.clone());
        for _ in 0..MAX_WAITING {
            outbox.note(&denied("box", 1)).unwrap();
        }
        for _ in 0..50 {
            outbox.note(&denied("box", 1)).unwrap_err();
        }
        assert_eq!(waiting(&folder).unwrap().len(), MAX_WAITING);
        fs::remove_dir_all(&folder).unwrap();
        outbox.flush().unwrap();
        let found = waiting(&folder).unwrap();
        let counts = found[0].1.as_ref().unwrap().counts.clone();
        assert_eq!((found.len(), counts["egress"]), (1, 50));
    }

    #[test]
    fn everything_is_bounded() {
        let mut one = Observation::new("box", What::SshAgent);
        for n in 0..1000 {
            one.count(&format!("{n}"), u64::MAX);
            one.count("0", u64::MAX);
            one.detail(&format!("{n}{}", "\u{1b}".repeat(1000)));
        }
        assert_eq!((one.counts.len(), one.details.len()), (MAX_COUNTS, MAX_DETAILS));
        let text = serde_json::to_vec(&one).unwrap();
        assert!((text.len() as u64) < MAX_FILE, "{}", text.len());
        assert_eq!(parse(&text), Some(one));
        let many: Vec<String> = (0..1000).map(|n| format!("\"{n}\":1")).collect();
        let now = Timestamp::now();
        let text = format!(
            r#"{{"subject":"x","what":"sshAgent","counts":{{{}}},"since":"{now}","until":"{now}"}}"#,
            many.join(",")
        );
        assert_eq!(parse(text.as_bytes()).unwrap().counts.len(), MAX_COUNTS);
        assert_eq!(parse(b"[]"), None);
    }
}
