//! What every service of ours does around its requests.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::varlink::{self, Service};
use crate::{ApiError, ErrorCode, Result, socket};

/// The answer to the request that ends a service goes out before its process ends.
pub const FAREWELL: Duration = Duration::from_millis(50);

/// How long the lock of one that was killed may stay: a child of its that is not yet another
/// program holds it, too.
const LEFT_LOCK: Duration = Duration::from_millis(500);
/// Between two attempts.
const STEP: Duration = Duration::from_millis(10);

/// Says that this process of `program` alone serves `directory`, as long as the lock on `name`
/// there lives.
///
/// # Errors
/// `InvalidState` when another serves it.
pub fn lock(directory: &Path, name: &str, program: &str) -> Result<Flock<File>> {
    let path = directory.join(name);
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| ApiError::from(e).context(path.display()))?;
    let end = Instant::now() + LEFT_LOCK;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((unlocked, Errno::EWOULDBLOCK)) if Instant::now() < end => {
                file = unlocked;
                std::thread::sleep(STEP);
            }
            Err((_, Errno::EWOULDBLOCK)) => {
                let message = format!("another {program} serves {}", directory.display());
                return Err(ApiError::new(ErrorCode::InvalidState, message));
            }
            Err((_, other)) => {
                return Err(ApiError::from(io::Error::from(other)).context(path.display()));
            }
        }
    }
}

/// Accepts connections of the owner, for ever, and serves each until it is closed. Those under way
/// go on when this is dropped.
pub async fn accept<S: Service>(listener: &UnixListener, service: Arc<S>) -> Infallible {
    loop {
        let stream = match listener.accept().await.and_then(|(stream, _)| stream.into_std()) {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors, most likely: they come back when calls end.
                tracing::error!(%error, "accepting a connection");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match socket::peer(&stream) {
            Ok(peer) if socket::is_owner(peer) => {}
            peer => {
                tracing::warn!(target: "audit", ?peer, "refused a peer");
                if let Ok(peer) = peer {
                    service.refused(socket::requester(&stream, peer));
                }
                continue;
            }
        }
        let service = service.clone();
        tokio::spawn(async move {
            if let Err(error) = varlink::serve(service, stream).await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
}

/// [`accept`] until SIGTERM, SIGINT or a request that tells `shutdown`.
///
/// # Errors
/// When signals can't be waited for.
pub async fn until_told<S: Service>(
    listener: std::os::unix::net::UnixListener,
    service: Arc<S>,
    shutdown: &Notify,
) -> Result<()> {
    let listener = UnixListener::from_std(listener)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tracing::info!("serving");
    tokio::select! {
        never = accept(&listener, service) => match never {},
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = shutdown.notified() => sleep(FAREWELL).await,
    }
    tracing::info!("ending");
    Ok(())
}
