//! How a command ends when it does not simply succeed, and the one place that says so.
//!
//! | code | when |
//! |---|---|
//! | 125 | any failure of ours, wrong usage included |
//! | 126, 127 | the program in the container can't be executed, or was not found |
//! | 128 + n | a signal ended the command line before the program did; 130 is Ctrl-C |
//! | 141 | nobody reads our output any more |
//! | else | the program's own |

use std::io::{self, Write};

use container_api::escape::escape;
use container_api::{ApiError, ErrorCode};

/// The exit code of every failure of ours.
pub const OURS: u8 = 125;
/// The exit code when the reader of our output has gone, as a shell shows SIGPIPE.
pub const NO_READER: u8 = 128 + 13;

/// The result of a command.
pub type Outcome<T = u8> = Result<T, Failure>;

/// Why a command did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// To be shown as one line.
    Error(ApiError),
    /// Everything is said already.
    Code(u8),
}

impl Failure {
    /// A failure of a file operation.
    pub fn io(what: impl std::fmt::Display, error: io::Error) -> Failure {
        Failure::Error(ApiError::from(error).context(what))
    }

    /// A signal ended us.
    pub fn interrupted(signal: i32) -> Failure {
        Failure::Code(128u8.saturating_add(u8::try_from(signal).unwrap_or(0)))
    }

    /// Shows what is to be shown; the exit code.
    pub fn report(self) -> u8 {
        match self {
            Failure::Code(code) => code,
            Failure::Error(error) => {
                // Which have reasons below the line.
                use ErrorCode::{ConfirmationRequired, Unsupported};
                let (line, reasons) = match error.code {
                    Unsupported | ConfirmationRequired => {
                        error.message.split_once('\n').unwrap_or((error.message.as_str(), ""))
                    }
                    _ => (error.message.as_str(), ""),
                };
                complain(line);
                for reason in reasons.lines() {
                    let _ = writeln!(io::stderr(), "  {}", escape(reason));
                }
                error.code.exit_code()
            }
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Failure::Error(error)
    }
}

/// Shows an error on one line. What it says may come from a guest, an image or a registry.
pub fn complain(message: &str) {
    // Nothing can be done when even this does not get through.
    let _ = writeln!(io::stderr(), "Error: {}", escape(message.trim()));
}

/// Shows a warning on one line.
pub fn warn(message: &str) {
    let _ = writeln!(io::stderr(), "Warning: {}", escape(message.trim()));
}

/// Prints to standard output. Text that is not ours has been escaped.
pub fn print(text: &str) -> Outcome<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::Code(NO_READER),
        _ => Failure::io("standard output", error),
    })
}

/// Prints one line to standard output, escaped.
pub fn print_line(text: &str) -> Outcome<()> {
    print(&format!("{}\n", escape(text)))
}

/// Turns what clap says about a wrong command line into one line.
pub fn usage(error: &clap::Error, words: &[String]) -> ApiError {
    if let Some(command) = crate::args::later::command(words) {
        return crate::args::later::not_supported(format_args!("'container {command}'"));
    }
    let text = error.to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    ApiError::new(ErrorCode::InvalidArgument, format!("{line} (see --help)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        let code = |code| Failure::Error(ApiError::new(code, "x")).report();
        assert_eq!(code(ErrorCode::ProgramNotFound), 127);
        assert_eq!(code(ErrorCode::ProgramNotExecutable), 126);
        assert_eq!(code(ErrorCode::Internal), OURS);
        assert_eq!(code(ErrorCode::InvalidArgument), OURS);
        assert_eq!(Failure::interrupted(2), Failure::Code(130));
        assert_eq!(Failure::interrupted(15), Failure::Code(143));
    }
}
