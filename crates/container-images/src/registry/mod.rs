//! The registry side: OCI distribution-spec over HTTP, the pulling half of it.
//!
//! This speaks the protocol on `reqwest` itself: the published clients read manifests of any size
//! into memory, and don't go on with a blob where a cut connection left it.

mod auth;
mod blob;
mod manifest;
mod session;
mod transfer;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use container_api::ErrorCode;
use container_api::config::RegistryConfig;
use container_api::images::Pull;
use container_api::types::Platform;
use tokio::sync::{OwnedMutexGuard, Semaphore};
use tokio::task::JoinSet;

use crate::catalog::Found;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::meter::Meter;
use crate::oci::{Descriptor, MAX_CONFIG, Manifest};
use crate::reference::Reference;
use crate::store::Lease;
use session::Session;
pub use transfer::Transfer;

/// Within this a registry has to have answered with the image's index or manifest, all tries and
/// the way to a token included.
const FIRST_CONTACT: Duration = Duration::from_secs(18);
const DEFAULT_PARALLEL: u32 = 3;
const MAX_PARALLEL: u32 = 16;

/// Pulls images; one instance for all pulls, so that two never fetch one blob twice.
#[derive(Debug)]
pub struct Puller {
    config: RegistryConfig,
    /// One lock for each blob that is being fetched.
    busy: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

impl Puller {
    /// A puller for names of this configuration.
    pub fn new(config: RegistryConfig) -> Puller {
        Puller { config, busy: Mutex::default() }
    }

    async fn lock_blob(&self, digest: Digest) -> OwnedMutexGuard<()> {
        let lock = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.retain(|_, lock| lock.strong_count() > 0);
            let known = busy.get(&digest).and_then(Weak::upgrade);
            let lock = known.unwrap_or_default();
            busy.insert(digest, Arc::downgrade(&lock));
            lock
        };
        lock.lock_owned().await
    }

    /// Fetches what one platform needs, and names the image.
    pub async fn pull(
        self: &Arc<Self>,
        request: &Pull,
        lease: &Arc<Lease>,
        meter: &Arc<Meter>,
    ) -> Result<Found> {
        tokio::select! {
            result = self.fetch(request, lease, meter) => result,
            () = meter.cancelled() => Err(Error::Cancelled),
        }
    }

    async fn fetch(
        self: &Arc<Self>,
        request: &Pull,
        lease: &Arc<Lease>,
        meter: &Arc<Meter>,
    ) -> Result<Found> {
        meter.begin("Fetching image", 0, 0);
        let reference = Reference::parse(&request.reference, &self.config.domain)?;
        let session = Arc::new(Session::new(&reference, request, &self.config)?);
        let wanted = request.platform.clone().unwrap_or_else(Platform::host);
        let first = tokio::time::timeout(FIRST_CONTACT, session.root(&reference, lease)).await;
        let root = first.unwrap_or_else(|_| {
            let problem = format!("no answer within {} s", FIRST_CONTACT.as_secs());
            Err(session.error("connecting", problem, ErrorCode::Timeout))
        })?;
        let manifest = session.choose(&root, &wanted, &reference, lease).await?;
        manifest.check_runnable(&reference.to_string())?;
        self.fetch_config(&session, &manifest, &wanted, &reference, lease, meter).await?;
        let parallel = request.max_concurrent_downloads.unwrap_or(DEFAULT_PARALLEL);
        self.fetch_layers(&session, &manifest, parallel, lease, meter).await?;
        let found = Found { name: reference.to_string(), descriptor: root.descriptor.to_wire() };
        lease.store().change_names(|names| {
            names.insert(found.name.clone(), found.descriptor.clone());
        })?;
        Ok(found)
    }

    /// The configuration comes first: it says whether the layers are worth fetching.
    async fn fetch_config(
        self: &Arc<Self>,
        session: &Arc<Session>,
        manifest: &Manifest,
        wanted: &Platform,
        reference: &Reference,
        lease: &Arc<Lease>,
        meter: &Arc<Meter>,
    ) -> Result<()> {
        if manifest.config.size > MAX_CONFIG {
            return Err(Error::malformed(reference.to_string(), "the configuration is too large"));
        }
        self.fetch_blob(session, &manifest.config, lease, meter).await?;
        let config = lease.store().config(manifest.config.digest()?)?;
        match config.platform() {
            Some(platform) if !platform.matches(wanted) => Err(Error::NoPlatform {
                image: reference.to_string(),
                wanted: wanted.clone(),
                available: vec![platform],
            }),
            _ => Ok(()),
        }
    }

    async fn fetch_layers(
        self: &Arc<Self>,
        session: &Arc<Session>,
        manifest: &Manifest,
        parallel: u32,
        lease: &Arc<Lease>,
        meter: &Arc<Meter>,
    ) -> Result<()> {
        let mut layers: Vec<&Descriptor> = manifest.layers.iter().collect();
        layers.sort_by(|a, b| a.digest.cmp(&b.digest));
        layers.dedup_by(|a, b| a.digest == b.digest);
        let total = layers.iter().fold(0u64, |sum, l| sum.saturating_add(l.size));
        meter.begin("Fetching image", total, layers.len() as u64);
        let permits = Arc::new(Semaphore::new(parallel.clamp(1, MAX_PARALLEL) as usize));
        let mut tasks = JoinSet::new();
        for layer in layers {
            let (puller, session, lease, meter) =
                (self.clone(), session.clone(), lease.clone(), meter.clone());
            let (permits, layer) = (permits.clone(), layer.clone());
            tasks.spawn(async move {
                let _permit = permits.acquire_owned().await;
                puller.fetch_blob(&session, &layer, &lease, &meter).await?;
                meter.item();
                Ok::<(), Error>(())
            });
        }
        // The first failure ends the others: dropping the set aborts them.
        while let Some(result) = tasks.join_next().await {
            result.map_err(|e| Error::Internal(format!("a download ended early: {e}")))??;
        }
        Ok(())
    }

    async fn fetch_blob(
        &self,
        session: &Session,
        descriptor: &Descriptor,
        lease: &Arc<Lease>,
        meter: &Arc<Meter>,
    ) -> Result<()> {
        let digest = descriptor.digest()?;
        lease.hold(digest);
        let is_here = || lease.store().has(digest, Some(descriptor.size));
        if !is_here() {
            let guard = self.lock_blob(digest).await;
            if !is_here() {
                return session.blob(digest, descriptor.size, guard, lease, meter).await;
            }
        }
        meter.advance(descriptor.size);
        Ok(())
    }
}
