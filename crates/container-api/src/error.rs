//! The closed set of errors that cross a socket.

use serde::{Deserialize, Serialize};

/// The result of a call to a service.
pub type Result<T> = std::result::Result<T, ApiError>;

/// What kind of failure it was; callers decide on this, never on the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorCode {
    /// The request itself is wrong: a bad value, a flag that does not fit another.
    InvalidArgument,
    /// The named container, image, process or kernel does not exist.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// Legal in another state of the container only (starting a running one, say).
    InvalidState,
    /// What should be deleted is in use.
    InUse,
    /// Known, but not built yet.
    Unsupported,
    /// The host lacks something: a program, a kernel feature, a layer of the jail.
    Unavailable,
    /// The deadline passed.
    Timeout,
    /// The caller went away or asked to stop.
    Cancelled,
    /// The user has to confirm it first: the same request, confirmed, may succeed.
    ConfirmationRequired,
    /// Not allowed for this peer.
    PermissionDenied,
    /// No space, memory, descriptors or processes left.
    ResourceExhausted,
    /// The program in the container was not found (exit code 127).
    ProgramNotFound,
    /// The program in the container can't be executed (exit code 126).
    ProgramNotExecutable,
    /// The other side broke the protocol or ended in mid-sentence.
    Disconnected,
    /// Bytes from outside (an archive, a registry's answer) are not what they should be.
    InvalidData,
    /// Anything else: a bug or an operating system error.
    Internal,
}

impl ErrorCode {
    /// The exit code of the command line for this error (Docker's convention).
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorCode::ProgramNotFound => 127,
            ErrorCode::ProgramNotExecutable => 126,
            _ => 125,
        }
    }
}

/// An error as a service reports it: a code to decide on and one line to show; those of
/// [`ErrorCode::Unsupported`] and [`ErrorCode::ConfirmationRequired`] may have lines of reasons
/// below it.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq, Serialize, Deserialize)]
#[error("{message}")]
pub struct ApiError {
    /// The kind of failure.
    pub code: ErrorCode,
    /// One line: what failed, on what, and what to do.
    pub message: String,
}

impl ApiError {
    /// An error with a code and its line.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        ApiError { code, message: message.into() }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// The thing named is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotFound, message)
    }

    /// A failure that no code describes better.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    /// Puts `what` before the message, keeping the code.
    pub fn context(mut self, what: impl std::fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl From<std::io::Error> for ApiError {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let code = match error.kind() {
            K::NotFound => ErrorCode::NotFound,
            K::PermissionDenied => ErrorCode::PermissionDenied,
            K::AlreadyExists => ErrorCode::AlreadyExists,
            K::TimedOut => ErrorCode::Timeout,
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge | K::OutOfMemory => {
                ErrorCode::ResourceExhausted
            }
            K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe | K::UnexpectedEof => {
                ErrorCode::Disconnected
            }
            K::InvalidData => ErrorCode::InvalidData,
            _ => ErrorCode::Internal,
        };
        ApiError::new(code, error.to_string())
    }
}
