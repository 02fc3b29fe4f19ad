//! Taps: a container's side of a bridge port.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use container_api::error::{ApiError, ErrorCode, Result};

use super::namespace::failed;

nix::ioctl_write_int!(tun_set_iff, b'T', 202);

/// What taps' names begin with.
pub(super) const PREFIX: &str = "t";

/// A name that no other tap has.
pub(super) fn name() -> Result<String> {
    let mut bytes = [0; 6];
    getrandom(&mut bytes)?;
    Ok(bytes.iter().fold(PREFIX.to_owned(), |name, byte| format!("{name}{byte:02x}")))
}

/// Whether a link's name is one of [`name`]'s.
pub(super) fn is_ours(link: &str) -> bool {
    let digits = link.strip_prefix(PREFIX);
    digits.is_some_and(|d| d.len() == 12 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Random bytes.
pub(super) fn getrandom(bytes: &mut [u8]) -> Result<()> {
    let all = bytes.len();
    match rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(count) if count == all => Ok(()),
        Ok(_) => Err(ApiError::internal("the kernel gave too few random bytes")),
        Err(error) => Err(failed("cannot get random bytes")(error.into())),
    }
}

const DEVICE: &str = "/dev/net/tun";

/// Whether every user may make taps in namespaces of his own, as on most hosts.
pub(super) fn for_everybody() -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(DEVICE).is_ok_and(|file| file.permissions().mode() & 0o006 == 0o006)
}

/// Makes a tap in the calling thread's namespace. It goes with its last descriptor.
pub(super) fn make(name: &str) -> Result<OwnedFd> {
    let device = File::options().read(true).write(true).open(DEVICE).map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::PermissionDenied => ": it must be readable and writable for you",
            io::ErrorKind::NotFound => ": load the kernel module tun",
            _ => "",
        };
        ApiError::new(ErrorCode::Unavailable, format!("cannot open {DEVICE}: {error}{advice}"))
    })?;
    // SAFETY: all zeros are a valid ifreq.
    let mut request: nix::libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(15)) {
        *to = from as nix::libc::c_char;
    }
    let flags = nix::libc::IFF_TAP | nix::libc::IFF_NO_PI | nix::libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as nix::libc::c_short;
    // SAFETY: the kernel reads and writes one ifreq, which outlives the call.
    unsafe { tun_set_iff(device.as_raw_fd(), (&raw mut request) as nix::libc::c_ulong) }
        .map_err(|error| failed(format!("cannot make tap {name}"))(error.into()))?;
    Ok(device.into())
}
