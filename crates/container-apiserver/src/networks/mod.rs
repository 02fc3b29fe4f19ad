//! The way to `container-network`, and what this service knows of who is on which network.
//!
//! ```text
//! create ──Check──►            launch ──Attach──► addresses, taps ──► the helper
//! keeper ──Reconcile──►        end of the VM ──Detach──►
//! spares ──Park──► a tap that is on no network yet, named in a later Attach
//! ```
//! Whoever starts a container says so here before it asks, and takes it back when all is undone:
//! [`Networks::alive`] is never short of a container whose VM lives.
//!
//! - [`guest`]: what a guest is told.
//! - [`keeper`]: a service that ended is followed by another.
//! - [`requests`]: what the command line asks, relayed.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use container_api::invariants::Findings;
use container_api::network::{
    Attach, Attached, ContainerNetwork, DEADLINE, Parked, Request, SOCKET, Traffic,
};
use container_api::paths::AppRoot;
use container_api::varlink::Client;
use container_api::{ApiError, ErrorCode, Result};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::companion::{Companion, Place};
use crate::helper::END_DEADLINE;
use crate::process::Identity;

pub mod guest;
pub mod keeper;
pub mod requests;

/// For what is asked beside other work.
const SIDE_DEADLINE: Duration = Duration::from_secs(5);
/// From the request to end to the end: namespaces, bridges and their processes go one by one.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// The service, and the containers that are on networks.
#[derive(Debug)]
pub struct Networks {
    companion: Companion,
    root: AppRoot,
    /// Ids of containers that are being attached, are, or are being detached.
    attached: watch::Sender<BTreeSet<String>>,
    /// A container has asked for a network: spares need taps.
    wanted: AtomicBool,
}

impl Networks {
    /// Starts nothing yet. `expected`: containers that name no network have one.
    pub fn new(root: &AppRoot, expected: bool) -> Networks {
        let place = Place {
            name: "network service",
            program: "container-network",
            directory: AppRoot::networks,
            socket: SOCKET,
            log: "network.log",
        };
        Networks {
            companion: Companion::new(root, place),
            root: root.clone(),
            attached: watch::Sender::default(),
            wanted: AtomicBool::new(expected),
        }
    }

    /// One call. A service that went away before its answer is asked once more.
    pub async fn call<R: DeserializeOwned>(&self, request: &Request) -> Result<R> {
        self.call_for_fds(request, DEADLINE).await.map(|(answer, _)| answer)
    }

    async fn call_for_fds<R: DeserializeOwned>(
        &self,
        request: &Request,
        deadline: Duration,
    ) -> Result<(R, Vec<OwnedFd>)> {
        let mut client = self.companion.connect().await?;
        let first = client.call_for_fds(request, &[], Some(deadline)).await;
        match first {
            Err(error) if error.code == ErrorCode::Disconnected => {
                tracing::warn!(%error, "the network service went away, and is asked again");
                let mut client: Client = self.companion.connect().await?;
                client.call_for_fds(request, &[], Some(deadline)).await
            }
            other => other,
        }
    }

    /// Containers have networks from now on; true the first time.
    pub fn want(&self) -> bool {
        !self.wanted.swap(true, Ordering::Relaxed)
    }

    /// Whether a spare should have a tap.
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Ids of all containers whose VMs may be on a network.
    pub fn alive(&self) -> Vec<String> {
        self.attached.borrow().iter().cloned().collect()
    }

    /// A container that was attached before this service.
    pub fn found(&self, id: &str) {
        self.want();
        self.attached.send_modify(|attached| _ = attached.insert(id.to_owned()));
    }

    /// Puts a container on its networks. Its predecessor of the same name is off them first.
    pub async fn attach(&self, attach: Attach) -> Result<(Attached, Vec<OwnedFd>)> {
        let id = attach.container.clone();
        self.claim(&id).await?;
        let taps = attach.options.networks.len() - usize::from(attach.parked.is_some());
        let request = Request::Attach(Box::new(attach));
        match self.call_for_fds::<Attached>(&request, DEADLINE).await.map_err(advised) {
            Ok((attached, fds)) if fds.len() == taps => Ok((attached, fds)),
            outcome => {
                // What a failed call has left, if anything: it is to leave nothing.
                self.detach(&id).await;
                Err(outcome.err().unwrap_or_else(|| ApiError::internal("taps are missing")))
            }
        }
    }

    async fn claim(&self, id: &str) -> Result<()> {
        let mut receiver = self.attached.subscribe();
        let free = async {
            loop {
                // The sender lives as long as `self`.
                let _ = receiver.wait_for(|attached| !attached.contains(id)).await;
                let insert = |attached: &mut BTreeSet<String>| attached.insert(id.to_owned());
                if self.attached.send_if_modified(insert) {
                    return;
                }
            }
        };
        timeout(END_DEADLINE * 3, free).await.map_err(|_| {
            let message = format!("the last VM of '{id}' is still on its networks");
            ApiError::new(ErrorCode::Timeout, message)
        })
    }

    /// Waits, for a while, until no container is on a network.
    pub async fn empty(&self) {
        let mut receiver = self.attached.subscribe();
        let empty = receiver.wait_for(BTreeSet::is_empty);
        if timeout(END_DEADLINE * 3, empty).await.is_err() {
            tracing::warn!("containers are still on networks");
        }
    }

    /// Takes a container off its networks. What can't be undone now is undone by the next
    /// [`Networks::reconcile`].
    pub async fn detach(&self, id: &str) {
        if !self.attached.borrow().contains(id) {
            return;
        }
        let request = Request::Detach { container: id.to_owned() };
        if let Err(error) = self.call_for_fds::<()>(&request, END_DEADLINE).await {
            tracing::error!(container = id, %error, "a container is not taken off its networks");
        }
        self.attached.send_modify(|attached| _ = attached.remove(id));
    }

    /// A tap for a VM that waits.
    pub async fn park(&self) -> Result<(String, OwnedFd)> {
        let (parked, fds) = self.call_for_fds::<Parked>(&Request::Park, SIDE_DEADLINE).await?;
        let [tap] = <[OwnedFd; 1]>::try_from(fds)
            .map_err(|_| ApiError::internal("a parked tap has one descriptor"))?;
        Ok((parked.tap, tap))
    }

    /// Checks what a container asks for.
    pub async fn check(&self, options: &ContainerNetwork) -> Result<()> {
        self.call(&Request::Check(options.clone())).await.map_err(advised)
    }

    /// Tells the service who lives, so that it takes back what belonged to others.
    pub async fn reconcile(&self) -> Result<()> {
        let request = Request::Reconcile { alive: self.alive() };
        self.call(&request).await
    }

    /// What a container's NICs have passed; `None` when that can't be said.
    pub async fn traffic(&self, id: &str) -> Option<Traffic> {
        if !self.attached.borrow().contains(id) {
            return None;
        }
        let mut client = self.companion.try_connect().ok()?;
        let request = Request::Traffic { container: id.to_owned() };
        client.call(&request, &[], Some(SIDE_DEADLINE)).await.ok()
    }

    /// Whether what is recorded, what the kernel has and what runs are the same. Where nothing has
    /// a network, no service is started to say so.
    pub async fn check_state(&self) -> Result<Findings> {
        self.look();
        if self.process().is_none() && !self.has_traces() {
            return Ok(Findings::default());
        }
        self.call(&Request::CheckState { alive: self.alive() }).await
    }

    /// Looks who answers now.
    pub fn look(&self) {
        let _ = self.companion.try_connect();
    }

    /// The service's process, as it was reached last.
    pub fn process(&self) -> Option<Identity> {
        *self.companion.peer().borrow()
    }

    /// Who answers, as it changes.
    pub fn peer(&self) -> watch::Receiver<Option<Identity>> {
        self.companion.peer()
    }

    /// The service that was this process has ended.
    pub fn gone(&self, which: Identity) {
        self.companion.gone(which);
    }

    /// Whether there may be something that a service has made: containers on networks, or files of
    /// what carries traffic.
    pub fn has_traces(&self) -> bool {
        let in_use = |name: &str| {
            let found = std::fs::read_dir(self.root.networks().join(name));
            found.is_ok_and(|mut entries| entries.next().is_some())
        };
        !self.attached.borrow().is_empty() || in_use("attachments") || in_use("run")
    }

    /// Ends the service; when no container needs them, networks go with it.
    pub async fn end(&self) {
        let remove = self.attached.borrow().is_empty();
        if remove && self.companion.try_connect().is_err() {
            if !self.has_traces() {
                return;
            }
            // Only a service can take back what a killed one has left.
            if let Err(error) = self.companion.connect().await {
                tracing::warn!(%error, "networks stay");
                return;
            }
        }
        self.companion.end(&Request::Shutdown { remove }, STOP_DEADLINE).await;
    }
}

/// Adds what can be done where the host lacks something that networks need.
fn advised(error: ApiError) -> ApiError {
    match error.code {
        ErrorCode::Unavailable => {
            let message = format!("{}; --network none does without a network", error.message);
            ApiError { message, ..error }
        }
        _ => error,
    }
}
