//! Listing images, and removing them.

use container_api::images::{ImageSummary, Removed};

use crate::catalog::Found;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::store::Store;

/// All images, sorted by name. One whose documents can't be read is left out, and logged.
pub fn list(store: &Store) -> Result<Vec<ImageSummary>> {
    let mut summaries = Vec::new();
    for (name, descriptor) in store.names() {
        match store.summary(&Found { name, descriptor }) {
            Ok(summary) => summaries.push(summary),
            Err(error) => tracing::error!(%error, "an image can't be read"),
        }
    }
    Ok(summaries)
}

/// A removal of names.
#[derive(Clone, Debug, Default)]
pub struct Delete {
    /// References.
    pub references: Vec<String>,
    /// Every image.
    pub all: bool,
    /// A missing one is no error.
    pub force: bool,
    /// Index or manifest digests that containers use.
    pub in_use: Vec<String>,
}

impl Delete {
    /// Removes the names, or none of them, then what only they held.
    pub fn run(&self, store: &Store, default_domain: &str) -> Result<Removed> {
        let in_use = digests(&self.in_use);
        let mut removed = Removed::default();
        let mut going: Vec<Found> = Vec::new();
        for found in self.wanted(store, default_domain)? {
            if going.contains(&found) {
                continue;
            }
            if is_last_of_used(store, &found, &going, &in_use) {
                match self.all {
                    true => removed.kept_in_use.push(found.name),
                    false => return Err(Error::InUse(found.name)),
                }
            } else {
                going.push(found);
            }
        }
        finish(store, going, &in_use, removed)
    }

    fn wanted(&self, store: &Store, default_domain: &str) -> Result<Vec<Found>> {
        if self.all {
            return Ok(all(store));
        }
        let mut wanted = Vec::new();
        for reference in &self.references {
            match store.find(reference, default_domain) {
                Ok(found) => wanted.push(found),
                Err(Error::NoImage(_)) if self.force => {}
                Err(error) => return Err(error),
            }
        }
        Ok(wanted)
    }
}

/// Removes what no name holds; with `everything` also names that no container uses.
pub fn prune(store: &Store, everything: bool, in_use: &[String]) -> Result<Removed> {
    let in_use = digests(in_use);
    let mut removed = Removed::default();
    let mut going = Vec::new();
    if everything {
        for found in all(store) {
            match is_used(store, &found, &in_use) {
                true => removed.kept_in_use.push(found.name),
                false => going.push(found),
            }
        }
    }
    finish(store, going, &in_use, removed)
}

fn finish(
    store: &Store,
    going: Vec<Found>,
    in_use: &[Digest],
    mut removed: Removed,
) -> Result<Removed> {
    if !going.is_empty() {
        store.change_names(|names| {
            for found in &going {
                // Moved meanwhile: that is another image.
                if names.get(&found.name) == Some(&found.descriptor) {
                    names.remove(&found.name);
                }
            }
        })?;
    }
    removed.references = going.into_iter().map(|f| f.name).collect();
    removed.reclaimed = store.sweep(in_use)?.bytes;
    Ok(removed)
}

fn all(store: &Store) -> Vec<Found> {
    store.names().into_iter().map(|(name, descriptor)| Found { name, descriptor }).collect()
}

fn digests(texts: &[String]) -> Vec<Digest> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Whether a container uses the image, as a whole or one of its platforms.
fn is_used(store: &Store, found: &Found, in_use: &[Digest]) -> bool {
    let root = found.descriptor.digest.parse().ok();
    let reachable = store.reachable(root);
    in_use.iter().any(|digest| reachable.contains(digest))
}

/// Whether a container uses the image and it would have no name left.
fn is_last_of_used(store: &Store, found: &Found, going: &[Found], in_use: &[Digest]) -> bool {
    let stays = |name: &String| *name != found.name && !going.iter().any(|f| f.name == *name);
    let has_other_name =
        store.names().iter().any(|(name, d)| stays(name) && d.digest == found.descriptor.digest);
    !has_other_name && is_used(store, found, in_use)
}
