//! A spare's socket.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use container_api::runtime::{Request, State as ApiState};
use container_api::trace::now_ns;
use container_api::types::{ExitRecord, VmOrigin};
use container_api::varlink::{Reply, Responder, Service};
use container_api::{ApiError, ErrorCode};
use tokio::sync::{mpsc, oneshot, watch};

use super::state::{Admission, Machine};
use crate::port::Port;
use crate::{exit, tap, usage};

/// What is asked of a spare that waits.
#[derive(Debug)]
pub enum Task {
    /// To be made warm. Told once it is, or why it isn't.
    WarmUp(oneshot::Sender<Result<(), ApiError>>),
    /// To become a container.
    Adopt(Adoption),
}

/// The wish to become a container.
#[derive(Debug)]
pub struct Adoption {
    /// The container's directory.
    pub directory: PathBuf,
    /// Of its NICs but the first.
    pub taps: Vec<OwnedFd>,
    /// When it was asked for.
    pub began_ns: u64,
    /// Told once the container is served, or why it isn't.
    pub answer: oneshot::Sender<Result<(), ApiError>>,
}

#[derive(Debug)]
struct Inner {
    machine: Machine,
    hypervisor_pid: Option<i32>,
}

/// Serves a spare.
#[derive(Debug)]
pub struct Door {
    inner: Mutex<Inner>,
    tasks: mpsc::Sender<Task>,
    port: Port,
    /// True once the spare is to end.
    given_up: watch::Sender<bool>,
    /// How it ended, once its VM has gone.
    outcome: watch::Sender<Option<ExitRecord>>,
}

impl Door {
    /// A door, and where what it admits arrives.
    pub fn new(port: Port) -> (Arc<Door>, mpsc::Receiver<Task>) {
        // The state machine admits one at a time.
        let (tasks, arriving) = mpsc::channel(1);
        let inner = Inner { machine: Machine::default(), hypervisor_pid: None };
        let door = Door {
            inner: Mutex::new(inner),
            tasks,
            port,
            given_up: watch::Sender::new(false),
            outcome: watch::Sender::new(None),
        };
        (Arc::new(door), arriving)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// The VM's process exists.
    pub fn vm_started(&self, pid: i32) {
        self.inner().hypervisor_pid = Some(pid);
    }

    /// The spare may be taken: it is restored, or warm.
    pub fn done(&self) {
        self.inner().machine.done();
    }

    /// The spare is to end, unless it is a container's by now.
    pub fn give_up(&self) {
        if self.inner().machine.failed() {
            self.given_up.send_replace(true);
        }
    }

    /// Waits until the spare is to end.
    pub async fn given_up(&self) {
        let mut given_up = self.given_up.subscribe();
        let _ = given_up.wait_for(|given_up| *given_up).await;
    }

    /// The VM has gone: answers those who wait for that.
    pub fn over(&self, record: ExitRecord) {
        self.outcome.send_replace(Some(record));
    }

    async fn outcome(&self) -> ExitRecord {
        let mut outcome = self.outcome.subscribe();
        let lost = || exit::failure("the helper was lost");
        outcome.wait_for(Option::is_some).await.ok().and_then(|o| o.clone()).unwrap_or_else(lost)
    }

    fn report(&self) -> ApiState {
        let inner = self.inner();
        ApiState {
            phase: inner.machine.state().phase(),
            started_date: None,
            exit: self.outcome.borrow().clone(),
            pid: std::process::id() as i32,
            hypervisor_pid: inner.hypervisor_pid,
            resources: None,
            vm_origin: Some(VmOrigin::Spare),
            out_of_memory_kills: Vec::new(),
        }
    }

    async fn hand_over(&self, directory: PathBuf, taps: Vec<OwnedFd>) -> Result<Reply, ApiError> {
        let began_ns = now_ns();
        self.ask(|answer| Task::Adopt(Adoption { directory, taps, began_ns, answer })).await
    }

    async fn ask(
        &self,
        task: impl FnOnce(oneshot::Sender<Result<(), ApiError>>) -> Task,
    ) -> Result<Reply, ApiError> {
        let (answer, answered) = oneshot::channel();
        let lost = || ApiError::new(ErrorCode::Unavailable, "the spare VM has ended");
        self.tasks.send(task(answer)).await.map_err(|_| lost())?;
        answered.await.map_err(|_| lost())??;
        Reply::done()
    }
}

impl Service for Door {
    type Request = Request;

    async fn call(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
        _: &Responder,
    ) -> Result<Reply, ApiError> {
        check_taps(&request, &fds)?;
        let admission = self.inner().machine.admit(&request).map_err(|refused| {
            tracing::warn!(target: "audit", request = refused.request, state = ?refused.state, "refused");
            ApiError::new(ErrorCode::InvalidState, refused.to_string())
        })?;
        match (admission, request) {
            (Admission::HandOver, Request::Adopt { directory, .. }) => {
                self.hand_over(directory, fds).await
            }
            (Admission::WarmUp, _) => self.ask(Task::WarmUp).await,
            (Admission::End, request) => {
                self.given_up.send_replace(true);
                let record = self.outcome().await;
                match request {
                    Request::Stop { .. } => Reply::new(&record),
                    _ => Reply::done(),
                }
            }
            (_, Request::Stats) => Reply::new(&usage::of_host(&self.port).await?),
            _ => Reply::new(&self.report()),
        }
    }
}

/// What comes with a wish to become a container, before the spare is used up.
fn check_taps(request: &Request, fds: &[OwnedFd]) -> Result<(), ApiError> {
    let Request::Adopt { taps, .. } = request else { return Ok(()) };
    if fds.len() != *taps {
        let given = fds.len();
        return Err(ApiError::invalid(format!("{taps} taps were announced, {given} came")));
    }
    let refused =
        |error| ApiError::invalid(format!("a tap that the container is to have: {error:#}"));
    fds.iter().try_for_each(|fd| tap::check(fd).map_err(refused))
}
