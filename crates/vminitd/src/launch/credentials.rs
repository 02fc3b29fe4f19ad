//! User, groups and capabilities, as Docker gives them: the mask bounds
//! everything; uid 0 holds it, others hold nothing until a set-id program
//! gives it to them. Nothing is inheritable or ambient.

use super::user::Identity;
use crate::failure::{Context, Failure};
use crate::sys;
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use vminitd_protocol::message::ErrorCode::BadUser;

/// Takes what is not in the mask from the bounding set.
pub fn limit(mask: u64) -> Result<(), Failure> {
    for number in 0..64 {
        if mask & (1 << number) != 0 {
            continue;
        }
        match sys::prctl(libc::PR_CAPBSET_DROP, number) {
            Err(Errno::EINVAL) => break, // Beyond the kernel's last.
            result => result.internal("drop a capability")?,
        }
    }
    Ok(())
}

/// Becomes the user with the capabilities of the mask.
pub fn become_user(identity: &Identity, mask: u64) -> Result<(), Failure> {
    let what = || format!("become uid {} gid {}", identity.uid, identity.gid);
    let groups: Vec<Gid> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    setgroups(&groups).context(BadUser, what)?;
    setresgid(gid, gid, gid).context(BadUser, what)?;
    setresuid(uid, uid, uid).context(BadUser, what)?;
    let held = if identity.uid == 0 { known(mask) } else { 0 };
    sys::capset(held, held, 0).internal("set capabilities")
}

/// The part of the mask that this kernel has and that is still permitted.
pub fn known(mask: u64) -> u64 {
    let has = |number: &u64| sys::prctl_value(libc::PR_CAPBSET_READ, *number) == Ok(1);
    (0..64).filter(|n| mask & (1 << n) != 0).filter(has).fold(0, |bits, n| bits | 1 << n)
}
