//! What is mounted in a container, as detached trees: taken before the root is changed.

use crate::failure::{Context, Failure};
use crate::sys;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};
use vminitd_protocol::message::ErrorCode::{InvalidRequest, Mount};
use vminitd_protocol::message::{MountSource, MountSpec, ShareSource};

/// Where a file system that the host serves is mounted while parts of it are taken.
const SHARES: &str = "/run/shares";
/// How long its device may take to appear.
const DEVICE_LIMIT: Duration = Duration::from_secs(10);

/// The trees of all mounts, in their order; `volumes` has those of the disks among them.
pub fn open(mounts: &[MountSpec], volumes: &[OwnedFd]) -> Result<Vec<OwnedFd>, Failure> {
    let mut staged: Option<&str> = None;
    let mut trees = Vec::new();
    let mut volumes = volumes.iter();
    for mount in mounts {
        trees.push(match &mount.source {
            Some(MountSource::Disk(disk)) => {
                let tree = volumes.next().ok_or_else(|| Failure::invalid("a disk has no tree"))?;
                if disk.copy && !mount.read_only {
                    super::volumes::fill_tree(&mount.path, tree.as_fd())?;
                }
                tree.try_clone().context(Mount, || "duplicate a volume's tree")?
            }
            Some(MountSource::Share(share)) => {
                if staged != Some(&share.tag) {
                    stage(&share.tag)?;
                    staged = Some(&share.tag);
                }
                open_share(share, mount)?
            }
            None => return Err(Failure::new(InvalidRequest, "a mount has no source")),
        });
    }
    if staged.is_some() {
        umount2(SHARES, MntFlags::MNT_DETACH).context(Mount, || "unmount the shares")?;
    }
    Ok(trees)
}

/// Mounts what the host serves under a tag, once its device is there.
fn stage(tag: &str) -> Result<(), Failure> {
    fs::create_dir_all(SHARES).context(Mount, || "make a place for shares")?;
    let deadline = Instant::now() + DEVICE_LIMIT;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    loop {
        match mount(Some(tag), SHARES, Some("virtiofs"), flags, None::<&str>) {
            // No driver yet, or no device with this tag.
            Err(Errno::ENODEV | Errno::EINVAL) if Instant::now() < deadline => {
                sleep(Duration::from_millis(2));
            }
            mounted => return mounted.context(Mount, || "mount the file system of the shares"),
        }
    }
}

fn open_share(share: &ShareSource, mount: &MountSpec) -> Result<OwnedFd, Failure> {
    let path = format!("{SHARES}/{}", share.name);
    if share.copy && !mount.read_only {
        super::volumes::fill(&mount.path, Path::new(&path))?;
    }
    let path = CString::new(path).map_err(|_| Failure::invalid("a NUL byte in a share's name"))?;
    sys::open_tree(&path).context(Mount, || "pick a share up")
}
