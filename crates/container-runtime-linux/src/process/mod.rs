//! A process in the guest, with its streams and the clients attached to them.
//!
//! ```text
//!            ┌─► output.log                     (the first process only)
//! guest ─► pump ─► sink ─► client's stdout      one pump a stream, one sink a client
//! guest ◄────────── source ◄─ client's stdin    one source a client
//! ```
//! A client that goes away takes nothing with it: its sink is dropped, and the end of its input is
//! the program's only where that is what a pipe means.

mod deliver;
mod descriptor;
mod sink;
mod source;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use container_api::output_log::OutputStream;
use container_api::types::{ExitRecord, Stdio};
use container_api::{ApiError, ErrorCode};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use vminitd_protocol::STREAM_END_TIMEOUT;
use vminitd_protocol::message;
use vminitd_protocol::mux::Direction;

use crate::guest::Bulk;
use crate::output::OutputLog;
use descriptor::Descriptor;
use sink::Sink;

use source::{AtEnd, Into};

pub use deliver::{deliver, leave_behind};
pub use sink::Rest;

/// How long an ended process's waiters wait for a client that reads nothing. Its output is kept
/// for it beyond that, as long as it is there.
pub const CLIENT_STALL: Duration = Duration::from_secs(5);
/// Most clients attached to a process at once.
const MAX_CLIENTS: usize = 64;

/// One output stream of a process.
#[derive(Debug)]
struct Output {
    stream: u32,
    kind: OutputStream,
    sinks: Mutex<Vec<Arc<Sink>>>,
    /// True once everything has been taken from the guest.
    ended: watch::Sender<bool>,
}

/// A process that was asked for.
#[derive(Debug)]
pub struct Process {
    /// Its name.
    pub id: String,
    /// It has a terminal.
    pub terminal: bool,
    bulk: Arc<Bulk>,
    /// The stream that takes its input, if it has any.
    input: Option<u32>,
    outputs: Vec<Arc<Output>>,
    tasks: Mutex<Vec<AbortHandle>>,
    released: Mutex<bool>,
    exit: watch::Sender<Option<ExitRecord>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}

impl Process {
    /// Opens the streams of a process. What they bring goes to `log` too.
    ///
    /// # Errors
    /// `ResourceExhausted` when too many streams are open.
    pub fn open(
        id: &str,
        bulk: Arc<Bulk>,
        terminal: bool,
        interactive: bool,
        log: Option<Arc<OutputLog>>,
    ) -> Result<Arc<Process>, ApiError> {
        let open = |direction| {
            bulk.open(direction)
                .map_err(|e| ApiError::new(ErrorCode::ResourceExhausted, e.to_string()))
        };
        let (input, streams) = if terminal {
            let stream = open(Direction::Both)?;
            (Some(stream).filter(|_| interactive), vec![(stream, OutputStream::Stdout)])
        } else {
            let input = if interactive { Some(open(Direction::ToGuest)?) } else { None };
            let stdout = open(Direction::ToHost)?;
            let stderr = open(Direction::ToHost)?;
            (input, vec![(stdout, OutputStream::Stdout), (stderr, OutputStream::Stderr)])
        };
        let outputs = streams.into_iter().map(|(stream, kind)| Output {
            stream,
            kind,
            sinks: Mutex::default(),
            ended: watch::Sender::new(false),
        });
        let process = Arc::new(Process {
            id: id.to_owned(),
            terminal,
            bulk,
            input,
            outputs: outputs.map(Arc::new).collect(),
            tasks: Mutex::default(),
            released: Mutex::default(),
            exit: watch::Sender::new(None),
        });
        for output in &process.outputs {
            let pump = pump(process.bulk.clone(), output.clone(), log.clone());
            process.keep(tokio::spawn(pump).abort_handle());
        }
        Ok(process)
    }

    /// The stream numbers, for the guest.
    pub fn stdio(&self) -> message::Stdio {
        let output = |kind| self.outputs.iter().find(|o| o.kind == kind).map(|o| o.stream);
        if self.terminal {
            return message::Stdio {
                terminal: output(OutputStream::Stdout),
                ..message::Stdio::default()
            };
        }
        message::Stdio {
            stdin: self.input,
            stdout: output(OutputStream::Stdout),
            stderr: output(OutputStream::Stderr),
            terminal: None,
        }
    }

    /// Attaches a client's descriptors, in the order that `stdio` tells.
    ///
    /// # Errors
    /// `InvalidArgument` when they are not as many, `ResourceExhausted` beyond the most clients.
    pub fn attach(&self, stdio: Stdio, fds: Vec<OwnedFd>) -> Result<(), ApiError> {
        if fds.len() != stdio.count() {
            let message = format!("{} descriptors came, {} were told", fds.len(), stdio.count());
            return Err(ApiError::invalid(message));
        }
        let mut fds = VecDeque::from(fds);
        let mut next = |present: bool| match present.then(|| fds.pop_front()).flatten() {
            Some(fd) => Descriptor::new(fd)
                .map(|d| Some(Arc::new(d)))
                .map_err(|e| ApiError::from(e).context("taking a client's descriptor")),
            None => Ok(None),
        };
        let (stdin, stdout, stderr) =
            (next(stdio.stdin)?, next(stdio.stdout)?, next(stdio.stderr)?);
        if self.terminal {
            if let Some(socket) = stdin {
                let sink = self.add_sink(OutputStream::Stdout, socket.clone())?;
                self.add_source(socket, AtEnd::Detach(sink));
            }
            return Ok(());
        }
        // Outputs first: input may end the program at once.
        for (kind, descriptor) in [(OutputStream::Stdout, stdout), (OutputStream::Stderr, stderr)] {
            if let Some(descriptor) = descriptor {
                self.add_sink(kind, descriptor)?;
            }
        }
        if let Some(descriptor) = stdin
            && self.input.is_some()
        {
            self.add_source(descriptor, AtEnd::Finish);
        }
        Ok(())
    }

    fn add_sink(
        &self,
        kind: OutputStream,
        descriptor: Arc<Descriptor>,
    ) -> Result<Arc<Sink>, ApiError> {
        let output = self.outputs.iter().find(|o| o.kind == kind);
        let output = output.ok_or_else(|| ApiError::internal("no such output"))?;
        let mut sinks = lock(&output.sinks);
        sinks.retain(|sink| !sink.is_done());
        if sinks.len() >= MAX_CLIENTS {
            let message = format!("{MAX_CLIENTS} clients are attached already");
            return Err(ApiError::new(ErrorCode::ResourceExhausted, message));
        }
        let sink = Sink::spawn(descriptor);
        if *lock(&self.released) {
            sink.release();
        }
        if *output.ended.borrow() {
            sink.finish();
        }
        sinks.push(sink.clone());
        Ok(sink)
    }

    fn add_source(&self, descriptor: Arc<Descriptor>, at_end: AtEnd) {
        let into = self.input.map_or(Into::Nowhere, Into::Stream);
        let copy = source::copy(self.bulk.clone(), descriptor, into, at_end);
        self.keep(tokio::spawn(copy).abort_handle());
    }

    fn keep(&self, task: AbortHandle) {
        let mut tasks = lock(&self.tasks);
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    fn sinks(&self) -> Vec<Arc<Sink>> {
        self.outputs.iter().flat_map(|o| lock(&o.sinks).clone()).collect()
    }

    /// No client holds the program back from now on.
    pub fn release(&self) {
        *lock(&self.released) = true;
        for sink in self.sinks() {
            sink.release();
        }
    }

    /// After the process has ended: waits until the guest has given all its output, which is then
    /// in the log and in the clients' queues. A guest that never ends the streams is given up.
    pub async fn collect(&self) {
        self.release();
        let all = async {
            for output in &self.outputs {
                let mut ended = output.ended.subscribe();
                let _ = ended.wait_for(|ended| *ended).await;
            }
        };
        if tokio::time::timeout(STREAM_END_TIMEOUT, all).await.is_err() {
            tracing::warn!(process = self.id, "the guest did not end the output in time");
        }
        self.cut();
    }

    /// Ends the streams where they are.
    fn cut(&self) {
        for task in lock(&self.tasks).drain(..) {
            task.abort();
        }
        for output in &self.outputs {
            output.ended.send_replace(true);
            self.bulk.close(output.stream);
        }
        if let Some(input) = self.input {
            self.bulk.close(input);
        }
        for sink in self.sinks() {
            sink.finish();
        }
    }

    /// Waits until every client has its output; false when one takes nothing.
    pub async fn delivered(&self) -> bool {
        let mut all = true;
        for sink in self.sinks() {
            all &= sink.drained(CLIENT_STALL).await;
        }
        all
    }

    /// What clients that are still there have not read.
    pub fn take_rests(&self) -> Vec<Rest> {
        self.sinks().iter().filter_map(|sink| sink.take_rest()).collect()
    }

    /// Tells the waiters how it ended; the first record counts.
    pub fn conclude(&self, record: ExitRecord) {
        self.exit.send_if_modified(|exit| match exit {
            Some(_) => false,
            None => {
                *exit = Some(record);
                true
            }
        });
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<ExitRecord> {
        self.exit.borrow().clone()
    }

    /// Waits for its end and its output's delivery.
    pub async fn ended(&self) -> ExitRecord {
        let mut exit = self.exit.subscribe();
        // The sender lives as long as `self`.
        let record = exit.wait_for(Option::is_some).await.ok().and_then(|r| r.clone());
        record.unwrap_or_else(|| crate::exit::failure("the process was lost"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.cut();
    }
}

/// Carries one stream from the guest to the log and the clients until it ends. The slowest client
/// sets the pace.
async fn pump(bulk: Arc<Bulk>, output: Arc<Output>, log: Option<Arc<OutputLog>>) {
    let mut buffer = Vec::new();
    loop {
        bulk.read(output.stream, &mut buffer).await;
        if buffer.is_empty() {
            break;
        }
        if let Some(log) = &log {
            log.write(output.kind, &buffer);
        }
        let sinks = lock(&output.sinks).clone();
        for sink in &sinks {
            sink.push(&buffer);
        }
        for sink in &sinks {
            sink.room().await;
        }
    }
    for sink in lock(&output.sinks).iter() {
        sink.finish();
    }
    output.ended.send_replace(true);
}
