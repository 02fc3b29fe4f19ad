//! Images that were found ready a moment ago, so that `create` need not ask for them again.
//!
//! All changes to images go through this service, and each forgets what is kept here.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use container_api::Result;
use container_api::images::{Pull, Request, Unpacked};
use container_api::varlink::Responder;

use crate::engine::Engine;

/// Images kept; more are asked for each time.
const MAX_IMAGES: usize = 64;

/// What is kept.
#[derive(Debug, Default)]
pub struct Prepared(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// Counts the changes, so that an answer from before one is not kept after it.
    changes: u64,
    images: HashMap<(String, Option<String>), Arc<Unpacked>>,
    empty_upper: Option<PathBuf>,
}

fn key(pull: &Pull) -> (String, Option<String>) {
    (pull.reference.clone(), pull.platform.as_ref().map(ToString::to_string))
}

impl Prepared {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Images may be others from now on.
    pub fn forget(&self) {
        let mut kept = self.kept();
        kept.changes += 1;
        kept.images.clear();
    }

    fn find(&self, pull: &Pull) -> Option<Arc<Unpacked>> {
        let found = self.kept().images.get(&key(pull)).cloned()?;
        found.disk.exists().then_some(found)
    }

    fn keep(&self, pull: &Pull, image: &Arc<Unpacked>, changes: u64) {
        let mut kept = self.kept();
        if kept.changes == changes && kept.images.len() < MAX_IMAGES {
            kept.images.insert(key(pull), image.clone());
        }
    }
}

impl Engine {
    /// An image as a disk: pulled and unpacked when it is not.
    pub async fn prepare(&self, pull: &Pull, responder: &Responder) -> Result<Arc<Unpacked>> {
        if let Some(found) = self.prepared.find(pull) {
            return Ok(found);
        }
        let changes = self.prepared.kept().changes;
        let request = Request::Prepare { pull: pull.clone() };
        let image: Arc<Unpacked> = Arc::new(self.images.relay(&request, &[], responder).await?);
        self.prepared.keep(pull, &image, changes);
        Ok(image)
    }

    /// The empty writable disk.
    pub async fn empty_upper(&self) -> Result<PathBuf> {
        let kept = self.prepared.kept().empty_upper.clone();
        if let Some(path) = kept.filter(|path| path.exists()) {
            return Ok(path);
        }
        let path: PathBuf = self.images.call(&Request::EmptyUpper).await?;
        self.prepared.kept().empty_upper = Some(path.clone());
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use container_api::images::ImageConfig;
    use container_api::types::{Descriptor, Platform};

    #[test]
    fn what_was_found_before_a_change_is_not_kept_after_it() {
        let disk = tempfile::NamedTempFile::new().unwrap();
        let image = Arc::new(Unpacked {
            reference: "r".into(),
            descriptor: Descriptor { media_type: "m".into(), digest: "d".into(), size: 1 },
            manifest_digest: "m".into(),
            platform: Platform::host(),
            disk: disk.path().to_owned(),
            config: ImageConfig::default(),
        });
        let prepared = Prepared::default();
        let pull = Pull { reference: "r".into(), ..Pull::default() };
        prepared.keep(&pull, &image, 0);
        assert!(prepared.find(&pull).is_some());
        let other = Pull { platform: Platform::parse("arm64"), ..pull.clone() };
        assert!(prepared.find(&other).is_none());
        prepared.forget();
        prepared.keep(&pull, &image, 0);
        assert!(prepared.find(&pull).is_none());
        prepared.keep(&pull, &image, 1);
        drop(disk);
        assert!(prepared.find(&pull).is_none(), "its disk is gone");
    }
}
