//! Which system calls a container's processes may make: `--security-opt seccomp=…`.
//!
//! A profile has Docker's JSON form, so that the user's own files work. It is read by whoever
//! has the file, checked again by whoever takes it, and made a program for the guest's kernel by
//! `container-runtime-linux`.

use serde::{Deserialize, Deserializer, Serialize};

use crate::{ApiError, Result};

/// Longest file of a profile in bytes; Docker's own has 13,000.
pub const MAX_FILE: usize = 256 << 10;
const MAX_RULES: usize = 1024;
const MAX_NAMES: usize = 10_000;
const MAX_NAME: usize = 64;
const MAX_LIST: usize = 64;
/// A system call has six arguments.
const MAX_INDEX: u32 = 5;
/// Largest error number that a system call can give.
const MAX_ERRNO: u32 = 4095;

/// What the user chose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum Seccomp {
    /// The built-in profile.
    #[default]
    Default,
    /// No filter at all.
    Unconfined,
    /// A profile of the user's.
    Profile {
        /// It.
        profile: Box<Profile>,
    },
}

impl Seccomp {
    /// Checks what somebody else read.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn check(&self) -> Result<()> {
        match self {
            Seccomp::Profile { profile } => profile.check(),
            Seccomp::Default | Seccomp::Unconfined => Ok(()),
        }
    }
}

/// `--security-opt` of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Security {
    /// Which system calls.
    pub seccomp: Seccomp,
    /// Whether set-id programs and file capabilities give nothing. Unset: exactly when the
    /// capabilities that set-id programs live on were dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_new_privileges: Option<bool>,
}

/// A profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profile {
    /// For calls that no rule matches.
    pub default_action: Action,
    /// Its error number; EPERM when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// Architectures whose calls are judged by the rules; calls of others end the process.
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    /// The same, for each architecture that a machine can have.
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    pub arch_map: Vec<ArchMap>,
    /// The rules.
    #[serde(default, deserialize_with = "or_empty")]
    pub syscalls: Vec<Rule>,
}

/// What else runs on an architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ArchMap {
    /// The machine's.
    pub architecture: String,
    /// Those beside it.
    #[serde(default, deserialize_with = "or_empty")]
    pub sub_architectures: Vec<String>,
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// It is made.
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    /// It fails.
    #[default]
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    /// It ends the thread.
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    /// It ends the process.
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    /// The thread gets SIGSYS.
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    /// A tracer decides.
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    /// It is made, and logged by the guest's kernel.
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
}

/// What happens to some calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// The calls; names that nobody knows are passed over, as elsewhere.
    #[serde(default, deserialize_with = "or_empty")]
    pub names: Vec<String>,
    /// One more.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What happens.
    pub action: Action,
    /// Its error number; EPERM when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// For which arguments: all must hold, or one of them where an argument is named twice.
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Argument>,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// The rule counts only where all of this holds.
    #[serde(default, deserialize_with = "or_empty")]
    pub includes: Filter,
    /// The rule doesn't count where any of this holds.
    #[serde(default, deserialize_with = "or_empty")]
    pub excludes: Filter,
}

/// Where a rule counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filter {
    /// Capabilities of the container.
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    pub caps: Vec<String>,
    /// Architectures, by Go's names.
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    pub arches: Vec<String>,
    /// The guest's kernel is at least this one; `4.8`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub min_kernel: String,
}

impl Filter {
    /// The version of [`Filter::min_kernel`].
    #[must_use]
    pub fn min_kernel(&self) -> Option<(u32, u32)> {
        let (major, minor) = self.min_kernel.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    }
}

/// A condition on an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Argument {
    /// Which, from 0 on.
    pub index: u32,
    /// With what it is compared; the mask of [`Comparison::MaskedEqual`].
    pub value: u64,
    /// With what the masked argument is compared.
    #[serde(default)]
    pub value_two: u64,
    /// How.
    pub op: Comparison,
}

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Comparison {
    /// Differs.
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    /// Is less.
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    /// Is not greater.
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    /// Is it.
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    /// Is not less.
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    /// Is greater.
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    /// Is it in some bits.
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

impl Profile {
    /// Reads a profile.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no profile, is too long, or asks for what there is not here
    /// (flags, and a listener's path).
    pub fn parse(text: &[u8]) -> Result<Self> {
        if text.len() > MAX_FILE {
            return Err(ApiError::invalid(format!("a profile has at most {MAX_FILE} bytes")));
        }
        let profile: Profile = serde_json::from_slice(text)
            .map_err(|e| ApiError::invalid(format!("not a seccomp profile: {e}")))?;
        profile.check()?;
        Ok(profile)
    }

    /// Whether everything is within bounds.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn check(&self) -> Result<()> {
        let fail = |what: &str| Err(ApiError::invalid(format!("seccomp profile: {what}")));
        let names: usize = self.syscalls.iter().map(|rule| rule.names.len() + 1).sum();
        if self.syscalls.len() > MAX_RULES || names > MAX_NAMES {
            return fail("too many rules");
        }
        let subs = self.arch_map.iter().map(|map| map.sub_architectures.len()).sum::<usize>();
        if self.architectures.len() + self.arch_map.len() + subs > MAX_LIST {
            return fail("too many architectures");
        }
        let too_large = |errno: Option<u32>| errno.is_some_and(|errno| errno > MAX_ERRNO);
        if too_large(self.default_errno_ret) {
            return fail("an error number is beyond range");
        }
        self.syscalls.iter().try_for_each(|rule| {
            if too_large(rule.errno_ret) {
                return fail("an error number is beyond range");
            }
            if rule.args.len() > MAX_LIST || rule.args.iter().any(|arg| arg.index > MAX_INDEX) {
                return fail("a call has six arguments, from 0 to 5");
            }
            if rule.names.iter().chain([&rule.name]).any(|name| name.len() > MAX_NAME) {
                return fail("a name is too long");
            }
            for filter in [&rule.includes, &rule.excludes] {
                if filter.caps.len() + filter.arches.len() > MAX_LIST {
                    return fail("too many capabilities or architectures in a rule");
                }
                if !filter.min_kernel.is_empty() && filter.min_kernel().is_none() {
                    return fail("minKernel is not like 4.8");
                }
            }
            Ok(())
        })
    }
}

/// Other tools write `null` for a list without entries.
fn or_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SMALL: &str = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": null}],
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null,
        "comment": "c", "includes": {"minKernel": "4.8"}, "excludes": null},
        {"name": "clone", "action": "SCMP_ACT_KILL_THREAD", "errnoRet": 38,
        "args": [{"index": 0, "value": 18446744073709551615, "op": "SCMP_CMP_MASKED_EQ"}]}]}"#;

    #[test]
    fn profiles_of_other_tools_are_read() {
        let profile = Profile::parse(SMALL.as_bytes()).unwrap();
        assert_eq!(profile.syscalls[0].includes.min_kernel(), Some((4, 8)));
        assert_eq!(profile.syscalls[1].args[0].value, u64::MAX);
        let text = serde_json::to_vec(&profile).unwrap();
        assert_eq!(Profile::parse(&text).unwrap(), profile);
        let chosen = Seccomp::Profile { profile: Box::new(profile) };
        let text = serde_json::to_string(&chosen).unwrap();
        assert_eq!(serde_json::from_str::<Seccomp>(&text).unwrap(), chosen);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let refused = |from: &str, to: &str| {
            let text = SMALL.replace(from, to);
            assert_ne!(text, SMALL);
            Profile::parse(text.as_bytes()).unwrap_err();
        };
        refused("SCMP_ACT_ALLOW", "SCMP_ACT_NOTIFY");
        refused("\"archMap\"", "\"flags\": [\"SECCOMP_FILTER_FLAG_LOG\"], \"archMap\"");
        refused("\"archMap\"", "\"listenerPath\": \"/x\", \"archMap\"");
        refused("\"errnoRet\": 38", "\"errnoRet\": 4096");
        refused("\"index\": 0", "\"index\": 6");
        refused("\"4.8\"", "\"new\"");
        Profile::parse(b"{}").unwrap_err();
        Profile::parse(&vec![b' '; MAX_FILE + 1]).unwrap_err();
    }

    proptest! {
        #[test]
        fn never_panics(at in 0..SMALL.len(), byte: u8) {
            let mut text = SMALL.as_bytes().to_vec();
            text[at] = byte;
            let _ = Profile::parse(&text);
        }
    }
}
