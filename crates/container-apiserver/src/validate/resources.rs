//! CPUs, memory and limits.

use container_api::escape::escape;
use container_api::types::{Platform, Resources, Rlimit};
use container_api::{ApiError, ErrorCode, Result};

/// Least RAM in MiB with which the guest boots: the distribution's kernel and initramfs unpacked,
/// and what is left to run a small program.
pub const MIN_MEMORY_MIB: u64 = 96;
/// Most CPUs of a VM: more need an interrupt controller that not every guest can drive.
const MAX_CPUS: u32 = 255;
/// Virtual CPUs per CPU of the host; more only makes a guest slower.
const CPUS_PER_HOST_CPU: u32 = 4;
/// Allowed everywhere.
const ALWAYS_ALLOWED_CPUS: u32 = 8;

const LIMITS: [&str; 16] = [
    "RLIMIT_AS",
    "RLIMIT_CORE",
    "RLIMIT_CPU",
    "RLIMIT_DATA",
    "RLIMIT_FSIZE",
    "RLIMIT_LOCKS",
    "RLIMIT_MEMLOCK",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_NOFILE",
    "RLIMIT_NPROC",
    "RLIMIT_RSS",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
    "RLIMIT_SIGPENDING",
    "RLIMIT_STACK",
];

/// What the host has.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// CPUs that are online.
    pub cpus: u32,
    /// RAM in MiB.
    pub memory_mib: u64,
}

impl Host {
    /// This host.
    pub fn this() -> Host {
        use nix::unistd::{SysconfVar, sysconf};
        let cpus = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().unwrap_or(1);
        let memory_mib = nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total() >> 20);
        Host { cpus: cpus.clamp(1, i64::from(u32::MAX)) as u32, memory_mib }
    }

    /// Most virtual CPUs that a VM may have here.
    pub fn max_cpus(self) -> u32 {
        self.cpus.saturating_mul(CPUS_PER_HOST_CPU).clamp(ALWAYS_ALLOWED_CPUS, MAX_CPUS)
    }

    /// Checks what a VM should get. Memory is rounded up to whole MiB.
    pub fn check(self, cpus: u32, memory_in_bytes: u64) -> Result<Resources> {
        if cpus == 0 {
            return Err(ApiError::invalid("a container needs at least 1 CPU"));
        }
        if cpus > self.max_cpus() {
            return Err(ApiError::invalid(format!(
                "{cpus} CPUs are more than this host's {} can carry (at most {})",
                self.cpus,
                self.max_cpus()
            )));
        }
        let mib = memory_in_bytes.div_ceil(1 << 20);
        if mib < MIN_MEMORY_MIB {
            return Err(ApiError::invalid(format!(
                "{mib} MiB of memory is below the {MIN_MEMORY_MIB} MiB that a guest needs to boot"
            )));
        }
        if mib > self.memory_mib {
            return Err(ApiError::invalid(format!(
                "{mib} MiB of memory is more than this host's {} MiB",
                self.memory_mib
            )));
        }
        Ok(Resources { cpus, memory_in_bytes: mib << 20 })
    }
}

/// Refuses a platform that VMs here can't run.
pub fn check_platform(wanted: &Platform) -> Result<()> {
    let host = Platform::host();
    if wanted.os == host.os && wanted.architecture == host.architecture {
        return Ok(());
    }
    let message =
        format!("platform {} does not run on this {host} host", escape(&wanted.to_string()));
    Err(ApiError::new(ErrorCode::Unsupported, message))
}

/// Checks limits (`RLIMIT_NOFILE` …).
pub fn check_rlimits(limits: &[Rlimit]) -> Result<()> {
    for limit in limits {
        let name = escape(&limit.limit);
        if !LIMITS.contains(&limit.limit.as_str()) {
            return Err(ApiError::invalid(format!("unknown limit '{name}'")));
        }
        if limit.soft > limit.hard {
            return Err(ApiError::invalid(format!(
                "{name}: the soft limit {} is above the hard limit {}",
                limit.soft, limit.hard
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_bounded() {
        let host = Host { cpus: 2, memory_mib: 4096 };
        let fine = host.check(8, (512 << 20) - 1).unwrap();
        assert_eq!(fine, Resources { cpus: 8, memory_in_bytes: 512 << 20 });
        for (cpus, memory) in [(0, 1 << 30), (9, 1 << 30), (u32::MAX, 1 << 30), (1, 0)] {
            host.check(cpus, memory).unwrap_err();
        }
        let error = host.check(1, 16 << 20).unwrap_err();
        assert!(error.message.contains("below the 96 MiB"), "{error}");
        assert!(host.check(1, u64::MAX).unwrap_err().message.contains("4096 MiB"));
        assert_eq!(Host { cpus: 1000, memory_mib: 1 }.max_cpus(), 255);
        let this = Host::this();
        assert!(this.cpus > 0 && this.memory_mib > 0);
    }

    #[test]
    fn platforms_of_other_machines_are_refused() {
        check_platform(&Platform::host()).unwrap();
        let error = check_platform(&Platform::parse("linux/s390x").unwrap()).unwrap_err();
        assert_eq!(error.code, ErrorCode::Unsupported);
        check_platform(&Platform::parse("windows/amd64").unwrap()).unwrap_err();
    }

    #[test]
    fn limits() {
        let limit = |name: &str, soft, hard| [Rlimit { limit: name.into(), soft, hard }];
        check_rlimits(&limit("RLIMIT_NOFILE", 1, u64::MAX)).unwrap();
        check_rlimits(&limit("RLIMIT_NOFILE", 2, 1)).unwrap_err();
        check_rlimits(&limit("nofile", 1, 2)).unwrap_err();
    }
}
