//! Flags and commands that are known, from apple/container or Docker, but not built yet: refused
//! by name, never ignored.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};
use container_api::{ApiError, ErrorCode};

/// Commands of later parts, as the words after `container`.
const COMMANDS: &[&[&str]] = &[
    &["build"],
    &["builder"],
    &["machine"],
    &["pause"],
    &["registry"],
    &["r"],
    &["unpause"],
    &["image", "push"],
    &["system", "property"],
];

/// Flags of `run` and `create` that come later: long name, short name, and whether a value follows.
const FLAGS: &[(&str, Option<char>, bool)] = &[
    ("add-host", None, true),
    ("cgroup-parent", None, true),
    ("cpu-shares", None, true),
    ("cpuset-cpus", None, true),
    ("device", None, true),
    ("gpus", None, true),
    ("health-cmd", None, true),
    ("hostname", None, true),
    ("init-image", None, true),
    ("ip", None, true),
    ("ipc", None, true),
    ("log-driver", None, true),
    ("log-opt", None, true),
    ("mac-address", None, true),
    ("memory-swap", None, true),
    ("oom-score-adj", None, true),
    ("pid", None, true),
    ("privileged", None, false),
    ("pull", None, true),
    ("rosetta", None, false),
    ("runtime", None, true),
    ("stop-timeout", None, true),
    ("sysctl", None, true),
    ("userns", None, true),
    ("volumes-from", None, true),
];

/// Which of the later flags a command line had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Later {
    used: Option<&'static str>,
}

impl Later {
    /// Refuses the first flag that is not built yet.
    pub fn refuse(&self) -> Result<(), ApiError> {
        match self.used {
            None => Ok(()),
            Some(name) => Err(not_supported(format!("--{name}"))),
        }
    }
}

/// The refusal of something that comes later.
pub fn not_supported(what: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Unsupported, format!("{what} is not supported yet"))
}

/// Whether `words`, what follows the program's name, is a command of a later part; its name.
pub fn command(words: &[String]) -> Option<String> {
    let known = COMMANDS.iter().find(|name| {
        words.len() >= name.len() && name.iter().zip(words).all(|(known, word)| known == word)
    })?;
    Some(known.join(" "))
}

impl Args for Later {
    fn augment_args(command: Command) -> Command {
        FLAGS.iter().fold(command, |command, &(name, short, value)| {
            let action = if value { ArgAction::Append } else { ArgAction::Count };
            let arg = Arg::new(name).long(name).hide(true).action(action).help("Not supported yet");
            command.arg(match short {
                Some(short) => arg.short(short),
                None => arg,
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Later {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = |name: &str| matches.value_source(name) == Some(ValueSource::CommandLine);
        let used = FLAGS.iter().map(|(name, ..)| *name).find(|name| given(name));
        Ok(Later { used })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_later_parts_are_known() {
        let words = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
        assert_eq!(command(&words("build .")).as_deref(), Some("build"));
        assert_eq!(command(&words("image push x")).as_deref(), Some("image push"));
        assert_eq!(command(&words("image list")), None);
    }
}
