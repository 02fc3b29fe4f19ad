//! Asking for the memory of translated code, by the counter that the plugin `container-trim` reads.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::error::{Error, Phase};

/// The counter's file; less than a page.
const LEN: u64 = size_of::<u32>() as u64;

/// Our side.
#[derive(Debug)]
pub struct Trimmer {
    page: File,
    asked: AtomicU32,
}

impl Trimmer {
    /// Our side, and the descriptor that the plugin maps and closes.
    pub fn new() -> Result<(Trimmer, OwnedFd), Error> {
        let make = || {
            let page = File::from(memfd_create(c"trim", MFdFlags::MFD_CLOEXEC)?);
            page.set_len(LEN)?;
            let theirs = page.try_clone()?.into();
            Ok((Trimmer { page, asked: AtomicU32::new(0) }, theirs))
        };
        make().map_err(Error::io(Phase::Prepare, "making the plugin's page"))
    }

    /// Whether the plugin was asked. It does it when the guest next wakes.
    pub fn ask(&self) -> bool {
        let count = self.asked.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        self.page.write_all_at(&count.to_ne_bytes(), 0).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_another_number() {
        let (ours, theirs) = Trimmer::new().expect("a page");
        let theirs = File::from(theirs);
        let read = || {
            let mut bytes = [0; 4];
            theirs.read_exact_at(&mut bytes, 0).expect("the counter");
            u32::from_ne_bytes(bytes)
        };
        assert_eq!(read(), 0);
        assert!(ours.ask() && ours.ask());
        assert_eq!(read(), 2);
    }
}
