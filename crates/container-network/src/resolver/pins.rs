//! Addresses that a restricted container is about to learn: its rules let them through first.
//!
//! ```text
//! announce ──► [sent to the subscriber] ──confirm──► [in force until …] ──► the answer leaves
//!                    └─ the subscriber goes: sent to the next one
//! ```

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::locked;
use crate::wire::Pin;

/// The least and the most time that a pin is in force.
pub const SECONDS: std::ops::RangeInclusive<u32> = 60..=3600;
/// How much longer a pin is in force than the answer says: the way to the first packet.
const SLACK: u32 = 5;
/// How long an answer waits for its pin, and so for a service that comes after a killed one. Askers
/// commonly ask again after five seconds.
const DEADLINE: Duration = Duration::from_secs(4);
/// Pins that wait for the subscriber to take them.
const QUEUE: usize = 1024;
/// The most addresses in force that are remembered of a container.
const REMEMBERED: usize = 1024;

/// A pin that is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Whose.
    pub container: String,
    /// The name asked for.
    pub name: String,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// See [`Pin::ports`].
    pub ports: Vec<u16>,
    /// The answer's TTL.
    pub seconds: u32,
}

/// In force: the ports, and until when, by address and name.
type InForce = HashMap<(IpAddr, String), (Vec<u16>, Instant)>;

#[derive(Debug, Default)]
struct Inner {
    sequence: u64,
    subscriber: Option<mpsc::Sender<Pin>>,
    waiting: HashMap<u64, oneshot::Sender<()>>,
    in_force: HashMap<String, InForce>,
}

/// All pins of a network.
#[derive(Debug)]
pub struct Pins {
    inner: Mutex<Inner>,
    /// Counts subscribers.
    subscribers: watch::Sender<u64>,
}

impl Default for Pins {
    fn default() -> Pins {
        Pins { inner: Mutex::default(), subscribers: watch::Sender::new(0) }
    }
}

impl Pins {
    /// Makes the caller the one who hears of pins; first of those in force, as it may have made
    /// its rules anew. The one before hears no more.
    pub fn subscribe(&self) -> mpsc::Receiver<Pin> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let mut inner = locked(&self.inner);
        inner.repeat(&sender);
        inner.subscriber = Some(sender);
        // Whoever waits for a confirmation that can't come any more announces again.
        inner.waiting.clear();
        drop(inner);
        self.subscribers.send_modify(|count| *count += 1);
        receiver
    }

    /// A pin is in force.
    pub fn confirm(&self, sequence: u64) {
        if let Some(waiting) = locked(&self.inner).waiting.remove(&sequence) {
            // Who waited may have given up.
            let _ = waiting.send(());
        }
    }

    /// Forgets what is in force for containers that `keep` doesn't name.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        locked(&self.inner).in_force.retain(|container, _| keep(container));
    }

    /// Waits until the pin is in force; false when it did not come to that.
    pub async fn announce(&self, wanted: &Wanted) -> bool {
        tokio::time::timeout(DEADLINE, self.attempt(wanted)).await.is_ok()
    }

    async fn attempt(&self, wanted: &Wanted) {
        let mut subscribers = self.subscribers.subscribe();
        loop {
            subscribers.mark_unchanged();
            let until = Instant::now();
            let Some(confirmed) = self.send(wanted) else { return };
            let confirmed = match confirmed {
                Some(confirmed) => confirmed.await.is_ok(),
                None => {
                    // Never fails: the sender is ours.
                    let _ = subscribers.changed().await;
                    false
                }
            };
            if confirmed {
                let until = until + Duration::from_secs(u64::from(pin_seconds(wanted.seconds)));
                return locked(&self.inner).remember(wanted, until);
            }
        }
    }

    /// Sends it to the subscriber. `None`: in force already; `Some(None)`: nobody to send it to.
    fn send(&self, wanted: &Wanted) -> Option<Option<oneshot::Receiver<()>>> {
        let mut inner = locked(&self.inner);
        if inner.is_in_force(wanted) {
            return None;
        }
        inner.sequence += 1;
        let pin = Pin {
            sequence: inner.sequence,
            container: wanted.container.clone(),
            name: wanted.name.clone(),
            addresses: wanted.addresses.clone(),
            ports: wanted.ports.clone(),
            seconds: pin_seconds(wanted.seconds),
        };
        let sequence = pin.sequence;
        let sent = inner.subscriber.as_ref().is_some_and(|to| to.try_send(pin).is_ok());
        Some(sent.then(|| {
            inner.waiting.retain(|_, waiting| !waiting.is_closed());
            let (sender, receiver) = oneshot::channel();
            inner.waiting.insert(sequence, sender);
            receiver
        }))
    }
}

fn pin_seconds(seconds: u32) -> u32 {
    seconds.saturating_add(SLACK).clamp(*SECONDS.start(), *SECONDS.end() + SLACK)
}

impl Inner {
    fn is_in_force(&self, wanted: &Wanted) -> bool {
        let needed = Instant::now() + Duration::from_secs(u64::from(wanted.seconds));
        let Some(known) = self.in_force.get(&wanted.container) else { return false };
        wanted.addresses.iter().all(|address| {
            known
                .get(&(*address, wanted.name.clone()))
                .is_some_and(|(ports, until)| *ports == wanted.ports && *until >= needed)
        })
    }

    fn remember(&mut self, wanted: &Wanted, until: Instant) {
        let known = self.in_force.entry(wanted.container.clone()).or_default();
        for address in &wanted.addresses {
            let entry = (wanted.ports.clone(), until);
            known.insert((*address, wanted.name.clone()), entry);
        }
        if known.len() > REMEMBERED {
            let now = Instant::now();
            known.retain(|_, (_, until)| *until > now);
        }
        while known.len() > REMEMBERED {
            let first =
                known.iter().min_by_key(|(_, (_, until))| *until).map(|(key, _)| key.clone());
            if let Some(first) = first {
                known.remove(&first);
            }
        }
    }

    /// Sends what is in force to a new subscriber, as far as its queue takes it; nobody waits for
    /// these to be confirmed.
    fn repeat(&mut self, to: &mpsc::Sender<Pin>) {
        let now = Instant::now();
        for (container, known) in &mut self.in_force {
            known.retain(|_, (_, until)| *until > now);
            for ((address, name), (ports, until)) in known {
                self.sequence += 1;
                let pin = Pin {
                    sequence: self.sequence,
                    container: container.clone(),
                    name: name.clone(),
                    addresses: vec![*address],
                    ports: ports.clone(),
                    seconds: u32::try_from((*until - now).as_secs()).unwrap_or(0) + 1,
                };
                if to.try_send(pin).is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn wanted(last: u8, seconds: u32) -> Wanted {
        Wanted {
            container: "c".into(),
            name: "a.example".into(),
            addresses: vec![IpAddr::from([192, 0, 2, last])],
            ports: vec![443],
            seconds,
        }
    }

    fn announce(pins: &Arc<Pins>, wanted: Wanted) -> tokio::task::JoinHandle<bool> {
        let pins = pins.clone();
        tokio::spawn(async move { pins.announce(&wanted).await })
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_waits_until_its_pin_is_in_force() {
        let pins = Arc::new(Pins::default());
        let mut heard = pins.subscribe();
        let waits = announce(&pins, wanted(1, 10));
        let pin = heard.recv().await.unwrap();
        assert_eq!((pin.container.as_str(), pin.seconds, pin.ports), ("c", 60, vec![443]));
        assert!(!waits.is_finished());
        pins.confirm(pin.sequence + 1);
        pins.confirm(pin.sequence);
        assert!(waits.await.unwrap());
        // In force already.
        assert!(announce(&pins, wanted(1, 10)).await.unwrap());
        assert!(heard.try_recv().is_err());
        // Not for as long as that.
        let waits = announce(&pins, wanted(1, 5000));
        let pin = heard.recv().await.unwrap();
        assert_eq!(pin.seconds, 3605);
        pins.confirm(pin.sequence);
        assert!(waits.await.unwrap());
        pins.retain(|_| false);
        assert!(!announce(&pins, wanted(1, 10)).await.unwrap(), "nobody confirmed");
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_subscriber_takes_over() {
        let pins = Arc::new(Pins::default());
        assert!(!announce(&pins, wanted(1, 10)).await.unwrap(), "nobody listens");
        let early = announce(&pins, wanted(1, 10));
        tokio::task::yield_now().await;
        let mut first = pins.subscribe();
        let pin = first.recv().await.unwrap();
        drop(first);
        let mut second = pins.subscribe();
        let again = second.recv().await.unwrap();
        assert_eq!(again.addresses, pin.addresses);
        pins.confirm(pin.sequence);
        assert!(!early.is_finished(), "the killed one's word doesn't count");
        pins.confirm(again.sequence);
        assert!(early.await.unwrap());
        // A third one hears what is in force.
        let repeated = pins.subscribe().recv().await.unwrap();
        assert_eq!((repeated.addresses, repeated.ports), (pin.addresses, pin.ports));
        assert!((50..=61).contains(&repeated.seconds), "{}", repeated.seconds);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_force_is_bounded() {
        let pins = Pins::default();
        let mut inner = locked(&pins.inner);
        for n in 0..3000u32 {
            let mut wanted = wanted(1, 10);
            wanted.name = n.to_string();
            inner.remember(&wanted, Instant::now() + Duration::from_secs(60));
        }
        assert_eq!(inner.in_force["c"].len(), REMEMBERED);
    }
}
