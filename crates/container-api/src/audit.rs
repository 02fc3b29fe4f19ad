//! The audit trail: what it says, how its records are chained, and how that is checked.
//!
//! ```text
//! audit/00000000000000000001.jsonl   a record a line, named by its first record's number
//! audit/00000000000000004711.jsonl   … the newest, which grows
//! ```
//! Each record holds the SHA-256 of the line before it, across files. So a record that was edited,
//! removed, added or moved breaks the chain at the next one; what the last line was is told by the
//! *head*, its number and digest, which is kept elsewhere (`[audit] anchor`, the system's log).

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::types::Timestamp;
use crate::{ApiError, ErrorCode, Result};

pub mod observed;

/// Longest line that is written or read, in bytes.
pub const MAX_LINE: usize = 128 << 10;
/// What the first record of all has for the line before it.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// How the names of the trail's files end.
const EXTENSION: &str = "jsonl";

/// One record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number, from 1, without gaps.
    pub sequence: u64,
    /// When it was written.
    pub time: Timestamp,
    /// SHA-256 of the line before, in hex; [`GENESIS`] for the first.
    pub previous: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What a record tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Event {
    /// An operation is about to begin, or was refused. On disk before it begins.
    Decision {
        /// `create`, `start`, `network delete` …
        operation: String,
        /// The container, image, network or volume that it is about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subject: Option<String>,
        /// What was asked, secrets left out.
        #[serde(default, skip_serializing_if = "Map::is_empty")]
        arguments: Map<String, Value>,
        /// Who asked.
        requester: Requester,
        /// Whether it may begin.
        allowed: bool,
        /// Why not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// What came of an operation. One that has none was cut short by the service's end.
    Result {
        /// The number of its decision.
        of: u64,
        /// `ok`, or the class of the error.
        result: String,
        /// The error.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        /// From the decision to the result, in microseconds.
        duration_us: u64,
        /// What of that went by until the decision was on disk.
        recorded_us: u64,
    },
    /// What a container was seen doing: merged, so that a flood makes few records.
    Observed(observed::Observation),
    /// The service began.
    Started {
        /// Bytes of a last line that was not whole, and was dropped.
        #[serde(default)]
        dropped_bytes: u64,
    },
    /// The service ended in order.
    Ended {},
    /// Old files were removed to keep the trail within its bounds.
    Rotated {
        /// The first record that is still there.
        first_kept: u64,
    },
    /// Operations went on though they could not be recorded: the disk was full.
    Unrecorded {
        /// How many.
        operations: u64,
    },
}

/// Who asked for an operation: the other end of the socket, by the kernel's word.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Requester {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id.
    pub pid: i32,
    /// Its program's path, when it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
    /// The path is that of the very process that called: nobody else had taken its number.
    #[serde(default)]
    pub verified: bool,
}

/// The last record of a trail. Text: `NUMBER:DIGEST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number; 0 for an empty trail.
    pub sequence: u64,
    /// SHA-256 of its line, in hex.
    pub digest: String,
}

impl Head {
    /// That of an empty trail.
    pub fn genesis() -> Head {
        Head { sequence: 0, digest: GENESIS.into() }
    }

    /// Parses what [`Display`](std::fmt::Display) shows.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn parse(text: &str) -> Result<Head> {
        let parsed = text.trim().split_once(':').and_then(|(sequence, digest)| {
            let hex = digest.len() == GENESIS.len()
                && digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            Some(Head { sequence: sequence.parse().ok()?, digest: hex.then(|| digest.to_owned())? })
        });
        parsed.ok_or_else(|| {
            let shown = crate::escape::escape(text);
            ApiError::invalid(format!("'{shown}' is not a head of an audit trail (NUMBER:DIGEST)"))
        })
    }
}

impl std::fmt::Display for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.sequence, self.digest)
    }
}

/// SHA-256 of a line without its end, in hex.
pub fn digest(line: &[u8]) -> String {
    crate::ram::sha256(line)
}

/// Name of the file whose first record is `sequence`.
pub fn file_name(sequence: u64) -> String {
    format!("{sequence:020}.{EXTENSION}")
}

/// The trail's files with the numbers of their first records, oldest first.
///
/// # Errors
/// Those of the folder; a missing one has none.
pub fn files(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let number = (path.extension() == Some(EXTENSION.as_ref()))
            .then(|| path.file_stem()?.to_str()?.parse().ok())
            .flatten();
        found.extend(number.map(|number| (number, path)));
    }
    found.sort();
    Ok(found)
}

/// Reads a trail, line for line, and checks each against the one before.
#[derive(Debug)]
pub struct Reader {
    files: std::vec::IntoIter<(u64, PathBuf)>,
    current: Option<BufReader<File>>,
    place: PathBuf,
    head: Option<Head>,
    /// Bytes of a last line that has no end.
    unfinished: u64,
}

/// A record, and where the trail stands with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The record.
    pub record: Record,
    /// The head, were it the last.
    pub head: Head,
    /// Length of its line with its end.
    pub len: u64,
}

impl Reader {
    /// Of the trail in `folder`.
    ///
    /// # Errors
    /// Those of the folder.
    pub fn open(folder: &Path) -> Result<Reader> {
        let failed = |e| ApiError::from(e).context(folder.display());
        Ok(Reader::of(files(folder).map_err(failed)?, folder))
    }

    /// Of these files alone, the first of which need not be the oldest.
    pub fn of(files: Vec<(u64, PathBuf)>, folder: &Path) -> Reader {
        Reader {
            files: files.into_iter(),
            current: None,
            place: folder.to_owned(),
            head: None,
            unfinished: 0,
        }
    }

    /// Bytes at the end that are no whole line: a record that is being written, or was when the
    /// service died.
    pub fn unfinished(&self) -> u64 {
        self.unfinished
    }

    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// `InvalidData` where the chain is broken or a line is no record; those of the files.
    pub fn read(&mut self) -> Result<Option<Entry>> {
        loop {
            let Some(file) = &mut self.current else {
                let Some((number, path)) = self.files.next() else { return Ok(None) };
                self.place = path;
                if self.unfinished > 0 {
                    return Err(self.broken(number, "the file before ends within a record"));
                }
                if let Some(head) = &self.head
                    && head.sequence + 1 != number
                {
                    let message = format!("records {} to {number} are missing", head.sequence + 1);
                    return Err(self.broken(number, &message));
                }
                let file = File::open(&self.place)
                    .map_err(|e| ApiError::from(e).context(self.place.display()))?;
                self.current = Some(BufReader::new(file));
                continue;
            };
            let mut line = Vec::new();
            let read = file.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line);
            read.map_err(|e| ApiError::from(e).context(self.place.display()))?;
            match line.pop() {
                None => self.current = None,
                Some(b'\n') => return self.check(&line).map(Some),
                Some(_) if line.len() >= MAX_LINE => {
                    return Err(self.broken(self.next(), "the line is too long"));
                }
                Some(_) => {
                    self.unfinished = line.len() as u64 + 1;
                    self.current = None;
                }
            }
        }
    }

    /// The number that the next record must have, if that is known.
    fn next(&self) -> u64 {
        self.head.as_ref().map_or(1, |head| head.sequence + 1)
    }

    fn check(&mut self, line: &[u8]) -> Result<Entry> {
        let record: Record = serde_json::from_slice(line)
            .map_err(|e| self.broken(self.next(), &format!("it is no record: {e}")))?;
        let number = record.sequence;
        match &self.head {
            Some(head) if number != head.sequence + 1 => {
                let message = format!("record {} was expected", head.sequence + 1);
                return Err(self.broken(number, &message));
            }
            Some(head) if record.previous != head.digest => {
                let message = format!("record {} is not what it was", head.sequence);
                return Err(self.broken(number, &message));
            }
            None if number == 1 && record.previous != GENESIS => {
                return Err(self.broken(number, "something was before it"));
            }
            _ => {}
        }
        let head = Head { sequence: number, digest: digest(line) };
        self.head = Some(head.clone());
        Ok(Entry { record, head, len: line.len() as u64 + 1 })
    }

    fn broken(&self, number: u64, what: &str) -> ApiError {
        let place = crate::escape::escape(&self.place.to_string_lossy()).into_owned();
        let message = format!("{place}: the audit trail is broken at record {number}: {what}");
        ApiError::new(ErrorCode::InvalidData, message)
    }
}

/// What [`verify`] found intact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The first record that is there: 1, or the first that rotation has kept.
    pub first: u64,
    /// The last one.
    pub head: Head,
    /// Heads that were told of, and are in the trail.
    pub heads: usize,
    /// See [`Reader::unfinished`].
    pub unfinished: u64,
}

/// Checks the whole trail, and that it holds `heads`: those before its first record count as
/// rotated away.
///
/// # Errors
/// `InvalidData` with what is wrong, `NotFound` when there is no trail.
pub fn verify(folder: &Path, heads: &[Head]) -> Result<Verified> {
    let mut reader = Reader::open(folder)?;
    let mut wanted: Vec<&Head> = heads.iter().collect();
    wanted.sort_by_key(|head| head.sequence);
    let mut wanted = wanted.into_iter().peekable();
    let (mut first, mut last, mut kept) = (None, None::<Head>, 1);
    let mut found = 0;
    while let Some(Entry { record, head, .. }) = reader.read()? {
        let first = *first.get_or_insert(record.sequence);
        while let Some(want) = wanted.next_if(|want| want.sequence <= record.sequence) {
            if want.sequence == head.sequence && want.digest != head.digest {
                return Err(reader.broken(head.sequence, "it is not the one that was anchored"));
            }
            found += usize::from(want.sequence >= first);
        }
        if let Event::Rotated { first_kept } = record.event {
            kept = first_kept;
        }
        last = Some(head);
    }
    let (Some(first), Some(head)) = (first, last) else {
        let message = format!("there is no audit trail in {}", folder.display());
        return Err(match wanted.next() {
            Some(_) => reader.broken(1, "the whole trail is missing"),
            None => ApiError::not_found(message),
        });
    };
    if first > kept {
        return Err(reader.broken(first, &format!("records {kept} to {} are missing", first - 1)));
    }
    if let Some(want) = wanted.next() {
        let message = format!("the trail ends there, and record {} was anchored", want.sequence);
        return Err(reader.broken(head.sequence, &message));
    }
    Ok(Verified { first, head, heads: found, unfinished: reader.unfinished() })
}

/// Heads in an anchor file: the last word of each line.
///
/// # Errors
/// Those of the file, and `InvalidArgument` for a line that names none.
pub fn anchored(file: &Path) -> Result<Vec<Head>> {
    let failed = |e| ApiError::from(e).context(file.display());
    let text = std::fs::read_to_string(file).map_err(failed)?;
    // The last line may be on its way.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let head = |line: &str| Head::parse(line.split_whitespace().next_back().unwrap_or_default());
    whole.lines().filter(|line| !line.trim().is_empty()).map(head).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Lines of a trail of so many records.
    fn lines(count: u64) -> Vec<Vec<u8>> {
        let mut previous = GENESIS.to_owned();
        let line = |sequence| {
            let event = match sequence {
                1 => Event::Started { dropped_bytes: 0 },
                _ => Event::Result {
                    of: sequence,
                    result: "ok".into(),
                    error: None,
                    duration_us: 5,
                    recorded_us: 1,
                },
            };
            let time = Timestamp::now();
            let record = Record { sequence, time, previous: previous.clone(), event };
            let line = serde_json::to_vec(&record).unwrap();
            previous = digest(&line);
            line
        };
        (1..=count).map(line).collect()
    }

    fn write(folder: &Path, first: u64, lines: &[Vec<u8>]) {
        let mut text = lines.join(&b'\n');
        text.push(b'\n');
        std::fs::write(folder.join(file_name(first)), text).unwrap();
    }

    fn head_of(lines: &[Vec<u8>]) -> Head {
        Head { sequence: lines.len() as u64, digest: digest(lines.last().unwrap()) }
    }

    #[test]
    fn a_trail_over_several_files_is_intact() {
        let folder = tempfile::tempdir().unwrap();
        let all = lines(9);
        write(folder.path(), 1, &all[..4]);
        write(folder.path(), 5, &all[4..]);
        let heads = [head_of(&all[..2]), head_of(&all)];
        let verified = verify(folder.path(), &heads).unwrap();
        assert_eq!((verified.first, verified.heads), (1, 2));
        assert_eq!(verified.head, head_of(&all));
        assert_eq!(Head::parse(&verified.head.to_string()).unwrap(), verified.head);
        verify(Path::new("/nonexistent"), &[]).unwrap_err();
    }

    #[test]
    fn edits_gaps_and_moves_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let all = lines(6);
        let broken = |changed: &[Vec<u8>]| {
            write(folder.path(), 1, changed);
            verify(folder.path(), &[]).expect_err("a broken chain").message
        };
        let mut edited = all.clone();
        edited[2] = String::from_utf8(edited[2].clone()).unwrap().replace("ok", "no").into_bytes();
        assert!(broken(&edited).contains("record 3 is not what it was"));
        let mut gap = all.clone();
        gap.remove(3);
        assert!(broken(&gap).contains("record 4 was expected"));
        let mut moved = all.clone();
        moved.swap(2, 3);
        broken(&moved);
        let mut twice = all.clone();
        twice.insert(3, all[3].clone());
        broken(&twice);
        broken(&all[1..]);
        broken(&[b"{}".to_vec()]);
    }

    #[test]
    fn a_cut_tail_and_a_rewritten_chain_are_told_by_the_head() {
        let folder = tempfile::tempdir().unwrap();
        let all = lines(6);
        let head = head_of(&all);
        write(folder.path(), 1, &all[..4]);
        verify(folder.path(), &[]).expect("the chain alone can't tell");
        let cut = verify(folder.path(), std::slice::from_ref(&head)).unwrap_err().message;
        assert!(cut.contains("record 6 was anchored"), "{cut}");
        write(folder.path(), 1, &lines(7));
        let rewritten = verify(folder.path(), std::slice::from_ref(&head)).unwrap_err().message;
        assert!(rewritten.contains("not the one that was anchored"), "{rewritten}");
        std::fs::remove_file(folder.path().join(file_name(1))).unwrap();
        let gone = verify(folder.path(), &[head]).unwrap_err().message;
        assert!(gone.contains("whole trail is missing"), "{gone}");
    }

    #[test]
    fn old_files_may_go_as_far_as_the_trail_says() {
        let folder = tempfile::tempdir().unwrap();
        let mut all = lines(6);
        let previous = digest(&all[5]);
        let event = Event::Rotated { first_kept: 4 };
        let record = Record { sequence: 7, time: Timestamp::now(), previous, event };
        all.push(serde_json::to_vec(&record).unwrap());
        write(folder.path(), 4, &all[3..]);
        let old = head_of(&all[..2]);
        let verified = verify(folder.path(), &[old]).unwrap();
        assert_eq!((verified.first, verified.heads), (4, 0));
        std::fs::remove_file(folder.path().join(file_name(4))).unwrap();
        write(folder.path(), 5, &all[4..]);
        let message = verify(folder.path(), &[]).unwrap_err().message;
        assert!(message.contains("records 4 to 4 are missing"), "{message}");
    }

    #[test]
    fn a_last_line_without_an_end_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let all = lines(3);
        let mut text = all.join(&b'\n');
        text.extend_from_slice(b"\n{\"sequ");
        std::fs::write(folder.path().join(file_name(1)), &text).unwrap();
        assert_eq!(verify(folder.path(), &[]).unwrap().unfinished, 6);
    }

    #[test]
    fn anchors_are_read_line_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("anchor");
        let head = head_of(&lines(3));
        std::fs::write(&path, format!("2026-01-01T00:00:00Z {head}\n{head}\n12:ab")).unwrap();
        assert_eq!(anchored(&path).unwrap(), [head.clone(), head]);
        std::fs::write(&path, "wat\n").unwrap();
        anchored(&path).unwrap_err();
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_trail_or_an_error(bytes: Vec<u8>, head: String) {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(file_name(1)), &bytes).unwrap();
            let _ = verify(folder.path(), &[]);
            let _ = Head::parse(&head);
        }

        #[test]
        fn any_changed_byte_is_found(at: proptest::sample::Index, bit in 0..8u8) {
            let folder = tempfile::tempdir().unwrap();
            let all = lines(4);
            write(folder.path(), 1, &all);
            let path = folder.path().join(file_name(1));
            let mut text = std::fs::read(&path).unwrap();
            // A head tells of the last line; its end may be missing.
            let at = at.index(text.len() - 1);
            text[at] ^= 1 << bit;
            std::fs::write(&path, &text).unwrap();
            prop_assert!(verify(folder.path(), &[head_of(&all)]).is_err());
        }
    }
}
