//! A VM's RAM as a file, and its state as one.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use container_api::ram;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::error::{Error, Phase};

/// The most that a VM's device state may have, in bytes. It has 50 to 300 KiB.
const MAX_STATE: usize = 64 << 20;

/// A RAM file must have the RAM's length: QEMU would extend it, or leave a VM
/// with a part of its memory.
pub fn check_len(ram: &File, len: u64) -> Result<(), Error> {
    let found = ram.metadata().map_err(Error::io(Phase::Prepare, "reading the RAM file"))?;
    if found.len() == len {
        return Ok(());
    }
    Err(Error::Config(format!("the RAM file has {} bytes instead of {len}", found.len())))
}

/// A copy of a device state, so that no VM has a descriptor of the template's.
pub fn state(state: OwnedFd) -> Result<OwnedFd, Error> {
    let state = File::from(state);
    let copy = || -> io::Result<OwnedFd> {
        let mut bytes = vec![0; state_len(&state)?];
        state.read_exact_at(&mut bytes, 0)?;
        let mut copy = File::from(memfd_create(c"state", MFdFlags::MFD_CLOEXEC)?);
        copy.write_all(&bytes)?;
        copy.rewind()?;
        Ok(copy.into())
    };
    copy().map_err(Error::io(Phase::Prepare, "copying the template's state"))
}

fn state_len(state: &File) -> io::Result<usize> {
    match usize::try_from(state.metadata()?.len()) {
        Ok(len) if len <= MAX_STATE => Ok(len),
        _ => Err(io::ErrorKind::FileTooLarge.into()),
    }
}

/// A copy of a RAM file that other processes can map and write to, without the
/// pages of zeros that clones make in a template's file by looking at its holes.
pub fn copy(ram: &Path) -> Result<OwnedFd, Error> {
    copy_sparsely(ram).map_err(Error::io(Phase::Prepare, "copying the template's RAM"))
}

fn copy_sparsely(ram: &Path) -> io::Result<OwnedFd> {
    let to = File::from(memfd_create(c"ram", MFdFlags::MFD_CLOEXEC)?);
    ram::copy(&File::open(ram)?, &to)?;
    Ok(to.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use tempfile::NamedTempFile;

    use super::*;

    fn ram(len: u64, data: &[(u64, &[u8])]) -> NamedTempFile {
        let file = NamedTempFile::new().expect("a file");
        file.as_file().set_len(len).expect("its length");
        for (offset, bytes) in data {
            file.as_file().write_all_at(bytes, *offset).expect("its content");
        }
        file
    }

    #[test]
    fn a_copy_has_the_data_and_the_holes() {
        let zeros = vec![0; 4 << 20];
        let data: [(u64, &[u8]); 3] =
            [(10 << 20, &zeros), (5 << 20, b"first"), ((64 << 20) - 4, b"last")];
        let original = ram(64 << 20, &data);
        check_len(original.as_file(), 64 << 20).expect("its length");
        assert!(check_len(original.as_file(), 65 << 20).is_err());
        let copied = File::from(copy(original.path()).expect("a copy"));
        let mut bytes = [0; 5];
        copied.read_exact_at(&mut bytes, 5 << 20).expect("data");
        assert_eq!(&bytes, b"first");
        copied.read_exact_at(&mut bytes[..4], (64 << 20) - 4).expect("data");
        assert_eq!(&bytes[..4], b"last");
        let meta = copied.metadata().expect("its metadata");
        assert_eq!(meta.len(), 64 << 20);
        assert!(meta.blocks() * 512 <= 1 << 20, "{} blocks", meta.blocks());
        let empty = copy(ram(1 << 20, &[]).path()).expect("a copy");
        assert_eq!(File::from(empty).metadata().expect("its metadata").blocks(), 0);
    }
}
