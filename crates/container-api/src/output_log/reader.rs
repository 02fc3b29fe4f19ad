//! Reading from the oldest kept entry, or from the last lines, and going on over rotations.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use base64::prelude::{BASE64_STANDARD, Engine};
use serde::Deserialize;

use super::{LogEntry, MAX_ENTRY, MAX_FILES, MAX_LINE, OutputStream, rotated};
use crate::types::Timestamp;

const BLOCK: usize = 64 << 10;

/// Reads a log while it is written.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    file: Option<File>,
    /// Bytes read, not parsed.
    buffer: Vec<u8>,
    start: usize,
    /// The rest of an over-long line is passed over.
    skipping: bool,
    ready: VecDeque<LogEntry>,
}

impl LogReader {
    /// Reads from the oldest entry that is kept. A log that does not exist yet is empty.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(path: &Path) -> io::Result<LogReader> {
        let file = files(path)?.into_iter().next();
        Ok(LogReader::at(path, file))
    }

    /// Reads from the last `lines` lines on; an unfinished last line counts.
    ///
    /// # Errors
    /// Those of the system.
    pub fn tail(path: &Path, lines: u64) -> io::Result<LogReader> {
        let mut counter = Tail { wanted: lines, newlines: 0, any: false };
        let mut newer = Vec::new();
        for file in files(path)?.into_iter().rev() {
            if let Some((offset, first)) = counter.search(&file)? {
                io::Seek::seek(&mut &file, io::SeekFrom::Start(offset))?;
                let mut reader = LogReader::at(path, Some(file));
                reader.ready.extend(first);
                return Ok(reader);
            }
            newer.push(file);
        }
        Ok(LogReader::at(path, newer.pop()))
    }

    fn at(path: &Path, file: Option<File>) -> LogReader {
        LogReader {
            path: path.to_owned(),
            file,
            buffer: Vec::new(),
            start: 0,
            skipping: false,
            ready: VecDeque::new(),
        }
    }

    /// The next entry; `None` when there is none now: ask again later to follow the log. Lines
    /// that are no entries are passed over.
    ///
    /// # Errors
    /// Those of the system.
    pub fn next_entry(&mut self) -> io::Result<Option<LogEntry>> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Ok(Some(entry));
            }
            let pending = &self.buffer[self.start..];
            if let Some(end) = pending.iter().position(|b| *b == b'\n') {
                let entry = if self.skipping { None } else { parse(&pending[..end]) };
                self.start += end + 1;
                self.skipping = false;
                self.ready.extend(entry);
                continue;
            }
            if pending.len() > MAX_LINE {
                self.skipping = true;
                self.start = self.buffer.len();
            }
            if !self.read_block()? {
                return Ok(None);
            }
        }
    }

    fn read_block(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.start);
        self.start = 0;
        loop {
            if self.file.is_none() {
                self.file = files(&self.path)?.into_iter().next();
            }
            let Some(file) = &mut self.file else { return Ok(false) };
            if file.take(BLOCK as u64).read_to_end(&mut self.buffer)? > 0 {
                return Ok(true);
            }
            // Whether there is a newer file is looked up before the last read of this one, for
            // the writer fills a file before it begins the next.
            let Some(next) = newer(&self.path, file)? else { return Ok(false) };
            let more = file.take(BLOCK as u64).read_to_end(&mut self.buffer)? > 0;
            if more {
                return Ok(true);
            }
            self.buffer.clear();
            self.skipping = false;
            self.file = Some(next);
        }
    }
}

/// All files, the oldest first.
fn files(path: &Path) -> io::Result<Vec<File>> {
    let mut found = Vec::new();
    for generation in 0..MAX_FILES {
        match File::open(rotated(path, generation)) {
            Ok(file) => found.push(file),
            Err(e) if e.kind() == io::ErrorKind::NotFound && generation > 0 => break,
            // The current file is missing for a moment within a rotation.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    found.reverse();
    Ok(found)
}

/// The file after `current`; the oldest one when `current` is not kept any more.
fn newer(path: &Path, current: &File) -> io::Result<Option<File>> {
    let identity = |file: &File| file.metadata().map(|m| (m.dev(), m.ino()));
    let current = identity(current)?;
    let mut all = files(path)?;
    for (i, file) in all.iter().enumerate() {
        if identity(file)? == current {
            return Ok((i + 1 < all.len()).then(|| all.swap_remove(i + 1)));
        }
    }
    Ok(all.into_iter().next())
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    log: Option<String>,
    #[serde(default)]
    base64: Option<String>,
    stream: OutputStream,
    time: Timestamp,
}

fn parse(line: &[u8]) -> Option<LogEntry> {
    let line: Line = serde_json::from_slice(line).ok()?;
    let bytes = match (line.log, line.base64) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(text)) => BASE64_STANDARD.decode(text).ok()?,
        _ => return None,
    };
    (bytes.len() <= MAX_ENTRY).then_some(LogEntry { stream: line.stream, time: line.time, bytes })
}

/// Counts lines from the end of a log.
struct Tail {
    wanted: u64,
    newlines: u64,
    any: bool,
}

impl Tail {
    /// Looks for the place in `file` where the wanted lines begin; with it comes the end of the
    /// entry before that place, when it belongs to them.
    fn search(&mut self, file: &File) -> io::Result<Option<(u64, Option<LogEntry>)>> {
        let len = file.metadata()?.len();
        if self.wanted == 0 {
            return Ok(Some((len, None)));
        }
        // `tail` holds the bytes from `at` to the last line that was looked at.
        let (mut at, mut tail) = (len, Vec::new());
        while at > 0 {
            let step = at.min(BLOCK as u64);
            at -= step;
            let mut block = vec![0; step as usize];
            file.read_exact_at(&mut block, at)?;
            block.append(&mut tail);
            tail = block;
            while let Some(found) = line_start(&tail, at == 0) {
                let line = tail.split_off(found);
                let end = at + (found + line.len()) as u64;
                if let Some(entry) = parse(line.trim_ascii_end())
                    && let Some(first) = self.count(entry)
                {
                    return Ok(Some((end, first)));
                }
            }
            if tail.len() > 2 * MAX_LINE {
                tail.clear();
            }
        }
        Ok(None)
    }

    /// Takes the entry before those seen; `Some` when the wanted lines begin in it or after it.
    fn count(&mut self, entry: LogEntry) -> Option<Option<LogEntry>> {
        let mut start = entry.bytes.len();
        for (i, byte) in entry.bytes.iter().enumerate().rev() {
            if *byte == b'\n' {
                if self.any || i + 1 < entry.bytes.len() {
                    self.newlines += 1;
                }
                if self.newlines == self.wanted {
                    let bytes = entry.bytes[i + 1..].to_vec();
                    return Some((!bytes.is_empty()).then_some(LogEntry { bytes, ..entry }));
                }
            }
            self.any = true;
            start = i;
        }
        debug_assert_eq!(start, 0);
        None
    }
}

/// Where the last line of `bytes` begins: after the last newline but the final one.
fn line_start(bytes: &[u8], whole: bool) -> Option<usize> {
    let body = bytes.len().checked_sub(1)?;
    match bytes[..body].iter().rposition(|b| *b == b'\n') {
        Some(newline) => Some(newline + 1),
        None => whole.then_some(0),
    }
}
