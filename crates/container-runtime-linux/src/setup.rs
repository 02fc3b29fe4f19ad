//! What a guest is told before anything else runs in it.

use std::time::{SystemTime, UNIX_EPOCH};

use vminitd_protocol::message::{Call, MountRoot, MountSpec, Setup, Sysctl};
use vminitd_protocol::{IMAGE_SERIAL, UPPER_SERIAL};

use crate::guest::{self, GuestError};

/// Bytes of entropy for a guest.
const ENTROPY: usize = 64;

/// Fresh entropy and the time. `sysctls` are names and values.
///
/// # Errors
/// `Lost` when the host has no entropy.
pub fn set_up(sysctls: &[(&str, &str)]) -> Result<Call, GuestError> {
    let entropy = guest::random::<ENTROPY>().map_err(|e| GuestError::Lost(e.to_string()))?;
    let wall_clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let sysctl =
        |(name, value): &(&str, &str)| Sysctl { name: (*name).into(), value: (*value).into() };
    Ok(Call::Setup(Setup {
        entropy: entropy.to_vec(),
        wall_clock_ns: u64::try_from(wall_clock.as_nanos()).unwrap_or(u64::MAX),
        sysctls: sysctls.iter().map(sysctl).collect(),
    }))
}

/// Mounts what is on the two disks, and volumes whose disks are there.
pub fn mount_root(volumes: Vec<MountSpec>) -> Call {
    Call::MountRoot(MountRoot {
        image_serial: IMAGE_SERIAL.into(),
        upper_serial: UPPER_SERIAL.into(),
        volumes,
    })
}
