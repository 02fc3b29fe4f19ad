//! `create`: everything that can be wrong is found before anything is made, and what is made
//! appears in one step.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use container_api::apiserver::{CreateOptions, Created};
use container_api::images::Unpacked;
use container_api::varlink::Responder;
use container_api::{ApiError, ErrorCode, Result, trace};

use crate::container::Container;
use crate::directory::Staged;
use crate::engine::{Engine, Reservation};
use crate::lifecycle::Life;
use crate::store::{ImageDisk, Record};
use crate::validate::{self, name};
use crate::{kernel, merge, virtualization};

/// Where in a container's directory the bundle of its own kernel file lies.
const OWN_KERNEL: &str = "kernel";
/// How often an image is prepared that is removed at the same moment.
const ATTEMPTS: u32 = 3;

/// What the steps take, one after the other.
struct Steps {
    last: u64,
    spans: Vec<(&'static str, u64, u64)>,
}

impl Steps {
    fn new(begun: u64) -> Steps {
        Steps { last: begun, spans: Vec::new() }
    }

    fn done(&mut self, name: &'static str) {
        let now = trace::now_ns();
        self.spans.push((name, self.last, now));
        self.last = now;
    }
}

impl Engine {
    /// Creates a container. Dropping the future leaves nothing behind.
    pub async fn create(
        self: &Arc<Self>,
        options: &CreateOptions,
        sources: &[OwnedFd],
        responder: &Responder,
    ) -> Result<Created> {
        let begun = trace::now_ns();
        let options = &*validate::network::configured(options, &self.config.network.default);
        merge::check(options, &self.config.container)?;
        self.check_limits(options).await?;
        let kernel_file = self.check_kernel(options)?;
        self.check_virtualization(options, kernel_file.is_some()).await?;
        let id = match &options.name {
            Some(name) => name.clone(),
            None => name::random()?,
        };
        let reservation = self.reserve(&id)?;
        self.check_network(options, &reservation).await?;
        let (unpacked, image) = self.image(options, &reservation, responder).await?;
        let defaults = &self.config.container;
        let (mut config, warnings) = merge::configure(id, options, &unpacked, defaults)?;
        config.pids_limit = config.pids_limit.or(self.config.limits.processes);
        self.mount_binds(options, sources, &mut config)?;
        let made = self.mount_volumes(options, &mut config, &reservation).await?;
        if kernel_file.is_some() {
            config.kernel = Some(self.root.container(&config.id).join(OWN_KERNEL));
        }
        let mut steps = Steps::new(begun);
        steps.done("image");
        let empty = self.empty_upper().await?;
        let (root, parts) = (self.root.clone(), (config.clone(), image.clone()));
        let build = move || Staged::build(&root, &parts.0, &parts.1, &empty);
        let staged = tokio::task::spawn_blocking(build)
            .await
            .map_err(|e| ApiError::internal(e.to_string()))?
            .map_err(|e| self.failed(e))?;
        steps.done("container's directory");
        if let Some(file) = kernel_file {
            let bundle = staged.path().join(OWN_KERNEL);
            kernel::bundle(file, &bundle).await?;
            if options.virtualization {
                let own = kernel::choose(&self.root, Some(&bundle), None)?;
                virtualization::check_kernel(&own)?;
            }
        }
        // No await from here on: the container exists, or it does not.
        let record = Record { config, image, life: Life::new(), runtime: None };
        self.store.put(&record).map_err(|e| match ApiError::from(e) {
            full if full.code == ErrorCode::ResourceExhausted => self.no_space(),
            other => other,
        })?;
        if let Err(error) = staged.commit() {
            self.store.remove(&record.config.id, None)?;
            return Err(self.failed(error));
        }
        let container = self.add(Container::new(record));
        made.keep();
        steps.done("row and name");
        *container.creation.lock().unwrap_or_else(PoisonError::into_inner) = steps.spans;
        Ok(Created { id: container.id().to_owned(), warnings })
    }

    /// Checks the kernel that a container should have for itself; the answer is the file to make a
    /// bundle of, unless it is one.
    fn check_kernel<'o>(&self, options: &'o CreateOptions) -> Result<Option<&'o Path>> {
        let Some(own) = options.kernel.as_deref() else { return Ok(None) };
        if !own.is_absolute() {
            return Err(ApiError::invalid("--kernel is not an absolute path"));
        }
        if own.is_file() {
            return Ok(Some(own));
        }
        kernel::choose(&self.root, Some(own), None).map(|_| None)
    }

    /// The image as a disk that stays while the reservation does.
    async fn image(
        &self,
        options: &CreateOptions,
        reservation: &Reservation,
        responder: &Responder,
    ) -> Result<(Arc<Unpacked>, ImageDisk)> {
        for _ in 0..ATTEMPTS {
            let unpacked = self.prepare(&options.image, responder).await?;
            let image = ImageDisk {
                disk: self.relative(&unpacked.disk),
                index_digest: unpacked.descriptor.digest.clone(),
                manifest_digest: unpacked.manifest_digest.clone(),
            };
            let _no_removal = self.images_in_use.lock().await;
            reservation.uses(image.clone());
            if unpacked.disk.exists() {
                return Ok((unpacked, image));
            }
        }
        let shown = container_api::escape::escape(&options.image.reference).into_owned();
        Err(ApiError::not_found(format!("image {shown} is being removed")))
    }

    fn failed(&self, error: io::Error) -> ApiError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.no_space(),
            _ => ApiError::from(error).context("making the container's directory"),
        }
    }

    /// The disk that the app root is on is full.
    pub fn no_space(&self) -> ApiError {
        let message = format!("no space left in {}", self.root.path().display());
        ApiError::new(ErrorCode::ResourceExhausted, message)
    }
}
