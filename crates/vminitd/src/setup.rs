//! What a VM learns after its boot or its restore: entropy, time, parameters.
//!
//! A restored VM begins as its siblings do, bit for bit. From [`apply`] on:
//! - the kernel's generator, with all it has handed out in advance, is seeded
//!   anew, and every program that is executed has `AT_RANDOM`, stack canary and
//!   addresses of its own from it, as have namespaces, sockets and file systems;
//! - nothing of ours that was started before runs in a container: what joins or
//!   begins one executes a program, the init of `--init` too. The launcher that
//!   waits for the first container is a copy of this program, can't be looked
//!   into, and holds of former ones what this program's memory does: of the
//!   throwaway containers alone, never of somebody's;
//! - what the kernel draws once, when it is first used, is not drawn yet: TCP's
//!   sequence numbers, SYN cookies, ports, flow hashes, the boot id. For that
//!   neither this program nor `/warm-up` uses TCP or UDP or reads the boot id, and
//!   a template's NIC has never been up (a spare's has, with entropy of its own).
//!
//! Siblings share what the kernel has drawn at its boot: its own addresses, the
//! order of its free lists, the seeds of tables such as the neighbours', where
//! IP's packet numbers begin, and PID 1's own layout, which nobody in a
//! container sees. `/etc/machine-id` is the image's.
//!
//! They also share what spreads sockets over hash tables, drawn at the boot (the
//! network's other keys are drawn when they are first used, and without TCP or
//! UDP none was), and what was drawn when the launcher was made: the serial number
//! of its session keyring, which holds nothing, the generation numbers of the
//! files in `/dev`, and the canary of the first process's stack in the kernel.
//! The first process is as old as its launcher: `ps` shows it so.

use crate::failure::{Context, Failure};
use crate::files::write_kernel;
use crate::sys;
use nix::libc;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use std::fs::File;
use vminitd_protocol::message::ErrorCode::{Internal, InvalidRequest};
use vminitd_protocol::message::{Setup, Sysctl};

/// Most entropy in one request in bytes.
const MAX_ENTROPY: usize = 512;
/// Least entropy in one request in bytes.
const MIN_ENTROPY: usize = 32;

/// Carries a [`Setup`] out: first entropy, so that nothing ever runs with the
/// random state of a sibling clone.
pub fn apply(setup: &Setup) -> Result<(), Failure> {
    reseed(&setup.entropy)?;
    let seconds = i64::try_from(setup.wall_clock_ns / 1_000_000_000);
    let seconds = seconds.map_err(|_| Failure::invalid("wall clock is beyond range"))?;
    let now = TimeSpec::new(seconds, (setup.wall_clock_ns % 1_000_000_000) as i64);
    clock_settime(ClockId::CLOCK_REALTIME, now).internal("set the wall clock")?;
    setup.sysctls.iter().try_for_each(sysctl)
}

/// Writes one kernel parameter, in the namespaces of the caller.
pub fn sysctl(sysctl: &Sysctl) -> Result<(), Failure> {
    let name = &sysctl.name;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || !name.chars().all(legal) || name.split('.').any(str::is_empty) {
        return Err(Failure::invalid(format!("sysctl name {name:?} is not valid")));
    }
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    write_kernel(path, &sysctl.value)
        .context(InvalidRequest, || format!("set sysctl {name} to {:?}", sysctl.value))
}

/// Credits the bytes and reseeds. Both are needed: crediting alone leaves the
/// generator of a restored clone as it was.
fn reseed(entropy: &[u8]) -> Result<(), Failure> {
    /// `RNDADDENTROPY` of `linux/random.h`.
    const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
    /// `RNDRESEEDCRNG` of `linux/random.h`.
    const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
    #[repr(C)]
    struct PoolInfo {
        bits: i32,
        bytes: i32,
        pool: [u8; MAX_ENTROPY],
    }
    if !(MIN_ENTROPY..=MAX_ENTROPY).contains(&entropy.len()) {
        return Err(Failure::invalid("entropy must be 32 to 512 bytes"));
    }
    let mut info =
        PoolInfo { bits: entropy.len() as i32 * 8, bytes: entropy.len() as i32, pool: [0; _] };
    info.pool[..entropy.len()].copy_from_slice(entropy);
    let random = File::options().write(true).open("/dev/urandom").internal("open /dev/urandom")?;
    sys::ioctl_ref(&random, RNDADDENTROPY, &mut info).context(Internal, || "add entropy")?;
    sys::ioctl_int(&random, RNDRESEEDCRNG, 0).context(Internal, || "reseed").map(drop)
}
