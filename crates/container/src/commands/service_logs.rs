//! `system logs`: the JSON lines of the services and of the containers' helpers, and what the
//! system's journal has of them, in the order of their times.

mod journal;
mod otlp;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use container_api::escape::{escape, escape_bytes};
use container_api::paths::{AppRoot, container_files};
use container_api::types::Timestamp;
use serde_json::{Map, Value};

use crate::args::system::Logs;
use crate::failure::{Failure, Outcome, print};
use crate::predicate::{Field, Predicate};
use crate::session::Session;
use journal::Journal;
use otlp::Collector;

/// Longest line that is read whole; what is longer is cut there.
const MAX_LINE: u64 = 1 << 20;
/// How often `--follow` looks for more.
const PERIOD: Duration = Duration::from_millis(200);

/// Prints, or sends to a collector, what was logged in the last minutes, and with `--follow` what
/// comes.
pub async fn logs(session: &Session, args: &Logs) -> Outcome {
    let predicate = args.predicate.as_deref().map(Predicate::parse).transpose()?;
    let collector = args.otlp.as_deref().map(Collector::parse).transpose()?;
    let wanted = |line: &Line| {
        let level = args.debug || !matches!(line.level.as_str(), "DEBUG" | "TRACE");
        level && predicate.as_ref().is_none_or(|predicate| line.satisfies(predicate))
    };
    let root = session.root();
    let since = SystemTime::now().checked_sub(args.last).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut reader = Reader::default();
    let mut journal = Journal::open(root, since, args.follow);
    loop {
        let mut lines = Vec::new();
        if let Some(journal) = &mut journal {
            journal.take(&mut lines).await;
        }
        for (path, service, container) in
            files(root).map_err(|e| Failure::io(root.path().display(), e))?
        {
            reader
                .read(&path, &service, &container, &mut lines)
                .map_err(|e| Failure::io(path.display(), e))?;
        }
        lines.retain(|line| line.at.is_none_or(|at| at.0 >= since) && wanted(line));
        // Stable: lines without a time stay behind those of the same file.
        lines.sort_by_key(|line| line.order);
        match &collector {
            Some(collector) => collector.send(&lines).await?,
            None => {
                let text: String = lines.iter().map(|line| line.text.as_str()).collect();
                print(&text)?;
            }
        }
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
    process: String,
    subsystem: String,
    category: String,
    level: String,
    container: String,
    /// The message and the fields.
    message: String,
    /// As it is shown.
    text: String,
}

impl Line {
    fn satisfies(&self, predicate: &Predicate) -> bool {
        predicate.holds(&|field| match field {
            Field::Process => &self.process,
            Field::Subsystem => &self.subsystem,
            Field::Category => &self.category,
            Field::Level => &self.level,
            Field::Container => &self.container,
            Field::Message => &self.message,
        })
    }
}

/// How far each file was read, by inode: a rotated file is the same one under another name.
#[derive(Debug, Default)]
struct Reader(BTreeMap<u64, u64>);

impl Reader {
    /// What a file has gained. One that has just gone has gained nothing.
    fn read(
        &mut self,
        path: &Path,
        service: &str,
        container: &str,
        lines: &mut Vec<Line>,
    ) -> std::io::Result<()> {
        let mut file = match File::open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let position = self.0.entry(file.metadata()?.ino()).or_default();
        file.seek(SeekFrom::Start(*position))?;
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
            lines.extend(parse(service, container, line, &mut order));
        }
    }
}

/// The log files with their services and, of helpers, their containers; older ones of the same
/// service first.
fn files(root: &AppRoot) -> std::io::Result<Vec<(PathBuf, String, String)>> {
    let mut found = Vec::new();
    let mut paths = entries(&root.logs())?;
    paths.retain(|path| path.is_file() && path.to_string_lossy().contains(".log"));
    paths.sort_by(|a, b| b.cmp(a));
    for path in paths {
        let service = service(&path);
        found.push((path, service, String::new()));
    }
    for folder in entries(&root.containers())? {
        let id = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // What begins with a dot is being made or removed.
        if !id.starts_with('.') {
            found.push((folder.join(container_files::RUNTIME_LOG), "runtime-linux".into(), id));
        }
    }
    Ok(found)
}

fn entries(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.map(|e| e.path())).collect(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn service(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    escape(name.split(".log").next().unwrap_or_default()).into_owned()
}

fn parse(service: &str, container: &str, line: &[u8], order: &mut SystemTime) -> Option<Line> {
    if line.trim_ascii().is_empty() {
        return None;
    }
    let mut parsed = Line {
        at: None,
        order: *order,
        process: format!("container-{service}"),
        subsystem: String::new(),
        category: String::new(),
        level: String::new(),
        container: container.to_owned(),
        message: escape_bytes(line),
        text: format!("{service}: {}\n", escape_bytes(line)),
    };
    let Ok(Value::Object(mut record)) = serde_json::from_slice(line) else {
        // Written by a library or a loader that does not know our form.
        return Some(parsed);
    };
    let mut word = |name: &str| match record.remove(name) {
        Some(Value::String(text)) => text,
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let (time, level, target) = (word("timestamp"), word("level"), word("target"));
    parsed.at = time.parse().ok();
    if let Some(at) = parsed.at {
        *order = at.0;
        parsed.order = at.0;
    }
    let (subsystem, category) = target.split_once("::").unwrap_or((&target, ""));
    (parsed.subsystem, parsed.category) = (subsystem.to_owned(), category.to_owned());
    if let Some(Value::Object(fields)) = record.remove("fields") {
        record.extend(fields);
    }
    // The apiserver's word for a request's container is its subject.
    if let Some(Value::String(about)) = record.get("container").or_else(|| record.get("subject")) {
        parsed.container.clone_from(about);
    }
    let message = record.remove("message");
    let mut message = message.as_ref().map(shown).unwrap_or_default();
    message += &fields(&record);
    let about = match container {
        "" => String::new(),
        id => format!("[{id}]"),
    };
    let text = format!("{time} {level:5} {service}{about}: {}", message.trim_start());
    parsed.text = format!("{}\n", escape(&text));
    (parsed.level, parsed.message) = (level, message);
    Some(parsed)
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

    fn read(reader: &mut Reader, root: &AppRoot) -> Vec<Line> {
        let mut lines = Vec::new();
        for (path, service, container) in files(root).unwrap() {
            reader.read(&path, &service, &container, &mut lines).unwrap();
        }
        lines
    }

    #[test]
    fn lines_of_all_services_are_read_once_and_escaped() {
        let folder = tempfile::tempdir().unwrap();
        let root = AppRoot::resolve(Some(folder.path())).unwrap();
        let mut reader = Reader::default();
        assert!(read(&mut reader, &root).is_empty());
        std::fs::create_dir_all(root.logs()).unwrap();
        std::fs::create_dir_all(root.container("web")).unwrap();
        std::fs::create_dir_all(root.container(".new-a")).unwrap();
        let path = root.logs().join("apiserver.log");
        let line = r#"{"timestamp":"2026-01-02T03:04:05.5Z","level":"INFO","message":"a\u001bb","id":"x"}"#;
        std::fs::write(&path, format!("{line}\nnot json\n{{\"half")).unwrap();
        let helper = r#"{"timestamp":"2026-01-02T03:04:05Z","level":"WARN","fields":{"message":"up"},"target":"a::b"}"#;
        std::fs::write(root.container("web").join("runtime.log"), format!("{helper}\n")).unwrap();
        let lines = read(&mut reader, &root);
        let text: Vec<_> = lines.iter().map(|l| l.text.as_str()).collect();
        let first = "2026-01-02T03:04:05.5Z INFO  apiserver: a\\u{1b}b id=x\n";
        let last = "2026-01-02T03:04:05Z WARN  runtime-linux[web]: up\n";
        assert_eq!(text, [first, "apiserver: not json\n", last]);
        let about = "process == 'container-runtime-linux' AND container == web \
                     AND level == warn AND subsystem == a AND category == b";
        let predicate = Predicate::parse(about).unwrap();
        let wanted: Vec<_> = lines.iter().map(|line| line.satisfies(&predicate)).collect();
        assert_eq!(wanted, [false, false, true]);
        std::fs::rename(&path, root.logs().join("apiserver.log.1")).unwrap();
        File::create(&path).unwrap().write_all(b"more\n").unwrap();
        assert_eq!(read(&mut reader, &root).len(), 1);
    }
}
