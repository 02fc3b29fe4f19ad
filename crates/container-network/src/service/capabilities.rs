//! What the service takes from itself: the capabilities that neither it nor its processes need.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, capabilities, remove_capability_from_bounding_set, set_capabilities,
};

/// What is left. Networks, namespaces and ports below 1024; files and processes of its own when
/// it is root; and users for `pasta`, which is nobody.
const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP);

/// Drops all others for good. The calling thread is the only one.
pub fn reduce() -> rustix::io::Result<()> {
    let mut sets = capabilities(None)?;
    if !sets.effective.contains(CapabilitySet::SETPCAP) {
        // They are dropped already, or there have never been any.
        return Ok(());
    }
    for bit in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        if KEPT.contains(bit) {
            continue;
        }
        match remove_capability_from_bounding_set(bit) {
            // A number beyond this kernel's capabilities.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    sets.permitted = sets.permitted.intersection(KEPT);
    sets.effective = sets.effective.intersection(KEPT);
    sets.inheritable = sets.inheritable.intersection(KEPT);
    set_capabilities(None, sets)
}
