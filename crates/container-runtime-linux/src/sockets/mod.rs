//! Unix sockets between host and container: `--publish-socket` and `--ssh`.
//!
//! ```text
//! host ──connect──► listener ─► stream ─► guest ──connect──► program      published
//! agent ◄──connect── filter ◄─ stream ◄─ guest ◄──connect── program      --ssh
//! ```
//! Each connection is a stream of the guest's bulk port. What the container may say to the agent
//! goes through [`agent`].

pub mod agent;
mod join;
mod listener;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use container_api::paths::container_files;
use container_api::types::{ContainerConfig, SSH_AUTH_SOCK};
use container_api::{ApiError, escape};
use tokio::net::UnixStream;
use vminitd_protocol::message::{AcceptSocket, Call, ConnectSocket, ListenSocket, SocketConnected};
use vminitd_protocol::mux::Direction;
use vminitd_protocol::{MAX_SOCKET_CONNECTIONS, MAX_SOCKET_PATH, REQUEST_TIMEOUT};

use crate::container::Container;
use crate::guest::Bulk;
use agent::Limits;
use listener::Bound;

/// Connections to the agent at once.
const MAX_AGENT_CONNECTIONS: usize = 16;

/// Connections under way of one kind.
#[derive(Debug, Default)]
struct Count(AtomicUsize);

/// One of them, as long as it lives.
struct Counted(Arc<Count>);

impl Count {
    fn enter(self: &Arc<Count>, most: usize) -> Option<Counted> {
        let entered = self.0.fetch_add(1, Ordering::Relaxed) < most;
        let counted = Counted(self.clone());
        entered.then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the sockets of a container have in common.
#[derive(Debug, Default)]
pub struct Sockets {
    published: Arc<Count>,
    agent: Arc<Count>,
    limits: Arc<Limits>,
    record: agent::Record,
}

/// On which sockets the guest listens for us: there is but the agent's.
pub fn in_guest(config: &ContainerConfig) -> Vec<ListenSocket> {
    let agent = config.ssh.then(|| ListenSocket { path: SSH_AUTH_SOCK.into() });
    agent.into_iter().collect()
}

/// A published socket, bound.
#[derive(Debug)]
pub struct Published {
    bound: Bound,
    listener: UnixListener,
    container_path: Vec<u8>,
}

/// Makes the published sockets on the host. They go when they are dropped.
///
/// # Errors
/// `InvalidArgument`, `AlreadyExists` where something else lies or listens, those of the system.
pub fn bind(config: &ContainerConfig) -> Result<Vec<Published>, ApiError> {
    let one = |socket: &container_api::types::PublishSocket| {
        let container_path = socket.container_path.clone().into_bytes();
        if container_path.len() > MAX_SOCKET_PATH {
            return Err(ApiError::invalid(format!(
                "{} is longer than a socket's path can be ({MAX_SOCKET_PATH} bytes)",
                escape::escape(&socket.container_path)
            )));
        }
        let (bound, listener) = listener::bind(&socket.host_path)?;
        Ok(Published { bound, listener, container_path })
    };
    config.published_sockets.iter().map(one).collect()
}

/// Serves the published sockets until the container's end.
pub fn publish(container: &Arc<Container>, published: Vec<Published>) {
    for Published { bound, listener, container_path } in published {
        let container = container.clone();
        tokio::spawn(async move {
            let serve = listener::serve(listener, |stream| {
                let Some(counted) = container.sockets.published.enter(MAX_SOCKET_CONNECTIONS / 2)
                else {
                    return;
                };
                let (container, path) = (container.clone(), container_path.clone());
                tokio::spawn(async move {
                    let _counted = counted;
                    into_container(&container, path, stream).await;
                });
            });
            tokio::select! {
                () = serve => {}
                _ = container.concluded() => {}
            }
            drop(bound);
        });
    }
}

/// A stream of the bulk port that is given up when this is dropped.
struct Stream {
    bulk: Arc<Bulk>,
    number: u32,
}

impl Stream {
    fn open(container: &Container) -> Option<Stream> {
        let bulk = container.guest().ok()?.bulk.clone();
        let number = bulk.open(Direction::Both).ok()?;
        Some(Stream { bulk, number })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.bulk.close(self.number);
    }
}

async fn into_container(container: &Container, path: Vec<u8>, client: UnixStream) {
    let Some(stream) = Stream::open(container) else { return };
    let call = Call::ConnectSocket(ConnectSocket { path, stream: stream.number });
    let Ok(guest) = container.guest() else { return };
    match guest.control.command(call, REQUEST_TIMEOUT).await {
        Ok(()) => join::join(&stream, client).await,
        // The client sees that nobody serves.
        Err(error) => tracing::debug!(%error, "a published socket"),
    }
}

/// A program has connected to a socket on which the guest listens.
pub fn accept(container: &Arc<Container>, connected: &SocketConnected) {
    let SocketConnected { connection, .. } = *connected;
    let container = container.clone();
    tokio::spawn(async move {
        let Some(stream) = Stream::open(&container) else { return };
        let call = Call::AcceptSocket(AcceptSocket { connection, stream: stream.number });
        let Ok(guest) = container.guest() else { return };
        if let Err(error) = guest.control.command(call, REQUEST_TIMEOUT).await {
            return tracing::debug!(%error, "taking a connection of the guest");
        }
        // Whoever is not let in sees the connection end.
        let sockets = &container.sockets;
        let Some(_counted) = sockets.agent.enter(MAX_AGENT_CONNECTIONS) else { return };
        if container.config.ssh {
            let link: PathBuf = container.directory.join(container_files::SSH_AGENT);
            let note = |outcome: agent::Outcome<'_>| agent::note(&container, outcome);
            agent::serve(&stream, &link, &sockets.limits, &note).await;
        }
    });
}
