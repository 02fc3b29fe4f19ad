//! The helper's socket: every request passes the state machine's door, then is carried out.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use container_api::runtime::{INIT_PROCESS, Request};
use container_api::trace::{Trace, now_ns};
use container_api::types::{ProcessConfig, Stdio, TerminalSize};
use container_api::varlink::{Reply, Responder, Service};
use container_api::{ApiError, ErrorCode, socket, varlink};
use tokio::sync::watch;
use vminitd_protocol::message::{self, Call};

use crate::container::{Container, Manner};
use crate::process::Process;
use crate::state::{Admission, State};
use crate::{archive, exit, limits, sockets, spec, usage};

/// Most connections at once.
const MAX_CONNECTIONS: usize = 256;
/// Longest name of a process in bytes, and what it may contain.
const MAX_PROCESS_ID: usize = 128;
/// How long the reason for a broken guest channel may take to be known.
const VERDICT_LIMIT: Duration = Duration::from_secs(3);

/// Serves a container.
#[derive(Debug)]
pub struct Door {
    container: Arc<Container>,
    /// Calls being carried out.
    calls: watch::Sender<usize>,
}

struct Counted<'a>(&'a watch::Sender<usize>);

impl<'a> Counted<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|n| *n += 1);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

impl Door {
    /// A door to `container`.
    pub fn new(container: Arc<Container>) -> Arc<Door> {
        Arc::new(Door { container, calls: watch::Sender::new(0) })
    }

    /// Waits until no call is being carried out.
    pub async fn idle(&self) {
        let _ = self.calls.subscribe().wait_for(|n| *n == 0).await;
    }

    async fn carry_out(
        &self,
        request: Request,
        admission: Admission,
        fds: Vec<OwnedFd>,
        responder: &Responder,
    ) -> Result<Reply, ApiError> {
        let container = &self.container;
        match request {
            Request::State => Reply::new(&container.report()),
            Request::Start { .. } if admission == Admission::AwaitEnd => {
                Err(no_vm(container).await)
            }
            Request::Start { stdio, size, trace } => {
                let fds = take_trace(container, trace, fds)?;
                start(container, stdio, size, fds).await?;
                Reply::done()
            }
            Request::Attach { stdio } => {
                container.process(INIT_PROCESS)?.attach(stdio, fds)?;
                Reply::done()
            }
            Request::Exec { process_id, process, stdio, size } => {
                exec(container, &process_id, &process, stdio, size, fds).await?;
                Reply::done()
            }
            Request::Archive { process_id, work, stdio } => {
                check_name(&process_id)?;
                archive::start(container, &process_id, work, stdio, fds).await?;
                Reply::done()
            }
            Request::Wait { process_id } => {
                tokio::select! {
                    record = wait(container, &process_id) => Reply::new(&record?),
                    () = responder.hung_up() => {
                        Err(ApiError::new(ErrorCode::Cancelled, "the caller went away"))
                    }
                }
            }
            Request::Signal { process_id, signal } => {
                container.signal(&process_id, signal, false).await?;
                Reply::done()
            }
            Request::Resize { process_id, size } => {
                resize(container, process_id, size).await?;
                Reply::done()
            }
            Request::Stop { signal, timeout_ms } => {
                match admission {
                    Admission::Proceed => {
                        container.stop(signal, Duration::from_millis(timeout_ms)).await;
                    }
                    Admission::EndNow => {
                        container.conclude(exit::killed("stopped before it started"), Manner::Kill);
                    }
                    Admission::AwaitEnd => {}
                }
                Reply::new(&container.outcome().await)
            }
            Request::Update { resources } => {
                limits::update(container, resources).await?;
                Reply::done()
            }
            Request::Reclaim => {
                limits::reclaim(container).await?;
                Reply::done()
            }
            // The state machine admits them nowhere.
            Request::WarmUp | Request::Adopt { .. } => {
                Err(ApiError::new(ErrorCode::InvalidState, "this is no spare"))
            }
            Request::Stats => Reply::new(&usage::of_container(container).await?),
            Request::Abort => {
                container.conclude(exit::failure("the start was cancelled"), Manner::Kill);
                container.outcome().await;
                Reply::done()
            }
        }
    }
}

/// Accepts connections of the owner for ever.
pub async fn accept<S: Service>(
    service: Arc<S>,
    listener: tokio::net::UnixListener,
    connections: watch::Sender<usize>,
) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, say: others must end first.
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let peer = stream.into_std().and_then(|s| socket::peer(&s).map(|peer| (s, peer)));
        let (stream, peer) = match peer {
            Ok(both) => both,
            Err(error) => {
                tracing::warn!(%error, "taking a connection");
                continue;
            }
        };
        if !socket::is_owner(peer) {
            tracing::warn!(target: "audit", uid = peer.uid, pid = peer.pid, "refused a peer");
            continue;
        }
        if *connections.borrow() >= MAX_CONNECTIONS {
            tracing::warn!("refused a connection: {MAX_CONNECTIONS} are open");
            continue;
        }
        let (service, connections) = (service.clone(), connections.clone());
        tokio::spawn(async move {
            let _counted = Counted::new(&connections);
            if let Err(error) = varlink::serve(service, stream).await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
}

impl Service for Door {
    type Request = Request;

    async fn call(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
        responder: &Responder,
    ) -> Result<Reply, ApiError> {
        let _counted = Counted::new(&self.calls);
        let admission = self.container.admit(&request)?;
        self.carry_out(request, admission, fds, responder).await
    }
}

/// Hands the trace's descriptor, the last one, to the timeline.
fn take_trace(
    container: &Container,
    trace: bool,
    mut fds: Vec<OwnedFd>,
) -> Result<Vec<OwnedFd>, ApiError> {
    let file = if trace {
        Some(fds.pop().ok_or_else(|| ApiError::invalid("the trace's descriptor is missing"))?)
    } else {
        None
    };
    container.timeline.tell(file.map(|file| Trace::new(file, "container-runtime-linux")));
    Ok(fds)
}

/// Starts the first process as soon as the guest takes requests. A failure ends the container.
async fn start(
    container: &Arc<Container>,
    stdio: Stdio,
    size: Option<TerminalSize>,
    fds: Vec<OwnedFd>,
) -> Result<(), ApiError> {
    let decided = |s: &State| !matches!(s, State::Booting { .. } | State::Ready);
    if container.state_where(decided).await != State::Starting {
        return Err(no_vm(container).await);
    }
    let began_ns = now_ns();
    match start_process(container, stdio, size, fds).await {
        Ok(()) => {
            container.timeline.span("program started", began_ns);
            container.timeline.mark();
            container.started();
            Ok(())
        }
        Err(error) if error.code == ErrorCode::Disconnected => Err(no_vm(container).await),
        // The root could not be mounted, say: that is why the guest refuses.
        Err(_) if container.verdict().is_some() => Err(no_vm(container).await),
        Err(error) => {
            container.conclude(exit::start_failed(&error), Manner::Kill);
            Err(error)
        }
    }
}

async fn start_process(
    container: &Arc<Container>,
    stdio: Stdio,
    size: Option<TerminalSize>,
    fds: Vec<OwnedFd>,
) -> Result<(), ApiError> {
    let config = &container.config.init_process;
    let (terminal, interactive) = (config.terminal, config.interactive);
    let bulk = container.guest()?.bulk.clone();
    let log = Some(container.log.clone());
    let process = Process::open(INIT_PROCESS, bulk, terminal, interactive, log)?;
    process.attach(stdio, fds)?;
    let pids = container.config.pids_limit;
    let limits = limits::for_guest(container.resources(), container.spec.resources, pids);
    let network = container.spec.network.as_ref();
    let stdio = process.stdio();
    let published = sockets::bind(&container.config)?;
    let call = spec::start(&container.config, network, limits, INIT_PROCESS, stdio, size)?;
    container.register(process)?;
    container.ask(Call::StartContainer(call)).await?;
    sockets::publish(container, published);
    Ok(())
}

/// Why there is no VM to start a program in.
async fn no_vm(container: &Container) -> ApiError {
    let reason = match tokio::time::timeout(VERDICT_LIMIT, container.concluded()).await {
        Ok((record, _)) => record.reason,
        Err(_) => "the guest's channel was lost".into(),
    };
    ApiError::new(ErrorCode::Unavailable, reason)
}

fn check_name(id: &str) -> Result<(), ApiError> {
    if id.is_empty() || id.len() > MAX_PROCESS_ID || id.contains(|c: char| !c.is_ascii_graphic()) {
        return Err(ApiError::invalid("a process's name has 1 to 128 printable characters"));
    }
    Ok(())
}

async fn exec(
    container: &Arc<Container>,
    id: &str,
    config: &ProcessConfig,
    stdio: Stdio,
    size: Option<TerminalSize>,
    fds: Vec<OwnedFd>,
) -> Result<(), ApiError> {
    check_name(id)?;
    let bulk = container.guest()?.bulk.clone();
    let process = Process::open(id, bulk, config.terminal, config.interactive, None)?;
    process.attach(stdio, fds)?;
    let spec = spec::process(&container.config, config, id, process.stdio(), size)?;
    container.register(process)?;
    let outcome = container.ask(Call::Exec(Box::new(spec))).await;
    if outcome.is_err() {
        container.forget(id);
    }
    outcome.map(drop)
}

async fn wait(
    container: &Arc<Container>,
    id: &str,
) -> Result<container_api::types::ExitRecord, ApiError> {
    if id == INIT_PROCESS {
        return Ok(container.outcome().await);
    }
    match container.process(id) {
        Ok(process) => Ok(process.ended().await),
        Err(unknown) => container.ended_process(id).ok_or(unknown),
    }
}

async fn resize(container: &Container, id: String, size: TerminalSize) -> Result<(), ApiError> {
    if !container.process(&id)?.terminal {
        return Err(ApiError::invalid(format!("process {id:?} has no terminal")));
    }
    let size = message::TerminalSize { rows: size.rows.into(), columns: size.columns.into() };
    container.ask(Call::Resize(message::Resize { process: id, size })).await.map(drop)
}
