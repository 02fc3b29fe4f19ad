//! What a caller brings to a start: streams, its terminal's size, and where to trace.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use container_api::trace::Trace;
use container_api::types::{Stdio, TerminalSize};
use container_api::{ApiError, Result};

/// This program's name in traces.
const PROGRAM: &str = "container-apiserver";

/// What to attach to a program.
#[derive(Debug)]
pub struct Attachment {
    /// Which streams.
    pub stdio: Stdio,
    /// The terminal's size.
    pub size: Option<TerminalSize>,
    /// The streams' descriptors, then the trace's.
    fds: Vec<OwnedFd>,
    trace: Option<Trace>,
}

impl Attachment {
    /// Checks that the descriptors are those that `stdio` names, and the trace's when `traced`.
    pub fn new(
        stdio: Stdio,
        fds: Vec<OwnedFd>,
        size: Option<TerminalSize>,
        traced: bool,
    ) -> Result<Attachment> {
        if stdio.count() + usize::from(traced) != fds.len() {
            return Err(ApiError::invalid("the descriptors are not those of the streams"));
        }
        let trace = fds.last().filter(|_| traced).map(|fd| fd.try_clone()).transpose()?;
        let trace = trace.map(|file| Trace::new(file, PROGRAM));
        Ok(Attachment { stdio, size, fds, trace })
    }

    /// Nobody's.
    pub fn nothing() -> Attachment {
        Attachment { stdio: Stdio::default(), size: None, fds: Vec::new(), trace: None }
    }

    /// The descriptors to send on.
    pub fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        self.fds.iter().map(AsFd::as_fd).collect()
    }

    /// Whether the last of the descriptors is a trace's.
    pub fn is_traced(&self) -> bool {
        self.trace.is_some()
    }

    /// Traces a span that ends now.
    pub fn span(&self, name: &str, begin_ns: u64) {
        if let Some(trace) = &self.trace {
            trace.span(name, begin_ns);
        }
    }

    /// Traces spans that are over.
    pub fn told(&self, spans: Vec<(&'static str, u64, u64)>) {
        if let Some(trace) = &self.trace {
            spans.into_iter().for_each(|(name, begin, end)| trace.span_until(name, begin, end));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_and_streams_must_agree() {
        let fds = |n: usize| (0..n).map(|_| tempfile::tempfile().unwrap().into()).collect();
        let stdio = Stdio { stdin: true, stdout: true, stderr: false };
        assert!(!Attachment::new(stdio, fds(2), None, false).unwrap().is_traced());
        let traced = Attachment::new(stdio, fds(3), None, true).unwrap();
        assert_eq!((traced.borrowed().len(), traced.is_traced()), (3, true));
        for (n, trace) in [(3, false), (2, true), (0, true)] {
            Attachment::new(stdio, fds(n), None, trace).unwrap_err();
        }
    }
}
