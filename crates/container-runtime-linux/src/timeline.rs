//! What is told to a trace: the phases of a start, each from where the last one ended.

use std::sync::{Mutex, MutexGuard};

use container_api::trace::{Trace, now_ns};

/// Spans kept until it is known whether anybody wants them.
const MAX_KEPT: usize = 64;

#[derive(Debug)]
enum Spans {
    /// Nobody has said yet.
    Kept(Vec<(&'static str, u64, u64)>),
    Told(Trace),
    Unwanted,
}

#[derive(Debug)]
struct Inner {
    spans: Spans,
    /// Where the last phase ended.
    last_ns: u64,
}

/// The phases of one start.
#[derive(Debug)]
pub struct Timeline(Mutex<Inner>);

impl Timeline {
    /// One whose first phase began at `began_ns`.
    pub fn new(began_ns: u64) -> Timeline {
        Timeline(Mutex::new(Inner { spans: Spans::Kept(Vec::new()), last_ns: began_ns }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder panics")
    }

    /// A phase ends now; it began where the last one ended.
    pub fn phase(&self, name: &'static str) {
        let mut inner = self.inner();
        let (begin, end) = (inner.last_ns, now_ns());
        inner.last_ns = end;
        inner.spans.add(name, begin, end);
    }

    /// The next phase begins now.
    pub fn mark(&self) {
        self.inner().last_ns = now_ns();
    }

    /// Something that ends now and is no phase of its own.
    pub fn span(&self, name: &'static str, begin_ns: u64) {
        self.inner().spans.add(name, begin_ns, now_ns());
    }

    /// Where the spans go, those so far included; `None`: nobody wants them.
    pub fn tell(&self, trace: Option<Trace>) {
        let mut inner = self.inner();
        let next = trace.map_or(Spans::Unwanted, Spans::Told);
        if let Spans::Kept(kept) = std::mem::replace(&mut inner.spans, next) {
            for (name, begin, end) in kept {
                inner.spans.add(name, begin, end);
            }
        }
    }
}

impl Spans {
    fn add(&mut self, name: &'static str, begin_ns: u64, end_ns: u64) {
        match self {
            Spans::Kept(kept) if kept.len() < MAX_KEPT => kept.push((name, begin_ns, end_ns)),
            Spans::Told(trace) => trace.span_until(name, begin_ns, end_ns),
            Spans::Kept(_) | Spans::Unwanted => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use container_api::trace::Span;

    #[test]
    fn what_came_before_the_trace_is_told_too() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let append = std::fs::File::options().append(true).open(file.path()).unwrap();
        let timeline = Timeline::new(7);
        timeline.phase("first");
        timeline.tell(Some(Trace::new(append.into(), "helper")));
        timeline.phase("second");
        timeline.span("beside", 1);
        let text = std::fs::read_to_string(file.path()).unwrap();
        let spans: Vec<Span> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, ["first", "second", "beside"]);
        assert_eq!((spans[0].begin_ns, spans[1].begin_ns), (7, spans[0].end_ns));
        timeline.tell(None);
        timeline.phase("third");
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), text);
    }
}
