//! The program's arguments.

use std::ffi::OsString;
use std::path::PathBuf;

/// How the program is used.
pub const USAGE: &str = "\
Usage: container-apiserver --app-root DIRECTORY [--daemon | --foreground]

      --app-root DIRECTORY  the installation to serve
      --daemon              go to the background; ends when the service answers
      --foreground          stay (the default); for service managers
      --version             print the version";

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Args {
    /// Serve an installation.
    Serve {
        /// Its directory.
        app_root: PathBuf,
        /// Leave the caller's session.
        daemon: bool,
    },
    /// Print the usage.
    Help,
    /// Print the version.
    Version,
}

impl Args {
    /// Parses the arguments after the program's name. The error is one line.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Args, String> {
        let mut arguments = arguments.into_iter();
        let (mut app_root, mut daemon) = (None, false);
        while let Some(argument) = arguments.next() {
            match argument.to_str() {
                Some("--help" | "-h") => return Ok(Args::Help),
                Some("--version" | "-V") => return Ok(Args::Version),
                Some("--daemon") => daemon = true,
                Some("--foreground") => daemon = false,
                Some("--app-root") => {
                    let value = arguments.next().ok_or("--app-root needs a directory")?;
                    app_root = Some(PathBuf::from(value));
                }
                _ => {
                    let shown = argument.to_string_lossy();
                    return Err(format!(
                        "unexpected argument '{}'",
                        container_api::escape::escape(&shown)
                    ));
                }
            }
        }
        let app_root = app_root
            .or_else(|| std::env::var_os("CONTAINER_APP_ROOT").map(PathBuf::from))
            .ok_or("--app-root is missing")?;
        Ok(Args::Serve { app_root, daemon })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args, String> {
        Args::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn arguments() {
        assert_eq!(
            parse(&["--app-root", "/x", "--daemon"]),
            Ok(Args::Serve { app_root: "/x".into(), daemon: true })
        );
        assert_eq!(parse(&["-V"]), Ok(Args::Version));
        assert!(parse(&["--app-root"]).unwrap_err().contains("needs a directory"));
        assert!(parse(&["--app-root", "/x", "serve\u{1b}"]).unwrap_err().contains("\\u{1b}"));
    }
}
