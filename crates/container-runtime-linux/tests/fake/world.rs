//! What a test needs around a fake VM: a container's or a spare's directory, and its calls.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use container_api::runtime::{Request, TemplateFiles, VmSpec};
use container_api::types::{Accelerator, ContainerConfig, ExitRecord, ProcessConfig};
use container_api::varlink::Client;
use container_api::{ErrorCode, socket};
use container_runtime_linux::boot::Patience;
use container_runtime_linux::disks::Images;
use container_runtime_linux::hypervisor::Jail;
use container_runtime_linux::vm::Blueprint;

/// Longer than anything takes.
pub const LIMIT: Duration = Duration::from_secs(20);
/// Patience that tests have.
pub const PATIENCE: Patience = Patience {
    restore: Duration::from_millis(300),
    first_boot: Duration::from_millis(300),
    boot: Duration::from_millis(900),
};

/// A container.
pub fn config() -> ContainerConfig {
    let config = serde_json::json!({
        "id": "test",
        "image": {
            "reference": "localhost/test:latest",
            "descriptor": { "mediaType": "x", "digest": "sha256:0", "size": 0 },
        },
        "platform": { "os": "linux", "architecture": "amd64" },
        "initProcess": ProcessConfig { executable: "x".into(), ..ProcessConfig::default() },
        "resources": { "cpus": 1, "memoryInBytes": 268_435_456 },
        "hostname": "test", "labels": {}, "readOnly": false, "tmpfs": [], "shmSize": 0,
        "useInit": false, "capabilities": [], "maskedPaths": [], "readonlyPaths": [],
        "stopSignal": "SIGTERM", "imageVolumes": [], "autoRemove": false,
        "creationDate": "2026-01-01T00:00:00Z", "runtimeHandler": "container-runtime-linux",
    });
    serde_json::from_value(config).unwrap()
}

/// A VM whose disks are in `directory`.
pub fn spec(directory: &Path, template: bool) -> VmSpec {
    for name in ["upper.img", "state"] {
        File::create(directory.join(name)).unwrap();
    }
    VmSpec {
        mappable: false,
        kernel: "/x".into(),
        initramfs: "/x".into(),
        template: template
            .then(|| TemplateFiles { ram: directory.join("ram"), state: directory.join("state") }),
        nic: false,
        network: None,
        resources: config().resources,
        accelerator: Accelerator::Tcg,
        virtualization: false,
        image_disk: "/images/x".into(),
        upper_disk: directory.join("upper.img"),
        shares: Vec::new(),
        hidden: Vec::new(),
        volumes: Vec::new(),
        maintenance: false,
        hypervisor: serde_json::json!({
            "binary": "/x", "files": [], "libraryPath": "", "version": "0",
            "stamp": { "inode": 0, "len": 0, "ctime": [0, 0] }, "features": {},
        }),
        jail_uid: 1,
        allow_missing: Vec::new(),
        log_max_size: 1 << 20,
        log_max_files: 2,
    }
}

/// A jail that nothing is put into.
pub fn jail() -> Jail {
    Jail { jailer: "/x".into(), host_ids: None, allow_missing: Vec::new() }
}

/// From a specification.
pub fn blueprint(spec: VmSpec) -> Blueprint {
    Blueprint::new(spec, jail(), None).unwrap()
}

/// Writes what a spare finds in a container's directory.
pub fn write_container(directory: &Path, config: &ContainerConfig, spec: &VmSpec) {
    fs::write(directory.join("config.json"), serde_json::to_vec(config).unwrap()).unwrap();
    fs::write(directory.join("vm.json"), serde_json::to_vec(spec).unwrap()).unwrap();
}

/// One call on a connection of its own; `None` when the helper has gone.
pub async fn call<R: serde::de::DeserializeOwned>(
    directory: &Path,
    request: Request,
) -> Option<Result<R, ErrorCode>> {
    let stream = socket::connect(directory, "runtime.sock").ok()?;
    let mut client = Client::new(stream).ok()?;
    match client.call(&request, &[], Some(LIMIT)).await {
        Ok(reply) => Some(Ok(reply)),
        Err(error) if error.code == ErrorCode::Disconnected && error.message.contains("clos") => {
            None
        }
        Err(error) if error.message.contains("eset") || error.message.contains("roken") => None,
        Err(error) => {
            assert_ne!(error.message, "");
            Some(Err(error.code))
        }
    }
}

/// Waits for a socket, or for the end of who would make it.
pub async fn socket_there(directory: &Path, helper: &tokio::task::JoinHandle<impl Sized>) {
    while !directory.join("runtime.sock").exists() && !helper.is_finished() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The exit record in a directory.
pub fn left(directory: &Path) -> ExitRecord {
    let text = fs::read(directory.join("exit.json")).expect("an exit record");
    serde_json::from_slice(&text).unwrap()
}

/// Images in a directory, on whatever mount it is.
pub fn images(directory: &Path) -> Images {
    Images::on(directory, File::open(directory).unwrap().into())
}
