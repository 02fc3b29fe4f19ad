//! What the system's journal has of the service, where systemd runs it: what it and its children
//! wrote to their standard error, what systemd says of its unit, heads of the audit trail.
//!
//! It is read by `journalctl`: the journal's files are its own business, compressed and of a
//! format that grows, and who may read which is decided there.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use container_api::escape::{escape, escape_bytes};
use container_api::paths::AppRoot;
use container_api::types::Timestamp;
use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;

use super::{Line, MAX_LINE, parse};
use crate::failure::complain;

/// There where systemd is PID 1, as its `sd_booted` has it.
const BOOTED: &str = "/run/systemd/system";
const PROGRAM: &str = "journalctl";
/// What the units are called that are installed, the system's and each user's.
const UNIT: &str = "container.service";
/// What the service calls itself where it anchors heads of the trail.
const AUDIT: &str = "container-audit";
/// Fields that are looked at.
const FIELDS: &str = "MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,_COMM,_EXE";
/// Entries that wait to be shown.
const WAITING: usize = 1024;
/// Most of what `journalctl` says when it fails, in bytes.
const MAX_REASON: u64 = 4096;

/// Entries of the journal, as they come.
#[derive(Debug)]
pub(super) struct Journal {
    lines: mpsc::Receiver<Line>,
    follow: bool,
}

impl Journal {
    /// That of this host, when it has one.
    pub(super) fn open(root: &AppRoot, since: SystemTime, follow: bool) -> Option<Journal> {
        let uid = nix::unistd::geteuid().as_raw();
        let by_default = AppRoot::resolve(None).is_ok_and(|default| default.path() == root.path());
        let arguments = arguments(uid, by_default, since, follow);
        Path::new(BOOTED)
            .exists()
            .then(|| Journal::read_by(PROGRAM.as_ref(), &arguments, root, follow))
    }

    fn read_by(program: &Path, arguments: &[String], root: &AppRoot, follow: bool) -> Journal {
        let (sender, lines) = mpsc::channel(WAITING);
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let head_of = format!(" of {}", root.path().display());
        tokio::spawn(async move {
            let read = match command.spawn() {
                Ok(child) => read(child, &head_of, sender).await,
                Err(error) => Err(error.to_string()),
            };
            if let Err(reason) = read {
                complain(&format!("the journal is not shown: {PROGRAM}: {}", escape(&reason)));
            }
        });
        Journal { lines, follow }
    }

    /// What has come; without `--follow` everything.
    pub(super) async fn take(&mut self, lines: &mut Vec<Line>) {
        if self.follow {
            lines.extend(std::iter::from_fn(|| self.lines.try_recv().ok()));
        } else {
            while let Some(line) = self.lines.recv().await {
                lines.push(line);
            }
        }
    }
}

/// What to ask for: entries of the unit where the app root is the one that it serves, and heads.
fn arguments(uid: u32, by_default: bool, since: SystemTime, follow: bool) -> Vec<String> {
    let seconds = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut words: Vec<String> =
        ["--quiet", "--no-pager", "--output=json"].map(String::from).into();
    words.push(format!("--output-fields={FIELDS}"));
    words.push(format!("--since=@{seconds}"));
    if follow {
        words.extend(["--follow", "--no-tail"].map(String::from));
    }
    let (of_unit, about_unit) = match uid {
        0 => ("_SYSTEMD_UNIT", "UNIT"),
        _ => ("_SYSTEMD_USER_UNIT", "USER_UNIT"),
    };
    // Entries match all fields up to the next plus sign.
    let user = format!("_UID={uid}");
    if by_default {
        words.extend([user.clone(), format!("{of_unit}={UNIT}"), "+".into()]);
        words.extend([user.clone(), format!("{about_unit}={UNIT}"), "+".into()]);
    }
    words.extend([user, format!("SYSLOG_IDENTIFIER={AUDIT}")]);
    words
}

/// Reads to the end, which comes when nobody wants more.
async fn read(mut child: Child, head_of: &str, lines: mpsc::Sender<Line>) -> Result<(), String> {
    let (Some(output), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("no output".into());
    };
    let mut reason = String::new();
    let mut errors = errors.take(MAX_REASON);
    let (read, _) =
        tokio::join!(entries(output, head_of, &lines), errors.read_to_string(&mut reason));
    read.map_err(|error| error.to_string())?;
    if lines.is_closed() {
        return Ok(());
    }
    let status = child.wait().await.map_err(|error| error.to_string())?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{status}: {}", reason.trim())),
    }
}

async fn entries(
    output: ChildStdout,
    head_of: &str,
    lines: &mpsc::Sender<Line>,
) -> std::io::Result<()> {
    let mut output = BufReader::new(output);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        if (&mut output).take(MAX_LINE).read_until(b'\n', &mut bytes).await? == 0 {
            return Ok(());
        }
        if let Some(line) = entry(&bytes, head_of)
            && lines.send(line).await.is_err()
        {
            return Ok(());
        }
    }
}

/// An entry as a line; `None` for what is none, and for heads of other trails.
fn entry(json: &[u8], head_of: &str) -> Option<Line> {
    let Ok(Value::Object(record)) = serde_json::from_slice::<Value>(json) else {
        return None;
    };
    let word = |name: &str| record.get(name).and_then(Value::as_str).unwrap_or_default();
    let message = message(&record)?;
    let name = word("SYSLOG_IDENTIFIER");
    if name == AUDIT && !message.ends_with(head_of) {
        return None;
    }
    let micros: u64 = word("__REALTIME_TIMESTAMP").parse().ok()?;
    let at = Timestamp(SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(micros))?);
    let program = Path::new(word("_EXE")).file_name().map(|name| name.to_string_lossy());
    let process = match program {
        Some(name) => name.into_owned(),
        None => word("_COMM").to_owned(),
    };
    // What the services write is in their own form, whichever way it goes.
    if message.starts_with('{') {
        let service = process.strip_prefix("container-").unwrap_or(&process);
        let mut order = at.0;
        let line = parse(service, "", message.as_bytes(), &mut order)?;
        if line.at.is_some() {
            return Some(line);
        }
    }
    let level = match word("PRIORITY").parse().unwrap_or(6_u8) {
        0..=3 => "ERROR",
        4 => "WARN",
        5 | 6 => "INFO",
        _ => "DEBUG",
    };
    let time = humantime::format_rfc3339_micros(at.0);
    let text = format!("{time} {level:5} journal[{name}]: {message}");
    Some(Line {
        at: Some(at),
        order: at.0,
        process,
        subsystem: "journal".into(),
        category: name.to_owned(),
        level: level.into(),
        container: String::new(),
        text: format!("{}\n", escape(&text)),
        message,
    })
}

/// A message; one that is no text comes as its bytes, one that is too long as nothing.
fn message(record: &Map<String, Value>) -> Option<String> {
    match record.get("MESSAGE")? {
        Value::String(text) => Some(text.clone()),
        Value::Array(bytes) => {
            let bytes: Option<Vec<u8>> =
                bytes.iter().map(|byte| u8::try_from(byte.as_u64()?).ok()).collect();
            Some(escape_bytes(&bytes?).to_string())
        }
        Value::Null => Some("(a message that is too long)".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::predicate::Predicate;

    const ENTRIES: &str = r#"
{"__REALTIME_TIMESTAMP":"1767323045500000","PRIORITY":"6","SYSLOG_IDENTIFIER":"systemd","_COMM":"systemd","_EXE":"/usr/lib/systemd/systemd","MESSAGE":"Started container.service"}
{"__REALTIME_TIMESTAMP":"1767323046000000","PRIORITY":"3","SYSLOG_IDENTIFIER":"container","_COMM":"container-apise","_EXE":"/usr/bin/container-apiserver","MESSAGE":[97,27,98]}
{"__REALTIME_TIMESTAMP":"1767323047000000","PRIORITY":"6","SYSLOG_IDENTIFIER":"container","_EXE":"/usr/bin/container-images","MESSAGE":"{\"timestamp\":\"2026-01-02T03:04:08Z\",\"level\":\"WARN\",\"message\":\"up\",\"target\":\"a::b\"}"}
{"__REALTIME_TIMESTAMP":"1767323048000000","SYSLOG_IDENTIFIER":"container-audit","_COMM":"container-apise","MESSAGE":"head 7:ab of /mine"}
{"__REALTIME_TIMESTAMP":"1767323049000000","SYSLOG_IDENTIFIER":"container-audit","MESSAGE":"head 8:cd of /other"}
{"__REALTIME_TIMESTAMP":"x","MESSAGE":"no time"}
no entry
"#;

    async fn read_all(script: &str, follow: bool) -> Vec<Line> {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("journalctl");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let root = AppRoot::resolve(Some(Path::new("/mine"))).unwrap();
        let mut journal = Journal::read_by(&program, &[], &root, follow);
        let mut lines = Vec::new();
        while lines.len() < 4 {
            journal.take(&mut lines).await;
            if !follow {
                break;
            }
            tokio::task::yield_now().await;
        }
        lines
    }

    #[tokio::test]
    async fn entries_become_lines_and_other_trails_heads_do_not() {
        for (script, follow) in [("", false), ("exec sleep 1000", true)] {
            let lines = read_all(&format!("cat <<'END'{ENTRIES}END\n{script}"), follow).await;
            let text: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
            let expected = [
                "2026-01-02T03:04:05.500000Z INFO  journal[systemd]: Started container.service\n",
                "2026-01-02T03:04:06.000000Z ERROR journal[container]: a\\u{1b}b\n",
                "2026-01-02T03:04:08Z WARN  images: up\n",
                "2026-01-02T03:04:08.000000Z INFO  journal[container-audit]: head 7:ab of /mine\n",
            ];
            assert_eq!(text, expected);
            let about = "process == 'container-apiserver' AND subsystem == journal AND level == error \
                         OR process == 'container-images' AND category == b \
                         OR category == 'container-audit' AND message BEGINSWITH 'head 7'";
            let predicate = Predicate::parse(about).unwrap();
            let wanted: Vec<_> = lines.iter().map(|line| line.satisfies(&predicate)).collect();
            assert_eq!(wanted, [false, true, true, true]);
        }
    }

    #[tokio::test]
    async fn a_journal_that_can_not_be_read_has_no_lines() {
        assert!(read_all("echo no permission >&2; exit 1", false).await.is_empty());
    }

    #[test]
    fn only_the_default_root_has_a_unit() {
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(77);
        let users = arguments(1000, true, since, true).join(" ");
        assert!(users.contains("--since=@77 --follow --no-tail _UID=1000 "), "{users}");
        let matches = "_UID=1000 _SYSTEMD_USER_UNIT=container.service + \
                       _UID=1000 USER_UNIT=container.service + \
                       _UID=1000 SYSLOG_IDENTIFIER=container-audit";
        assert!(users.ends_with(matches), "{users}");
        assert!(arguments(0, true, since, false).join(" ").contains(" _SYSTEMD_UNIT=container."));
        let other = arguments(0, false, since, false).join(" ");
        assert!(other.ends_with("--since=@77 _UID=0 SYSLOG_IDENTIFIER=container-audit"), "{other}");
    }
}
