//! Writing, with rotation by size.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::prelude::{BASE64_STANDARD, Engine};

use super::{MAX_ENTRY, MAX_FILES, OutputStream, rotated};
use crate::types::Timestamp;

/// How much output is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes of one file, above which a new one is begun; 0: never.
    pub max_size: u64,
    /// Files kept, the current one included; at least 1.
    pub max_files: u32,
}

/// Appends output to a log; one writer a log at a time.
///
/// A write that fails (no space, say) leaves no torn line behind, and the next one is tried anew.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    limits: LogLimits,
    file: File,
    len: u64,
    lines: Vec<u8>,
    /// Per stream, the first bytes of a character whose last ones have not arrived.
    carry: [Vec<u8>; 2],
}

impl LogWriter {
    /// Opens the log at `path` to append to it.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(path: &Path, limits: LogLimits) -> io::Result<LogWriter> {
        let (mut file, mut len) = open_file(path)?;
        // A line that a killed writer has left half-written must not spoil ours.
        if len > 0 {
            let mut last = [0u8];
            file.seek(SeekFrom::Start(len - 1))?;
            if file.read(&mut last)? == 1 && last != *b"\n" && file.write_all(b"\n").is_ok() {
                len += 1;
            }
        }
        let limits = LogLimits { max_files: limits.max_files.clamp(1, MAX_FILES), ..limits };
        let carry = [Vec::new(), Vec::new()];
        Ok(LogWriter { path: path.to_owned(), limits, file, len, lines: Vec::new(), carry })
    }

    /// Appends what a stream brought.
    ///
    /// # Errors
    /// Those of the system; the bytes are lost then.
    pub fn write(&mut self, stream: OutputStream, bytes: &[u8], time: Timestamp) -> io::Result<()> {
        let carry = &mut self.carry[stream as usize];
        if carry.is_empty() {
            let keep = incomplete_tail(bytes);
            carry.extend_from_slice(&bytes[bytes.len() - keep..]);
            return self.append(stream, &bytes[..bytes.len() - keep], time);
        }
        let mut joined = std::mem::take(carry);
        joined.extend_from_slice(bytes);
        let keep = incomplete_tail(&joined);
        carry.extend_from_slice(&joined[joined.len() - keep..]);
        joined.truncate(joined.len() - keep);
        self.append(stream, &joined, time)
    }

    /// Writes what [`LogWriter::write`] held back because it ends within a character.
    ///
    /// # Errors
    /// Those of the system.
    pub fn finish(&mut self, time: Timestamp) -> io::Result<()> {
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            let rest = std::mem::take(&mut self.carry[stream as usize]);
            self.append(stream, &rest, time)?;
        }
        Ok(())
    }

    fn append(&mut self, stream: OutputStream, bytes: &[u8], time: Timestamp) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let tail = format!(",\"stream\":\"{}\",\"time\":\"{time}\"}}\n", name(stream));
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                for line in text.split_inclusive('\n') {
                    for part in parts(line) {
                        self.put(tail.as_bytes(), |out| {
                            out.extend_from_slice(b"{\"log\":");
                            serde_json::to_writer(out, part).map_err(io::Error::from)
                        })?;
                    }
                }
            }
            Err(_) => {
                for part in bytes.chunks(MAX_ENTRY) {
                    self.put(tail.as_bytes(), |out| {
                        out.extend_from_slice(b"{\"base64\":\"");
                        out.extend_from_slice(BASE64_STANDARD.encode(part).as_bytes());
                        out.push(b'"');
                        Ok(())
                    })?;
                }
            }
        }
        self.flush()
    }

    fn put(
        &mut self,
        tail: &[u8],
        head: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        let before = self.lines.len();
        head(&mut self.lines)?;
        self.lines.extend_from_slice(tail);
        let max = self.limits.max_size;
        if max > 0 && self.len + self.lines.len() as u64 > max && self.len + before as u64 > 0 {
            let last = self.lines.split_off(before);
            self.flush()?;
            self.rotate()?;
            self.lines = last;
        }
        if self.lines.len() >= MAX_ENTRY {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.file.write_all(&self.lines);
        match result {
            Ok(()) => self.len += self.lines.len() as u64,
            // If this fails too, the torn line stays, and readers pass it over.
            Err(_) => drop(self.file.set_len(self.len)),
        }
        self.lines.clear();
        result
    }

    fn rotate(&mut self) -> io::Result<()> {
        let oldest = self.limits.max_files - 1;
        // After a rotation that failed half-way the files are moved already.
        let moved = !self.path.try_exists()?;
        for generation in (0..oldest).rev().filter(|_| !moved) {
            match std::fs::rename(
                rotated(&self.path, generation),
                rotated(&self.path, generation + 1),
            ) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        if oldest == 0 && !moved {
            std::fs::remove_file(&self.path)?;
        }
        (self.file, self.len) = open_file(&self.path)?;
        Ok(())
    }
}

fn open_file(path: &Path) -> io::Result<(File, u64)> {
    let mut options = OpenOptions::new();
    let file = options.create(true).read(true).append(true).mode(0o600).open(path)?;
    let len = file.metadata()?.len();
    Ok((file, len))
}

fn name(stream: OutputStream) -> &'static str {
    match stream {
        OutputStream::Stdout => "stdout",
        OutputStream::Stderr => "stderr",
    }
}

/// `line` in pieces of at most [`MAX_ENTRY`] bytes.
fn parts(mut line: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        if line.is_empty() {
            return None;
        }
        let mut end = line.len().min(MAX_ENTRY);
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        let part;
        (part, line) = line.split_at(end);
        Some(part)
    })
}

/// How many bytes at the end are the beginning of a UTF-8 character.
fn incomplete_tail(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(e) if e.error_len().is_none() => bytes.len() - e.valid_up_to(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_leaves_no_torn_line() {
        // RLIMIT_FSIZE is process-wide, /dev/full is not: its writes fail, its truncation is none.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let mut writer = LogWriter::open(&path, LogLimits { max_size: 0, max_files: 1 }).unwrap();
        writer.write(OutputStream::Stdout, b"one\n", Timestamp::now()).unwrap();
        let good = std::mem::replace(
            &mut writer.file,
            OpenOptions::new().write(true).open("/dev/full").unwrap(),
        );
        assert!(writer.write(OutputStream::Stdout, b"lost\n", Timestamp::now()).is_err());
        writer.file = good;
        writer.write(OutputStream::Stdout, b"two\n", Timestamp::now()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(!text.contains("lost"));
    }
}
