//! Taps that this process was started with.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail};
use container_api::network::MAX_ATTACHMENTS;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;

/// The number that the first of them has.
const FIRST: RawFd = 3;
/// `linux/if_tun.h`: tells what a tap was made with.
const TUNGETIFF: libc::Ioctl = 0x8004_54d2;

/// Takes the descriptors of `count` taps. To be called once, before anything else is opened.
///
/// # Errors
/// When one is not open or is no tap that a VM can have.
pub fn inherited(count: usize) -> Result<Vec<OwnedFd>> {
    if count > MAX_ATTACHMENTS {
        bail!("{count} taps: a VM has {MAX_ATTACHMENTS} network interfaces at most");
    }
    (FIRST..).take(count).map(|number| take(number).with_context(|| named(number))).collect()
}

fn named(number: RawFd) -> String {
    format!("descriptor {number}, a tap")
}

fn take(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: asks for the flags of a number, whatever is behind it.
    Errno::result(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // SAFETY: it is open, and by this program's arguments nobody else's.
    let tap = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&tap, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    check(&tap)?;
    Ok(tap)
}

/// A descriptor that came from elsewhere must be a tap with a header for offloads, which a VM's
/// state expects.
///
/// # Errors
/// When it isn't.
pub fn check(tap: &OwnedFd) -> Result<()> {
    // SAFETY: ifreq is plain data; all zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one ifreq; the structure outlives the call.
    let asked = unsafe { libc::ioctl(tap.as_raw_fd(), TUNGETIFF, &raw mut request) };
    Errno::result(asked).context("it is no tap")?;
    // SAFETY: the kernel has just written the flags.
    let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
    let needed = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if flags & needed != needed {
        bail!("it lacks one of IFF_TAP, IFF_NO_PI and IFF_VNET_HDR (flags {flags:#x})");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_tap_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap().into();
        assert!(check(&null).unwrap_err().to_string().contains("no tap"));
        assert!(inherited(MAX_ATTACHMENTS + 1).is_err());
        assert!(inherited(0).unwrap().is_empty());
    }
}
