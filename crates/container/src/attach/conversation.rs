//! From the start of a program to its exit code.
//!
//! ```text
//! attached ── exit record ──► draining ── streams at their end ──► exit code
//!    │  └──── detach keys ──► 0, the program goes on
//!    ├─────── a signal, with a raw terminal, or the third Ctrl-C ──► 128 + n, the program goes on
//!    └─────── nobody reads our output ──► SIGPIPE to the program, then as it ends, else 141
//! ```

use std::time::Duration;

use container_api::apiserver::{QUICK, Request, SLOW};
use container_api::types::ExitRecord;
use container_api::{ApiError, ErrorCode, Result};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::pump::{Pump, Stopped};
use super::signals::{self, Signals};
use super::{Running, terminal};
use crate::failure::{Failure, NO_READER, OURS, Outcome, complain};
use crate::session::Session;

/// After the end, how long streams may be silent without being at their end. A process that was
/// left in the background may hold them open for ever.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a program may go on when nobody reads its output.
const UNREAD: Duration = Duration::from_secs(2);
/// Unsuccessful requests to end after which we leave.
const PATIENCE: u32 = 3;
/// Lost connections in a row after which we give up, the pause between them, and how long one must
/// last to be none of the row.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);
const LASTING: Duration = Duration::from_secs(2);

/// The program that is attached to.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its container.
    pub id: String,
    /// An exec's name; `None`: the first process.
    pub process_id: Option<String>,
    /// Whether the container is ours alone and goes with us (`run --rm`).
    pub ours: bool,
}

/// Waits for the end of a process, across restarts of the service.
///
/// # Errors
/// What the service answers; `Unavailable` when none has come back for a minute. With `restart`
/// one is started in its place.
pub async fn wait_for_end(
    session: &Session,
    id: &str,
    process_id: Option<String>,
    restart: bool,
) -> Result<ExitRecord> {
    let mut client = session.connect()?;
    let mut attempts = 0;
    loop {
        let begun = Instant::now();
        let error = match client.wait(id, process_id.clone()).await {
            Err(error) if error.code == ErrorCode::Disconnected => error,
            other => return other,
        };
        session.debug(&error);
        // The service itself may answer so, about a helper that it has lost.
        attempts = if begun.elapsed() > LASTING { 0 } else { attempts + 1 };
        if attempts > ATTEMPTS {
            return Err(error);
        }
        tokio::time::sleep(PAUSE).await;
        client = reconnect(session, Instant::now(), restart).await?;
    }
}

/// Connects to the service that follows one that was lost at `since`.
pub async fn reconnect(
    session: &Session,
    since: Instant,
    restart: bool,
) -> Result<container_api::apiserver::ApiClient> {
    loop {
        // A service manager is given a second to do it.
        let outcome = match restart && since.elapsed() > Duration::from_secs(1) {
            true => session.connect_or_start().await,
            false => session.connect(),
        };
        match outcome {
            Err(error)
                if error.code == ErrorCode::Unavailable
                    && since.elapsed() < Duration::from_secs(60) =>
            {
                tokio::time::sleep(PAUSE).await;
            }
            other => return other,
        }
    }
}

/// [`wait_for_end`], begun at once, beside what else is done.
pub fn begin_wait(session: &Session, program: &Program) -> JoinHandle<Result<ExitRecord>> {
    let (session, program) = (session.clone(), program.clone());
    tokio::spawn(async move { wait_for_end(&session, &program.id, program.process_id, true).await })
}

/// Stays with the program until it ends or the user leaves; the exit code.
pub async fn converse(
    session: &Session,
    program: &Program,
    mut running: Running,
    signals: &mut Signals,
    mut wait: JoinHandle<Result<ExitRecord>>,
) -> Outcome {
    let mut resized = resizes(&running)?;
    if running.terminal && running.size != terminal::size() {
        resize(session, program);
    }
    let (mut asked, mut unread, mut lost) = (0, Unread::No, false);
    loop {
        let leave_at = unread.deadline();
        tokio::select! {
            record = &mut wait => {
                let record = record.map_err(|e| ApiError::internal(e.to_string()))??;
                let Running { output, error, .. } = &mut running;
                lost |= finish(session, [(output, "output"), (error, "error output")]).await;
                drop(running.raw.take());
                return Ok(match exit_code(&record) {
                    // The program succeeded; showing what it said did not.
                    0 if lost => OURS,
                    code => code,
                });
            }
            number = signals.next() => {
                session.debug(format_args!("received {}", signals::name(number)));
                if running.raw.is_some() {
                    return Err(Failure::interrupted(number));
                }
                asked += u32::from(signals::asks_to_end(number));
                if asked >= PATIENCE {
                    complain(&format!(
                        "{} is still running: 'container stop' or 'container kill' ends it",
                        program.id
                    ));
                    return Err(Failure::interrupted(number));
                }
                signal(session, program, signals::name(number));
            }
            () = next_resize(&mut resized) => resize(session, program),
            stopped = stopped(&mut running.input) => {
                if matches!(stopped, Stopped::Detached) {
                    drop(running.raw.take());
                    eprintln!();
                    session.debug("detached");
                    return Ok(0);
                }
                report(stopped, "input");
            }
            stopped = stopped(&mut running.output) => {
                if matches!(stopped, Stopped::NoReader) {
                    session.debug("nobody reads standard output any more");
                    signal(session, program, "SIGPIPE".into());
                    unread = Unread::Told(Instant::now() + UNREAD);
                }
                lost |= report(stopped, "output");
            }
            stopped = stopped(&mut running.error) => lost |= report(stopped, "error output"),
            () = tokio::time::sleep_until(leave_at), if !matches!(unread, Unread::No) => {
                match unread {
                    Unread::Told(_) if program.ours => {
                        stop(session, program);
                        unread = Unread::Stopping(Instant::now() + SLOW);
                    }
                    _ => return Err(Failure::Code(NO_READER)),
                }
            }
        }
    }
}

/// What was done about a reader that has gone.
#[derive(Clone, Copy, Debug)]
enum Unread {
    No,
    Told(Instant),
    Stopping(Instant),
}

impl Unread {
    fn deadline(self) -> Instant {
        match self {
            Unread::No => Instant::now(),
            Unread::Told(at) | Unread::Stopping(at) => at,
        }
    }
}

/// Why a pump has stopped; pends when there is none (any more).
async fn stopped(pump: &mut Option<Pump>) -> Stopped {
    match pump {
        Some(running) => {
            let stopped = (&mut running.stopped).await;
            *pump = None;
            stopped.unwrap_or(Stopped::End)
        }
        None => std::future::pending().await,
    }
}

/// Says why a stream has failed, if so; whether it has.
fn report(stopped: Stopped, what: &str) -> bool {
    let Stopped::Failed(error) = stopped else { return false };
    complain(&format!("passing on the {what}: {error}"));
    true
}

/// Waits until all that was written to the streams is copied; whether that failed.
pub async fn finish(session: &Session, pumps: [(&mut Option<Pump>, &str); 2]) -> bool {
    let mut lost = false;
    for (pump, what) in pumps {
        let (mut last, mut since) = (0, Instant::now());
        while let Some(p) = pump {
            if p.progress() != last || p.is_writing() {
                (last, since) = (p.progress(), Instant::now());
            }
            if since.elapsed() > SILENCE {
                session.debug(format_args!("the {what} is held open: not waiting for its end"));
                break;
            }
            tokio::select! {
                why = stopped(pump) => lost |= report(why, what),
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
    }
    lost
}

/// The exit code that a record stands for. When the end was none of the program's doing, says so.
pub fn exit_code(record: &ExitRecord) -> u8 {
    if record.out_of_memory {
        complain("the container ran out of memory (--memory gives it more)");
    } else if record.signal.is_none()
        && record.reason != "exited"
        && !record.reason.starts_with("killed by")
    {
        complain(&record.reason);
    }
    record.exit_code
}

type Resized = Option<tokio::signal::unix::Signal>;

fn resizes(running: &Running) -> Outcome<Resized> {
    use tokio::signal::unix::{SignalKind, signal};
    if !running.terminal {
        return Ok(None);
    }
    let signal = signal(SignalKind::window_change()).map_err(|e| Failure::io("SIGWINCH", e))?;
    Ok(Some(signal))
}

async fn next_resize(resized: &mut Resized) {
    match resized {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// One request on a connection of its own, whose failure is nobody's concern.
fn aside(session: &Session, request: Request, deadline: Duration) {
    let session = session.clone();
    tokio::spawn(async move {
        let call = async { session.connect()?.call::<()>(&request, &[], Some(deadline)).await };
        if let Err(error) = call.await {
            session.debug(error);
        }
    });
}

fn signal(session: &Session, program: &Program, signal: String) {
    let (id, process_id) = (program.id.clone(), program.process_id.clone());
    aside(session, Request::Signal { id, process_id, signal }, QUICK);
}

fn resize(session: &Session, program: &Program) {
    let Some(size) = terminal::size() else { return };
    let (id, process_id) = (program.id.clone(), program.process_id.clone());
    aside(session, Request::Resize { id, process_id, size }, QUICK);
}

fn stop(session: &Session, program: &Program) {
    let request = Request::Stop { id: program.id.clone(), signal: None, timeout_ms: 2000 };
    aside(session, request, SLOW);
}
