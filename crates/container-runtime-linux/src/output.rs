//! The first process's output log. It never stops the program: what can't be written is lost, and
//! the helper's own log says so once.

use std::io;
use std::path::Path;
use std::sync::Mutex;

use container_api::output_log::{LogLimits, LogWriter, OutputStream};
use container_api::types::Timestamp;

/// The log and whether it fails just now.
#[derive(Debug)]
pub struct OutputLog {
    inner: Mutex<(Option<LogWriter>, bool)>,
}

impl OutputLog {
    /// Opens the log; a failure is noted and loses the log, not the container.
    pub fn open(path: &Path, limits: LogLimits) -> OutputLog {
        let writer = LogWriter::open(path, limits)
            .inspect_err(|error| tracing::warn!(%error, "the output log can't be opened"));
        OutputLog { inner: Mutex::new((writer.ok(), false)) }
    }

    /// Appends what a stream brought.
    pub fn write(&self, stream: OutputStream, bytes: &[u8]) {
        self.with(|writer| writer.write(stream, bytes, Timestamp::now()));
    }

    /// Writes what was held back.
    pub fn finish(&self) {
        self.with(|writer| writer.finish(Timestamp::now()));
    }

    fn with(&self, write: impl FnOnce(&mut LogWriter) -> io::Result<()>) {
        let mut inner = self.inner.lock().expect("no holder panics");
        let (Some(writer), failing) = &mut *inner else { return };
        match write(writer) {
            Ok(()) if *failing => {
                *failing = false;
                tracing::warn!("the output log can be written again");
            }
            Err(error) if !*failing => {
                *failing = true;
                tracing::warn!(%error, "output is lost: the output log can't be written");
            }
            _ => {}
        }
    }
}
