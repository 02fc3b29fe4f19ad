//! Templates and spares, as the service keeps them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::LazyLock;
use std::time::Instant;

use container_api::paths::template_files as names;
use container_api::ram;
use container_api::runtime::{Phase, Request, State, TemplateFiles, TemplateManifest, VmSpec};
use container_api::types::Resources;
use container_api::varlink::Client;
use container_api::{ApiError, socket};
use tempfile::TempDir;
use tokio::sync::Mutex;

use super::{LIMIT, bundle, helper, helper_with_taps, spec, tool, write_json};

/// A template.
pub struct Template {
    directory: TempDir,
    pub manifest: TemplateManifest,
}

type Made = BTreeMap<(u32, u64, bool), &'static Template>;

/// The template of a shape without a NIC.
#[allow(dead_code, reason = "not every test has one")]
pub async fn of(resources: Resources) -> &'static Template {
    of_shape(resources, false).await
}

/// The template of a shape, made once a test program.
pub async fn of_shape(resources: Resources, nic: bool) -> &'static Template {
    static MADE: LazyLock<Mutex<Made>> = LazyLock::new(Mutex::default);
    let mut made = MADE.lock().await;
    let key = (resources.cpus, resources.memory_in_bytes, nic);
    match made.get(&key) {
        Some(template) => template,
        None => {
            let template: &'static Template =
                Box::leak(Box::new(Template::make(resources, nic).await));
            made.insert(key, template);
            template
        }
    }
}

/// An empty writable disk.
fn scratch(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(256 << 20).unwrap();
    tool("/usr/sbin/mkfs.ext4", &["-q", "-F", path.to_str().unwrap()]);
    file.set_len(container_runtime_linux::hypervisor::DISK_LEN).unwrap();
}

impl Template {
    async fn make(resources: Resources, nic: bool) -> Template {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let mut spec = spec(resources).await;
        spec.nic = nic;
        spec.image_disk = bundle().join("warm.erofs");
        spec.upper_disk = path.join("upper.img");
        scratch(&spec.upper_disk);
        write_json(path.join("vm.json"), &spec);
        let began = Instant::now();
        let status = helper("template", path).wait().unwrap();
        let log = fs::read_to_string(path.join("runtime.log")).unwrap_or_default();
        assert!(status.success(), "{status}\n{log}");
        assert!(!spec.upper_disk.exists());
        let manifest = fs::read(path.join(names::MANIFEST)).unwrap();
        let manifest: TemplateManifest = serde_json::from_slice(&manifest).unwrap();
        let template = Template { directory, manifest };
        let (digest, bytes) = template.digest();
        assert_eq!(digest, template.manifest.ram_digest);
        eprintln!("template: {:?}, {} MiB of RAM", began.elapsed(), bytes >> 20);
        template
    }

    /// The digest and the bytes of its RAM as it is now.
    pub fn digest(&self) -> (String, u64) {
        ram::digest(&File::open(self.files().ram).unwrap()).unwrap()
    }

    pub fn files(&self) -> TemplateFiles {
        let path = self.directory.path();
        TemplateFiles { ram: path.join(names::RAM), state: path.join(names::STATE) }
    }

    /// A spare below `root`, for a container that `wanted` describes; it waits.
    pub async fn spare(&self, root: &Path, wanted: &VmSpec, taps: &[OwnedFd]) -> Spare {
        let directory = root.join("spares/x");
        fs::create_dir_all(&directory).unwrap();
        let mut spec = wanted.clone();
        spec.network = None;
        spec.image_disk = bundle().join("warm.erofs");
        spec.upper_disk = directory.join("upper.img");
        scratch(&spec.upper_disk);
        write_json(directory.join("vm.json"), &spec);
        let began = Instant::now();
        let mut helper = helper_with_taps("spare", &directory, taps);
        let log = || fs::read_to_string(directory.join("runtime.log")).unwrap_or_default();
        loop {
            let state = call::<State>(&directory, Request::State).await;
            if state.is_ok_and(|state| state.phase == Phase::Ready) {
                break;
            }
            assert!(helper.try_wait().unwrap().is_none(), "{}", log());
            assert!(began.elapsed() < LIMIT, "{}", log());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        call::<()>(&directory, Request::WarmUp).await.unwrap_or_else(|e| panic!("{e}: {}", log()));
        eprintln!("spare: {:?}", began.elapsed());
        Spare { directory, helper }
    }
}

/// A spare that waits.
pub struct Spare {
    pub directory: PathBuf,
    pub helper: Child,
}

impl Spare {
    /// Becomes the container in a directory, whose helper this is from then on.
    pub async fn adopt(self, directory: &Path, taps: Vec<OwnedFd>) -> Child {
        let began = Instant::now();
        let request = Request::Adopt { directory: directory.to_owned(), taps: taps.len() };
        let borrowed: Vec<_> = taps.iter().map(|tap| tap.as_fd()).collect();
        call_with::<()>(&self.directory, request, &borrowed).await.unwrap();
        eprintln!("adopted: {:?}", began.elapsed());
        fs::remove_dir_all(&self.directory).unwrap();
        self.helper
    }
}

pub async fn call<R: serde::de::DeserializeOwned>(
    directory: &Path,
    request: Request,
) -> Result<R, ApiError> {
    call_with(directory, request, &[]).await
}

pub async fn call_with<R: serde::de::DeserializeOwned>(
    directory: &Path,
    request: Request,
    fds: &[BorrowedFd<'_>],
) -> Result<R, ApiError> {
    let stream = socket::connect(directory, "runtime.sock")?;
    Client::new(stream)?.call(&request, fds, Some(LIMIT)).await
}
