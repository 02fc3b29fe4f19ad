//! What a container had of the agent, for the audit trail: merged for a second, so that a container
//! that asks without end costs a file a second.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use container_api::audit::observed::{Observation, Outbox, What};
use container_api::paths::AppRoot;

use crate::container::Container;

/// How long what happens is put together.
const PERIOD: Duration = Duration::from_secs(1);

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// The agent has signed with the key of this fingerprint.
    Signed(&'a str),
    /// It has not.
    NotSigned(&'a str),
    /// The request did not get through to it.
    Refused(&'static str),
}

impl Outcome<'_> {
    fn add_to(self, seen: &mut Observation) {
        match self {
            Outcome::Signed(key) => {
                seen.count("signed", 1);
                seen.detail(key);
            }
            Outcome::NotSigned(key) => {
                seen.count("not signed", 1);
                seen.detail(key);
            }
            Outcome::Refused(reason) => {
                seen.count("refused", 1);
                seen.detail(reason);
            }
        }
    }
}

/// What one container had.
#[derive(Debug, Default)]
pub struct Record {
    outbox: OnceLock<Option<Outbox>>,
    seen: Mutex<Option<Observation>>,
}

impl Record {
    /// Notes what came of a request; true the first time within a period: [`Record::tell`] is due
    /// at its end.
    pub fn note(&self, container: &str, outcome: Outcome<'_>) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let first = seen.is_none();
        let observation = seen.get_or_insert_with(|| Observation::new(container, What::SshAgent));
        let mut new = Observation::new(container, What::SshAgent);
        outcome.add_to(&mut new);
        observation.merge(&new);
        first
    }

    /// Puts what was noted where the audit trail's service finds it. `directory`: the container's.
    pub fn tell(&self, directory: &Path) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).take();
        let outbox = self.outbox.get_or_init(|| {
            let root = AppRoot::resolve(directory.parent().and_then(Path::parent)).ok()?;
            Some(Outbox::new(root.observed()))
        });
        let (Some(seen), Some(outbox)) = (seen, outbox) else { return };
        if let Err(error) = outbox.note(&seen) {
            tracing::warn!(%error, "the audit trail is not told yet of the SSH agent");
        }
    }
}

/// Notes what came of a request, and sees that it is told: soon, or when the container ends.
pub fn note(container: &Arc<Container>, outcome: Outcome<'_>) {
    if !container.sockets.record.note(&container.config.id, outcome) {
        return;
    }
    let container = container.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            _ = container.concluded() => {}
        }
        container.sockets.record.tell(&container.directory);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use container_api::audit::observed::waiting;

    #[test]
    fn what_happens_within_a_second_is_one_observation() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("containers").join("box");
        let record = Record::default();
        assert!(record.note("box", Outcome::Signed("SHA256:key")));
        for _ in 0..1000 {
            assert!(!record.note("box", Outcome::Refused("not a request to sign")));
        }
        record.tell(&directory);
        record.tell(&directory);
        assert!(record.note("box", Outcome::NotSigned("SHA256:other")));
        record.tell(&directory);
        let told = waiting(&place.path().join("observed")).unwrap();
        let told: Vec<_> = told.into_iter().map(|(_, seen)| seen.unwrap()).collect();
        assert_eq!(told.len(), 2);
        assert_eq!((told[0].counts["signed"], told[0].counts["refused"]), (1, 1000));
        assert_eq!(told[0].details, ["SHA256:key", "not a request to sign"]);
        assert_eq!(told[1].counts["not signed"], 1);
    }
}
