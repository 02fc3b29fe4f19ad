//! Mounts of the container beside its root and its memory file systems.
//!
//! All of them and [`super::ContainerSpec::tmpfs`] are mounted parents first: by the number of
//! components of their paths, then as given. Sources are taken before the root is changed, targets
//! are resolved after it, so that no link of an image leads out of the container.

/// One mount.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MountSpec {
    /// Absolute path in the container; made when missing.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Read-only in the guest too; the host doesn't rely on it.
    #[prost(bool, tag = "2")]
    pub read_only: bool,
    /// What is mounted.
    #[prost(oneof = "MountSource", tags = "3, 4")]
    pub source: Option<MountSource>,
}

/// What is mounted.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum MountSource {
    /// Part of a file system that the host serves.
    #[prost(message, tag = "3")]
    Share(ShareSource),
    /// A disk.
    #[prost(message, tag = "4")]
    Disk(DiskSource),
}

/// Part of a virtio-fs: a directory or file at its root.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShareSource {
    /// The device's tag.
    #[prost(string, tag = "1")]
    pub tag: String,
    /// Name at the root of the file system: digits only.
    #[prost(string, tag = "2")]
    pub name: String,
    /// A regular file, not a directory.
    #[prost(bool, tag = "3")]
    pub file: bool,
    /// As [`DiskSource::copy`].
    #[prost(bool, tag = "4")]
    pub copy: bool,
}

/// A virtio-blk disk with an ext4 file system.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DiskSource {
    /// The device's serial number.
    #[prost(string, tag = "1")]
    pub serial: String,
    /// Copy the image's files at the path first, when the file system is empty.
    #[prost(bool, tag = "2")]
    pub copy: bool,
}
