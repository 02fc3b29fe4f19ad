//! The templates of this service: which are ready, which should be made.

mod show;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use container_api::config::{Config, parse_size};
use container_api::paths::{AppRoot, template_files as names};
use container_api::runtime::{TemplateFiles, TemplateManifest};
use container_api::types::Resources;
use tokio::sync::{Mutex as AsyncMutex, Notify};

use super::check::{self, Fault, Stamp};
use super::disk::{self, Found};
use super::shape::Shape;
use crate::backoff::Backoff;
use crate::kernel::Kernel;

/// Between a failure and the next attempt at the same template; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// All templates.
#[derive(Debug)]
pub struct Templates {
    root: PathBuf,
    enabled: bool,
    max: usize,
    max_bytes: u64,
    inner: Mutex<Inner>,
    /// Something is wanted.
    pub(super) wake: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    known: BTreeMap<String, Entry>,
    wanted: Vec<(Shape, Kernel)>,
    making: Option<Shape>,
    failures: BTreeMap<String, Failure>,
}

#[derive(Debug)]
struct Entry {
    shape: Shape,
    manifest: TemplateManifest,
    /// What of its files was checked.
    checked: Option<Stamp>,
    bytes: u64,
    used: SystemTime,
    /// Held while it is checked for a start: once, whoever comes meanwhile.
    checking: Arc<AsyncMutex<()>>,
    /// Cloned by whoever is about to open its files.
    holds: Arc<()>,
}

#[derive(Debug)]
struct Failure {
    resources: Resources,
    backoff: Backoff,
    reason: String,
}

/// A template to start a VM from.
#[derive(Debug)]
pub struct Acquired {
    /// Its key.
    pub key: String,
    /// What its VMs have.
    pub resources: Resources,
    /// Its files.
    pub files: TemplateFiles,
    /// Keeps its files until they are open.
    _hold: Arc<()>,
}

impl Templates {
    /// None yet.
    pub fn new(root: &AppRoot, config: &Config) -> Templates {
        let config = &config.runtime;
        Templates {
            root: root.templates(),
            enabled: config.template && config.templates_max > 0,
            max: config.templates_max,
            max_bytes: parse_size(&config.templates_size).unwrap_or(u64::MAX),
            inner: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// Whether VMs are restored from templates at all.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Where they are.
    pub fn root(&self) -> &std::path::Path {
        &self.root
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a template known that lies on the disk.
    pub fn add(&self, found: Found) {
        let Found { shape, manifest, checked, bytes, used } = found;
        let (checking, holds) = (Arc::default(), Arc::default());
        let key = shape.key.clone();
        let entry = Entry { shape, manifest, checked, bytes, used, checking, holds };
        self.inner().known.insert(key, entry);
    }

    /// What a VM is restored from.
    pub fn files(&self, key: &str) -> TemplateFiles {
        let directory = self.root.join(key);
        TemplateFiles { ram: directory.join(names::RAM), state: directory.join(names::STATE) }
    }

    /// Whether the template is ready.
    pub fn is_ready(&self, key: &str) -> bool {
        self.inner().known.contains_key(key)
    }

    /// The ready template that serves `shape` best: its own, else the next larger one.
    fn serving(&self, shape: &Shape) -> Option<String> {
        let inner = self.inner();
        if inner.known.contains_key(&shape.key) {
            return Some(shape.key.clone());
        }
        let serving = inner.known.values().filter(|entry| entry.shape.may_serve(shape));
        let next = serving.min_by_key(|entry| entry.shape.resources.memory_in_bytes);
        next.map(|entry| entry.shape.key.clone())
    }

    /// The best template for `shape`; `None`: boot. It is checked when its files are not those that
    /// were, and removed when they are damaged.
    pub async fn acquire(&self, shape: &Shape) -> Option<Acquired> {
        if !self.enabled {
            return None;
        }
        let key = self.serving(shape)?;
        let checking = self.inner().known.get(&key)?.checking.clone();
        let _one = checking.lock().await;
        let (manifest, checked, hold) = {
            let inner = self.inner();
            let entry = inner.known.get(&key)?;
            (entry.manifest.clone(), entry.checked, entry.holds.clone())
        };
        let directory = self.root.join(&key);
        if checked.is_none() || Stamp::of(&directory).ok() != checked {
            let begun = Instant::now();
            let path = directory.clone();
            let check = tokio::task::spawn_blocking(move || check::check(&path, &manifest));
            let outcome = check.await.unwrap_or_else(|e| Err(std::io::Error::other(e).into()));
            if !self.heed(&key, outcome) {
                return None;
            }
            let took_ms = begun.elapsed().as_millis() as u64;
            tracing::info!(template = key, took_ms, "a template was checked for a start");
        }
        let mut inner = self.inner();
        let entry = inner.known.get_mut(&key)?;
        if entry.used.elapsed().is_ok_and(|age| age > Duration::from_secs(1)) {
            entry.used = SystemTime::now();
            disk::touch(&directory);
        }
        let resources = entry.shape.resources;
        Some(Acquired { resources, files: self.files(&key), key, _hold: hold })
    }

    /// Checks what was not, and removes what is damaged. Blocks.
    pub(super) fn check_all(&self) {
        let known: Vec<_> = {
            let inner = self.inner();
            let unchecked = inner.known.iter().filter(|(_, entry)| entry.checked.is_none());
            unchecked.map(|(key, entry)| (key.clone(), entry.manifest.clone())).collect()
        };
        for (key, manifest) in known {
            let outcome = check::check(&self.root.join(&key), &manifest);
            if self.is_ready(&key) {
                self.heed(&key, outcome);
            }
        }
    }

    /// Whether the template can be used, after a check.
    fn heed(&self, key: &str, outcome: Result<Stamp, Fault>) -> bool {
        match outcome {
            Ok(stamp) => {
                if let Some(entry) = self.inner().known.get_mut(key) {
                    entry.checked = Some(stamp);
                }
                return true;
            }
            Err(Fault::Damaged(part)) => self.discard(key, &format!("its {part} is damaged")),
            Err(fault) => tracing::warn!(template = key, %fault, "a template is not used"),
        }
        false
    }

    /// Removes a template that can't be used; a start wants it again.
    fn discard(&self, key: &str, why: &str) {
        tracing::warn!(template = key, why, "a template is removed");
        self.remove(key);
    }

    /// Removes a template; bytes that came back.
    fn remove(&self, key: &str) -> u64 {
        self.inner().known.remove(key);
        disk::remove(&self.root, key).unwrap_or_else(|error| {
            tracing::warn!(template = key, %error, "a template stays on the disk");
            0
        })
    }

    /// A VM could not be restored from a template: it goes, and is not made again at once.
    pub fn distrust(&self, key: &str, why: &str) {
        let Some(shape) = self.inner().known.get(key).map(|entry| entry.shape.clone()) else {
            return;
        };
        self.discard(key, &format!("a VM could not be restored from it: {why}"));
        self.failed(&shape, format!("no VM could be restored from it: {why}"));
    }

    /// Removes templates whose kernel has changed, or that another QEMU has made.
    pub fn drop_stale(&self, identity: &str) {
        let shapes: Vec<Shape> =
            self.inner().known.values().map(|entry| entry.shape.clone()).collect();
        for shape in shapes {
            if shape.identity != identity {
                self.discard(&shape.key, "the hypervisor or the processor has changed");
            } else if !shape.is_current() {
                self.discard(&shape.key, "its kernel has changed");
            }
        }
    }

    /// Asks for a template to be made in the background, unless it is there, asked for already, or
    /// its making failed a moment ago.
    pub fn want(&self, shape: &Shape, kernel: &Kernel) {
        let mut inner = self.inner();
        let key = &shape.key;
        let failing = inner.failures.get(key).is_some_and(|failure| failure.backoff.lasts());
        let under_way = inner.making.iter().chain(inner.wanted.iter().map(|(shape, _)| shape));
        let known = inner.known.contains_key(key) || under_way.into_iter().any(|s| s.key == *key);
        if self.enabled && !failing && !known {
            inner.wanted.push((shape.clone(), kernel.clone()));
            self.wake.notify_one();
        }
    }

    /// The next to make; [`Templates::made`] or [`Templates::failed`] must follow.
    pub(super) fn next(&self) -> Option<(Shape, Kernel)> {
        let mut inner = self.inner();
        if inner.wanted.is_empty() {
            return None;
        }
        let (shape, kernel) = inner.wanted.remove(0);
        inner.making = Some(shape.clone());
        Some((shape, kernel))
    }

    /// A template was made: older ones go where there are too many.
    pub(super) fn made(&self, found: Found) {
        let shape = found.shape.clone();
        self.add(found);
        {
            let mut inner = self.inner();
            inner.making = None;
            inner.failures.remove(&shape.key);
        }
        while let Some(key) = self.excess(&shape.key) {
            tracing::info!(template = key, "the template unused for longest is removed");
            self.remove(&key);
        }
        if self.total() > self.max_bytes {
            self.remove(&shape.key);
            self.failed(&shape, "it is larger than runtime.templates_size allows".into());
        }
    }

    /// The one to remove, other than `newest`, when there are too many.
    fn excess(&self, newest: &str) -> Option<String> {
        let total = self.total();
        let inner = self.inner();
        if inner.known.len() <= self.max && total <= self.max_bytes {
            return None;
        }
        let others = inner
            .known
            .iter()
            .filter(|(key, entry)| key.as_str() != newest && Arc::strong_count(&entry.holds) == 1);
        others.min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone())
    }

    fn total(&self) -> u64 {
        self.inner().known.values().map(|entry| entry.bytes).sum()
    }

    /// A template could not be made.
    pub(super) fn failed(&self, shape: &Shape, reason: String) {
        let mut inner = self.inner();
        inner.making.take_if(|making| making.key == shape.key);
        let before = inner.failures.get(&shape.key).map(|failure| failure.backoff);
        let backoff = Backoff::after(before, FIRST_PAUSE, LONGEST_PAUSE);
        let failure = Failure { resources: shape.resources, backoff, reason };
        inner.failures.insert(shape.key.clone(), failure);
    }

    /// Removes all but those that `in_use` names or that a start is about to use; how many, and
    /// the bytes of disk that came back.
    pub fn prune(&self, in_use: &[String]) -> (u64, u64) {
        let keys: Vec<String> = {
            let inner = self.inner();
            let unused = inner.known.iter().filter(|(key, entry)| {
                !in_use.contains(key) && Arc::strong_count(&entry.holds) == 1
            });
            unused.map(|(key, _)| key.clone()).collect()
        };
        let bytes = keys.iter().map(|key| self.remove(key)).sum();
        (keys.len() as u64, bytes)
    }
}

#[cfg(test)]
mod tests;
