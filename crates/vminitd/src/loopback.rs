//! Brings the loopback interface up.

use crate::failure::{Context, Failure};
use crate::sys;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

pub fn up() -> Result<(), Failure> {
    let what = "bring the loopback interface up";
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None).internal(what)?;
    // SAFETY: ifreq is plain data; all zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    sys::ioctl_ref(&socket, libc::SIOCSIFFLAGS, &mut request).internal(what).map(drop)
}
