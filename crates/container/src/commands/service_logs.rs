//! `system logs`: the services' JSON lines, in the order of their times.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use container_api::escape::{escape, escape_bytes};
use container_api::types::Timestamp;
use serde_json::{Map, Value};

use crate::args::system::Logs;
use crate::failure::{Failure, Outcome, print};
use crate::session::Session;

/// Longest line that is read whole; what is longer is cut there.
const MAX_LINE: u64 = 1 << 20;
/// How often `--follow` looks for more.
const PERIOD: Duration = Duration::from_millis(200);

/// Prints what was logged in the last minutes, and with `--follow` what comes.
pub async fn logs(session: &Session, args: &Logs) -> Outcome {
    let folder = session.root().logs();
    let since = SystemTime::now().checked_sub(args.last).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut reader = Reader::default();
    loop {
        let mut lines = reader.more(&folder).map_err(|e| Failure::io(folder.display(), e))?;
        lines.retain(|line| line.at.is_none_or(|at| at.0 >= since));
        // Stable: lines without a time stay behind those of the same file.
        lines.sort_by_key(|line| line.order);
        let text: String = lines.iter().map(|line| line.text.as_str()).collect();
        print(&text)?;
        if !args.follow {
            return Ok(0);
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// One line of one service.
#[derive(Debug)]
struct Line {
    at: Option<Timestamp>,
    order: SystemTime,
    text: String,
}

/// How far each file was read, by inode: a rotated file is the same one under another name.
#[derive(Debug, Default)]
struct Reader(BTreeMap<u64, u64>);

impl Reader {
    /// What all files have gained. A folder that is not there has none.
    fn more(&mut self, folder: &Path) -> std::io::Result<Vec<Line>> {
        let mut lines = Vec::new();
        for path in files(folder)? {
            self.read(&path, &mut lines)?;
        }
        Ok(lines)
    }

    fn read(&mut self, path: &Path, lines: &mut Vec<Line>) -> std::io::Result<()> {
        let mut file = File::open(path)?;
        let position = self.0.entry(file.metadata()?.ino()).or_default();
        file.seek(SeekFrom::Start(*position))?;
        let service = service(path);
        let mut reader = BufReader::new(file);
        let mut order = SystemTime::UNIX_EPOCH;
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let n = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes)? as u64;
            // An unfinished line is read again when it is whole.
            if n == 0 || (bytes.last() != Some(&b'\n') && n < MAX_LINE) {
                return Ok(());
            }
            *position += n;
            let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
            if let Some(line) = parse(&service, line, &mut order) {
                lines.push(line);
            }
        }
    }
}

/// The log files, older ones of the same service first.
fn files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.map(|e| e.path())).collect::<std::io::Result<_>>()?;
    paths.retain(|path| path.is_file() && path.to_string_lossy().contains(".log"));
    paths.sort_by(|a, b| b.cmp(a));
    Ok(paths)
}

fn service(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    escape(name.split(".log").next().unwrap_or_default()).into_owned()
}

fn parse(service: &str, line: &[u8], order: &mut SystemTime) -> Option<Line> {
    if line.trim_ascii().is_empty() {
        return None;
    }
    let Ok(Value::Object(mut record)) = serde_json::from_slice(line) else {
        // Written by a library or a loader that does not know our form.
        let text = format!("{service}: {}\n", escape_bytes(line));
        return Some(Line { at: None, order: *order, text });
    };
    let mut word = |name: &str| match record.remove(name) {
        Some(Value::String(text)) => text,
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let (time, level) = (word("timestamp"), word("level"));
    let at: Option<Timestamp> = time.parse().ok();
    if let Some(at) = at {
        *order = at.0;
    }
    record.remove("target");
    if let Some(Value::Object(fields)) = record.remove("fields") {
        record.extend(fields);
    }
    let message = record.remove("message");
    let message = message.as_ref().map(shown).unwrap_or_default();
    let mut text = format!("{time} {level:5} {service}:");
    if !message.is_empty() {
        text += &format!(" {message}");
    }
    text += &fields(&record);
    Some(Line { at, order: *order, text: format!("{}\n", escape(&text)) })
}

fn fields(record: &Map<String, Value>) -> String {
    record.iter().map(|(name, value)| format!(" {name}={}", shown(value))).collect()
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn lines_of_all_services_are_read_once_and_escaped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("apiserver.log");
        let line = r#"{"timestamp":"2026-01-02T03:04:05.5Z","level":"INFO","message":"a\u001bb","id":"x"}"#;
        std::fs::write(&path, format!("{line}\nnot json\n{{\"half")).unwrap();
        let mut reader = Reader::default();
        let lines = reader.more(folder.path()).unwrap();
        let text: Vec<_> = lines.iter().map(|l| l.text.as_str()).collect();
        let first = "2026-01-02T03:04:05.5Z INFO  apiserver: a\\u{1b}b id=x\n";
        assert_eq!(text, [first, "apiserver: not json\n"]);
        std::fs::rename(&path, folder.path().join("apiserver.log.1")).unwrap();
        File::create(&path).unwrap().write_all(b"more\n").unwrap();
        let lines = reader.more(folder.path()).unwrap();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(reader.more(Path::new("/nonexistent")).unwrap().is_empty());
    }
}
