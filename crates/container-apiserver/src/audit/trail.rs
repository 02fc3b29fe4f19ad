//! The trail's files: lines that are whole or not there, and their bounds.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use container_api::audit::{self, Event, Head, MAX_LINE, Record};
use container_api::config::{AuditConfig, parse_size};
use container_api::types::Timestamp;
use container_api::{ApiError, Result};

/// How large the trail may get.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of a file, beyond which the next is begun.
    pub file: u64,
    /// Files.
    pub files: usize,
}

impl Bounds {
    /// Those of the configuration.
    pub fn of(config: &AuditConfig) -> Result<Bounds> {
        Ok(Bounds { file: parse_size(&config.max_size)?, files: config.max_files as usize })
    }
}

/// A trail that is open for writing; there is one at a time.
#[derive(Debug)]
pub struct Trail {
    folder: PathBuf,
    bounds: Bounds,
    file: File,
    /// Bytes of `file` that are whole lines.
    len: u64,
    head: Head,
}

impl Trail {
    /// Opens the newest file, drops a last line that is not whole, and notes the start.
    ///
    /// # Errors
    /// Those of the files; `InvalidData` when the last record can't be read.
    pub fn open(folder: &Path, bounds: Bounds) -> Result<Trail> {
        let failed = |e: io::Error| ApiError::from(e).context(folder.display());
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let files = audit::files(folder).map_err(failed)?;
        let mut dropped = 0;
        let mut last = None;
        for (_, path) in files.iter().rev() {
            let end = End::of(path).map_err(|e| e.context(path.display()))?;
            dropped += end.torn;
            if let Some(head) = end.head {
                last = Some((path.clone(), end.whole, head));
                break;
            }
            // Begun, and nothing written to it.
            std::fs::remove_file(path).map_err(failed)?;
        }
        let (path, len, head) =
            last.unwrap_or_else(|| (folder.join(audit::file_name(1)), 0, Head::genesis()));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        file.set_len(len).map_err(failed)?;
        sync_folder(folder).map_err(failed)?;
        let mut trail = Trail { folder: folder.to_owned(), bounds, file, len, head };
        trail.append(vec![Event::Started { dropped_bytes: dropped }]).map_err(failed)?;
        trail.sync().map_err(failed)?;
        Ok(trail)
    }

    /// The last record.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Writes records, all or none; the first one's number.
    ///
    /// # Errors
    /// Those of the file. Nothing is written then.
    pub fn append(&mut self, events: Vec<Event>) -> io::Result<u64> {
        if self.len >= self.bounds.file {
            self.begin_file()?;
        }
        let (mut head, mut text) = (self.head.clone(), Vec::new());
        let first = head.sequence + 1;
        for event in events {
            let time = Timestamp::now();
            let sequence = head.sequence + 1;
            let record = Record { sequence, time, previous: head.digest, event };
            let line = serde_json::to_vec(&record)?;
            if line.len() > MAX_LINE {
                return Err(io::Error::other("a record is too long"));
            }
            head = Head { sequence, digest: audit::digest(&line) };
            text.extend_from_slice(&line);
            text.push(b'\n');
        }
        if let Err(error) = self.file.write_all_at(&text, self.len) {
            // What was written of it must not be taken for a record.
            self.file.set_len(self.len)?;
            return Err(error);
        }
        self.len += text.len() as u64;
        self.head = head;
        Ok(first)
    }

    /// Waits until all is on disk.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Begins the next file. The oldest go when there are too many, and the new one says so.
    fn begin_file(&mut self) -> io::Result<()> {
        self.sync()?;
        let path = self.folder.join(audit::file_name(self.head.sequence + 1));
        // One of an attempt that found no room.
        let options =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
        self.file = options?;
        self.len = 0;
        sync_folder(&self.folder)?;
        let files = audit::files(&self.folder)?;
        let old = files.len().saturating_sub(self.bounds.files);
        if old == 0 {
            return Ok(());
        }
        // Said before it is done: what the trail doesn't account for is missing.
        let first_kept = files[old].0;
        self.append(vec![Event::Rotated { first_kept }])?;
        self.sync()?;
        for (_, path) in &files[..old] {
            std::fs::remove_file(path)?;
        }
        Ok(())
    }
}

/// How a file ends.
struct End {
    /// Its last whole line, if it has any.
    head: Option<Head>,
    /// Bytes of whole lines.
    whole: u64,
    /// Bytes behind them.
    torn: u64,
}

impl End {
    fn of(path: &Path) -> Result<End> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        // A line that may be torn, and the one before it.
        let from = len.saturating_sub(2 * (MAX_LINE as u64 + 1));
        let mut tail = vec![0; (len - from) as usize];
        file.read_exact_at(&mut tail, from)?;
        let Some(end) = tail.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(End { head: None, whole: 0, torn: len });
        };
        let begin = tail[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let line = &tail[begin..end];
        let record: Record = serde_json::from_slice(line).map_err(|_| {
            let message = "the audit trail's last record can't be read: \
                           move its folder away, keep it as evidence, and start again";
            ApiError::new(container_api::ErrorCode::InvalidData, message)
        })?;
        let head = Head { sequence: record.sequence, digest: audit::digest(line) };
        let whole = from + end as u64 + 1;
        Ok(End { head: Some(head), whole, torn: len - whole })
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Adds a line to a file of somebody else's, which may be a device or a pipe.
pub fn add_line(path: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
        .open(path)?;
    file.write_all(line.as_bytes())?;
    match file.sync_data() {
        Err(e) if e.kind() != io::ErrorKind::InvalidInput => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Bounds = Bounds { file: 600, files: 3 };

    fn event() -> Event {
        Event::Result { of: 1, result: "ok".into(), error: None, duration_us: 1, recorded_us: 1 }
    }

    #[test]
    fn a_trail_goes_on_where_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        let mut trail = Trail::open(&path, SMALL).unwrap();
        assert_eq!(trail.append(vec![event(), event()]).unwrap(), 2);
        let head = trail.head().clone();
        drop(trail);
        let trail = Trail::open(&path, SMALL).unwrap();
        assert_eq!(trail.head().sequence, 4);
        assert_eq!(audit::verify(&path, &[head]).unwrap().head, *trail.head());
    }

    #[test]
    fn a_torn_line_is_dropped_and_told() {
        let folder = tempfile::tempdir().unwrap();
        drop(Trail::open(folder.path(), SMALL).unwrap());
        let file = folder.path().join(audit::file_name(1));
        add_line(&file, "{\"sequ").unwrap();
        drop(Trail::open(folder.path(), SMALL).unwrap());
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.lines().nth(1).unwrap().contains("\"droppedBytes\":6"), "{text}");
        audit::verify(folder.path(), &[]).unwrap();
    }

    #[test]
    fn old_files_go_and_the_rest_is_intact() {
        let folder = tempfile::tempdir().unwrap();
        let mut trail = Trail::open(folder.path(), SMALL).unwrap();
        for _ in 0..40 {
            trail.append(vec![event()]).unwrap();
        }
        let files = audit::files(folder.path()).unwrap();
        assert_eq!(files.len(), SMALL.files);
        let verified = audit::verify(folder.path(), &[]).unwrap();
        assert_eq!((verified.first, &verified.head), (files[0].0, trail.head()));
        // An empty file of a service that died there.
        drop(trail);
        let next = folder.path().join(audit::file_name(verified.head.sequence + 1));
        std::fs::write(&next, "").unwrap();
        Trail::open(folder.path(), SMALL).unwrap();
        audit::verify(folder.path(), &[verified.head]).unwrap();
    }

    #[test]
    fn a_trail_that_somebody_has_damaged_is_not_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(audit::file_name(1)), "wat\n").unwrap();
        let error = Trail::open(folder.path(), SMALL).unwrap_err();
        assert!(error.message.contains("evidence"), "{error}");
    }
}
