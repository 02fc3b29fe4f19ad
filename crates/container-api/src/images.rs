//! `container-images`: registry, content store, images as disks, kernel bundles.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::archive::CommitOptions;
use crate::types::{Descriptor, Platform, Timestamp};
use crate::varlink::Client;
use crate::{ApiError, ErrorCode, Result};

/// Name of the service's socket in [`crate::paths::AppRoot::images`].
pub const SOCKET: &str = "images.sock";

/// Longest silence of a working service: it reports progress at least this often.
pub const SILENCE: Duration = Duration::from_secs(120);

/// What can be asked of `container-images`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "method", content = "parameters")]
pub enum Request {
    /// Fetches an image from its registry. Progress: [`Progress`]; answer: [`ImageSummary`].
    #[serde(rename = "dev.container.Images.Pull")]
    Pull(Pull),
    /// Reads an OCI or docker archive from the one descriptor. Progress; answer: `Vec<ImageSummary>`.
    #[serde(rename = "dev.container.Images.Load")]
    Load {
        /// A name for images that bring none.
        name: Option<String>,
    },
    /// Writes an archive to the one descriptor. Progress; answer: `()`.
    #[serde(rename = "dev.container.Images.Save")]
    Save {
        /// Which images.
        references: Vec<String>,
        /// One platform of each, or all that are here.
        platform: Option<Platform>,
    },
    /// Answer: `Vec<ImageSummary>`, sorted by reference.
    #[serde(rename = "dev.container.Images.List")]
    List,
    /// Answer: `Vec<ImageDetails>`, in the order asked.
    #[serde(rename = "dev.container.Images.Inspect")]
    Inspect {
        /// References or digests.
        references: Vec<String>,
    },
    /// Names an image again. Answer: [`ImageSummary`] of the new name.
    #[serde(rename = "dev.container.Images.Tag")]
    Tag {
        /// An image that exists.
        source: String,
        /// The new name; it moves when it exists.
        target: String,
    },
    /// Removes names, and what only they held. Answer: [`Removed`].
    #[serde(rename = "dev.container.Images.Delete")]
    Delete {
        /// References; all images when `all`.
        references: Vec<String>,
        /// Every image.
        all: bool,
        /// A missing one is no error.
        force: bool,
        /// Index or manifest digests that containers use: those are refused (`InUse`), or passed
        /// over with `all`.
        in_use: Vec<String>,
    },
    /// Removes what no name holds, with `all` also images that no container uses. Answer: [`Removed`].
    #[serde(rename = "dev.container.Images.Prune")]
    Prune {
        /// Also named images.
        all: bool,
        /// Index or manifest digests that containers use.
        in_use: Vec<String>,
    },
    /// Adds a layer, which the one descriptor brings as tar, to an image that is here. Answer:
    /// [`ImageSummary`].
    #[serde(rename = "dev.container.Images.Commit")]
    Commit {
        /// The manifest's digest.
        base: String,
        /// The new image.
        options: CommitOptions,
    },
    /// Makes sure that the image is here (pulls it when `pull` says so) and is a disk. Progress;
    /// answer: [`Unpacked`].
    #[serde(rename = "dev.container.Images.Prepare")]
    Prepare {
        /// Which image and platform, and how to fetch it when it is not here.
        pull: Pull,
    },
    /// Makes sure that the empty writable disk exists. Answer: its path.
    #[serde(rename = "dev.container.Images.EmptyUpper")]
    EmptyUpper,
    /// Makes the file that the one descriptor leads to an empty volume. Answer: `()`.
    #[serde(rename = "dev.container.Images.FormatVolume")]
    FormatVolume(FormatVolume),
    /// Makes a kernel bundle from the descriptors' files, or from what `url` names, and makes it
    /// this installation's kernel. Progress; answer: [`KernelBundle`].
    #[serde(rename = "dev.container.Images.InstallKernel")]
    InstallKernel(InstallKernel),
    /// Answer: [`DiskUsage`].
    #[serde(rename = "dev.container.Images.DiskUsage")]
    DiskUsage {
        /// Index or manifest digests that containers use.
        in_use: Vec<String>,
    },
    /// Compares the content store with its names and with what containers use. Progress; answer:
    /// [`crate::invariants::Findings`].
    #[serde(rename = "dev.container.Images.CheckStore")]
    CheckStore {
        /// Index or manifest digests that containers use.
        in_use: Vec<String>,
        /// Read every blob and compare its digest.
        deep: bool,
    },
    /// Ends the service. Answer: `()`.
    #[serde(rename = "dev.container.Images.Shutdown")]
    Shutdown,
}

/// How to fetch an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pull {
    /// A reference, short or full, with tag or digest.
    pub reference: String,
    /// Which platform of a multi-platform image; `None`: the host's.
    pub platform: Option<Platform>,
    /// How to speak to the registry.
    pub scheme: Scheme,
    /// Layers fetched at once; `None`: 3.
    pub max_concurrent_downloads: Option<u32>,
    /// Who we are there.
    pub credentials: Option<Credentials>,
}

/// The transport to a registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// HTTP for loopback registries and those in `[registry] insecure`, else HTTPS.
    #[default]
    Auto,
    /// Plain HTTP.
    Http,
    /// HTTPS.
    Https,
}

/// A user of a registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// User name; `<token>` when the password is an identity token (Docker's convention).
    pub username: String,
    /// Password or token; never logged.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// One step of a long operation. Several items (layers) may be under way at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// What is being done: `Fetching image`, `Unpacking image`, `Loading image`.
    pub description: String,
    /// Bytes done, over all items.
    pub done: u64,
    /// Bytes in all, when known.
    pub total: Option<u64>,
    /// Items (layers, blobs) done.
    pub items: u64,
    /// Items in all, when known.
    pub total_items: Option<u64>,
}

/// An image as `list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageSummary {
    /// The full reference.
    pub reference: String,
    /// The index or manifest that it names.
    pub descriptor: Descriptor,
    /// Platforms whose blobs are here.
    pub platforms: Vec<Platform>,
    /// When the image says it was made, for the host's platform or the first one.
    pub created: Option<Timestamp>,
    /// Bytes of its blobs here, compressed as they came.
    pub size: u64,
}

/// An image as `inspect` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageDetails {
    /// The summary's reference.
    pub name: String,
    /// The index or manifest.
    pub index: Descriptor,
    /// One entry per platform that is here.
    pub variants: Vec<ImageVariant>,
}

/// One platform of an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageVariant {
    /// Its platform.
    pub platform: Platform,
    /// The manifest's digest.
    pub digest: String,
    /// Bytes of its layers, compressed.
    pub size: u64,
    /// The image configuration as it came (OCI image-spec, image configuration).
    pub config: serde_json::Value,
}

/// What an image says about running it (OCI image-spec, `config`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageConfig {
    /// `User`.
    pub user: Option<String>,
    /// `Env`, `NAME=value`.
    pub env: Vec<String>,
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `WorkingDir`.
    pub working_dir: Option<String>,
    /// `StopSignal`.
    pub stop_signal: Option<String>,
    /// `Volumes`.
    pub volumes: Vec<String>,
    /// `Labels`.
    pub labels: BTreeMap<String, String>,
    /// `ExposedPorts`, `80/tcp`.
    pub exposed_ports: Vec<String>,
}

/// An image that is ready to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unpacked {
    /// The full reference.
    pub reference: String,
    /// The index or manifest that it names.
    pub descriptor: Descriptor,
    /// The manifest of the platform chosen.
    pub manifest_digest: String,
    /// That platform.
    pub platform: Platform,
    /// The EROFS image, [`crate::paths::DISK_LEN`] long (sparse); read-only.
    pub disk: PathBuf,
    /// How to run it.
    pub config: ImageConfig,
}

/// What a removal removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Removed {
    /// References that are gone.
    pub references: Vec<String>,
    /// References or digests that were passed over because a container uses them.
    pub kept_in_use: Vec<String>,
    /// Bytes on the host's disk that came back.
    pub reclaimed: u64,
}

/// What [`Request::FormatVolume`] makes: an ext4 whose root has the directory
/// [`crate::mounts::VOLUME_DATA`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FormatVolume {
    /// Its length in bytes.
    pub size_in_bytes: u64,
    /// Length of its journal.
    pub journal_mib: u32,
    /// The journal's mode.
    pub journal: JournalMode,
    /// The file system's UUID.
    pub uuid: [u8; 16],
}

/// When a file's bytes reach the disk, next to the journal's transactions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JournalMode {
    /// Before the metadata that leads to them.
    #[default]
    Ordered,
    /// At any time.
    Writeback,
    /// Through the journal.
    Journal,
}

/// Where a kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstallKernel {
    /// What the descriptor holds.
    pub kind: KernelSource,
    /// `sha256:…` that the file must have.
    pub digest: Option<String>,
    /// Replace one of that name.
    pub force: bool,
    /// What it was called, for messages and the bundle's record.
    pub name: String,
    /// The kernel's path in a tar that is not laid out as a distribution's package.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// Fetch the file from here (`http:` or `https:`) in place of a descriptor; `digest` is then
    /// required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// Form of a kernel's source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelSource {
    /// A kernel image: bzImage, Image or ELF, everything built in.
    Binary,
    /// A tar (gzip, zstd, xz or none) with `boot/vmlinuz-*` and `lib/modules/*`.
    Tar,
    /// A Debian package; with more than one descriptor, kernel and modules packages.
    Deb,
}

/// A kernel with what a guest needs beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelBundle {
    /// The bundle's directory; `vmlinux` and `initramfs.cpio` are in it.
    pub path: PathBuf,
    /// `uname -r`.
    pub version: String,
    /// Go's architecture name.
    pub architecture: String,
    /// File name or package that it was made from.
    pub source: String,
    /// SHA-256 of `vmlinux` and of `initramfs.cpio` (`sha256:…`).
    pub digests: BTreeMap<String, String>,
    /// Whether it has KVM, built in or in [`BUNDLE_KVM_INITRAMFS`].
    #[serde(default)]
    pub virtualization: bool,
}

impl KernelBundle {
    /// Reads the record of the bundle in `directory`, wherever that has been moved to.
    pub fn read(directory: &Path) -> Result<KernelBundle> {
        let record = directory.join(BUNDLE_RECORD);
        let text = std::fs::read(&record).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                ApiError::not_found(format!("no kernel in {}", directory.display()))
            }
            _ => ApiError::from(e).context(record.display()),
        })?;
        let mut bundle: KernelBundle = serde_json::from_slice(&text).map_err(|e| {
            ApiError::new(ErrorCode::InvalidData, format!("{}: {e}", record.display()))
        })?;
        bundle.path = directory.to_owned();
        Ok(bundle)
    }
}

/// Name of the file in a bundle that holds its [`KernelBundle`].
pub const BUNDLE_RECORD: &str = "bundle.json";
/// The kernel in a bundle: an uncompressed ELF file with a PVH entry (x86_64) or Image (aarch64);
/// a bzImage as it came when its payload has no PVH entry. Each boots with QEMU's `-kernel`.
pub const BUNDLE_KERNEL: &str = "vmlinux";
/// The initramfs in a bundle: an uncompressed cpio archive.
pub const BUNDLE_INITRAMFS: &str = "initramfs.cpio";
/// The same with KVM's modules, for VMs in which VMs are run; only where these are modules.
pub const BUNDLE_KVM_INITRAMFS: &str = "initramfs-kvm.cpio";
/// In a bundle, the EROFS image of the throwaway container that makes a VM warm; sparse,
/// [`crate::paths::DISK_LEN`] long. Its program is [`WARM_UP`].
pub const BUNDLE_WARM_IMAGE: &str = "warm.erofs";
/// The program in [`BUNDLE_WARM_IMAGE`]: ends by itself, needs no arguments, reads standard input
/// only when something is there, and writes some 64 KiB of output.
pub const WARM_UP: &str = "/warm-up";
/// In [`crate::paths::AppRoot::kernels`]: a symbolic link to the bundle that is used.
pub const CURRENT_KERNEL: &str = "current";

/// Bytes on the host's disk (allocated, not apparent).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskUsage {
    /// Named images.
    pub images: u64,
    /// Blobs.
    pub blobs: u64,
    /// Images as disks.
    pub disks: u64,
    /// Of both, what no name and no container holds.
    pub unreferenced: u64,
    /// Of both, what no container holds.
    pub unused: u64,
}

/// Calls `container-images` on a connection with progress.
pub async fn call<R: serde::de::DeserializeOwned>(
    client: &mut Client,
    request: &Request,
    fds: &[BorrowedFd<'_>],
    progress: impl FnMut(Progress),
) -> Result<R> {
    client.call_with_progress(request, fds, Some(SILENCE), progress).await
}
