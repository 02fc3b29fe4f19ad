//! A network card's other end that leads nowhere: a tap in the jail's own
//! network namespace.

use std::os::fd::{AsRawFd, RawFd};

use nix::libc;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketType};

use crate::descriptors;
use crate::error::{Error, Step};
use crate::process::last_errno;

const DEVICE: &str = "/dev/net/tun";
/// `_IOW('T', 202, int)`.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;

/// Makes a tap, brings it up and puts it at `number`. The process must be in
/// the network namespace for which it is meant, with the right to configure it.
pub fn make(number: RawFd) -> Result<(), Error> {
    let failed = |what: &str| Error::system(Step::Tap, what, last_errno());
    let tap = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::system(Step::Tap, DEVICE, errno))?;
    // SAFETY: all fields are plain bytes and numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
        *to = *from as libc::c_char;
    }
    // The header carries checksums and segments that nobody has finished: a
    // VM's state can only be loaded by one whose tap has it, too.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: reads and writes the request, which outlives the call.
    if unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw mut request) } < 0 {
        return Err(failed("TUNSETIFF"));
    }
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)
        .map_err(|errno| Error::system(Step::Tap, "socket", errno))?;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: reads the request, which outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(failed("SIOCSIFFLAGS"));
    }
    descriptors::place_owned(tap, number, "place")
}
