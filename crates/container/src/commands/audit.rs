//! `system audit …`: read from the trail's files, so that it works while no service runs.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::time::{Duration, SystemTime};

use container_api::audit::observed::Observation;
use container_api::audit::{self, Entry, Event, Head, Reader, Record, Requester};
use container_api::config::Config;
use container_api::escape::escape;
use container_api::{ApiError, ErrorCode, paths};
use serde::Serialize;

use crate::args::Format;
use crate::args::audit::{Audit, List, Verify};
use crate::failure::{Failure, Outcome, print, print_line};
use crate::render::{self, table};
use crate::session::Session;

/// How often `follow` looks for more.
const PERIOD: Duration = Duration::from_millis(200);

/// Runs one of the commands.
pub async fn run(session: &Session, command: &Audit) -> Outcome {
    let folder = session.root().audit();
    match command {
        Audit::List(args) => list(&folder, args),
        Audit::Follow => follow(&folder).await,
        Audit::Head => print_line(&audit::verify(&folder, &[])?.head.to_string()).map(|()| 0),
        Audit::Verify(args) => verify(session, &folder, args),
    }
}

/// An operation with what came of it, or what a container was seen doing.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    decision: Record,
    /// Its result's record; none while it is under way, or when the service died.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Record>,
}

fn list(folder: &Path, args: &List) -> Outcome {
    let since = args.last.and_then(|last| SystemTime::now().checked_sub(last));
    let wanted = |record: &Record| {
        let about = |subject: &Option<String>| args.subject.is_none() || *subject == args.subject;
        since.is_none_or(|since| record.time.0 >= since)
            && match &record.event {
                Event::Decision { subject, .. } => about(subject),
                Event::Observed(seen) => {
                    args.subject.as_ref().is_none_or(|subject| *subject == seen.subject)
                }
                _ => false,
            }
    };
    let mut reader = Reader::open(folder)?;
    let (mut rows, mut results) = (VecDeque::new(), BTreeMap::new());
    let broken = loop {
        match reader.read() {
            Ok(Some(Entry { record, .. })) if wanted(&record) => {
                rows.push_back(Row { decision: record, result: None });
                if args.number.is_some_and(|most| rows.len() > most) {
                    rows.pop_front();
                }
            }
            Ok(Some(Entry { record, .. })) => {
                if let Event::Result { of, .. } = record.event {
                    let first = rows.front().map_or(u64::MAX, |row| row.decision.sequence);
                    if of >= first {
                        results.insert(of, record);
                    }
                }
            }
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    for row in &mut rows {
        row.result = results.remove(&row.decision.sequence);
    }
    let rows = Vec::from(rows);
    match args.format {
        Format::Table => print(&rendered(&rows))?,
        format => print(&render::data(format, "operations", &rows)?)?,
    }
    broken.map_or(Ok(0), |error| Err(error.into()))
}

fn rendered(rows: &[Row]) -> String {
    let cells: Vec<_> = rows
        .iter()
        .filter_map(|row| {
            let (operation, subject, requester, allowed, reason) = match &row.decision.event {
                Event::Decision { operation, subject, requester, allowed, reason, .. } => {
                    (operation, subject, requester, allowed, reason)
                }
                Event::Observed(seen) => return Some(observed(&row.decision, seen)),
                _ => return None,
            };
            let (result, took) = match row.result.as_ref().map(|record| &record.event) {
                Some(Event::Result { result, duration_us, .. }) => {
                    (result.clone(), format!("{:.1} ms", *duration_us as f64 / 1000.0))
                }
                _ if !allowed => (format!("refused: {}", shown(reason)), String::new()),
                _ => ("-".to_owned(), String::new()),
            };
            Some([
                row.decision.sequence.to_string(),
                render::moment(row.decision.time),
                requester.uid.to_string(),
                requester.pid.to_string(),
                program(requester),
                escape(operation).into_owned(),
                shown(subject),
                escape(&result).into_owned(),
                took,
            ])
        })
        .collect();
    let headings =
        ["NUMBER", "TIME", "UID", "PID", "PROGRAM", "OPERATION", "SUBJECT", "RESULT", "TOOK"];
    table(headings, &cells)
}

/// What a container was seen doing: nobody asked for it.
fn observed(record: &Record, seen: &Observation) -> [String; 9] {
    let counts: Vec<_> = seen.counts.iter().map(|(what, n)| format!("{n} {what}")).collect();
    let took = seen.until.0.duration_since(seen.since.0).unwrap_or_default();
    let mut result = counts.join(", ");
    if !seen.details.is_empty() {
        result += &format!(": {}", seen.details.join(" "));
    }
    [
        record.sequence.to_string(),
        render::moment(record.time),
        "-".into(),
        "-".into(),
        "-".into(),
        seen.what.to_string(),
        escape(&seen.subject).into_owned(),
        escape(&result).into_owned(),
        format!("{:.1} s", took.as_secs_f64()),
    ]
}

fn shown(text: &Option<String>) -> String {
    text.as_deref().map(|text| escape(text).into_owned()).unwrap_or_default()
}

/// A path that may be another process's is marked.
fn program(requester: &Requester) -> String {
    let mark = if requester.verified { "" } else { "?" };
    match &requester.executable {
        Some(path) => format!("{}{mark}", escape(path)),
        None => "-".into(),
    }
}

/// Prints what is written from now on.
async fn follow(folder: &Path) -> Outcome {
    let mut last = Head::genesis();
    let mut first = true;
    loop {
        // The newest files alone: from the one that holds what was read last.
        let files = audit::files(folder).map_err(|e| Failure::io(folder.display(), e))?;
        let from = files.iter().rposition(|(number, _)| *number <= last.sequence.max(1));
        let from = if first { files.len().saturating_sub(1) } else { from.unwrap_or(0) };
        let mut reader = Reader::of(files[from..].to_vec(), folder);
        while let Some(Entry { record, head, .. }) = reader.read()? {
            if !first && record.sequence > last.sequence {
                let line = serde_json::to_string(&record)
                    .map_err(|e| ApiError::new(ErrorCode::Internal, format!("a record: {e}")))?;
                print_line(&line)?;
            }
            if record.sequence > last.sequence {
                last = head;
            }
        }
        first = false;
        tokio::time::sleep(PERIOD).await;
    }
}

fn verify(session: &Session, folder: &Path, args: &Verify) -> Outcome {
    let mut heads: Vec<Head> =
        args.head.iter().map(|text| Head::parse(text)).collect::<Result<_, _>>()?;
    for file in &args.anchor {
        heads.extend(audit::anchored(file)?);
    }
    let config = paths::config_file(session.root()).map_err(ApiError::from)?;
    let config = Config::load(&config)?;
    if let Some(anchor) = &config.audit.anchor {
        heads.extend(audit::anchored(anchor)?);
    }
    let verified = audit::verify(folder, &heads)?;
    print_line(&format!(
        "intact: records {} to {}, {} of {} heads known from elsewhere found",
        verified.first,
        verified.head.sequence,
        verified.heads,
        heads.len()
    ))?;
    if verified.first > 1 {
        print_line(&format!(
            "records before {} were removed by rotation, which the trail tells",
            verified.first
        ))?;
    }
    if verified.unfinished > 0 {
        print_line(&format!("{} bytes at the end are no whole record", verified.unfinished))?;
    }
    print_line(&format!("head: {}", verified.head))?;
    Ok(0)
}
