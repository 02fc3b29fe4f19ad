//! What the service takes from itself once it runs: it parses bytes of strangers.
//!
//! After [`enter`] it can write below its own two directories alone, read what an HTTPS client
//! needs, execute nothing, and gain no privileges. Its connections to registries stay possible:
//! that is its work.

use std::env;
use std::io;
use std::path::{Path, PathBuf};

use container_api::{ApiError, ErrorCode, Result};
use landlock::{
    ABI, Access, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus,
};

/// The layer's name in `[security] allow_missing`.
pub const LANDLOCK: &str = "landlock";

/// What name resolution, TLS and the C library read.
const READABLE: [&str; 14] = [
    "/etc/ca-certificates",
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/nsswitch.conf",
    "/etc/pki",
    "/etc/resolv.conf",
    "/etc/ssl",
    "/lib",
    "/lib64",
    "/run/systemd/resolve",
    "/usr/lib",
    "/usr/share/ca-certificates",
];

/// Confines this process: must be called before it has other threads. `writable` directories exist.
pub fn enter(writable: &[&Path], readable: &[PathBuf], allow_missing: &[String]) -> Result<()> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        ApiError::new(ErrorCode::Unavailable, format!("{what}: {error}"))
    };
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)
        .map_err(|e| failed("forbidding core dumps", &e))?;
    nix::sys::prctl::set_no_new_privs().map_err(|e| failed("forbidding new privileges", &e))?;
    let confined = landlock(writable, readable).map_err(|e| failed("landlock", &e))?;
    match confined || allow_missing.iter().any(|layer| layer == LANDLOCK) {
        true => Ok(()),
        false => Err(ApiError::new(
            ErrorCode::Unavailable,
            "this kernel has no Landlock, which confines the image service; to run without it, \
             add \"landlock\" to allow_missing in [security] of the configuration",
        )),
    }
}

/// Whether the kernel took the rules.
fn landlock(writable: &[&Path], readable: &[PathBuf]) -> std::result::Result<bool, LandlockError> {
    let abi = ABI::V5;
    let mut rules = Ruleset::default().handle_access(AccessFs::from_all(abi))?.create()?;
    for path in writable {
        let access = AccessFs::from_all(abi) & !AccessFs::Execute;
        rules = rules.add_rule(PathBeneath::new(PathFd::new(path)?, access))?;
    }
    let certificates = ["SSL_CERT_FILE", "SSL_CERT_DIR"].iter().filter_map(env::var_os);
    let read = READABLE.iter().map(PathBuf::from).chain(certificates.map(PathBuf::from));
    for path in read.chain(readable.iter().cloned()) {
        // What this host doesn't have needs no rule.
        let Ok(fd) = PathFd::new(&path) else { continue };
        let directory = path.is_dir();
        let access = match directory {
            true => AccessFs::ReadFile | AccessFs::ReadDir,
            false => AccessFs::ReadFile.into(),
        };
        rules = rules.add_rule(PathBeneath::new(fd, access))?;
    }
    Ok(rules.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}

/// What can go wrong with the rules.
#[derive(Debug, thiserror::Error)]
enum LandlockError {
    #[error(transparent)]
    Rules(#[from] landlock::RulesetError),
    #[error(transparent)]
    Path(#[from] landlock::PathFdError),
}

/// Where the guest's init program may be: beside ours, and it is read after [`enter`].
pub fn program_directories() -> io::Result<Vec<PathBuf>> {
    let exe = env::current_exe()?;
    let directory = exe.parent().unwrap_or(Path::new("/")).to_owned();
    Ok(vec![directory.join("../libexec/container"), directory.join("../../bin"), directory])
}
