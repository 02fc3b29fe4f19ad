//! Block volumes: disks that a VM gets beside its own two.
//!
//! ```text
//! written to, the first two    behind a slot, a disk that every VM has for it
//! all others, and those read   plugged
//! ```
//! Each is locked before the VM has it, and the lock stays with the open file, which the hypervisor
//! then holds: whatever becomes of the services, two VMs never write to one volume.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use container_api::runtime::{VOLUME_SLOTS, VmSpec, VolumeDisk, volume_serial};
use nix::errno::Errno;
use nix::libc;

use crate::hypervisor::{Disk, Jail, Vm, open_shared};

const _: () = assert!(Disk::SLOTS.len() == VOLUME_SLOTS);

/// Where a VM has a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Behind a disk that is there.
    Slot(Disk),
    /// On one that is plugged, with this serial number.
    Plug(String),
}

impl Place {
    /// The serial number by which the guest finds it.
    pub fn serial(self) -> String {
        match self {
            Place::Slot(disk) => disk.name().to_owned(),
            Place::Plug(serial) => serial,
        }
    }
}

/// Where volumes are, in their order; each is given by whether it is read-only.
pub fn places(read_only: impl IntoIterator<Item = bool>) -> impl Iterator<Item = Place> {
    let mut slots = Disk::SLOTS.into_iter();
    read_only.into_iter().enumerate().map(move |(index, read_only)| {
        // A slot's device can be written, and QEMU gives it nothing else.
        let slot = if read_only { None } else { slots.next() };
        slot.map_or_else(|| Place::Plug(volume_serial(index)), Place::Slot)
    })
}

fn placed(spec: &VmSpec) -> impl Iterator<Item = (&VolumeDisk, Place)> {
    let places = places(spec.volumes.iter().map(|volume| volume.read_only));
    spec.volumes.iter().zip(places)
}

/// Whether volumes have to be plugged.
pub fn any_plugged(spec: &VmSpec) -> bool {
    placed(spec).any(|(_, place)| matches!(place, Place::Plug(_)))
}

/// Opens and locks the volumes that are to be behind slots.
///
/// # Errors
/// When one can't be opened or is in use.
pub fn open_slots(spec: &VmSpec) -> Result<Vec<(Disk, OwnedFd)>> {
    let open = |(volume, place): (&VolumeDisk, Place)| match place {
        Place::Slot(disk) => Some(open_writable(&volume.path).map(|file| (disk, file))),
        Place::Plug(_) => None,
    };
    placed(spec).filter_map(open).collect()
}

/// Opens the other volumes and plugs them into the VM. The guest waits for them.
///
/// # Errors
/// When one can't be opened, is in use, or is not taken by the VM.
pub async fn plug<V: Vm>(vm: &V, spec: &VmSpec, jail: &Jail) -> Result<()> {
    for (volume, place) in placed(spec) {
        let Place::Plug(serial) = place else { continue };
        let path = &volume.path;
        let file = match volume.read_only {
            true => open_readable(jail, path).await?,
            false => open_writable(path)?,
        };
        vm.plug_disk(&serial, file, volume.read_only)
            .await
            .with_context(|| format!("plugging {}", path.display()))?;
    }
    Ok(())
}

fn open_writable(path: &Path) -> Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.with_context(|| format!("opening {}", path.display()))?.into();
    lock(&file, false).with_context(|| format!("locking {}", path.display()))?;
    Ok(file)
}

/// What several VMs read is opened where nobody can write.
async fn open_readable(jail: &Jail, path: &Path) -> Result<OwnedFd> {
    let real = std::fs::canonicalize(path);
    let real = real.with_context(|| format!("opening {}", path.display()))?;
    let file = open_shared(jail, &real).await?;
    lock(&file, true).with_context(|| format!("locking {}", path.display()))?;
    Ok(file)
}

fn lock(file: &OwnedFd, shared: bool) -> Result<()> {
    let how = if shared { libc::LOCK_SH } else { libc::LOCK_EX };
    // SAFETY: the descriptor is open.
    match Errno::result(unsafe { libc::flock(file.as_raw_fd(), how | libc::LOCK_NB) }) {
        Ok(_) => Ok(()),
        Err(Errno::EWOULDBLOCK) => bail!("another VM has it"),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_two_that_are_written_are_behind_slots() {
        let places = |read_only: &[bool]| -> Vec<String> {
            places(read_only.iter().copied()).map(Place::serial).collect()
        };
        assert_eq!(places(&[false]), ["slot-0"]);
        assert_eq!(places(&[true, false]), ["volume-0", "slot-0"]);
        assert_eq!(
            places(&[false, true, false, false]),
            ["slot-0", "volume-1", "slot-1", "volume-3"]
        );
    }

    #[test]
    fn one_writes_or_several_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || OwnedFd::from(std::fs::File::open(file.path()).unwrap());
        let writer = open_writable(file.path()).unwrap();
        assert!(lock(&open(), true).is_err() && lock(&open(), false).is_err());
        // What the hypervisor has is the same open file.
        let theirs = writer.try_clone().unwrap();
        drop(writer);
        assert!(lock(&open(), true).is_err());
        drop(theirs);
        let (one, other) = (open(), open());
        lock(&one, true).unwrap();
        lock(&other, true).unwrap();
        assert!(lock(&open(), false).is_err());
    }
}
