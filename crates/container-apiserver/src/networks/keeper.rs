//! The network service may end at any time. What carries traffic goes on without it; this starts
//! the next one while containers are on networks, and tells it which live.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::backoff::Backoff;
use crate::engine::Engine;
use crate::process::{Handle, Identity};
use crate::spare::keeper::end_parked;

/// After a service that ended soon; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A service that has lived so long was a good one.
const GOOD: Duration = Duration::from_secs(60);

/// Watches the service; never ends.
pub async fn run(engine: Arc<Engine>) {
    if engine.networks.has_traces() {
        renew(&engine).await;
    }
    let mut peer = engine.networks.peer();
    let mut failures = None;
    loop {
        // The sender lives as long as the engine.
        let Ok(found) = peer.wait_for(Option::is_some).await.map(|peer| *peer) else { return };
        let Some(identity) = found else { continue };
        let begun = Instant::now();
        ended(identity).await;
        engine.networks.gone(identity);
        // Taps that were parked with it are on no network that the next one knows.
        end_parked(&engine).await;
        if engine.networks.alive().is_empty() {
            continue;
        }
        tracing::warn!(pid = identity.pid, "the network service has ended: another one follows");
        if begun.elapsed() > GOOD {
            failures = None;
        } else {
            let backoff = Backoff::after(failures, FIRST_PAUSE, LONGEST_PAUSE);
            // The first time at once: names are waited for.
            if failures.is_some() {
                sleep(backoff.pause()).await;
            }
            failures = Some(backoff);
        }
        renew(&engine).await;
    }
}

async fn renew(engine: &Engine) {
    if let Err(error) = engine.networks.reconcile().await {
        tracing::error!(%error, "networks are not as they should be");
    }
}

async fn ended(identity: Identity) {
    if let Ok(Some(handle)) = Handle::open(identity) {
        handle.ended().await;
    }
}
