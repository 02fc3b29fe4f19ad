//! What is mounted in a container, as detached trees: taken before the root is changed.

use super::volumes;
use crate::failure::Failure;
use std::os::fd::OwnedFd;
use vminitd_protocol::message::ErrorCode::Unsupported;
use vminitd_protocol::message::{MountSource, MountSpec};

/// The trees of all mounts, in their order.
pub fn open(mounts: &[MountSpec]) -> Result<Vec<OwnedFd>, Failure> {
    mounts
        .iter()
        .map(|mount| match &mount.source {
            Some(MountSource::Disk(disk)) => volumes::open_disk(disk, &mount.path, mount.read_only),
            Some(MountSource::Share(_)) | None => {
                Err(Failure::new(Unsupported, "a mount's source is not known here"))
            }
        })
        .collect()
}
