//! What the services say to each other. The JSON names follow apple/container's.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::mounts::Mount;
use crate::network::{Attachment, BoundPort, ContainerNetwork};
use crate::seccomp::Security;

/// Bytes that are mostly text: an argument, an environment variable. JSON: a string where it is
/// UTF-8, else an array of numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteString(pub Vec<u8>);

impl ByteString {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text, with what is not UTF-8 replaced.
    pub fn to_string_lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }

    /// The same bytes as the operating system's string.
    pub fn to_os_string(&self) -> OsString {
        OsString::from_vec(self.0.clone())
    }
}

impl From<&str> for ByteString {
    fn from(text: &str) -> Self {
        ByteString(text.as_bytes().to_vec())
    }
}

impl From<String> for ByteString {
    fn from(text: String) -> Self {
        ByteString(text.into_bytes())
    }
}

impl From<OsString> for ByteString {
    fn from(text: OsString) -> Self {
        ByteString(text.into_vec())
    }
}

impl From<&std::ffi::OsStr> for ByteString {
    fn from(text: &std::ffi::OsStr) -> Self {
        ByteString(text.as_bytes().to_vec())
    }
}

impl Serialize for ByteString {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => serializer.collect_seq(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for ByteString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Text(String),
            Bytes(Vec<u8>),
        }
        Ok(match Either::deserialize(deserializer)? {
            Either::Text(text) => text.into(),
            Either::Bytes(bytes) => ByteString(bytes),
        })
    }
}

/// A moment. JSON: RFC 3339, UTC, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub SystemTime);

impl Timestamp {
    /// This moment.
    pub fn now() -> Self {
        Timestamp(SystemTime::now())
    }

    /// Time since then; zero for the future.
    pub fn age(self) -> Duration {
        self.0.elapsed().unwrap_or_default()
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        humantime::format_rfc3339_nanos(self.0).fmt(f)
    }
}

impl std::str::FromStr for Timestamp {
    type Err = humantime::TimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_rfc3339_weak(text).map(Timestamp)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An operating system and architecture, in OCI's terms (`linux/amd64`, `linux/arm64/v8`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64` (Go's names).
    pub architecture: String,
    /// `v7`, `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform that VMs on this host run.
    pub fn host() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8".to_owned())),
            other => (other, None),
        };
        Platform { os: "linux".into(), architecture: architecture.into(), variant }
    }

    /// Parses `os/arch[/variant]` or an architecture alone; `x86_64` and `aarch64` are understood.
    pub fn parse(text: &str) -> Option<Platform> {
        let word = |w: &str| {
            !w.is_empty() && w.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(|p| word(p)) {
            return None;
        }
        let (os, architecture, variant) = match parts[..] {
            [architecture] => ("linux", architecture, None),
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return None,
        };
        let architecture = match architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Some(Platform { os: os.into(), architecture: architecture.into(), variant })
    }

    /// Whether an image for `self` runs where `wanted` is asked for. A missing variant matches any.
    pub fn matches(&self, wanted: &Platform) -> bool {
        let variant = match (&self.variant, &wanted.variant) {
            (Some(have), Some(want)) => have == want,
            _ => true,
        };
        self.os == wanted.os && self.architecture == wanted.architecture && variant
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |v| write!(f, "/{v}"))
    }
}

/// A blob's type, digest (`sha256:…`) and size in bytes (OCI image-spec, descriptor).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type.
    pub media_type: String,
    /// `algorithm:hex`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

/// The image that a container was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDescription {
    /// The full reference, `docker.io/library/debian:latest`.
    pub reference: String,
    /// The index or manifest that the reference named then.
    pub descriptor: Descriptor,
}

/// Who a process runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum User {
    /// `name|uid[:group|gid]`, resolved in the guest with the image's own files.
    Raw {
        /// The text as given.
        user_string: String,
    },
    /// Numbers.
    Id {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

impl Default for User {
    fn default() -> Self {
        User::Id { uid: 0, gid: 0 }
    }
}

/// One resource limit (`setrlimit(2)`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE` …
    pub limit: String,
    /// Soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// A process to start in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessConfig {
    /// Program: a path, or a name looked up in the container's `PATH`.
    pub executable: ByteString,
    /// Arguments after the program's name.
    pub arguments: Vec<ByteString>,
    /// `NAME=value`, complete.
    pub environment: Vec<ByteString>,
    /// Absolute path in the container; created when missing.
    pub working_directory: ByteString,
    /// With a terminal of its own.
    pub terminal: bool,
    /// Keep standard input open.
    pub interactive: bool,
    /// Who it runs as.
    pub user: User,
    /// Further groups, beside those of the user.
    pub supplemental_groups: Vec<u32>,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
}

/// What the VM is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Virtual CPUs.
    pub cpus: u32,
    /// RAM of the VM in bytes, a multiple of 1 MiB.
    pub memory_in_bytes: u64,
}

/// A memory file system in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute path in the container.
    pub destination: String,
    /// Mount options (`size=64m`, `mode=1777`, `ro`, `noexec` …).
    #[serde(default)]
    pub options: Vec<String>,
}

/// Everything that is fixed when a container is created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerConfig {
    /// The name given, or a UUID.
    pub id: String,
    /// From which image.
    pub image: ImageDescription,
    /// The platform chosen.
    pub platform: Platform,
    /// The first process.
    pub init_process: ProcessConfig,
    /// CPUs and memory.
    pub resources: Resources,
    /// The container's host name.
    pub hostname: String,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// Root file system read-only.
    pub read_only: bool,
    /// Memory file systems.
    pub tmpfs: Vec<Tmpfs>,
    /// Directories and files of the host, and volumes.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Restarted when it holds so much memory for so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_memory: Option<MemoryShare>,
    /// Most processes and threads; `None`: what its kernel allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<u64>,
    /// Size of `/dev/shm` in bytes.
    pub shm_size: u64,
    /// A small init reaps and forwards signals before the program.
    pub use_init: bool,
    /// The capabilities (`CAP_CHOWN` …) that processes get.
    pub capabilities: Vec<String>,
    /// Which system calls, and whether privileges can be gained.
    #[serde(default)]
    pub security: Security,
    /// Paths hidden from the container.
    pub masked_paths: Vec<String>,
    /// Paths that are read-only in the container.
    pub readonly_paths: Vec<String>,
    /// Signal that `stop` sends (`SIGTERM`).
    pub stop_signal: String,
    /// A kernel of its own: a bundle directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// `VOLUME`s of the image: an anonymous volume each, where nothing else is mounted.
    pub image_volumes: Vec<String>,
    /// Remove the container when it ends.
    pub auto_remove: bool,
    /// Whether it is started again when it ends.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Virtual machines can be run in it: its VM's CPU and kernel have what that needs.
    #[serde(default)]
    pub virtualization: bool,
    /// When it was created.
    pub creation_date: Timestamp,
    /// Always `container-runtime-linux`.
    pub runtime_handler: String,
    /// `networks`, `publishedPorts`, `dns`, `egress`, `hostAccess`. Without networks there is none.
    #[serde(flatten)]
    pub network: ContainerNetwork,
    /// Sockets in the container that lie on the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published_sockets: Vec<PublishSocket>,
    /// The user's SSH agent is reachable: [`crate::paths::container_files::SSH_AGENT`] says where.
    #[serde(default)]
    pub ssh: bool,
}

/// Where `--ssh` shows the user's SSH agent in the container; its `SSH_AUTH_SOCK`.
pub const SSH_AUTH_SOCK: &str = "/run/host-services/ssh-auth.sock";

/// `--publish-socket HOST:CONTAINER`: a program in the container listens, the host connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishSocket {
    /// Where the socket is made on the host; absolute.
    pub host_path: PathBuf,
    /// Where the program listens in the container; absolute.
    pub container_path: String,
}

/// Where a container is in its life:
///
/// ```text
/// created ──start──► starting ──► running ──stop──► stopping ──► stopped ──start──► starting …
///                        └───────────────┴── any death ────────────► stopped
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Never started.
    Created,
    /// Its VM boots.
    Starting,
    /// Its first process runs.
    Running,
    /// Asked to end.
    Stopping,
    /// Ended; see the exit record.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Status::Created => "created",
            Status::Starting => "starting",
            Status::Running => "running",
            Status::Stopping => "stopping",
            Status::Stopped => "stopped",
        })
    }
}

/// How a process, or a container with its first process, ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitRecord {
    /// The program's exit code; 128 + signal; 125–127 for failures of ours.
    pub exit_code: u8,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Ended because memory ran out.
    #[serde(default)]
    pub out_of_memory: bool,
    /// Somebody had asked for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stop_requested: bool,
    /// One line: "exited", "killed by SIGKILL", "guest kernel panic: …", "hypervisor killed by SIGKILL".
    pub reason: String,
    /// When.
    pub exited_date: Timestamp,
    /// Kills for want of memory in the container, the newest last; at most
    /// [`MAX_OUT_OF_MEMORY_KILLS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub out_of_memory_kills: Vec<OutOfMemoryKill>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// `--restart`: whether a container is started again that has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// When its exit code is not 0.
    OnFailure {
        /// At most so often in a row; 0: without end.
        maximum_retries: u32,
    },
    /// Always, unless it was stopped; and when the service starts.
    Always,
    /// As always, but when the service starts only if it was not stopped.
    UnlessStopped,
}

impl std::str::FromStr for RestartPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<RestartPolicy, String> {
        let retries = |text: &str| text.parse().ok();
        let policy = match text.split_once(':') {
            None => match text {
                "no" => Some(RestartPolicy::No),
                "always" => Some(RestartPolicy::Always),
                "unless-stopped" => Some(RestartPolicy::UnlessStopped),
                "on-failure" => Some(RestartPolicy::OnFailure { maximum_retries: 0 }),
                _ => None,
            },
            Some(("on-failure", number)) => {
                retries(number).map(|maximum_retries| RestartPolicy::OnFailure { maximum_retries })
            }
            Some(_) => None,
        };
        policy
            .ok_or_else(|| format!("{text:?} is not no, on-failure[:N], always or unless-stopped"))
    }
}

/// How much memory for how long is too much (`90:60s`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryShare {
    /// Percent of the container's limit, 1 to 100.
    pub percent: u8,
    /// Seconds without a break.
    pub seconds: u64,
}

impl std::str::FromStr for MemoryShare {
    type Err = String;

    fn from_str(text: &str) -> Result<MemoryShare, String> {
        let parsed = text.split_once(':').and_then(|(percent, time)| {
            let percent: u8 = percent.strip_suffix('%').unwrap_or(percent).parse().ok()?;
            let seconds = humantime::parse_duration(time).ok()?.as_secs();
            Some(MemoryShare { percent, seconds })
        });
        parsed.filter(|share| (1..=100).contains(&share.percent) && share.seconds > 0).ok_or_else(
            || format!("{text:?} is not PERCENT:DURATION, such as 90:60s, of at least a second"),
        )
    }
}

/// Kills for want of memory that are kept of one container.
pub const MAX_OUT_OF_MEMORY_KILLS: usize = 16;

/// A container as `list` and `inspect` show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerSnapshot {
    /// What was asked for.
    pub configuration: ContainerConfig,
    /// Where it is in its life.
    pub status: Status,
    /// When its first process last started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_date: Option<Timestamp>,
    /// How it last ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitRecord>,
    /// Kills for want of memory since it last started, the newest last; at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub out_of_memory_kills: Vec<OutOfMemoryKill>,
    /// The limits in force, when `update` changed them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_resources: Option<Resources>,
    /// Restarts by its policy since it was last started by hand.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restart_count: u32,
    /// How its VM came to be, while one exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_origin: Option<VmOrigin>,
    /// Its NICs, while its VM lives.
    #[serde(default)]
    pub networks: Vec<Attachment>,
    /// Ports of the host that lead to it, as they are bound.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<BoundPort>,
    /// `kvm` or `tcg`, while a VM exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// The helper's process id, while it lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_pid: Option<i32>,
    /// The hypervisor's process id, while it lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisor_pid: Option<i32>,
    /// What keeps it in; `inspect` tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub posture: Option<Box<crate::posture::Posture>>,
}

/// A process that the guest's kernel killed for want of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutOfMemoryKill {
    /// Its name, as the guest's kernel tells it; empty when it doesn't.
    pub process: String,
    /// Its id as the guest's kernel counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// When.
    pub date: Timestamp,
    /// The limit in bytes that it met.
    pub limit_in_bytes: u64,
    /// The kernel's line.
    pub message: String,
}

/// How a VM came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmOrigin {
    /// It booted.
    Cold,
    /// It was restored from a template.
    Template,
    /// It was restored ahead and waited.
    Spare,
}

/// One row of `container stats`. JSON names as apple/container's where it has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStats {
    /// The container.
    pub id: String,
    /// Memory used in the guest, in bytes.
    pub memory_usage_bytes: u64,
    /// Its limit.
    pub memory_limit_bytes: u64,
    /// Memory held on the host for this VM alone, in bytes.
    pub host_memory_bytes: u64,
    /// CPU time used, in microseconds, by the guest's clock.
    pub cpu_usage_usec: u64,
    /// When that was read: monotonic clock of the host in nanoseconds. Two rows give a percentage.
    pub sampled_at_ns: u64,
    /// Bytes received; `None` without a network.
    pub network_rx_bytes: Option<u64>,
    /// Bytes sent.
    pub network_tx_bytes: Option<u64>,
    /// Bytes read from disks.
    pub block_read_bytes: u64,
    /// Bytes written to disks.
    pub block_write_bytes: u64,
    /// Processes and threads.
    pub num_processes: u64,
}

/// One kind of thing in `container system df`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageOf {
    /// How many there are.
    pub total: u64,
    /// How many are in use.
    pub active: u64,
    /// Bytes on the host's disk.
    pub size_in_bytes: u64,
    /// Bytes that a prune would give back.
    pub reclaimable: u64,
    /// Bytes of the host's memory that they hold.
    #[serde(default)]
    pub memory_in_bytes: u64,
}

/// What `container system df` shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskUsage {
    /// Images: blobs and unpacked disks.
    pub images: UsageOf,
    /// Containers.
    pub containers: UsageOf,
    /// Templates of VMs.
    pub templates: UsageOf,
    /// Spare VMs.
    pub spares: UsageOf,
    /// Volumes.
    #[serde(default)]
    pub volumes: UsageOf,
}

/// What runs the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The host's processor, through `/dev/kvm`.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

impl std::fmt::Display for Accelerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        })
    }
}

/// A terminal's size in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// Which of a process's streams a call brings descriptors for, in this order. With a terminal
/// `stdin` alone is set and its descriptor is a socket that carries both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stdio {
    /// A descriptor to read the program's input from (the socket, with a terminal).
    pub stdin: bool,
    /// A descriptor to write the program's output to.
    pub stdout: bool,
    /// A descriptor to write the program's error output to.
    pub stderr: bool,
}

impl Stdio {
    /// How many descriptors the call brings.
    pub fn count(self) -> usize {
        self.stdin as usize + self.stdout as usize + self.stderr as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn byte_strings_round_trip(bytes: Vec<u8>) {
            let text = serde_json::to_string(&ByteString(bytes.clone())).unwrap();
            prop_assert_eq!(serde_json::from_str::<ByteString>(&text).unwrap().0, bytes);
        }

        #[test]
        fn platform_parsing_never_panics(text: String) {
            if let Some(platform) = Platform::parse(&text) {
                prop_assert_eq!(Platform::parse(&platform.to_string()), Some(platform));
            }
        }
    }

    #[test]
    fn platforms() {
        assert_eq!(Platform::parse("x86_64").unwrap().to_string(), "linux/amd64");
        assert_eq!(Platform::parse("linux/arm64/v8").unwrap().to_string(), "linux/arm64/v8");
        assert_eq!(Platform::parse("linux//x"), None);
        assert_eq!(Platform::parse("a/b/c/d"), None);
        assert!(
            Platform::parse("arm64").unwrap().matches(&Platform::parse("linux/arm64/v8").unwrap())
        );
    }

    #[test]
    fn timestamps_round_trip() {
        let now = Timestamp::now();
        assert_eq!(now.to_string().parse::<Timestamp>().unwrap(), now);
    }
}
