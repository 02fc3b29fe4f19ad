//! What the server can't get back: capabilities, privileges, landlock.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::errno::Errno;
use nix::libc;

use crate::args::Args;
use crate::{Result, at};

/// CHOWN, DAC_OVERRIDE, FOWNER, SETGID, SETUID: to be each user of the container. None makes a
/// device, sets an attribute of the kernel's, or reaches beyond files. Without FSETID a
/// set-user-id program of the host is one no more when a guest has written it.
const CAPABILITIES: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 6 | 1 << 7;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// All but seccomp, which comes when the rest is open.
pub fn confine(args: &Args) -> Result<()> {
    let _ = nix::unistd::sethostname("fileserver");
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)
        .map_err(at("forbid core dumps"))?;
    limit_capabilities(CAPABILITIES)?;
    nix::sys::prctl::set_no_new_privs().map_err(at("no_new_privs"))?;
    landlock(args)
}

/// Drops all but those of a mask.
pub fn limit_capabilities(kept: u32) -> Result<()> {
    for capability in 0..64u32 {
        let stays = capability < 32 && kept & (1 << capability) != 0;
        // SAFETY: by value; EINVAL for a number that this kernel lacks.
        let dropped =
            stays || unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } == 0;
        if !dropped {
            match Errno::last() {
                Errno::EINVAL if capability > 0 => break,
                error => return Err(format!("drop capability {capability}: {error}")),
            }
        }
    }
    let header = [CAPABILITY_VERSION_3, 0];
    let data = [kept, kept, 0, 0, 0, 0];
    // SAFETY: version 3 reads a header of two words and six words of data.
    match unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) } {
        0 => Ok(()),
        _ => Err(format!("capset: {}", Errno::last())),
    }
}

/// Exactly the shares, each as it was shared. A host without landlock has the private root alone,
/// as a path has no way out of it.
fn landlock(args: &Args) -> Result<()> {
    let abi = ABI::V6;
    let nodes = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
    let restrict = || -> std::result::Result<RulesetStatus, Box<dyn std::error::Error>> {
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(abi))?
            .handle_access(AccessNet::from_all(abi))?
            .scope(Scope::from_all(abi))?
            .create()?;
        for (i, share) in args.shares.iter().enumerate() {
            let access = match share.read_only {
                true => AccessFs::from_read(abi),
                false => AccessFs::from_all(abi) & !nodes,
            };
            let access = if share.directory { access } else { access & AccessFs::from_file(abi) };
            rules = rules.add_rule(PathBeneath::new(PathFd::new(format!("/{i}"))?, access))?;
        }
        Ok(rules.restrict_self()?.ruleset)
    };
    match restrict().map_err(at("landlock"))? {
        RulesetStatus::NotEnforced => Err("this kernel has no landlock".into()),
        _ => Ok(()),
    }
}
