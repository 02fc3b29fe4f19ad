//! The service: one typed request in, one answer out.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use container_api::archive::CommitOptions;
use container_api::config::RegistryConfig;
use container_api::images::{
    DiskUsage, InstallKernel, KernelBundle, Pull, Removed, Request, Unpacked,
};
use container_api::types::Platform;
use container_api::varlink::{Reply, Responder, Service};
use container_api::{ApiError, Result};
use tokio::sync::Notify;

use crate::archive::{self, CallerReader, CallerWriter};
use crate::catalog::Found;
use crate::commit;
use crate::digest::Digest;
use crate::error::{self, Error};
use crate::kernel::{self, Spooled};
use crate::meter::Meter;
use crate::reference::Reference;
use crate::registry::Puller;
use crate::removal;
use crate::store::Store;
use crate::unpack;

/// The service's state.
#[derive(Debug)]
pub struct Images {
    store: Arc<Store>,
    puller: Arc<Puller>,
    domain: String,
    kernels: PathBuf,
    /// One lock for each disk that is being made.
    unpacking: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    /// One kernel is installed at a time.
    installing: tokio::sync::Mutex<()>,
    shutdown: Arc<Notify>,
}

impl Images {
    /// The service of `store`, with kernels in `kernels`; [`Request::Shutdown`] notifies `shutdown`.
    pub fn new(
        store: Arc<Store>,
        config: RegistryConfig,
        kernels: PathBuf,
        shutdown: Arc<Notify>,
    ) -> Images {
        Images {
            store,
            domain: config.domain.clone(),
            puller: Arc::new(Puller::new(config)),
            kernels,
            unpacking: Mutex::default(),
            installing: tokio::sync::Mutex::default(),
            shutdown,
        }
    }

    async fn pull(&self, request: &Pull, responder: &Responder) -> error::Result<Found> {
        let meter = Arc::new(Meter::new("Fetching image"));
        let lease = Arc::new(self.store.lease());
        meter.report(responder, self.puller.pull(request, &lease, &meter)).await
    }

    async fn load(
        &self,
        name: Option<String>,
        fd: OwnedFd,
        responder: &Responder,
    ) -> error::Result<Vec<Found>> {
        let meter = Arc::new(Meter::new("Loading image"));
        let (store, domain, shared) = (self.store.clone(), self.domain.clone(), meter.clone());
        let work = blocking(move || {
            let lease = store.lease();
            let input = CallerReader::new(fd, shared.clone());
            let loaded = archive::load(input, name.as_deref(), &domain, &lease, &shared);
            // The failure to load says more than one to clean up after it.
            let settled = lease.settle();
            let loaded = loaded?;
            settled.map(|()| loaded)
        });
        meter.report(responder, work).await
    }

    async fn commit(
        &self,
        base: String,
        options: CommitOptions,
        fd: OwnedFd,
        responder: &Responder,
    ) -> error::Result<Found> {
        let meter = Arc::new(Meter::new("Saving image"));
        let (store, domain, shared) = (self.store.clone(), self.domain.clone(), meter.clone());
        let work = blocking(move || {
            let lease = store.lease();
            let layer = CallerReader::new(fd, shared);
            let found = commit::commit(&base, &options, layer, &domain, &lease);
            let settled = lease.settle();
            let found = found?;
            settled.map(|()| found)
        });
        meter.report(responder, work).await
    }

    async fn save(
        &self,
        references: Vec<String>,
        platform: Option<Platform>,
        fd: OwnedFd,
        responder: &Responder,
    ) -> error::Result<()> {
        let meter = Arc::new(Meter::new("Saving image"));
        let images = self.find_all(&references)?;
        let (store, shared) = (self.store.clone(), meter.clone());
        let work = blocking(move || {
            let output = CallerWriter::new(fd, shared.clone());
            archive::save(&images, platform.as_ref(), &store.lease(), &shared, output)
        });
        meter.report(responder, work).await
    }

    fn find_all(&self, references: &[String]) -> error::Result<Vec<Found>> {
        references.iter().map(|r| self.store.find(r, &self.domain)).collect()
    }

    /// Pulls the image when it is not here for the platform, then makes its disk.
    async fn prepare(&self, request: &Pull, responder: &Responder) -> error::Result<Unpacked> {
        let platform = request.platform.clone();
        let here = self.store.find(&request.reference, &self.domain);
        let usable = |found: &Found| self.store.choose(found, platform.as_ref());
        let found = match here {
            Ok(found) if usable(&found).is_ok() => found,
            Ok(found) if Reference::parse(&request.reference, &self.domain).is_err() => {
                // Named by its digest: no registry knows what to look for.
                return Err(usable(&found).err().unwrap_or(Error::NoImage(found.name)));
            }
            Ok(_) | Err(Error::NoImage(_)) => self.pull(request, responder).await?,
            Err(error) => return Err(error),
        };
        let lease = Arc::new(self.store.lease());
        let variant = self.store.choose(&found, platform.as_ref())?;
        lease.hold(variant.digest);
        let meter = Arc::new(Meter::new("Unpacking image"));
        let disk = {
            let lock = self.unpack_lock(variant.digest);
            let (variant, lease, shared) = (variant.clone(), lease.clone(), meter.clone());
            let work = async move {
                let guard = tokio::select! {
                    guard = lock.lock_owned() => guard,
                    () = shared.cancelled() => return Err(Error::Cancelled),
                };
                blocking(move || {
                    let _guard = guard;
                    unpack::unpack(&variant, &lease, &shared)
                })
                .await
            };
            meter.report(responder, work).await?
        };
        let local = variant.local.as_ref().ok_or(Error::NoBlob(variant.digest))?;
        Ok(Unpacked {
            reference: found.name,
            descriptor: found.descriptor,
            manifest_digest: variant.digest.to_string(),
            platform: variant.platform,
            disk,
            config: local.config.to_wire(),
        })
    }

    fn unpack_lock(&self, digest: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = locks.get(&digest).and_then(Weak::upgrade).unwrap_or_default();
        locks.insert(digest, Arc::downgrade(&lock));
        lock
    }

    fn tag(&self, source: &str, target: &str) -> error::Result<Found> {
        let found = self.store.find(source, &self.domain)?;
        let target = Reference::parse(target, &self.domain)?;
        if target.tag().is_none() {
            let problem = "a new name has a tag, not a digest";
            return Err(Error::Reference { text: target.to_string(), problem });
        }
        let name = target.to_string();
        self.store.change_names(|names| {
            names.insert(name.clone(), found.descriptor.clone());
        })?;
        Ok(Found { name, descriptor: found.descriptor })
    }

    async fn install_kernel(
        &self,
        request: InstallKernel,
        fds: Vec<OwnedFd>,
        responder: &Responder,
    ) -> Result<KernelBundle> {
        let _one = self.installing.lock().await;
        let meter = Arc::new(Meter::new("Installing kernel"));
        let init = container_api::paths::program("vminitd")?;
        let (kernels, shared) = (self.kernels.clone(), meter.clone());
        if let (Some(_), None) = (&request.url, &request.digest) {
            return Err(ApiError::invalid("a kernel from a URL needs a digest"));
        }
        let work = async {
            let mut spooled = Vec::new();
            if let Some(url) = request.url.clone() {
                let fetch = crate::download::fetch(&url, &kernels, &shared);
                spooled.push(tokio::select! {
                    file = fetch => file?,
                    () = shared.cancelled() => return Err(Error::Cancelled),
                });
            }
            blocking(move || {
                shared.begin("Installing kernel", 0, 0);
                for fd in fds {
                    let reader = CallerReader::new(fd, shared.clone());
                    spooled.push(Spooled::new(&kernels, &request.name, reader)?);
                }
                let architecture = Platform::host().architecture;
                Ok(kernel::install(&kernels, &request, spooled, &init, &architecture)?)
            })
            .await
        };
        Ok(meter.report(responder, work).await?)
    }

    fn disk_usage(&self, in_use: &[String]) -> error::Result<DiskUsage> {
        let (blobs, disks) = self.store.usage()?;
        let images = self.store.names().len() as u64;
        let in_use: Vec<Digest> = in_use.iter().filter_map(|digest| digest.parse().ok()).collect();
        let unreferenced = self.store.unheld(true, &in_use)?;
        let unused = self.store.unheld(false, &in_use)?;
        Ok(DiskUsage { images, blobs, disks, unreferenced, unused })
    }
}

/// Runs work that reads and writes on a thread for that.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> error::Result<T> + Send + 'static,
) -> error::Result<T> {
    let ended = |e| Error::Internal(format!("a thread ended early: {e}"));
    tokio::task::spawn_blocking(work).await.map_err(ended)?
}

fn one(fds: Vec<OwnedFd>) -> Result<OwnedFd> {
    let count = fds.len();
    let mut fds = fds.into_iter();
    match (fds.next(), count) {
        (Some(fd), 1) => Ok(fd),
        _ => Err(ApiError::invalid(format!("one descriptor is needed, {count} came"))),
    }
}

impl Service for Images {
    type Request = Request;

    async fn call(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
        responder: &Responder,
    ) -> Result<Reply> {
        let store = self.store.clone();
        match request {
            Request::Pull(pull) => {
                let found = self.pull(&pull, responder).await?;
                Reply::new(&blocking(move || store.summary(&found)).await?)
            }
            Request::Load { name } => {
                let found = self.load(name, one(fds)?, responder).await?;
                let summaries = move || {
                    found.iter().map(|f| store.summary(f)).collect::<error::Result<Vec<_>>>()
                };
                Reply::new(&blocking(summaries).await?)
            }
            Request::Save { references, platform } => {
                self.save(references, platform, one(fds)?, responder).await?;
                Reply::done()
            }
            Request::Commit { base, options } => {
                let found = self.commit(base, options, one(fds)?, responder).await?;
                Reply::new(&blocking(move || store.summary(&found)).await?)
            }
            Request::List => Reply::new(&blocking(move || removal::list(&store)).await?),
            Request::Inspect { references } => {
                let images = self.find_all(&references)?;
                let details = move || {
                    images.iter().map(|f| store.details(f)).collect::<error::Result<Vec<_>>>()
                };
                Reply::new(&blocking(details).await?)
            }
            Request::Tag { source, target } => {
                let found = self.tag(&source, &target)?;
                Reply::new(&blocking(move || store.summary(&found)).await?)
            }
            Request::Delete { references, all, force, in_use } => {
                let domain = self.domain.clone();
                let delete = removal::Delete { references, all, force, in_use };
                let removed: Removed = blocking(move || delete.run(&store, &domain)).await?;
                Reply::new(&removed)
            }
            Request::Prune { all, in_use } => {
                Reply::new(&blocking(move || removal::prune(&store, all, &in_use)).await?)
            }
            Request::Prepare { pull } => Reply::new(&self.prepare(&pull, responder).await?),
            Request::EmptyUpper => {
                Reply::new(&blocking(move || unpack::empty_upper(&store)).await?)
            }
            Request::FormatVolume(format) => {
                let file = one(fds)?;
                blocking(move || unpack::format_volume(&file.into(), format)).await?;
                Reply::done()
            }
            Request::InstallKernel(request) => {
                Reply::new(&self.install_kernel(request, fds, responder).await?)
            }
            Request::DiskUsage { in_use } => Reply::new(&self.disk_usage(&in_use)?),
            Request::CheckStore { in_use, deep } => {
                let in_use: Vec<Digest> = in_use.iter().filter_map(|d| d.parse().ok()).collect();
                let work = blocking(move || store.check(&in_use, deep));
                // Digests of many blobs take long: the caller hears that something happens.
                let meter = Arc::new(Meter::new("Checking images"));
                Reply::new(&meter.report(responder, work).await?)
            }
            Request::Shutdown => {
                self.shutdown.notify_one();
                Reply::done()
            }
        }
    }
}
