//! What the service asks.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use container_api::varlink::{self, Reply, Responder};
use container_api::{ApiError, Result, serve as api};
use tokio::sync::Notify;

use super::answer::Resolver;
use crate::wire::ResolverRequest;

/// Serves the service.
pub struct Control {
    /// The network's.
    pub resolver: Arc<Resolver>,
    /// The network's namespace, and that of its users; held for the next service.
    pub namespaces: Vec<OwnedFd>,
    /// Told when it is to end.
    pub end: Arc<Notify>,
}

impl varlink::Service for Control {
    type Request = ResolverRequest;

    async fn call(
        &self,
        request: ResolverRequest,
        _fds: Vec<OwnedFd>,
        responder: &Responder,
    ) -> Result<Reply> {
        match request {
            ResolverRequest::Configure(config) => {
                self.resolver.configure(config);
                Reply::done()
            }
            ResolverRequest::Pins => self.pins(responder).await,
            ResolverRequest::Pinned { sequence } => {
                self.resolver.pins.confirm(sequence);
                Reply::done()
            }
            ResolverRequest::Namespaces => {
                let duplicates: std::io::Result<Vec<OwnedFd>> =
                    self.namespaces.iter().map(OwnedFd::try_clone).collect();
                Reply::with_fds(&(), duplicates?)
            }
            ResolverRequest::Refused => Reply::new(&self.resolver.refused()),
            ResolverRequest::End => {
                self.end.notify_one();
                Reply::done()
            }
        }
    }
}

impl Control {
    async fn pins(&self, responder: &Responder) -> Result<Reply> {
        if !responder.wants_progress() {
            return Err(ApiError::invalid("pins come as progress: call with \"more\""));
        }
        let mut pins = self.resolver.pins.subscribe();
        loop {
            tokio::select! {
                pin = pins.recv() => match pin {
                    Some(pin) => responder.progress(&pin).await?,
                    None => return Reply::done(),
                },
                () = responder.hung_up() => return Reply::done(),
            }
        }
    }
}

/// Until it is told to end.
pub async fn serve(listener: UnixListener, control: Control) -> Result<()> {
    let end = control.end.clone();
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    tokio::select! {
        never = api::accept(&listener, Arc::new(control)) => match never {},
        () = end.notified() => tokio::time::sleep(api::FAREWELL).await,
    }
    Ok(())
}
