//! What others have seen, on its way into the trail: merged by container and kind, once a second.
//!
//! Each container has a quota of records of each kind. What is beyond it is merged into the next:
//! so a guest that floods can't fill the trail and have older records rotated away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use container_api::audit::Event;
use container_api::audit::observed::{Observation, What, waiting};

use super::{Audit, DEADLINE};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// Records of one container and kind that may come one after the other.
const BURST: f64 = 30.0;
/// How long one more takes to be free.
const EACH: Duration = Duration::from_secs(60);

/// What waits for room in a container's quota.
#[derive(Debug, Default)]
pub struct Observed(BTreeMap<(String, What), Share>);

/// One container's, of one kind.
#[derive(Debug)]
struct Share {
    waiting: Option<Observation>,
    left: f64,
    at: Instant,
}

impl Observed {
    /// Takes one in.
    fn add(&mut self, observation: Observation, now: Instant) {
        let key = (observation.subject.clone(), observation.what);
        let share = self.0.entry(key).or_insert(Share { waiting: None, left: BURST, at: now });
        match &mut share.waiting {
            Some(waiting) => waiting.merge(&observation),
            None => share.waiting = Some(observation),
        }
    }

    /// What may be recorded now.
    fn due(&mut self, now: Instant) -> Vec<Observation> {
        let mut due = Vec::new();
        self.0.retain(|_, share| {
            let passed = now.saturating_duration_since(share.at).as_secs_f64();
            share.left = (share.left + passed / EACH.as_secs_f64()).min(BURST);
            share.at = now;
            if share.left >= 1.0
                && let Some(observation) = share.waiting.take()
            {
                share.left -= 1.0;
                due.push(observation);
            }
            share.left < BURST || share.waiting.is_some()
        });
        due
    }

    /// All that waits, whatever the quota: the service ends.
    fn rest(&mut self) -> Vec<Observation> {
        self.0.values_mut().filter_map(|share| share.waiting.take()).collect()
    }
}

impl Audit {
    /// Records what others see, for ever.
    pub async fn observe(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.collect(false).await;
        }
    }

    /// Records what waits; with `all`, what is beyond quotas too.
    pub(super) async fn collect(&self, all: bool) {
        let found = match waiting(&self.outbox) {
            Ok(found) => found,
            Err(error) => return tracing::error!(%error, "what others have seen is not recorded"),
        };
        let mut observed = self.observed.lock().await;
        let now = Instant::now();
        let mut files = Vec::with_capacity(found.len());
        for (file, observation) in found {
            match observation {
                Some(observation) => observed.add(observation, now),
                None => tracing::error!(file = %file.display(), "this is no observation"),
            }
            files.push(file);
        }
        let mut due = observed.due(now);
        if all {
            due.extend(observed.rest());
        }
        for observation in due {
            // Merging again what can't be written keeps it in memory, within the same bounds.
            let event = Event::Observed(observation.clone());
            if let Err(error) = self.writer.record(event, DEADLINE).await {
                tracing::error!(%error, "what was seen is not recorded yet");
                observed.add(observation, now);
            }
        }
        for file in files {
            if let Err(error) = std::fs::remove_file(&file) {
                tracing::error!(file = %file.display(), %error, "it will be recorded again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use container_api::audit;
    use container_api::audit::observed::Outbox;
    use container_api::config::AuditConfig;
    use container_api::paths::AppRoot;

    fn denied(subject: &str, packets: u64) -> Observation {
        let mut observation = Observation::new(subject, What::DeniedPackets);
        observation.count("egress", packets);
        observation
    }

    #[test]
    fn a_flood_makes_few_records_and_loses_nothing() {
        let (mut observed, start) = (Observed::default(), Instant::now());
        let (mut records, mut packets) = (0, 0);
        for second in 0..3600 {
            let now = start + Duration::from_secs(second);
            for _ in 0..3 {
                observed.add(denied("loud", 1), now);
            }
            for one in observed.due(now) {
                records += 1;
                packets += one.counts["egress"];
            }
            // Nobody else waits for it.
            if second % 120 == 0 {
                observed.add(denied("quiet", 1), now);
                assert_eq!(observed.due(now).iter().filter(|o| o.subject == "quiet").count(), 1);
            }
        }
        assert!((80..100).contains(&records), "{records}");
        packets += observed.rest().iter().map(|o| o.counts["egress"]).sum::<u64>();
        assert_eq!(packets, 3 * 3600);
        observed.due(start + Duration::from_secs(10_000));
        assert!(observed.0.is_empty(), "quotas that are whole again are forgotten");
    }

    #[test]
    fn what_waits_is_recorded_and_removed() {
        let place = tempfile::tempdir().unwrap();
        let root = AppRoot::resolve(Some(place.path())).unwrap();
        let outbox = Outbox::new(root.observed());
        outbox.note(&denied("box", 2)).unwrap();
        outbox.note(&denied("box", 3)).unwrap();
        outbox.note(&denied("other", 1)).unwrap();
        std::fs::write(root.observed().join("0"), "nonsense").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let audit = Audit::open(&root, &AuditConfig::default()).unwrap();
            audit.collect(false).await;
            assert!(waiting(&root.observed()).unwrap().is_empty());
            audit.close().await;
        });
        let mut reader = audit::Reader::open(&root.audit()).unwrap();
        let mut seen = Vec::new();
        while let Some(entry) = reader.read().unwrap() {
            if let Event::Observed(one) = entry.record.event {
                seen.push((one.subject, one.counts["egress"]));
            }
        }
        assert_eq!(seen, [("box".to_owned(), 5), ("other".to_owned(), 1)]);
    }
}
