//! What the program can't get back: limits, capabilities, landlock.

use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::libc;
use nix::sys::resource::{Resource, setrlimit};

use crate::args::{Args, Layer, Limit};
use crate::error::{Error, Step};
use crate::process::last_errno;

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Keeps the host's name from the program. No layer of its own: without a uts
/// namespace there is no right to do it either.
pub fn hide_host_name() {
    let _ = rustix::system::sethostname(b"jail");
}

/// Core dumps off (they would hold guest memory), then what the caller set.
/// A limit is never raised above what this process has.
pub fn set_limits(args: &Args) -> Result<(), Error> {
    let given = args.limits.iter().map(|(limit, value)| {
        let resource = match limit {
            Limit::Nofile => Resource::RLIMIT_NOFILE,
            Limit::Nproc => Resource::RLIMIT_NPROC,
            Limit::Fsize => Resource::RLIMIT_FSIZE,
            Limit::Data => Resource::RLIMIT_DATA,
            Limit::Memlock => Resource::RLIMIT_MEMLOCK,
        };
        (resource, *value)
    });
    for (resource, value) in std::iter::once((Resource::RLIMIT_CORE, 0)).chain(given) {
        let failed = |_| Error::system(Step::Limits, format!("{resource:?}"), last_errno());
        let (_, hard) = nix::sys::resource::getrlimit(resource).map_err(failed)?;
        let value = value.min(hard);
        setrlimit(resource, value, value).map_err(failed)?;
    }
    Ok(())
}

/// Makes all permitted capabilities effective again after the change of uid.
pub fn raise_permitted() -> Result<(), Error> {
    let mut data = get_capabilities()?;
    for word in &mut data {
        word.effective = word.permitted;
    }
    set_capabilities(data)
}

/// Empties every capability set, the bounding set included.
pub fn drop_capabilities() -> Result<(), Error> {
    let failed = |what: &str| Error::system(Step::Capabilities, what, last_errno());
    for capability in 0..64 {
        // SAFETY: by value; EINVAL for a number that this kernel lacks.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
            if last_errno() == rustix::io::Errno::INVAL && capability > 0 {
                break;
            }
            return Err(failed("bounding set"));
        }
    }
    // NOROOT, NO_SETUID_FIXUP, KEEP_CAPS off, NO_CAP_AMBIENT_RAISE, each
    // locked: uid 0 would mean nothing even if it could be reached.
    const SECUREBITS: libc::c_ulong = 0b1110_1111;
    // SAFETY: by value, on this process.
    unsafe {
        if libc::prctl(libc::PR_SET_SECUREBITS, SECUREBITS, 0, 0, 0) < 0 {
            return Err(failed("secure bits"));
        }
        if libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 {
            return Err(failed("ambient set"));
        }
    }
    let none = CapabilityData { effective: 0, permitted: 0, inheritable: 0 };
    set_capabilities([none; 2])
}

fn get_capabilities() -> Result<[CapabilityData; 2], Error> {
    let none = CapabilityData { effective: 0, permitted: 0, inheritable: 0 };
    let mut data = [none; 2];
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    // SAFETY: version 3 reads the header and writes two words of data.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    if result < 0 {
        return Err(Error::system(Step::Capabilities, "capget", last_errno()));
    }
    Ok(data)
}

fn set_capabilities(data: [CapabilityData; 2]) -> Result<(), Error> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    // SAFETY: version 3 reads the header and two words of data.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    if result < 0 {
        return Err(Error::system(Step::Capabilities, "capset", last_errno()));
    }
    Ok(())
}

/// Transparent huge pages, for this process and what it becomes. A kernel that has none is as asked.
pub fn page_size(args: &Args) {
    if args.small_pages {
        // SAFETY: by value, on this process.
        unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    }
}

/// No exec can add privileges from here on.
pub fn no_new_privileges() -> Result<(), Error> {
    // SAFETY: by value, on this process.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } < 0 {
        return Err(Error::system(Step::NoNewPrivileges, "prctl", last_errno()));
    }
    Ok(())
}

/// Landlock beneath the root that is already read-only: reading and executing
/// what is there, writing to the devices, reading the shared files again
/// through /proc/self/fd, no TCP, no signals or abstract sockets to outside.
pub fn landlock(args: &Args) -> Result<(), Error> {
    let read = AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let restrict = || -> Result<RulesetStatus, Box<dyn std::error::Error>> {
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V6))?
            .handle_access(AccessNet::from_all(ABI::V6))?
            .scope(Scope::from_all(ABI::V6))?
            .create()?
            .add_rule(PathBeneath::new(PathFd::new("/")?, read))?
            .add_rule(PathBeneath::new(PathFd::new("/dev/null")?, device))?;
        if args.kvm {
            rules = rules.add_rule(PathBeneath::new(PathFd::new("/dev/kvm")?, device))?;
        }
        for share in &args.shares {
            // SAFETY: placed there by `root::open_shared`, closed by nobody.
            let file = unsafe { BorrowedFd::borrow_raw(share.fd) };
            rules = rules.add_rule(PathBeneath::new(file, AccessFs::ReadFile))?;
        }
        Ok(rules.restrict_self()?.ruleset)
    };
    match restrict() {
        Ok(RulesetStatus::NotEnforced) => {
            args.missing(Layer::Landlock, "the kernel has no landlock, or it is not enabled")
        }
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Refused { step: Step::Landlock, what: error.to_string() }),
    }
}
