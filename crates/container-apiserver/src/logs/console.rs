//! The guest's console: text of a stranger, so its control characters are shown, not sent.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use container_api::escape::escape_bytes;

use super::Sink;
use super::output::Next;

/// Most of the log that `tail` looks back on, and longest line that is kept together.
const WINDOW: u64 = 4 << 20;
const MAX_LINE: usize = 16 << 10;

/// Copies lines until the log is over.
pub(super) fn copy(path: &Path, tail: Option<u64>, out: &mut Sink<'_>) -> io::Result<()> {
    let mut lines = Lines { file: None, pending: Vec::new(), finished: false };
    let mut opened = false;
    loop {
        let next = out.idle_unless(|| {
            if !opened {
                lines.file = open(path, tail)?;
                opened = lines.file.is_some();
            }
            lines.next_line()
        })?;
        match next {
            Next::Some(line) => out.write(line.as_bytes())?,
            Next::Later => {}
            Next::Never if lines.finished => return Ok(()),
            // The last line may lack its end.
            Next::Never => lines.finished = true,
        }
    }
}

fn open(path: &Path, tail: Option<u64>) -> io::Result<Option<File>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let Some(wanted) = tail else { return Ok(Some(file)) };
    let len = file.metadata()?.len();
    let start = len.saturating_sub(WINDOW);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    (&file).take(len - start).read_to_end(&mut bytes)?;
    let body = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let mut from = if wanted == 0 { bytes.len() } else { 0 };
    let mut ends = body.iter().enumerate().rev().filter(|(_, b)| **b == b'\n');
    if wanted > 0
        && let Some((end, _)) = ends.nth(usize::try_from(wanted - 1).unwrap_or(usize::MAX))
    {
        from = end + 1;
    }
    file.seek(SeekFrom::Start(start + from as u64))?;
    Ok(Some(file))
}

struct Lines {
    file: Option<File>,
    pending: Vec<u8>,
    finished: bool,
}

impl Lines {
    fn next_line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.pending.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(Some(shown(&line[..end])));
            }
            if self.pending.len() > MAX_LINE || self.finished && !self.pending.is_empty() {
                return Ok(Some(shown(&std::mem::take(&mut self.pending))));
            }
            let mut buffer = [0; 8 << 10];
            let n = match &mut self.file {
                Some(file) => file.read(&mut buffer)?,
                None => 0,
            };
            if n == 0 {
                return Ok(None);
            }
            self.pending.extend_from_slice(&buffer[..n]);
        }
    }
}

/// A line with its end. The console ends lines with `\r\n`.
fn shown(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let parts: Vec<String> = line.split(|b| *b == b'\t').map(escape_bytes).collect();
    parts.join("\t") + "\n"
}
