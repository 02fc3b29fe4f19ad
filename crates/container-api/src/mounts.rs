//! Mounts and volumes: what a user asks for, and what a container has.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::types::{ByteString, Timestamp};

/// Where a mount comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    /// A directory or file of the host.
    #[default]
    Bind,
    /// A volume.
    Volume,
}

/// Ids of a container and those on the host that they are: `idmap=` of a bind mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdRange {
    /// Users are mapped.
    pub users: bool,
    /// Groups are mapped.
    pub groups: bool,
    /// The first id in the container.
    pub guest: u32,
    /// The first id on the host.
    pub host: u32,
    /// How many; at least one, and neither side goes beyond `u32::MAX - 1`.
    pub count: u32,
}

/// A mount as `-v` and `--mount` ask for it. A memory file system is a [`crate::types::Tmpfs`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MountOptions {
    /// Its kind.
    pub kind: MountKind,
    /// Bind: the absolute path on the host. Volume: its name; empty: an anonymous one.
    pub source: ByteString,
    /// Absolute path in the container.
    pub destination: ByteString,
    /// Read-only, enforced on the host.
    pub read_only: bool,
    /// Bind: share what is refused otherwise (`/`, `/etc`, container engines' sockets).
    pub dangerous: bool,
    /// Bind: changes made on the host raise events in the guest; `None`: the default.
    pub notify: Option<bool>,
    /// Bind: whom files belong to in the container that belong to the sharing user on the host.
    pub uid: Option<u32>,
    /// As `uid`, for the group.
    pub gid: Option<u32>,
    /// Bind: whom files belong to on either side, instead of `uid` and `gid`.
    pub idmap: Vec<IdRange>,
    /// Volume: leave it empty rather than copy the image's files at its first use.
    pub no_copy: bool,
}

/// What a path led to when it was checked: a restart refuses another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileIdentity {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// A directory; else a regular file.
    pub directory: bool,
}

/// A mount of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: MountKind,
    /// Bind: the path on the host. Volume: its name, an anonymous one's too.
    pub source: ByteString,
    /// Absolute path in the container, without `.`, `..` and doubled slashes.
    pub destination: ByteString,
    /// Read-only.
    pub read_only: bool,
    /// Bind: what the path led to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<FileIdentity>,
    /// Bind: allowed though it is sensitive.
    #[serde(default)]
    pub dangerous: bool,
    /// Bind: host changes raise events.
    #[serde(default)]
    pub notify: bool,
    /// Bind: see [`MountOptions::uid`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Bind: see [`MountOptions::gid`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Bind: see [`MountOptions::idmap`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub idmap: Vec<IdRange>,
    /// Volume: filled with the image's files when it is empty.
    #[serde(default)]
    pub copy: bool,
    /// Volume: made for this container, removed with it by `--rm`.
    #[serde(default)]
    pub anonymous: bool,
    /// Volume: of [`VolumeKind::Shared`].
    #[serde(default)]
    pub shared: bool,
}

impl Mount {
    /// Whether the file server shows it. The others are disks; both are in the order of the mounts
    /// in [`crate::runtime::VmSpec`].
    pub fn is_share(&self) -> bool {
        self.kind == MountKind::Bind || self.shared
    }
}

/// What of a block volume's file system its containers see.
pub const VOLUME_DATA: &str = "data";

/// How a volume is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeKind {
    /// An ext4 disk: one container writes, or several read.
    #[default]
    Block,
    /// A directory that several containers write at once.
    Shared,
}

/// What `volume create` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeOptions {
    /// Its name; empty: an anonymous one.
    pub name: String,
    /// `-s` in bytes.
    pub size_in_bytes: Option<u64>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// `--opt`: `size`, `journal`, `type`.
    pub options: BTreeMap<String, String>,
}

/// A volume as `volume list` and `volume inspect` show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// How it is kept.
    #[serde(rename = "type")]
    pub kind: VolumeKind,
    /// The disk's file, or the directory.
    pub source: PathBuf,
    /// `ext4`, or `virtiofs` when shared.
    pub format: String,
    /// What it can hold, of a block volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_in_bytes: Option<u64>,
    /// Bytes on the host's disk.
    pub allocated_in_bytes: u64,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// As given to `--opt`.
    pub options: BTreeMap<String, String>,
    /// Made for a container without a name.
    pub anonymous: bool,
    /// When it was made.
    pub creation_date: Timestamp,
    /// Containers that mount it.
    pub used_by: Vec<String>,
}

/// The answer to [`crate::apiserver::Request::PruneVolumes`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunedVolumes {
    /// Volumes that are gone.
    pub names: Vec<String>,
    /// Bytes on the host's disk that came back.
    pub reclaimed: u64,
}
