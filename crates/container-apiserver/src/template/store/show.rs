//! What of templates is shown.

use container_api::apiserver::TemplateStatus;
use container_api::types::UsageOf;

use super::Templates;

impl Templates {
    /// The keys of those that are ready.
    pub fn keys(&self) -> Vec<String> {
        self.inner().known.keys().cloned().collect()
    }

    /// The key of the one that is being made.
    pub fn making(&self) -> Option<String> {
        self.inner().making.as_ref().map(|shape| shape.key.clone())
    }

    /// As `system status` shows them.
    pub fn statuses(&self) -> Vec<TemplateStatus> {
        let inner = self.inner();
        let status = |id: &str, resources, state: &str| TemplateStatus {
            id: id.to_owned(),
            resources,
            state: state.to_owned(),
            size_in_bytes: 0,
        };
        let ready = inner.known.iter().map(|(key, entry)| TemplateStatus {
            size_in_bytes: entry.bytes,
            ..status(key, entry.shape.resources, "ready")
        });
        let making = inner.making.iter().map(|s| status(&s.key, s.resources, "being made"));
        let wanted = inner.wanted.iter().map(|(s, _)| status(&s.key, s.resources, "to be made"));
        let under_way = |key: &String| {
            inner.making.iter().any(|s| s.key == *key)
                || inner.wanted.iter().any(|(s, _)| s.key == *key)
        };
        let failed = inner.failures.iter().filter(|(key, _)| !under_way(key));
        let failed = failed.map(|(key, f)| status(key, f.resources, &f.reason));
        ready.chain(making).chain(wanted).chain(failed).collect()
    }

    /// As `system df` shows them.
    pub fn usage(&self, in_use: &[String]) -> UsageOf {
        let mut usage = UsageOf::default();
        for (key, entry) in &self.inner().known {
            usage.total += 1;
            usage.size_in_bytes += entry.bytes;
            match in_use.contains(key) {
                true => usage.active += 1,
                false => usage.reclaimable += entry.bytes,
            }
        }
        usage
    }
}
