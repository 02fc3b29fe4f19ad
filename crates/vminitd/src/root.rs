//! The container's root: the image's EROFS below, the container's ext4 above,
//! joined by overlayfs at `/run/root`.

use crate::block::{self, Disks};
use crate::failure::{Context, Failure};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;
use vminitd_protocol::message::ErrorCode::Mount;
use vminitd_protocol::message::MountRoot;

/// Where the joined root is.
pub const ROOT: &str = "/run/root";
/// Where the image is.
pub const LOWER: &str = "/run/lower";
const UPPER: &str = "/run/upper";
/// What the container has changed, as overlayfs keeps it.
pub const UPPER_DIRECTORY: &str = "/run/upper/upper";
/// How long the kernel may take to let go of the disks.
pub const UNMOUNT_LIMIT: Duration = Duration::from_secs(5);

/// A root: its disks, which are mounted but between [`Root::find`] and [`Root::mount`].
#[derive(Debug)]
pub struct Root {
    image: PathBuf,
    upper: PathBuf,
}

impl Root {
    /// Finds its disks.
    pub fn find(request: &MountRoot, disks: &mut Disks) -> Result<Root, Failure> {
        let image = disks.find(&request.image_serial)?;
        let upper = disks.find(&request.upper_serial)?;
        Ok(Root { image, upper })
    }

    /// Mounts it; nothing stays mounted when that fails.
    pub fn mount(self) -> Result<Root, Failure> {
        if let Err(failure) = self.mount_all() {
            for path in [ROOT, UPPER, LOWER] {
                let _ = umount2(path, MntFlags::MNT_DETACH);
            }
            return Err(failure);
        }
        Ok(self)
    }

    fn mount_all(&self) -> Result<(), Failure> {
        mount_device(&self.image, LOWER, "erofs", MsFlags::MS_RDONLY | MsFlags::MS_NODEV, "")?;
        // Nothing in the background: the VM may live for milliseconds.
        let options = "discard,noinit_itable,no_prefetch_block_bitmaps";
        mount_device(&self.upper, UPPER, "ext4", MsFlags::MS_NODEV, options)?;
        prepare_upper().context(Mount, || "prepare the upper disk")?;
        // Device nodes count in the container's /dev only, which is a tmpfs.
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
        let data = "lowerdir=/run/lower,upperdir=/run/upper/upper,workdir=/run/upper/work";
        mount(Some("overlay"), ROOT, Some("overlay"), flags, Some(data))
            .context(Mount, || "join image and upper disk by overlayfs")
    }

    /// Unmounts cleanly; nothing may run in it any more.
    pub fn unmount(self) -> Result<(), Failure> {
        for path in [ROOT, UPPER, LOWER] {
            match umount2(path, MntFlags::empty()) {
                Ok(()) | Err(Errno::EINVAL) => {}
                Err(errno) => return Err(errno).context(Mount, || format!("unmount {path}")),
            }
        }
        block::wait_unused(&self.upper, UNMOUNT_LIMIT)?;
        block::wait_unused(&self.image, UNMOUNT_LIMIT)
    }

    /// [`Root::unmount`], then the disks may be exchanged.
    pub fn release(self) -> Result<(), Failure> {
        let (image, upper) = (self.image.clone(), self.upper.clone());
        self.unmount()?;
        block::drop_cache(&upper)?;
        block::drop_cache(&image)
    }
}

/// Makes the directories of a fresh disk. The joined root has the upper one's
/// attributes, so one that nobody has changed yet takes those of the image's.
fn prepare_upper() -> io::Result<()> {
    let upper = Path::new(UPPER_DIRECTORY);
    let mut fresh = false;
    for dir in [upper, Path::new("/run/upper/work")] {
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => fresh |= result.map(|()| dir == upper)?,
        }
    }
    // A disk that came with its directories has them from the year 1970.
    if fresh || fs::metadata(upper)?.ctime() == 0 {
        let (image, own) = (fs::metadata(LOWER)?, fs::metadata(upper)?);
        // Each change is written to the disk: most images have the usual ones.
        if (image.uid(), image.gid()) != (own.uid(), own.gid()) {
            chown(upper, Some(image.uid()), Some(image.gid()))?;
        }
        if image.mode() != own.mode() {
            fs::set_permissions(upper, image.permissions())?;
        }
        File::open(upper)?.set_modified(image.modified()?)?;
    }
    Ok(())
}

fn mount_device(
    device: &Path,
    target: &str,
    kind: &str,
    flags: MsFlags,
    data: &str,
) -> Result<(), Failure> {
    let flags = flags | MsFlags::MS_NOATIME | MsFlags::MS_NOSUID;
    mount(Some(device), target, Some(kind), flags, Some(data))
        .context(Mount, || format!("mount {} as {kind}", device.display()))
}
