//! What a process that carries traffic takes from itself: it handles bytes of strangers.
//!
//! Afterwards its thread has no capabilities but one that was asked for, and can't get any, opens no
//! file, starts no program, and makes no sockets but those of TCP and UDP. Threads that it starts
//! inherit that.

use std::collections::BTreeMap;

use container_api::{ApiError, ErrorCode, Result};
use landlock::{
    ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::libc;
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// The layer's name in `[security] allow_missing`.
const LANDLOCK: &str = "landlock";
/// The layer's name in `[security] allow_missing`.
const SECCOMP: &str = "seccomp";

/// What a program of threads, memory, time and IP sockets calls. Everything else fails (`EPERM`).
const CALLS: &[libc::c_long] = &[
    // Bytes.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_fcntl,
    libc::SYS_dup,
    // `FIONBIO`; the descriptors it has are sockets.
    libc::SYS_ioctl,
    libc::SYS_fstat,
    // Sockets; which ones is in [`sockets`].
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // Events and time.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Threads and their end; `clone` is in [`threads`].
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Who it is, for the check of a peer, and randomness for hash maps.
    libc::SYS_geteuid,
    libc::SYS_getrandom,
];

/// Confines the calling thread, `who` it is for messages, and those that it will start.
pub fn enter(who: &str, allow_missing: &[String]) -> Result<()> {
    enter_keeping(CapabilitySet::empty(), who, allow_missing)
}

/// The same, but capabilities of these that it has stay, if its system calls can be confined.
pub fn enter_keeping(kept: CapabilitySet, who: &str, allow_missing: &[String]) -> Result<()> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        ApiError::new(ErrorCode::Unavailable, format!("confining {who}: {what}: {error}"))
    };
    let may_lack = |layer: &str| allow_missing.iter().any(|missing| missing == layer);
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)
        .map_err(|e| failed("forbidding core dumps", &e))?;
    nix::sys::prctl::set_no_new_privs().map_err(|e| failed("forbidding new privileges", &e))?;
    capabilities(kept).map_err(|e| failed("dropping capabilities", &e))?;
    let confined = landlock().map_err(|e| failed("landlock", &e))?;
    if !confined && !may_lack(LANDLOCK) {
        return Err(ApiError::new(
            ErrorCode::Unavailable,
            format!(
                "this kernel has no Landlock, which confines {who}; to run without it, add \
                 \"landlock\" to allow_missing in [security] of the configuration"
            ),
        ));
    }
    match seccomp() {
        Err(error) if !may_lack(SECCOMP) => Err(failed("seccomp", &error)),
        Err(_) => {
            capabilities(CapabilitySet::empty()).map_err(|e| failed("dropping capabilities", &e))
        }
        Ok(()) => Ok(()),
    }
}

fn capabilities(kept: CapabilitySet) -> rustix::io::Result<()> {
    rustix::thread::clear_ambient_capability_set()?;
    if rustix::thread::capabilities(None)?.effective.contains(CapabilitySet::SETPCAP) {
        for bit in CapabilitySet::all().iter() {
            match rustix::thread::remove_capability_from_bounding_set(bit) {
                // One that this kernel doesn't know.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let kept = kept & rustix::thread::capabilities(None)?.permitted;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: none };
    rustix::thread::set_capabilities(None, sets)
}

/// No file, and no signal or abstract socket to anything outside. Whether the kernel took it.
fn landlock() -> std::result::Result<bool, landlock::RulesetError> {
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .no_new_privs(true);
    Ok(rules.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}

type Rules = BTreeMap<libc::c_long, Vec<SeccompRule>>;

fn seccomp() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arch = std::env::consts::ARCH.try_into()?;
    let mut allowed: Rules = CALLS.iter().map(|call| (*call, Vec::new())).collect();
    allowed.insert(libc::SYS_clone, threads()?);
    allowed.insert(libc::SYS_clone3, Vec::new());
    allowed.insert(libc::SYS_socket, sockets()?);
    allowed.insert(libc::SYS_socketpair, Vec::new());
    allowed.insert(libc::SYS_prctl, vec![first(SeccompCmpOp::Eq, libc::PR_SET_NAME as u64)?]);
    let errno = |errno: i32| SeccompAction::Errno(errno as u32);
    let filter = SeccompFilter::new(allowed, errno(libc::EPERM), SeccompAction::Allow, arch)?;
    let filter: BpfProgram = filter.try_into()?;
    // Its flags are in memory, where no filter sees them; the library falls back to `clone`.
    let clone3: Rules = [(libc::SYS_clone3, Vec::new())].into();
    let clone3 = SeccompFilter::new(clone3, SeccompAction::Allow, errno(libc::ENOSYS), arch)?;
    let clone3: BpfProgram = clone3.try_into()?;
    seccompiler::apply_filter(&clone3)?;
    // Last: it forbids to add another.
    seccompiler::apply_filter(&filter)?;
    Ok(())
}

fn first(op: SeccompCmpOp, value: u64) -> seccompiler::Result<SeccompRule> {
    let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, op, value)
        .map_err(seccompiler::Error::Backend)?;
    SeccompRule::new(vec![condition]).map_err(seccompiler::Error::Backend)
}

/// Threads, not processes.
fn threads() -> seccompiler::Result<Vec<SeccompRule>> {
    let thread = libc::CLONE_THREAD as u64;
    Ok(vec![first(SeccompCmpOp::MaskedEq(thread), thread)?])
}

/// TCP and UDP: no raw ones, whatever capability there is.
fn sockets() -> seccompiler::Result<Vec<SeccompRule>> {
    /// What of the second argument is the type; the rest are flags.
    const TYPE: u64 = 0xf;
    let condition = |number, op, value| {
        SeccompCondition::new(number, SeccompCmpArgLen::Dword, op, value)
            .map_err(seccompiler::Error::Backend)
    };
    let mut rules = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            let conditions = vec![
                condition(0, SeccompCmpOp::Eq, family as u64)?,
                condition(1, SeccompCmpOp::MaskedEq(TYPE), kind as u64)?,
            ];
            rules.push(SeccompRule::new(conditions).map_err(seccompiler::Error::Backend)?);
        }
    }
    Ok(rules)
}
