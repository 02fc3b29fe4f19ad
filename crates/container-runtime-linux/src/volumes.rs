//! Block volumes: disks that a VM gets beside its own two.
//!
//! Each is locked before the VM has it, and the lock stays with the open file, which the hypervisor
//! then holds: whatever becomes of the services, two VMs never write to one volume.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use container_api::runtime::{VmSpec, volume_serial};
use nix::errno::Errno;
use nix::libc;

use crate::hypervisor::{Jail, Vm, open_shared};

/// Opens a container's block volumes and plugs them into its VM. The guest waits for them.
///
/// # Errors
/// When one can't be opened, is in use, or is not taken by the VM.
pub async fn plug<V: Vm>(vm: &V, spec: &VmSpec, jail: &Jail) -> Result<()> {
    for (index, volume) in spec.volumes.iter().enumerate() {
        let shown = volume.path.display();
        let path =
            std::fs::canonicalize(&volume.path).with_context(|| format!("opening {shown}"))?;
        // What several VMs read is opened where nobody can write.
        let file = match volume.read_only {
            true => open_shared(jail, &path).await?,
            false => OpenOptions::new().read(true).write(true).open(&path)?.into(),
        };
        lock(&file, volume.read_only).with_context(|| format!("locking {shown}"))?;
        vm.plug_disk(&volume_serial(index), file, volume.read_only)
            .await
            .with_context(|| format!("plugging {shown}"))?;
    }
    Ok(())
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
    fn one_writes_or_several_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || OwnedFd::from(std::fs::File::open(file.path()).unwrap());
        let writer = open();
        lock(&writer, false).unwrap();
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
