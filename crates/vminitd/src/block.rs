//! Block devices by serial number.

use crate::failure::{Context, Failure};
use crate::files::read_kernel;
use crate::root::UNMOUNT_LIMIT;
use crate::sys;
use nix::libc;
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use vminitd_protocol::message::ErrorCode::Mount;

/// How long a device may take to appear.
const LIMIT: Duration = Duration::from_secs(10);

/// The disks that were found so far. A serial number stays with its device,
/// whose content alone is exchanged, and is asked for only once: the answer
/// comes from the host.
#[derive(Default)]
pub struct Disks(Vec<Disk>);

struct Disk {
    serial: String,
    node: PathBuf,
}

impl Disks {
    /// The device node of the disk with this serial number.
    pub fn find(&mut self, serial: &str) -> Result<PathBuf, Failure> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(disk) = self.0.iter().find(|disk| disk.serial == serial) {
                return Ok(disk.node.clone());
            }
            if Instant::now() > deadline {
                return Err(Failure::new(Mount, format!("no disk has the serial number {serial}")));
            }
            if !self.look() {
                sleep(Duration::from_millis(2));
            }
        }
    }

    /// Waits until no file system uses a disk, and drops what is cached of it: the disk may be
    /// exchanged then.
    pub fn release(&mut self, serial: &str) -> Result<(), Failure> {
        let device = self.find(serial)?;
        wait_unused(&device, UNMOUNT_LIMIT)?;
        drop_cache(&device)
    }

    /// Looks for disks that are not known yet; whether there are any.
    fn look(&mut self) -> bool {
        let before = self.0.len();
        for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let node = Path::new("/dev").join(entry.file_name());
            if self.0.iter().any(|disk| disk.node == node) {
                continue;
            }
            // The node of a disk that is being plugged in is there a moment before it opens (ENXIO).
            if File::open(&node).is_err() {
                continue;
            }
            match read_kernel(entry.path().join("serial")) {
                Ok(serial) if !serial.is_empty() => {
                    self.0.push(Disk { serial, node });
                }
                _ => {}
            }
        }
        self.0.len() > before
    }
}

/// Waits until no file system uses the device any more: the kernel finishes an
/// unmount later than the call when a mount namespace has just ended.
pub fn wait_unused(device: &Path, limit: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    loop {
        match File::options().read(true).custom_flags(libc::O_EXCL).open(device) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error).context(Mount, || format!("{} stays in use", device.display()));
            }
            Err(_) => sleep(Duration::from_millis(1)),
        }
    }
}

/// Drops what the kernel has cached of the device, so that other content may be
/// put behind it.
pub fn drop_cache(device: &Path) -> Result<(), Failure> {
    /// `BLKFLSBUF` of `linux/fs.h`.
    const BLKFLSBUF: libc::Ioctl = 0x1261;
    let what = || format!("drop the cache of {}", device.display());
    let file = File::open(device).context(Mount, what)?;
    sys::ioctl_int(&file, BLKFLSBUF, 0).context(Mount, what).map(drop)
}
