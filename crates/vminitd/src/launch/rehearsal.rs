//! A rehearsal of a container's start, beside the first steps of the real one.
//!
//! An emulator translates the kernel's code where it runs first; in a restored
//! VM that is all of it, and takes most of a start. Translations count for all
//! processors, and all but one have nothing to do before the first program
//! runs. So a process made ahead, on a signal, goes the way that the launcher
//! will go once there is a root: overlay, mounts, identity, execution, end.
//!
//! ```text
//! PID 1      greeting ─► setup ─► EROFS, ext4 ─► overlay ─► launcher ─► program
//! rehearsal     └─► overlay ─► mounts ─► program ─► end        (on a tmpfs)
//! ```
//!
//! It runs our own program alone, in namespaces of its own, and stays asleep
//! afterwards, so that nothing is torn down beside the container.

use super::child::{self, Rehearsed};
use super::{NAMESPACES, filter, mounts, stdio};
use crate::failure::{Context, Failure};
use crate::root::ROOT;
use crate::sys;
use nix::fcntl::OFlag;
use nix::libc;
use nix::mount::MsFlags;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pause, pipe2, read, write};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use vminitd_protocol::capability;
use vminitd_protocol::message::ErrorCode::{Exhausted, Internal, Mount};
use vminitd_protocol::message::{
    ContainerSpec, DEFAULT_MASKED_PATHS, DEFAULT_READ_ONLY_PATHS, Limits, ProcessSpec,
    StartContainer, User,
};

/// The program of a rehearsal, and what it is called by: our own, which ends.
pub const NAME: &str = "/proc/self/exe";
/// Where a rehearsal has its file systems, in its own mount namespace.
const STAGE: &str = "/run/upper";
/// How long one may take to be ready, in milliseconds.
const READY_LIMIT_MS: u16 = 10_000;
/// Directories there: those of the overlay, and its image's.
const PLACES: [&str; 7] =
    ["upper", "work", "lower/dev", "lower/etc", "lower/proc", "lower/sys", "lower/tmp"];

/// A rehearsal that waits. Dropped unasked, it ends.
#[derive(Debug)]
pub struct Rehearsal(OwnedFd);

impl Rehearsal {
    /// Makes one, and waits until it is ready, where it will be of use.
    pub fn ahead() -> Result<Option<Self>, Failure> {
        if !is_emulated() || sys::processors() < 2 {
            return Ok(None);
        }
        let pipe = || pipe2(OFlag::O_CLOEXEC).context(Exhausted, || "create a pipe");
        let ((wait, begin), (ready, tell)) = (pipe()?, pipe()?);
        match sys::fork(NAMESPACES, None).context(Exhausted, || "create a process")? {
            sys::Forked::Child => {
                drop((begin, ready));
                let _ = go(&wait, tell);
                // SAFETY: ends this process without running what PID 1 registered for exit.
                unsafe { libc::_exit(1) }
            }
            sys::Forked::Parent { .. } => {
                drop((wait, tell));
                let mut readable = [PollFd::new(ready.as_fd(), PollFlags::POLLIN)];
                poll(&mut readable, READY_LIMIT_MS).internal("wait for the rehearsal")?;
                match read(&ready, &mut [0]) {
                    Ok(1) => Ok(Some(Rehearsal(begin))),
                    _ => Err(Failure::new(Internal, "the rehearsal could not be prepared")),
                }
            }
        }
    }

    /// Sets it off.
    pub fn begin(self) {
        let _ = write(&self.0, &[1]);
    }
}

/// Whether translation is what costs: QEMU's TCG tells of itself.
#[cfg(target_arch = "x86_64")]
fn is_emulated() -> bool {
    /// Where a hypervisor tells its name in EBX, ECX and EDX.
    const HYPERVISOR: u32 = 0x4000_0000;
    let name = std::arch::x86_64::__cpuid(HYPERVISOR);
    [name.ebx, name.ecx, name.edx]
        == [
            u32::from_le_bytes(*b"TCGT"),
            u32::from_le_bytes(*b"CGTC"),
            u32::from_le_bytes(*b"GTCG"),
        ]
}

/// Other processors don't tell; a rehearsal costs a real one a millisecond.
#[cfg(not(target_arch = "x86_64"))]
fn is_emulated() -> bool {
    true
}

fn go(wait: &OwnedFd, tell: OwnedFd) -> Result<(), Failure> {
    child::detach_from_parent(wait, &tell)?;
    let trees = child::make_surroundings()?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    child::mount_on("tmpfs", STAGE, "tmpfs", flags, "mode=755,size=1m")
        .context(Mount, || "mount the rehearsal's tmpfs")?;
    let make = |name: &str| fs::create_dir_all(format!("{STAGE}/{name}"));
    PLACES.into_iter().try_for_each(make).internal("create directories")?;
    write(&tell, &[1]).internal("tell of being ready")?;
    drop(tell);
    if read(wait, &mut [0]) != Ok(1) {
        return Ok(());
    }
    rehearse(trees)?;
    loop {
        pause();
    }
}

fn rehearse(trees: mounts::Trees) -> Result<(), Failure> {
    let data = format!("lowerdir={STAGE}/lower,upperdir={STAGE}/upper,workdir={STAGE}/work");
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    child::mount_on("overlay", ROOT, "overlay", flags, &data)
        .context(Mount, || "mount the rehearsal's overlay")?;
    let start = start();
    let (theirs, _ends) = stdio::create(&start.process)?;
    match sys::fork(0, None).context(Exhausted, || "create a process")? {
        sys::Forked::Child => child::rehearse(Rehearsed { trees, start: &start, stdio: &theirs }),
        sys::Forked::Parent { pid, .. } => {
            let _ = waitpid(Pid::from_raw(pid), None);
            Ok(())
        }
    }
}

/// As a container with the defaults is started.
fn start() -> StartContainer {
    let bytes = |paths: &[&str]| paths.iter().map(|path| path.as_bytes().to_vec()).collect();
    StartContainer {
        container: ContainerSpec {
            hostname: "rehearsal".into(),
            masked_paths: bytes(DEFAULT_MASKED_PATHS),
            read_only_paths: bytes(DEFAULT_READ_ONLY_PATHS),
            limits: Some(Limits::default()),
            ..ContainerSpec::default()
        },
        process: ProcessSpec {
            args: bytes(&[NAME]),
            env: bytes(&["PATH=/usr/bin:/bin"]),
            cwd: b"/".to_vec(),
            user: Some(User::default()),
            capabilities: capability::DEFAULT,
            no_new_privileges: true,
            seccomp: filter::ALL.to_vec(),
            ..ProcessSpec::default()
        },
    }
}
