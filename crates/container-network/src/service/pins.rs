//! Addresses that a resolver has learned for names that egress rules allow: the engine lets them
//! through, then the answer goes out.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::sleep;

use super::carrier::Carrier;
use super::core::Core;
use super::kernel::Kernel;
use super::state::Net;
use crate::wire::{Pin, ResolverRequest};

/// Pins that wait; the resolver answers SERVFAIL for one that is left out.
const QUEUE: usize = 1024;
/// Pins that are carried out at a time.
const AT_ONCE: usize = 16;
/// Between two attempts to hear of pins.
const PAUSE: Duration = Duration::from_millis(50);

/// Carries a resolver's pins to the engine, as long as the resolver lives.
pub async fn carry<K: Kernel>(core: Arc<Core<K>>, net: Arc<Net>, resolver: Arc<Carrier>) {
    tokio::select! {
        () = resolver.ended() => {}
        () = listen(core, &net, &resolver) => {}
    }
}

async fn listen<K: Kernel>(core: Arc<Core<K>>, net: &Arc<Net>, resolver: &Arc<Carrier>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let work = tokio::spawn(work(core, net.clone(), resolver.clone(), receiver));
    loop {
        let heard = async {
            let mut client = resolver.connect()?;
            let sender = sender.clone();
            let hear = move |pin: Pin| {
                if let Err(error) = sender.try_send(pin) {
                    tracing::warn!(%error, "a pin is left out");
                }
            };
            client.call_with_progress::<_, _, ()>(&ResolverRequest::Pins, &[], None, hear).await
        };
        let ended = heard.await;
        if work.is_finished() {
            return;
        }
        tracing::debug!(network = net.config.id, ?ended, "pins are asked for again");
        sleep(PAUSE).await;
        // A network that has been taken down has no resolver to ask.
        match &*net.up.lock().await {
            Some(up) if Arc::ptr_eq(&up.resolver, resolver) => {}
            _ => return,
        }
    }
}

async fn work<K: Kernel>(
    core: Arc<Core<K>>,
    net: Arc<Net>,
    resolver: Arc<Carrier>,
    mut pins: mpsc::Receiver<Pin>,
) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(pin) = pins.recv().await {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let (core, net, resolver) = (core.clone(), net.clone(), resolver.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let network = &net.config.id;
            let pinned = ResolverRequest::Pinned { sequence: pin.sequence };
            let through = match core.kernel.pin(network, &pin).await {
                Ok(()) => resolver.call::<_, ()>(&pinned, &[]).await,
                Err(error) => Err(error),
            };
            if let Err(error) = through {
                let Pin { container, name, .. } = &pin;
                tracing::warn!(network, container, name, %error, "a name was not let through");
            }
        });
    }
}
