//! What can be wrong with a kernel.

use std::io;
use std::path::PathBuf;

use container_api::escape::escape;
use container_api::{ApiError, ErrorCode};

/// Why no bundle was made.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file could not be read or written.
    #[error("{operation} {}", path.display())]
    Io {
        /// `reading`, `writing` …
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Bytes that are not what they should be.
    #[error("{what}: {problem}")]
    Malformed {
        /// Which file or part.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A form of kernel or compression that we can't read.
    #[error("{what}: {feature} is not supported")]
    Unsupported {
        /// Which file or part.
        what: String,
        /// What it would take.
        feature: &'static str,
    },
    /// A kernel for another machine.
    #[error("wrong architecture: the kernel is for {found}, this host needs {wanted}")]
    Architecture {
        /// Go's name, or what the file says.
        found: String,
        /// Go's name.
        wanted: String,
    },
    /// A package or archive without what is needed.
    #[error("{source_name}: no {what} found")]
    Missing {
        /// The package's or archive's name.
        source_name: String,
        /// `kernel`, `kernel modules` …
        what: String,
    },
    /// The kernel can't do what a guest needs.
    #[error("kernel {version} has neither a module {module} nor that driver built in")]
    NoModule {
        /// `uname -r`.
        version: String,
        /// The module's name.
        module: String,
    },
    /// Not the file that was meant.
    #[error("digest mismatch: expected {expected}, the file has {actual}")]
    Digest {
        /// As asked for.
        expected: String,
        /// As computed.
        actual: String,
    },
    /// Another kernel of that version is there.
    #[error("another kernel {0} is installed already: --force replaces it")]
    Exists(String),
}

/// The result of work on kernels.
pub type Result<T> = std::result::Result<T, KernelError>;

impl KernelError {
    pub(super) fn malformed(what: impl AsRef<str>, problem: impl Into<String>) -> Self {
        Self::Malformed { what: escape(what.as_ref()).into_owned(), problem: problem.into() }
    }

    pub(super) fn unsupported(what: impl AsRef<str>, feature: &'static str) -> Self {
        Self::Unsupported { what: escape(what.as_ref()).into_owned(), feature }
    }
}

/// Names a file and an operation in an [`io::Error`].
pub(super) fn io_error(
    operation: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> KernelError {
    let path = path.into();
    move |source| KernelError::Io { operation, path, source }
}

impl From<KernelError> for ApiError {
    fn from(error: KernelError) -> Self {
        use KernelError as E;
        match error {
            E::Io { ref source, .. } => {
                let shown = error.to_string();
                let code = ApiError::from(io::Error::from(source.kind())).code;
                ApiError::new(code, format!("{shown}: {source}"))
            }
            E::Exists(_) => ApiError::new(ErrorCode::AlreadyExists, error.to_string()),
            E::Unsupported { .. } => ApiError::new(ErrorCode::Unsupported, error.to_string()),
            _ => ApiError::new(ErrorCode::InvalidData, error.to_string()),
        }
    }
}
