//! What all operations share: the containers, the store, and the way to other services.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use container_api::config::{Config, parse_size};
use container_api::escape::escape;
use container_api::network::NO_NETWORK;
use container_api::paths::AppRoot;
use container_api::runtime::{ProbeReport, VmSpec};
use container_api::types::{ContainerSnapshot, Resources};
use container_api::{ApiError, ErrorCode, Result};
use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard, watch};
use tokio::task::JoinHandle;

use crate::container::Container;
use crate::images::Images;
use crate::jail_uid::JailUids;
use crate::kernel::{self, Kernel};
use crate::lifecycle::Event;
use crate::limits::Admissions;
use crate::networks::Networks;
use crate::prepared::Prepared;
use crate::probe::Probe;
use crate::spare::Spares;
use crate::starts::Starts;
use crate::store::{ImageDisk, Store};
use crate::template::{Shape, Templates};
use crate::volumes::Volumes;

/// How long an operation waits for another one on the same container.
const TURN_DEADLINE: Duration = Duration::from_secs(30);

/// The service's state.
#[derive(Debug)]
pub struct Engine {
    /// The installation.
    pub root: AppRoot,
    /// Its configuration, as read at the start.
    pub config: Config,
    /// The database.
    pub store: Store,
    /// `container-images`.
    pub images: Images,
    /// `container-network`.
    pub networks: Networks,
    /// Volumes.
    pub volumes: Volumes,
    /// What is known of images.
    pub prepared: Prepared,
    /// What runs VMs here.
    pub probe: Probe,
    /// Templates of VMs.
    pub templates: Templates,
    /// Spare VMs.
    pub spares: Spares,
    /// User ids of jails.
    pub jail_uids: Arc<JailUids>,
    /// Starts under way.
    pub starts: Arc<Starts>,
    /// What is counted against `[limits]` though it does not run yet.
    pub admissions: Admissions,
    /// What works in the background as long as the service runs.
    pub background: Mutex<Vec<JoinHandle<()>>>,
    /// Held while images are removed, and while a new container says which one it uses: a removal
    /// either sees the container or is over.
    pub images_in_use: AsyncMutex<()>,
    /// The same for networks.
    pub networks_in_use: AsyncMutex<()>,
    /// No container is restarted any more: the service is asked to end.
    pub stopping: AtomicBool,
    /// True once the service should end.
    pub ending: watch::Sender<bool>,
    registry: Mutex<Registry>,
    /// Containers whose rows could not be written when they changed.
    unwritten: Mutex<BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct Registry {
    containers: BTreeMap<String, Arc<Container>>,
    /// Names of containers that are being created.
    reserved: BTreeMap<String, Reserved>,
}

/// What is known of a container that is being created.
#[derive(Debug, Default)]
struct Reserved {
    image: Option<ImageDisk>,
    networks: Vec<String>,
    volumes: Vec<String>,
}

/// A name that nobody else can take; given back on drop.
#[derive(Debug)]
pub struct Reservation {
    engine: Arc<Engine>,
    id: String,
}

impl Reservation {
    /// Says which image the container will use: from now on it can't be removed.
    pub fn uses(&self, image: ImageDisk) {
        self.change(|reserved| reserved.image = Some(image));
    }

    /// Says on which networks the container will be: from now on they can't be removed.
    pub fn joins(&self, networks: Vec<String>) {
        self.change(|reserved| reserved.networks = networks);
    }

    /// Says which volumes the container will have: from now on they can't be removed.
    pub fn mounts(&self, volumes: Vec<String>) {
        self.change(|reserved| reserved.volumes = volumes);
    }

    fn change(&self, change: impl FnOnce(&mut Reserved)) {
        change(self.engine.registry().reserved.entry(self.id.clone()).or_default());
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.engine.registry().reserved.remove(&self.id);
    }
}

impl Engine {
    /// An engine without containers.
    pub fn new(root: AppRoot, config: Config, store: Store) -> Engine {
        Engine {
            images: Images::new(&root),
            networks: Networks::new(&root, config.network.default != NO_NETWORK),
            volumes: Volumes::new(&root),
            prepared: Prepared::default(),
            probe: Probe::default(),
            templates: Templates::new(&root, &config),
            spares: Spares::new(&config.runtime),
            jail_uids: JailUids::new(&root),
            starts: Arc::default(),
            admissions: Admissions::default(),
            background: Mutex::default(),
            images_in_use: AsyncMutex::new(()),
            networks_in_use: AsyncMutex::new(()),
            stopping: AtomicBool::new(false),
            ending: watch::Sender::new(false),
            registry: Mutex::default(),
            unwritten: Mutex::default(),
            root,
            config,
            store,
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The container with this id, or with the only id that begins so.
    pub fn find(&self, name: &str) -> Result<Arc<Container>> {
        let registry = self.registry();
        if let Some(container) = registry.containers.get(name) {
            return Ok(container.clone());
        }
        let shown: String = name.chars().take(128).collect();
        let shown = escape(&shown);
        let from = registry.containers.range(name.to_owned()..);
        let mut found = from.take_while(|(id, _)| !name.is_empty() && id.starts_with(name));
        match (found.next(), found.next()) {
            (Some((_, container)), None) => Ok(container.clone()),
            (Some(_), Some(_)) => {
                Err(ApiError::invalid(format!("several containers begin with '{shown}'")))
            }
            (None, _) => Err(ApiError::not_found(format!("no container '{shown}'"))),
        }
    }

    /// All containers, oldest first.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        let mut all: Vec<_> = self.registry().containers.values().cloned().collect();
        all.sort_by(|a, b| (a.config.creation_date, a.id()).cmp(&(b.config.creation_date, b.id())));
        all
    }

    /// All containers as `list` shows them.
    pub fn snapshots(&self) -> Vec<ContainerSnapshot> {
        self.containers().iter().map(|container| container.snapshot()).collect()
    }

    /// Takes a name for a container that is about to be created.
    pub fn reserve(self: &Arc<Self>, id: &str) -> Result<Reservation> {
        let mut registry = self.registry();
        if registry.containers.contains_key(id) || registry.reserved.contains_key(id) {
            let message = format!("a container named '{id}' exists already");
            return Err(ApiError::new(ErrorCode::AlreadyExists, message));
        }
        registry.reserved.insert(id.to_owned(), Reserved::default());
        Ok(Reservation { engine: self.clone(), id: id.to_owned() })
    }

    /// Names of containers that are being created.
    pub fn reserved(&self) -> Vec<String> {
        self.registry().reserved.keys().cloned().collect()
    }

    /// Makes a container known.
    pub fn add(&self, container: Container) -> Arc<Container> {
        let container = Arc::new(container);
        self.registry().containers.insert(container.id().to_owned(), container.clone());
        container
    }

    /// Forgets a container.
    pub fn forget(&self, container: &Arc<Container>) {
        let mut registry = self.registry();
        // A new one of the same name may be there already.
        if registry.containers.get(container.id()).is_some_and(|c| Arc::ptr_eq(c, container)) {
            registry.containers.remove(container.id());
        }
    }

    /// Digests of images that containers use, also those that are being created.
    pub fn digests_in_use(&self) -> Vec<String> {
        let registry = self.registry();
        let existing = registry.containers.values().map(|c| &c.image);
        let mut digests: Vec<String> = existing
            .chain(registry.reserved.values().filter_map(|reserved| reserved.image.as_ref()))
            .flat_map(|image| [image.index_digest.clone(), image.manifest_digest.clone()])
            .collect();
        digests.sort();
        digests.dedup();
        digests
    }

    /// Networks that containers are configured with, also those that are being created, each with
    /// the container.
    pub fn network_users(&self) -> Vec<(String, String)> {
        let registry = self.registry();
        let existing = registry.containers.values().flat_map(|container| {
            let networks = container.config.network.networks.iter();
            networks.map(|choice| (choice.network.clone(), container.id().to_owned()))
        });
        let reserved = registry.reserved.iter().flat_map(|(id, reserved)| {
            reserved.networks.iter().map(|network| (network.clone(), id.clone()))
        });
        existing.chain(reserved).collect()
    }

    /// Volumes that containers are configured with, also those that are being created, each with
    /// the container.
    pub fn volume_users(&self) -> Vec<(String, String)> {
        let registry = self.registry();
        let existing = registry.containers.values().flat_map(|container| {
            let names = crate::volumes::names(&container.config);
            names.into_iter().map(|name| (name, container.id().to_owned()))
        });
        let reserved = registry.reserved.iter().flat_map(|(id, reserved)| {
            reserved.volumes.iter().map(|volume| (volume.clone(), id.clone()))
        });
        let mut all: Vec<_> = existing.chain(reserved).collect();
        // A container that was just made is in both.
        all.sort();
        all.dedup();
        all
    }

    /// Applies an event to a container and writes it down; false when it means nothing now.
    pub fn apply(&self, container: &Container, event: Event) -> bool {
        let taken = container.update(|live| live.life.apply(event));
        if taken {
            self.write_down(container);
        }
        taken
    }

    /// Writes down where a container is. A full disk must not keep it from ending: what is not
    /// written is tried again ([`Engine::write_again`]), and found out again by the next start of
    /// this service.
    pub fn write_down(&self, container: &Container) {
        let live = container.live();
        let runtime = live.machine.map(|machine| machine.runtime());
        let written = self.store.put_life(container.id(), &live.life, runtime.as_ref());
        let mut unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
        match written {
            Ok(()) => _ = unwritten.remove(container.id()),
            Err(error) => {
                let error = ApiError::from(error);
                tracing::error!(container = container.id(), %error, "not written");
                unwritten.insert(container.id().to_owned());
            }
        }
    }

    /// Writes down what could not be written when it changed.
    pub fn write_again(&self) {
        let unwritten =
            std::mem::take(&mut *self.unwritten.lock().unwrap_or_else(PoisonError::into_inner));
        // Those that are gone have no row any more.
        for container in unwritten.iter().filter_map(|id| self.find(id).ok()) {
            self.write_down(&container);
        }
    }

    /// Waits for the container's turn: until no other operation starts or removes it.
    pub async fn turn<'c>(&self, container: &'c Container) -> Result<AsyncMutexGuard<'c, ()>> {
        let busy = |_| {
            let message = format!("container '{}' is busy with another operation", container.id());
            ApiError::new(ErrorCode::Timeout, message)
        };
        let guard =
            tokio::time::timeout(TURN_DEADLINE, container.operation.lock()).await.map_err(busy)?;
        match container.live().removed {
            true => Err(ApiError::not_found(format!("no container '{}'", container.id()))),
            false => Ok(guard),
        }
    }

    /// Waits until no start has been under way for `calm`.
    pub async fn quiet(&self, calm: Duration) {
        loop {
            self.starts.none().await;
            let begun = self.starts.begun();
            tokio::time::sleep(calm).await;
            if self.starts.begun() == begun {
                return;
            }
        }
    }

    /// The kernel of new VMs: a container's own one, or this installation's.
    pub fn kernel(&self, own: Option<&Path>) -> Result<Kernel> {
        kernel::choose(&self.root, own, self.config.kernel.path.as_deref())
    }

    /// What VMs with `kernel` and `resources` are made of; `None` when they are not restored from
    /// templates.
    pub fn shape(
        &self,
        kernel: &Kernel,
        report: &ProbeReport,
        resources: Resources,
        virtualization: bool,
    ) -> Option<Shape> {
        let possible = self.templates.enabled()
            && !report.template_identity.is_empty()
            && kernel.warm_image.exists();
        let shape = possible.then(|| Shape::new(kernel, report, resources, virtualization))?;
        let failed = |error| tracing::warn!(%error, "the kernel can't be looked at");
        shape.map_err(failed).ok()
    }

    /// A VM of this host that boots, without disks.
    pub fn vm_spec(
        &self,
        kernel: &Kernel,
        report: &ProbeReport,
        resources: Resources,
    ) -> Result<VmSpec> {
        Ok(VmSpec {
            kernel: kernel.kernel.clone(),
            initramfs: kernel.initramfs.clone(),
            resources,
            template: None,
            nic: report.tap,
            network: None,
            accelerator: report.accelerator,
            virtualization: false,
            image_disk: PathBuf::new(),
            upper_disk: PathBuf::new(),
            shares: Vec::new(),
            mappable: false,
            hidden: self.hidden(),
            volumes: Vec::new(),
            maintenance: false,
            hypervisor: report.hypervisor.clone(),
            jail_uid: 0,
            allow_missing: self.config.security.allow_missing.clone(),
            log_max_size: parse_size(&self.config.log.max_size)?,
            log_max_files: self.config.log.max_files,
        })
    }

    /// Ends what works in the background, and what it keeps.
    pub async fn end_background(self: &Arc<Self>) {
        let tasks =
            std::mem::take(&mut *self.background.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            task.abort();
            let _ = task.await;
        }
        crate::spare::keeper::end_all(self, true).await;
        crate::template::maker::give_up(self).await;
    }

    /// A path below the app root, made independent of where that is.
    pub fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(self.root.path()).unwrap_or(path).to_owned()
    }

    /// The directory of a container.
    pub fn directory(&self, container: &Container) -> PathBuf {
        self.root.container(container.id())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::lifecycle::Life;
    use crate::store::Record;
    use crate::store::tests::{config, image};

    pub(crate) fn engine(directory: &Path) -> Arc<Engine> {
        let root = AppRoot::resolve(Some(directory)).unwrap();
        crate::app_root::prepare(&root).unwrap();
        let store = Store::open(&root.database()).unwrap();
        Arc::new(Engine::new(root, Config::default(), store))
    }

    fn add(engine: &Engine, id: &str) -> Arc<Container> {
        let record =
            Record { config: config(id), image: image(), life: Life::new(), runtime: None };
        engine.add(Container::new(record))
    }

    #[test]
    fn containers_are_found_by_a_unique_prefix() {
        let directory = tempfile::tempdir().unwrap();
        let engine = engine(directory.path());
        for id in ["web", "web-2", "db"] {
            add(&engine, id);
        }
        assert_eq!(engine.find("web").unwrap().id(), "web");
        assert_eq!(engine.find("web-").unwrap().id(), "web-2");
        assert_eq!(engine.find("d").unwrap().id(), "db");
        assert_eq!(engine.find("we").unwrap_err().code, ErrorCode::InvalidArgument);
        for missing in ["", "x", "web-3", "zz\n"] {
            assert_eq!(engine.find(missing).unwrap_err().code, ErrorCode::NotFound);
        }
        assert_eq!(engine.containers()[0].id(), "web");
    }

    #[test]
    fn a_reserved_name_is_taken_and_its_image_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let engine = engine(directory.path());
        let held = engine.reserve("ab").unwrap();
        assert_eq!(engine.reserve("ab").unwrap_err().code, ErrorCode::AlreadyExists);
        assert!(engine.digests_in_use().is_empty());
        held.uses(image());
        assert_eq!(engine.digests_in_use(), ["sha256:00", "sha256:01"]);
        drop(held);
        assert!(engine.digests_in_use().is_empty());
        let old = add(&engine, "ab");
        engine.reserve("ab").unwrap_err();
        add(&engine, "ab");
        engine.forget(&old);
        engine.find("ab").expect("the newer one stays");
    }
}
