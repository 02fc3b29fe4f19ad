//! `container-apiserver`: the life of containers, and the one door for the command line.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::archive::{ArchiveWork, CommitOptions};
use crate::images::{self, Progress};
use crate::mounts::{MountOptions, VolumeOptions};
use crate::network;
use crate::paths::AppRoot;
use crate::seccomp::Security;
use crate::types::{
    Accelerator, ByteString, ContainerSnapshot, ExitRecord, MemoryShare, PublishSocket, Resources,
    RestartPolicy, Rlimit, Stdio, TerminalSize, Tmpfs,
};
use crate::varlink::Client;
use crate::{ApiError, ErrorCode, Result};

/// Name of the service's socket in the app root.
pub const SOCKET: &str = "apiserver.sock";

/// For calls that need no VM and no network.
pub const QUICK: Duration = Duration::from_secs(20);
/// For calls that start or end a VM.
pub const SLOW: Duration = Duration::from_secs(150);

/// What can be asked of the apiserver. Containers are named by id or a unique prefix of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "method", content = "parameters")]
pub enum Request {
    /// Answer: [`SystemStatus`].
    #[serde(rename = "dev.container.Apiserver.Status")]
    Status,
    /// Ends the service; with `stop_containers` all containers first (signal, then kill after
    /// `timeout_ms`). Answer: `()`.
    #[serde(rename = "dev.container.Apiserver.Shutdown")]
    Shutdown {
        /// Stop running containers too.
        stop_containers: bool,
        /// Milliseconds they get.
        timeout_ms: u64,
    },
    /// Any request to `container-images`, relayed with its descriptors and progress; `in_use` of
    /// removals is filled in here.
    #[serde(rename = "dev.container.Apiserver.Images")]
    Images(images::Request),
    /// Creates a container; fetches the image when it is not here. Brings an `O_PATH` descriptor
    /// of each bind mount's source, in their order. Progress: [`Progress`]; answer: [`Created`].
    #[serde(rename = "dev.container.Apiserver.Create")]
    Create(Box<CreateOptions>),
    /// Created or stopped: starts the VM and the first process. Brings the descriptors that
    /// `stdio` names, then the trace's. Answer: `()` when it runs.
    #[serde(rename = "dev.container.Apiserver.Start")]
    Start {
        /// Which container.
        id: String,
        /// Streams to attach.
        stdio: Stdio,
        /// Size of the caller's terminal.
        size: Option<TerminalSize>,
        /// One more descriptor, the last: a file to which [`crate::trace`] appends.
        #[serde(default)]
        trace: bool,
        /// The caller's SSH agent (`SSH_AUTH_SOCK`), absolute; of use with `--ssh` alone.
        #[serde(default)]
        ssh_agent: Option<PathBuf>,
    },
    /// Running: attaches to the first process. Answer: `()`.
    #[serde(rename = "dev.container.Apiserver.Attach")]
    Attach {
        /// Which container.
        id: String,
        /// Streams to attach.
        stdio: Stdio,
    },
    /// Running: starts another process. Answer: its name, a `String`.
    #[serde(rename = "dev.container.Apiserver.Exec")]
    Exec {
        /// Which container.
        id: String,
        /// The process.
        process: ProcessOptions,
        /// Streams to attach.
        stdio: Stdio,
        /// Size of the caller's terminal.
        size: Option<TerminalSize>,
        /// As in [`Request::Start`].
        #[serde(default)]
        ssh_agent: Option<PathBuf>,
    },
    /// Any state: copies files into the container or out of it. Brings the descriptors that `stdio`
    /// names: the tar stream, and one for what went wrong. Answer: [`ExitRecord`] of the copy, 0 or
    /// 1, when it is over.
    #[serde(rename = "dev.container.Apiserver.Archive")]
    Archive {
        /// Which container.
        id: String,
        /// What to copy.
        work: ArchiveWork,
        /// Its streams.
        stdio: Stdio,
    },
    /// Any state: makes an image of the container. Answer: [`images::ImageSummary`].
    #[serde(rename = "dev.container.Apiserver.Commit")]
    Commit {
        /// Which container.
        id: String,
        /// How.
        options: CommitOptions,
    },
    /// Created or stopped: gives the container another id. Answer: `()`.
    #[serde(rename = "dev.container.Apiserver.Rename")]
    Rename {
        /// Which container.
        id: String,
        /// What it is called from then on.
        name: String,
    },
    /// Waits for the end of a process. Answer: [`ExitRecord`]; at once when a container is
    /// stopped already. A container that was never started is waited for.
    #[serde(rename = "dev.container.Apiserver.Wait")]
    Wait {
        /// Which container.
        id: String,
        /// An exec's name; `None`: the container.
        process_id: Option<String>,
    },
    /// Running. Answer: `()`.
    #[serde(rename = "dev.container.Apiserver.Signal")]
    Signal {
        /// Which container.
        id: String,
        /// An exec's name; `None`: the first process.
        process_id: Option<String>,
        /// `SIGTERM`, `TERM` or a number.
        signal: String,
    },
    /// Running. Answer: `()`.
    #[serde(rename = "dev.container.Apiserver.Resize")]
    Resize {
        /// Which container.
        id: String,
        /// An exec's name; `None`: the first process.
        process_id: Option<String>,
        /// The new size.
        size: TerminalSize,
    },
    /// Ends a container: signal, then kill. A stopped one is no error. Answer: `()`.
    #[serde(rename = "dev.container.Apiserver.Stop")]
    Stop {
        /// Which container.
        id: String,
        /// `None`: the container's own.
        signal: Option<String>,
        /// Milliseconds between the signal and the kill.
        timeout_ms: u64,
    },
    /// Created or stopped (or any state with `force`). Answer: `()`.
    #[serde(rename = "dev.container.Apiserver.Delete")]
    Delete {
        /// Which container.
        id: String,
        /// Kill it first when it runs.
        force: bool,
    },
    /// Answer: `Vec<ContainerSnapshot>`, oldest first.
    #[serde(rename = "dev.container.Apiserver.List")]
    List,
    /// Answer: [`ContainerSnapshot`].
    #[serde(rename = "dev.container.Apiserver.Inspect")]
    Inspect {
        /// Which container.
        id: String,
    },
    /// Writes the program's output to two descriptors (stdout, stderr), the boot log to the first.
    /// Answers `()` when all is written, with `follow` when the container has ended.
    #[serde(rename = "dev.container.Apiserver.Logs")]
    Logs {
        /// Which container.
        id: String,
        /// Go on until the container ends.
        follow: bool,
        /// Only the last lines.
        tail: Option<u64>,
        /// The guest's console and kernel log instead.
        boot: bool,
    },
    /// What the named running containers use, or all of them. Answer: `Vec<ContainerStats>`
    /// ([`crate::types::ContainerStats`]).
    #[serde(rename = "dev.container.Apiserver.Stats")]
    Stats {
        /// Which; none: all that run.
        ids: Vec<String>,
    },
    /// Running: changes limits, within the VM's shape. Answer: `()`.
    #[serde(rename = "dev.container.Apiserver.Update")]
    Update {
        /// Which container.
        id: String,
        /// `--cpus`.
        cpus: Option<u32>,
        /// `--memory` in bytes.
        memory_in_bytes: Option<u64>,
    },
    /// Answer: [`crate::types::DiskUsage`].
    #[serde(rename = "dev.container.Apiserver.DiskUsage")]
    DiskUsage,
    /// Compares what is there with what is recorded. Answer: `Vec<Checked>`
    /// ([`crate::invariants::Checked`]), in the order of [`crate::invariants::Invariant::ALL`].
    #[serde(rename = "dev.container.Apiserver.CheckState")]
    CheckState {
        /// Also read every blob of images, and compare its digest.
        deep: bool,
    },
    /// Removes what is kept to be fast and not in use: templates and spares. Answer:
    /// [`PrunedSystem`].
    #[serde(rename = "dev.container.Apiserver.PruneSystem")]
    PruneSystem,
    /// Any request about networks themselves and about DNS domains, relayed to
    /// `container-network`; `in_use` is filled in here.
    #[serde(rename = "dev.container.Apiserver.Networks")]
    Networks(network::Request),
    /// Answer: [`crate::mounts::Volume`].
    #[serde(rename = "dev.container.Apiserver.CreateVolume")]
    CreateVolume(VolumeOptions),
    /// A volume that no container has. Answer: `()`.
    #[serde(rename = "dev.container.Apiserver.DeleteVolume")]
    DeleteVolume {
        /// Its name, whole.
        name: String,
    },
    /// Answer: `Vec<Volume>` ([`crate::mounts::Volume`]), by name.
    #[serde(rename = "dev.container.Apiserver.ListVolumes")]
    ListVolumes,
    /// Removes all volumes that no container has. Answer: [`crate::mounts::PrunedVolumes`].
    #[serde(rename = "dev.container.Apiserver.PruneVolumes")]
    PruneVolumes,
    /// Removes all containers that are stopped. Answer: [`PrunedContainers`].
    #[serde(rename = "dev.container.Apiserver.Prune")]
    Prune,
}

/// What `create` and `run` ask for; what is `None` comes from the image or the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CreateOptions {
    /// Which image, and how to fetch it.
    pub image: images::Pull,
    /// `--name`.
    pub name: Option<String>,
    /// The process: arguments replace the image's `Cmd`.
    pub process: ProcessOptions,
    /// `--entrypoint`; an empty one clears the image's.
    pub entrypoint: Option<ByteString>,
    /// `--cpus`.
    pub cpus: Option<u32>,
    /// `--memory` in bytes.
    pub memory_in_bytes: Option<u64>,
    /// `--pids-limit`: processes and threads.
    pub pids_limit: Option<u64>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// `--read-only`.
    pub read_only: bool,
    /// `--tmpfs`.
    pub tmpfs: Vec<Tmpfs>,
    /// `--volume`, `--mount`.
    pub mounts: Vec<MountOptions>,
    /// `--shm-size` in bytes.
    pub shm_size: Option<u64>,
    /// `--init`.
    pub use_init: bool,
    /// `--cap-add`, as given (`NET_ADMIN`, `CAP_NET_ADMIN`, `ALL`).
    pub cap_add: Vec<String>,
    /// `--cap-drop`.
    pub cap_drop: Vec<String>,
    /// `--security-opt`.
    pub security: Security,
    /// `--masked-path`; `None`: the defaults.
    pub masked_paths: Option<Vec<String>>,
    /// `--read-only-path`; `None`: the defaults.
    pub readonly_paths: Option<Vec<String>>,
    /// `--stop-signal`.
    pub stop_signal: Option<String>,
    /// `--kernel`: a kernel binary or a bundle's directory, absolute.
    pub kernel: Option<PathBuf>,
    /// `--virtualization`.
    pub virtualization: bool,
    /// The user was asked about `--virtualization` and agreed.
    pub virtualization_confirmed: bool,
    /// `--rm`.
    pub auto_remove: bool,
    /// `--restart`.
    pub restart: RestartPolicy,
    /// `--restart-memory`.
    pub restart_memory: Option<MemoryShare>,
    /// `--network`, `--publish`, `--dns…`, `--egress`, `--host-access`. No network at all is said
    /// by one of the name [`network::NO_NETWORK`]; none named is [`network::DEFAULT_NETWORK`].
    pub network: network::ContainerNetwork,
    /// `--publish-all`: every port that the image exposes, on any free one.
    pub publish_all: bool,
    /// `--publish-socket`.
    pub publish_sockets: Vec<PublishSocket>,
    /// `--ssh`.
    pub ssh: bool,
}

/// What `run`, `create` and `exec` ask of a process; what is `None` comes from the image or, for
/// `exec`, from the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProcessOptions {
    /// Program and arguments.
    pub arguments: Vec<ByteString>,
    /// `NAME=value`; later ones win, over the image's too.
    pub environment: Vec<ByteString>,
    /// `--workdir`.
    pub working_directory: Option<ByteString>,
    /// `--tty`.
    pub terminal: bool,
    /// `--interactive`.
    pub interactive: bool,
    /// `--user`: `name|uid[:group|gid]`.
    pub user: Option<String>,
    /// `--uid`.
    pub uid: Option<u32>,
    /// `--gid`.
    pub gid: Option<u32>,
    /// `--ulimit`.
    pub rlimits: Vec<Rlimit>,
}

/// The answer to [`Request::Create`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// The container's id.
    pub id: String,
    /// Things the user should know (image volumes that are not mounted yet), one line each.
    pub warnings: Vec<String>,
}

/// The answer to [`Request::Prune`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunedContainers {
    /// Containers that are gone.
    pub ids: Vec<String>,
    /// Bytes on the host's disk that came back.
    pub reclaimed: u64,
}

/// The answer to [`Request::PruneSystem`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrunedSystem {
    /// Templates that are gone.
    pub templates: u64,
    /// Spares that are gone.
    pub spares: u64,
    /// Bytes on the host's disk that came back.
    pub reclaimed: u64,
}

/// A template as `system status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TemplateStatus {
    /// Its key, a digest of all that it depends on.
    pub id: String,
    /// The shape.
    pub resources: Resources,
    /// `ready`, `being made`, or why it can't be used.
    pub state: String,
    /// Bytes on the host's disk.
    pub size_in_bytes: u64,
}

/// A spare as `system status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpareStatus {
    /// Its template's key.
    pub template: String,
    /// Whether it serves containers with bind mounts, and these alone.
    pub mappable: bool,
    /// `ready`; `restored`: not made warm yet, since one start follows the other; `being made`.
    pub state: String,
    /// Bytes of the host's memory that it holds for itself.
    pub memory_in_bytes: u64,
}

/// What `system status` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SystemStatus {
    /// Always `running`: a service that doesn't run can't answer.
    pub status: String,
    /// The installation's directory.
    pub app_root: PathBuf,
    /// Where the programs are.
    pub install_root: PathBuf,
    /// The service's version.
    pub api_server_version: String,
    /// Its process id.
    pub apiserver_pid: i32,
    /// What runs guest code; `None` when nothing can.
    pub accelerator: Option<Accelerator>,
    /// Why.
    pub accelerator_reason: String,
    /// The hypervisor's version.
    pub hypervisor_version: String,
    /// The guest kernel's version.
    pub kernel_version: Option<String>,
    /// The kernel bundle in use.
    pub kernel_path: Option<PathBuf>,
    /// Why no container can start here, if so, and what to do.
    pub problems: Vec<String>,
    /// Containers whose VM runs.
    pub running_containers: usize,
    /// Templates of VMs.
    #[serde(default)]
    pub templates: Vec<TemplateStatus>,
    /// Spare VMs.
    #[serde(default)]
    pub spares: Vec<SpareStatus>,
}

/// The command line's connection to an apiserver.
#[derive(Debug)]
pub struct ApiClient(Client);

impl ApiClient {
    /// Connects to the apiserver of `root`; `Unavailable` when none runs, `PermissionDenied` when
    /// somebody else's answers.
    pub fn connect(root: &AppRoot) -> Result<ApiClient> {
        let stream = crate::socket::connect(root.path(), SOCKET).map_err(|e| {
            let code = match e.kind() {
                std::io::ErrorKind::PermissionDenied => ErrorCode::PermissionDenied,
                _ => ErrorCode::Unavailable,
            };
            let place = root.path().display();
            let message = match e.kind() {
                // No socket, or one that its service has left behind.
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                    format!("no service runs at {place}: run 'container system start'")
                }
                _ => format!("the service at {place} does not answer: {e}"),
            };
            ApiError::new(code, message)
        })?;
        let client = Client::new(stream)?;
        if !crate::socket::is_owner(client.peer()) && !nix::unistd::geteuid().is_root() {
            let message = format!(
                "the service at {} belongs to uid {}",
                root.path().display(),
                client.peer().uid
            );
            return Err(ApiError::new(ErrorCode::PermissionDenied, message));
        }
        Ok(ApiClient(client))
    }

    /// One call, one answer.
    pub async fn call<R: DeserializeOwned>(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        deadline: Option<Duration>,
    ) -> Result<R> {
        self.0.call(request, fds, deadline).await
    }

    /// A call with progress; `silence` bounds the time between two answers.
    pub async fn call_with_progress<R: DeserializeOwned>(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        progress: impl FnMut(Progress),
    ) -> Result<R> {
        self.0.call_with_progress(request, fds, Some(images::SILENCE), progress).await
    }

    /// All containers.
    pub async fn list(&mut self) -> Result<Vec<ContainerSnapshot>> {
        self.call(&Request::List, &[], Some(QUICK)).await
    }

    /// One container.
    pub async fn inspect(&mut self, id: &str) -> Result<ContainerSnapshot> {
        self.call(&Request::Inspect { id: id.into() }, &[], Some(QUICK)).await
    }

    /// Waits for the end of a container or of a process in it.
    pub async fn wait(&mut self, id: &str, process_id: Option<String>) -> Result<ExitRecord> {
        self.call(&Request::Wait { id: id.into(), process_id }, &[], None).await
    }

    /// How the service is.
    pub async fn status(&mut self) -> Result<SystemStatus> {
        self.call(&Request::Status, &[], Some(QUICK)).await
    }
}
