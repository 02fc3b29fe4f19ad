//! What `container run --trace FILE` writes, read back.

use std::path::Path;

use anyhow::{Context, Result};
use e2e::Installation;
use serde_json::Value;

/// One span; times in milliseconds since the first of the trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The program.
    pub process: String,
    /// What took the time.
    pub name: String,
    /// When it began.
    pub begin: f64,
    /// When it ended.
    pub end: f64,
}

/// Runs `image` once and returns the spans in the order of their beginnings.
pub fn of_a_start(it: &Installation, image: &str) -> Result<Vec<Span>> {
    let path = it.scratch().join("trace.json");
    it.container(["run", "--rm", "--trace"]).arg(&path).args([image, "true"]).run().ok();
    read(&path)
}

fn read(path: &Path) -> Result<Vec<Span>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    spans(&serde_json::from_str(&text).context("a trace")?)
}

fn spans(trace: &Value) -> Result<Vec<Span>> {
    let events = trace["traceEvents"].as_array().context("no traceEvents")?;
    let process = |pid: &Value| {
        let named = |event: &&Value| event["name"] == "process_name" && event["pid"] == *pid;
        let name = events.iter().find(named).and_then(|event| event["args"]["name"].as_str());
        name.unwrap_or_default().to_owned()
    };
    let mut spans = Vec::new();
    for event in events.iter().filter(|event| event["ph"] == "X") {
        let number = |field: &str| {
            event[field].as_f64().map(|us| us / 1e3).with_context(|| format!("no {field}"))
        };
        let begin = number("ts")?;
        spans.push(Span {
            process: process(&event["pid"]),
            name: event["name"].as_str().unwrap_or_default().to_owned(),
            begin,
            end: begin + number("dur")?,
        });
    }
    spans.sort_by(|a, b| a.begin.total_cmp(&b.begin).then(b.end.total_cmp(&a.end)));
    Ok(spans)
}

/// When the last of them ended.
pub fn end(spans: &[Span]) -> f64 {
    spans.iter().map(|span| span.end).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn spans_get_the_names_of_their_processes() {
        let trace = json!({"traceEvents": [
            {"name": "process_name", "ph": "M", "pid": 7, "args": {"name": "helper"}},
            {"name": "late", "ph": "X", "pid": 7, "tid": 0, "ts": 2000.0, "dur": 500.0},
            {"name": "early", "ph": "X", "pid": 8, "tid": 0, "ts": 0.0, "dur": 2400.0},
        ]});
        let spans = spans(&trace).unwrap();
        assert_eq!((&*spans[0].name, &*spans[0].process), ("early", ""));
        assert_eq!((&*spans[1].name, &*spans[1].process), ("late", "helper"));
        assert_eq!((spans[1].begin, end(&spans)), (2.0, 2.5));
    }
}
