//! The program's output as it is kept in `output.log`: one JSON object a line, as Docker's
//! `json-file` driver writes it.
//!
//! ```text
//! {"log":"hello\n","stream":"stdout","time":"2026-01-02T03:04:05.000000006Z"}
//! {"base64":"/wD+","stream":"stderr","time":"…"}
//! ```
//!
//! An entry is a line of text, or a part of one: whatever the program wrote at once is an entry at
//! once, and only a `\n` at an entry's end ends the line. Bytes that are not UTF-8 stand in
//! `base64` and may hold several lines. The concatenated entries of a stream are exactly what the
//! program wrote to it.
//!
//! `output.log` is the newest file, `output.log.1` the one before, and so on. [`LogWriter`] is the
//! helper's, [`LogReader`] everybody else's.

mod reader;
mod writer;

pub use reader::LogReader;
pub use writer::{LogLimits, LogWriter};

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::types::Timestamp;

/// Most bytes of output in one entry.
pub const MAX_ENTRY: usize = 32 << 10;
/// Longest line of a log file that a reader takes, in bytes: every byte of an entry may be written
/// as `\u0000`, with room for the rest.
const MAX_LINE: usize = MAX_ENTRY * 6 + 1024;
/// Most files that a reader looks for.
const MAX_FILES: u32 = 1000;

/// Which of the program's streams. A terminal has only `stdout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// The stream that it was written to.
    pub stream: OutputStream,
    /// When it arrived on the host.
    pub time: Timestamp,
    /// The bytes, exactly.
    pub bytes: Vec<u8>,
}

/// The file `generation` rotations ago.
fn rotated(path: &Path, generation: u32) -> PathBuf {
    if generation == 0 {
        return path.to_owned();
    }
    let mut name = OsString::from(path);
    name.push(format!(".{generation}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(reader: &mut LogReader) -> Vec<LogEntry> {
        std::iter::from_fn(|| reader.next_entry().unwrap()).collect()
    }

    fn joined(entries: &[LogEntry], stream: OutputStream) -> Vec<u8> {
        entries.iter().filter(|e| e.stream == stream).flat_map(|e| e.bytes.clone()).collect()
    }

    const PLENTY: LogLimits = LogLimits { max_size: 64 << 20, max_files: 3 };

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_byte_survives(
            pieces in proptest::collection::vec(
                (any::<bool>(), prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..200),
                    "[a-zü€😀\n]{0,60}".prop_map(String::into_bytes),
                ], 1usize..40),
                0..30,
            )
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("output.log");
            let mut writer = LogWriter::open(&path, PLENTY).unwrap();
            let mut wanted = [Vec::new(), Vec::new()];
            for (err, bytes, step) in &pieces {
                let stream = if *err { OutputStream::Stderr } else { OutputStream::Stdout };
                for chunk in bytes.chunks(*step) {
                    writer.write(stream, chunk, Timestamp::now()).unwrap();
                    wanted[*err as usize].extend_from_slice(chunk);
                }
            }
            writer.finish(Timestamp::now()).unwrap();
            let entries = read_all(&mut LogReader::open(&path).unwrap());
            prop_assert_eq!(joined(&entries, OutputStream::Stdout), &wanted[0][..]);
            prop_assert_eq!(joined(&entries, OutputStream::Stderr), &wanted[1][..]);
        }

        #[test]
        fn garbage_files_never_panic(bytes: Vec<u8>, lines in 0u64..5) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("output.log");
            std::fs::write(&path, &bytes).unwrap();
            read_all(&mut LogReader::open(&path).unwrap());
            read_all(&mut LogReader::tail(&path, lines).unwrap());
        }
    }

    fn tail(path: &Path, lines: u64) -> String {
        let entries = read_all(&mut LogReader::tail(path, lines).unwrap());
        String::from_utf8_lossy(&entries.iter().flat_map(|e| e.bytes.clone()).collect::<Vec<_>>())
            .into_owned()
    }

    #[test]
    fn tail_counts_lines_over_files_and_parts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let limits = LogLimits { max_size: 300, max_files: 10 };
        let mut writer = LogWriter::open(&path, limits).unwrap();
        for i in 0..20 {
            writer.write(OutputStream::Stdout, b"a", Timestamp::now()).unwrap();
            writer
                .write(OutputStream::Stdout, format!("{i}\n").as_bytes(), Timestamp::now())
                .unwrap();
        }
        assert!(rotated(&path, 5).exists());
        assert_eq!(tail(&path, 0), "");
        assert_eq!(tail(&path, 1), "a19\n");
        assert_eq!(tail(&path, 3), "a17\na18\na19\n");
        assert!(tail(&path, 1000).ends_with("a18\na19\n"));
        writer.write(OutputStream::Stdout, b"open", Timestamp::now()).unwrap();
        assert_eq!(tail(&path, 2), "a19\nopen");
        writer.write(OutputStream::Stdout, b"\xff\nx\ny\n", Timestamp::now()).unwrap();
        assert_eq!(tail(&path, 2), "x\ny\n");
    }

    #[test]
    fn a_reader_follows_over_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let limits = LogLimits { max_size: 400, max_files: 4 };
        let mut writer = LogWriter::open(&path, limits).unwrap();
        let mut reader = LogReader::open(&path).unwrap();
        let mut seen = Vec::new();
        for i in 0..50u8 {
            writer.write(OutputStream::Stdout, &[b'0' + i, b'\n'], Timestamp::now()).unwrap();
            if i % 5 == 0 {
                seen.extend(read_all(&mut reader));
            }
        }
        seen.extend(read_all(&mut reader));
        let wanted: Vec<u8> = (0..50u8).flat_map(|i| [b'0' + i, b'\n']).collect();
        assert_eq!(joined(&seen, OutputStream::Stdout), wanted);
        assert!(!rotated(&path, 4).exists(), "four files are kept");
    }

    #[test]
    fn a_torn_line_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        std::fs::write(&path, "{\"log\":\"half").unwrap();
        let mut writer = LogWriter::open(&path, PLENTY).unwrap();
        writer.write(OutputStream::Stderr, b"whole\n", Timestamp::now()).unwrap();
        let entries = read_all(&mut LogReader::open(&path).unwrap());
        assert_eq!(joined(&entries, OutputStream::Stderr), b"whole\n");
    }

    #[test]
    fn a_missing_log_is_empty_until_it_appears() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let mut reader = LogReader::tail(&path, 3).unwrap();
        assert_eq!(reader.next_entry().unwrap(), None);
        let mut writer = LogWriter::open(&path, PLENTY).unwrap();
        writer.write(OutputStream::Stdout, b"now\n", Timestamp::now()).unwrap();
        assert_eq!(reader.next_entry().unwrap().unwrap().bytes, b"now\n");
    }
}
