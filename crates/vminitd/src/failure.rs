//! What goes wrong in the guest, on its way to the host.

use nix::errno::Errno;
use std::fmt;
use std::io;
use vminitd_protocol::message::{Error, ErrorCode};

/// A failed operation: its class for the host's exit code, and one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Class of failure.
    pub code: ErrorCode,
    /// The system's error number; 0 when there is none.
    pub errno: i32,
    /// The operation and its object, without the system's words.
    pub message: String,
}

impl Failure {
    /// A failure that the system gave no number for.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Failure { code, errno: 0, message: message.into() }
    }

    /// A request that is malformed.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.errno {
            0 => Ok(()),
            errno => write!(f, ": {}", Errno::from_raw(errno).desc()),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Error { code: failure.code as i32, errno: failure.errno, message: failure.to_string() }
    }
}

/// Names the operation that a system error belongs to.
pub trait Context<T> {
    /// Class and line for the error.
    fn context<S: Into<String>>(
        self,
        code: ErrorCode,
        message: impl FnOnce() -> S,
    ) -> Result<T, Failure>;

    /// The same for what only our own mistakes make fail.
    fn internal(self, message: &str) -> Result<T, Failure>
    where
        Self: Sized,
    {
        self.context(ErrorCode::Internal, || message)
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn context<S: Into<String>>(
        self,
        code: ErrorCode,
        message: impl FnOnce() -> S,
    ) -> Result<T, Failure> {
        self.map_err(|errno| Failure { code, errno: errno as i32, message: message().into() })
    }
}

impl<T> Context<T> for io::Result<T> {
    fn context<S: Into<String>>(
        self,
        code: ErrorCode,
        message: impl FnOnce() -> S,
    ) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            code,
            errno: error.raw_os_error().unwrap_or(Errno::EIO as i32),
            message: message().into(),
        })
    }
}
