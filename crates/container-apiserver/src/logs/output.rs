//! The program's output: its bytes as they were, each to its stream.

use std::io;
use std::path::Path;

use container_api::output_log::{LogReader, OutputStream};

use super::Sink;

/// Copies entries until the log is over.
pub(super) fn copy(
    path: &Path,
    tail: Option<u64>,
    out: &mut Sink<'_>,
    err: &mut Sink<'_>,
) -> io::Result<()> {
    let mut reader = match tail {
        Some(lines) => LogReader::tail(path, lines)?,
        None => LogReader::open(path)?,
    };
    loop {
        // The order matters: what is in the log after it was said to be over has been seen.
        let more = out.idle_unless(|| reader.next_entry())?;
        match more {
            Next::Some(entry) => match entry.stream {
                OutputStream::Stdout => out.write(&entry.bytes)?,
                OutputStream::Stderr => err.write(&entry.bytes)?,
            },
            Next::Later => {}
            Next::Never => return Ok(()),
        }
    }
}

/// What a followed log has to offer.
pub(super) enum Next<T> {
    /// Something.
    Some(T),
    /// Nothing just now.
    Later,
    /// Nothing ever again.
    Never,
}

impl Sink<'_> {
    /// Asks for the next piece, and waits a moment when there is none.
    pub(super) fn idle_unless<T>(
        &mut self,
        mut next: impl FnMut() -> io::Result<Option<T>>,
    ) -> io::Result<Next<T>> {
        if let Some(item) = next()? {
            return Ok(Next::Some(item));
        }
        if self.idle()? {
            return Ok(Next::Later);
        }
        // It ended between the last look and now: look once more.
        Ok(next()?.map_or(Next::Never, Next::Some))
    }
}
