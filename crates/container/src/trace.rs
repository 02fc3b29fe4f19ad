//! `--trace`: the spans of all processes that take part in a start, as the trace-event JSON that
//! Chrome's `about:tracing` and Perfetto read.
//!
//! Every process appends its spans to one file without a name; its descriptor goes with the
//! request. The document is written beside the file asked for and takes its place when it is
//! whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use container_api::trace::{Span, Trace, now_ns};
use container_api::{ApiError, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde_json::{Value, json};

use crate::failure::{OURS, Outcome, complain};

/// Most bytes of spans that are read: a helper that went mad is no reason to do so too.
const MAX_SPANS: u64 = 16 << 20;

/// A trace that is being taken.
#[derive(Debug)]
pub struct Tracer {
    spans: File,
    own: Trace,
    path: PathBuf,
    document: tempfile::NamedTempFile,
}

impl Tracer {
    /// Finds out whether `path` can be written, before anything is started.
    ///
    /// # Errors
    /// Those of its folder, and when it is there and no plain file.
    pub fn prepare(path: &Path, begun_ns: u64) -> Result<Tracer> {
        let failed =
            |e: io::Error| ApiError::from(e).context(format!("--trace {}", path.display()));
        let path = match path.canonicalize() {
            Ok(found) if !found.is_file() => {
                return Err(failed(io::Error::other("this is there and no plain file")));
            }
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(failed(error)),
        };
        let document = crate::commands::file_beside(&path).map_err(failed)?;
        let spans = appending().map_err(failed)?;
        let own = Trace::new(OwnedFd::from(spans.try_clone().map_err(failed)?), "container");
        own.span("parse the command line", begun_ns);
        Ok(Tracer { spans, own, path, document })
    }

    /// The file for the spans of others.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.spans.as_fd()
    }

    /// Writes the document. A failure is said, and makes a success a failure of ours.
    pub fn finish(self, outcome: Outcome) -> Outcome {
        let path = self.path.clone();
        match self.write() {
            Ok(()) => outcome,
            Err(error) => {
                complain(&format!("--trace {}: {error}", path.display()));
                match outcome {
                    Ok(0) => Ok(OURS),
                    other => other,
                }
            }
        }
    }

    fn write(mut self) -> io::Result<()> {
        let len = self.spans.metadata()?.len().min(MAX_SPANS);
        let mut lines = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        self.spans.read_exact_at(&mut lines, 0)?;
        let spans =
            lines.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        let document = document(spans.collect());
        self.document.write_all(format!("{document}\n").as_bytes())?;
        self.document.persist(self.path).map(drop).map_err(|e| e.error)
    }
}

/// Times one step when there is a tracer.
pub async fn step<T>(tracer: Option<&Tracer>, name: &str, work: impl Future<Output = T>) -> T {
    let begin_ns = now_ns();
    let done = work.await;
    if let Some(tracer) = tracer {
        tracer.own.span(name, begin_ns);
    }
    done
}

/// A file without a name. All descriptors of it append, those of other processes too.
fn appending() -> io::Result<File> {
    let file = tempfile::tempfile()?;
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
    fcntl(&file, FcntlArg::F_SETFL(flags | OFlag::O_APPEND))?;
    Ok(file)
}

/// The events, with times in microseconds since the first span. Spans of one process that overlap
/// without one holding the other stand in lanes of their own.
fn document(mut spans: Vec<Span>) -> Value {
    spans.retain(|span| span.begin_ns <= span.end_ns);
    spans.sort_by_key(|span| (span.begin_ns, std::cmp::Reverse(span.end_ns)));
    let zero = spans.first().map_or(0, |span| span.begin_ns);
    let mut processes = Processes::default();
    let events: Vec<Value> = spans
        .iter()
        .map(|span| {
            let (pid, lane) = processes.place(span);
            json!({
                "name": span.name,
                "cat": "start",
                "ph": "X",
                "ts": micros(span.begin_ns - zero),
                "dur": micros(span.end_ns - span.begin_ns),
                "pid": pid,
                "tid": lane,
            })
        })
        .collect();
    let mut all = processes.names();
    all.extend(events);
    json!({"displayTimeUnit": "ms", "traceEvents": all})
}

fn micros(ns: u64) -> f64 {
    ns as f64 / 1e3
}

/// Which processes there are, and the ends of the spans that are open in each of their lanes.
#[derive(Default)]
struct Processes {
    pids: BTreeMap<(String, u32), u32>,
    lanes: BTreeMap<u32, Vec<Vec<u64>>>,
    order: Vec<(u32, String)>,
}

impl Processes {
    /// The process's number, which is another one when two names have the same, and its lane.
    fn place(&mut self, span: &Span) -> (u32, usize) {
        let key = (span.process.clone(), span.pid);
        let taken: BTreeSet<u32> = self.pids.values().copied().collect();
        let free = || (span.pid..=u32::MAX).find(|pid| !taken.contains(pid)).unwrap_or(span.pid);
        let pid = *self.pids.entry(key).or_insert_with(free);
        if !taken.contains(&pid) {
            self.order.push((pid, span.process.clone()));
        }
        let lanes = self.lanes.entry(pid).or_default();
        for lane in lanes.iter_mut() {
            while lane.last().is_some_and(|end| *end <= span.begin_ns) {
                lane.pop();
            }
        }
        let fits = |lane: &Vec<u64>| lane.last().is_none_or(|end| span.end_ns <= *end);
        let at = lanes.iter().position(fits).unwrap_or_else(|| {
            lanes.push(Vec::new());
            lanes.len() - 1
        });
        lanes[at].push(span.end_ns);
        (pid, at)
    }

    /// The metadata that gives processes their names and keeps them in the order of their work.
    fn names(&self) -> Vec<Value> {
        let mut events = Vec::new();
        for (index, (pid, name)) in self.order.iter().enumerate() {
            let about = |what: &str, tid: usize, args: Value| json!({"name": what, "ph": "M", "pid": pid, "tid": tid, "args": args});
            events.push(about("process_name", 0, json!({"name": name})));
            events.push(about("process_sort_index", 0, json!({"sort_index": index})));
            for lane in 0..self.lanes.get(pid).map_or(0, Vec::len) {
                events.push(about("thread_name", lane, json!({"name": name})));
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(process: &str, pid: u32, name: &str, begin_ns: u64, end_ns: u64) -> Span {
        Span { process: process.into(), pid, name: name.into(), begin_ns, end_ns }
    }

    #[test]
    fn spans_nest_or_get_lanes_of_their_own() {
        let document = document(vec![
            span("b", 7, "guest", 1_500, 9_000),
            span("a", 7, "all", 1_000, 10_000),
            span("a", 7, "first", 2_000, 5_000),
            span("a", 7, "across", 4_000, 6_000),
            span("a", 7, "after", 5_000, 6_500),
            span("a", 7, "wrong", 9, 3),
        ]);
        let events = document["traceEvents"].as_array().unwrap();
        let find = |name: &str| events.iter().find(|e| e["name"] == name).unwrap();
        let place = |name: &str| (find(name)["pid"].as_u64().unwrap(), find(name)["tid"].as_u64());
        assert_eq!(place("all"), (7, Some(0)));
        assert_eq!(place("first"), (7, Some(0)));
        assert_eq!(place("across"), (7, Some(1)));
        assert_eq!(place("after"), (7, Some(0)));
        assert_eq!(place("guest"), (8, Some(0)));
        assert_eq!(find("first")["ts"], 1.0);
        assert_eq!(find("first")["dur"], 3.0);
        let names: Vec<_> = events.iter().filter(|e| e["name"] == "process_name").collect();
        assert_eq!(
            (&names[0]["args"]["name"], &names[1]["args"]["name"]),
            (&json!("a"), &json!("b"))
        );
        assert!(events.iter().all(|e| e["name"] != "wrong"));
    }

    #[test]
    fn a_trace_is_whole_and_takes_the_files_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        std::fs::write(&path, "old").unwrap();
        let tracer = Tracer::prepare(&path, now_ns()).unwrap();
        let other = Trace::new(tracer.fd().try_clone_to_owned().unwrap(), "helper");
        other.span("boot", now_ns());
        (&tracer.spans).write_all(b"no span\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(tracer.finish(Ok(3)), Ok(3));
        let read: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let spans = read["traceEvents"].as_array().unwrap().iter().filter(|e| e["ph"] == "X");
        let names: Vec<_> = spans.map(|e| e["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["parse the command line", "boot"]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_trace_that_can_not_be_written_is_refused_before_anything() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path(), Path::new("/dev/null"), Path::new("/nonexistent/trace")] {
            let error = Tracer::prepare(path, 0).unwrap_err();
            assert!(error.message.starts_with("--trace /"), "{error}");
        }
    }
}
