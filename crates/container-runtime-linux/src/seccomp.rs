//! From a seccomp profile to a program for the guest's kernel.
//!
//! ```text
//! profile ─► rules that count here ─► for each architecture: call ─► decision
//!                                          equal neighbours joined, searched by halves
//! ```
//!
//! Made on the host: the guest only installs it. A search by halves takes some ten steps for any
//! call. That matters twice: the kernel goes through the program once for each call when it is
//! installed, to learn which are always allowed; and under emulation each step costs. (The crate
//! `seccompiler` tries one call after the other, and knows one architecture and one refusal for
//! each program.)

mod builtin;
mod program;

use std::collections::BTreeMap;

use container_api::ApiError;
use container_api::seccomp::{Action, Argument, Filter, Profile, Rule, Seccomp};

use program::{Decision, Instruction};

/// Number of each system call: name, x86_64, i386, aarch64, arm.
const CALLS: &str = include_str!("seccomp/syscalls.txt");
/// The oldest kernel that a guest can have.
const KERNEL: (u32, u32) = (6, 1);
/// Most instructions that the kernel takes.
const MAX_INSTRUCTIONS: usize = 4096;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// What may run in a guest: its own architecture and the 32-bit one beside it.
struct Machine {
    /// Go's name.
    go: &'static str,
    /// Native first.
    architectures: [Architecture; 2],
}

/// A way to call the kernel.
struct Architecture {
    /// libseccomp's name.
    name: &'static str,
    /// `AUDIT_ARCH_…`.
    audit: u32,
    /// Its column in the table.
    column: usize,
}

const X86_64: Machine = Machine {
    go: "amd64",
    architectures: [
        Architecture { name: "SCMP_ARCH_X86_64", audit: 0xc000_003e, column: 1 },
        Architecture { name: "SCMP_ARCH_X86", audit: 0x4000_0003, column: 2 },
    ],
};

const AARCH64: Machine = Machine {
    go: "arm64",
    architectures: [
        Architecture { name: "SCMP_ARCH_AARCH64", audit: 0xc000_00b7, column: 3 },
        Architecture { name: "SCMP_ARCH_ARM", audit: 0x4000_0028, column: 4 },
    ],
};

/// The guest's: of the architecture that this program was built for.
const HOST: &Machine = if cfg!(target_arch = "aarch64") { &AARCH64 } else { &X86_64 };

/// The program for a container with these capabilities (`CAP_CHOWN` …); empty for none.
///
/// # Errors
/// `InvalidArgument` for a profile whose program is too long for the kernel.
pub fn compile(seccomp: &Seccomp, capabilities: &[String]) -> Result<Vec<u8>, ApiError> {
    compile_for(HOST, seccomp, capabilities)
}

fn compile_for(
    machine: &Machine,
    seccomp: &Seccomp,
    capabilities: &[String],
) -> Result<Vec<u8>, ApiError> {
    let builtin;
    let profile = match seccomp {
        Seccomp::Unconfined => return Ok(Vec::new()),
        Seccomp::Profile { profile } => &**profile,
        Seccomp::Default => {
            builtin = builtin::profile();
            &builtin
        }
    };
    let rules: Vec<&Rule> =
        profile.syscalls.iter().filter(|rule| counts(rule, machine, capabilities)).collect();
    let sections = machine.architectures.iter().enumerate().filter_map(|(at, architecture)| {
        let judged = judges(profile, machine, architecture, at == 0);
        judged.then(|| (architecture.audit, section(profile, &rules, architecture)))
    });
    let program = program::assemble(sections.collect());
    if program.len() > MAX_INSTRUCTIONS {
        return Err(ApiError::invalid(format!(
            "the seccomp profile needs {} instructions, and the kernel takes {MAX_INSTRUCTIONS}",
            program.len()
        )));
    }
    Ok(program.iter().flat_map(Instruction::bytes).collect())
}

/// Whether the rules say anything of this architecture's calls.
fn judges(profile: &Profile, machine: &Machine, which: &Architecture, native: bool) -> bool {
    if profile.architectures.is_empty() && profile.arch_map.is_empty() {
        return native;
    }
    let ours =
        |map: &&container_api::seccomp::ArchMap| map.architecture == machine.architectures[0].name;
    let map = profile.arch_map.iter().find(ours);
    profile.architectures.iter().any(|name| name == which.name)
        || map.is_some_and(|map| {
            native || map.sub_architectures.iter().any(|name| name == which.name)
        })
}

fn counts(rule: &Rule, machine: &Machine, capabilities: &[String]) -> bool {
    let has = |capability: &String| capabilities.contains(capability);
    let here = |arches: &[String]| arches.iter().any(|arch| arch == machine.go);
    let new_enough = |filter: &Filter| filter.min_kernel().map(|version| KERNEL >= version);
    let Rule { includes, excludes, .. } = rule;
    includes.caps.iter().all(has)
        && (includes.arches.is_empty() || here(&includes.arches))
        && new_enough(includes).unwrap_or(true)
        && !excludes.caps.iter().any(has)
        && !here(&excludes.arches)
        && !new_enough(excludes).unwrap_or(false)
}

/// What one architecture's program does.
fn section(profile: &Profile, rules: &[&Rule], architecture: &Architecture) -> Vec<Instruction> {
    let numbers = numbers(architecture.column);
    let otherwise = value(profile.default_action, profile.default_errno_ret);
    let mut decisions: BTreeMap<u32, Decision> = BTreeMap::new();
    for rule in rules {
        let value = value(rule.action, rule.errno_ret);
        for name in rule.names.iter().chain([&rule.name]) {
            let Some(number) = numbers.get(name.as_str()) else { continue };
            let decision = decisions.entry(*number).or_insert_with(|| Decision::new(otherwise));
            match alternatives(&rule.args) {
                None => decision.settle(value),
                Some(all) => all.into_iter().for_each(|when| decision.add(when, value)),
            }
        }
    }
    // A call that is newer than this table: a program that asks for it has another way.
    let beyond = numbers.values().max().map_or(0, |last| last + 1);
    let unknown = match profile.default_action {
        Action::Errno => value(Action::Errno, Some(ENOSYS)),
        _ => otherwise,
    };
    program::search(&decisions, otherwise, beyond, unknown)
}

/// The conditions of a rule: all of each list. `None`: always.
fn alternatives(arguments: &[Argument]) -> Option<Vec<Vec<Argument>>> {
    if arguments.is_empty() {
        return None;
    }
    let twice = (1..arguments.len())
        .any(|at| arguments[..at].iter().any(|other| other.index == arguments[at].index));
    Some(match twice {
        true => arguments.iter().map(|argument| vec![*argument]).collect(),
        false => vec![arguments.to_vec()],
    })
}

fn numbers(column: usize) -> BTreeMap<&'static str, u32> {
    let lines = CALLS.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let mut words = line.split(' ');
            let name = words.next()?;
            Some((name, words.nth(column - 1)?.parse().ok()?))
        })
        .collect()
}

/// What the kernel calls an action.
fn value(action: Action, errno: Option<u32>) -> u32 {
    let errno = errno.unwrap_or(EPERM) & 0xffff;
    match action {
        Action::KillProcess => program::KILL_PROCESS,
        Action::KillThread => 0,
        Action::Trap => 0x0003_0000,
        Action::Errno => 0x0005_0000 | errno,
        Action::Trace => 0x7ff0_0000 | errno,
        Action::Log => 0x7ffc_0000,
        Action::Allow => program::ALLOW,
    }
}

#[cfg(test)]
mod tests;
