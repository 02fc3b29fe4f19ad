//! What can go wrong, by step, with an exit code for each kind.

use std::sync::OnceLock;

use rustix::io::Errno;

/// The step of the set-up that failed; its name begins the error line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Descriptors,
    Starter,
    UserNamespace,
    UidMap,
    Namespaces,
    Tap,
    Bind,
    Share,
    Clone,
    Session,
    Uid,
    Root,
    Proc,
    Limits,
    Capabilities,
    NoNewPrivileges,
    Landlock,
    Seccomp,
    Exec,
}

impl Step {
    /// The word used in error lines.
    pub fn name(self) -> &'static str {
        match self {
            Step::Descriptors => "descriptors",
            Step::Starter => "starter",
            Step::UserNamespace => "user-namespace",
            Step::UidMap => "uid-map",
            Step::Namespaces => "namespaces",
            Step::Tap => "tap",
            Step::Bind => "bind",
            Step::Share => "share",
            Step::Clone => "clone",
            Step::Session => "session",
            Step::Uid => "uid",
            Step::Root => "root",
            Step::Proc => "proc",
            Step::Limits => "limits",
            Step::Capabilities => "capabilities",
            Step::NoNewPrivileges => "no-new-privileges",
            Step::Landlock => "landlock",
            Step::Seccomp => "seccomp",
            Step::Exec => "exec",
        }
    }
}

/// A failure of the jailer. `Display` is the one line that the starter gets.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line is not valid.
    #[error("usage: {0}")]
    Usage(String),
    /// Ubuntu's restriction of unprivileged user namespaces is on and no
    /// profile lifts it for this binary.
    #[error(
        "apparmor: {step}: the AppArmor profile `container-jailer` is not loaded for {binary} \
         (kernel.apparmor_restrict_unprivileged_userns=1): {errno}"
    )]
    AppArmor {
        /// Where it failed.
        step: &'static str,
        /// The path that the profile must name.
        binary: String,
        /// What the kernel said.
        errno: Errno,
    },
    /// The host can't give a layer of the jail.
    #[error("missing-layer {layer}: {reason} (allow with --allow-missing {layer})")]
    MissingLayer {
        /// The word that `--allow-missing` takes.
        layer: &'static str,
        /// Why it is missing.
        reason: String,
    },
    /// A system call failed.
    #[error("{}: {what}: {errno}", step.name())]
    System {
        /// Where.
        step: Step,
        /// Operation and its object.
        what: String,
        /// What the kernel said.
        errno: Errno,
    },
    /// A condition that is no system call's failure.
    #[error("{}: {what}", step.name())]
    Refused {
        /// Where.
        step: Step,
        /// What is wrong.
        what: String,
    },
}

impl Error {
    /// A failed system call, with AppArmor's restriction recognised where it
    /// shows: in the steps that need the new user namespace's capabilities.
    pub fn system(step: Step, what: impl Into<String>, errno: Errno) -> Error {
        Error::classify(step, what.into(), errno, apparmor_restricts())
    }

    fn classify(step: Step, what: String, errno: Errno, restricts: bool) -> Error {
        let in_namespace = matches!(
            step,
            Step::UserNamespace | Step::UidMap | Step::Namespaces | Step::Bind | Step::Root
        );
        if in_namespace && restricts && matches!(errno, Errno::PERM | Errno::ACCESS) {
            return Error::AppArmor {
                step: step.name(),
                binary: std::env::current_exe()
                    .map(|path| path.to_string_lossy().into_owned())
                    .unwrap_or_else(|_| "container-jailer".into()),
                errno,
            };
        }
        Error::System { step, what, errno }
    }

    /// 1 system call failed, 2 usage, 3 AppArmor profile missing, 4 layer
    /// missing.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::AppArmor { .. } => 3,
            Error::MissingLayer { .. } => 4,
            Error::System { .. } | Error::Refused { .. } => 1,
        }
    }
}

static APPARMOR_RESTRICTS: OnceLock<bool> = OnceLock::new();

/// Whether AppArmor restricts this process; the first call must come before
/// the process changes its uid and its root.
pub fn apparmor_restricts() -> bool {
    *APPARMOR_RESTRICTS.get_or_init(|| {
        // Root is exempt, so a failure of root has another cause.
        !rustix::process::getuid().is_root()
            && std::fs::read_to_string("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
                .is_ok_and(|value| value.trim() == "1")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_apparmor_profile_is_named() {
        let text = |step, restricts| {
            let error = Error::classify(step, "x".into(), Errno::ACCESS, restricts);
            (error.exit_code(), error.to_string())
        };
        let (code, line) = text(Step::UidMap, true);
        assert!(code == 3 && line.contains("AppArmor profile `container-jailer`"), "{line}");
        assert_eq!(text(Step::UidMap, false).0, 1);
        assert_eq!(text(Step::Exec, true).0, 1, "has nothing to do with it");
    }
}
