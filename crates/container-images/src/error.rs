//! What can go wrong with images, and how it is said to a caller.

use std::io;
use std::path::PathBuf;

use container_api::escape::escape;
use container_api::types::Platform;
use container_api::{ApiError, ErrorCode};

use crate::digest::Digest;
use crate::kernel::KernelError;

/// Why an operation on images failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the store could not be read or written.
    #[error("{operation} {}", path.display())]
    Io {
        /// `reading`, `writing` …
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The archive's descriptor failed.
    #[error("{operation} the archive")]
    Archive {
        /// `reading`, `writing`.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A text that is no image reference.
    #[error("invalid image reference '{}': {problem}", escape(text))]
    Reference {
        /// As given.
        text: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// No image of that name.
    #[error("no image '{}'", escape(.0))]
    NoImage(String),
    /// The short digest fits several images.
    #[error("'{}' fits several images", escape(.0))]
    Ambiguous(String),
    /// A blob that should be here is not.
    #[error("content {0} is not here")]
    NoBlob(Digest),
    /// Bytes from outside that are not what they should be.
    #[error("{what}: {problem}")]
    Malformed {
        /// Which document, archive or layer; safe to show.
        what: String,
        /// What is wrong; safe to show.
        problem: String,
    },
    /// Known, but not done here.
    #[error("{what}: {feature} is not supported")]
    Unsupported {
        /// Which document or layer; safe to show.
        what: String,
        /// What it would take.
        feature: String,
    },
    /// Content that is not what its digest says.
    #[error("{what}: digest mismatch: expected {expected}, got {actual}")]
    Digest {
        /// Which content.
        what: String,
        /// As announced.
        expected: Digest,
        /// As computed.
        actual: Digest,
    },
    /// The image is not there for the platform.
    #[error("{image} is not available for {wanted} (only for {})", list(available))]
    NoPlatform {
        /// The reference.
        image: String,
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        available: Vec<Platform>,
    },
    /// A container uses it.
    #[error("image {0} is in use by a container")]
    InUse(String),
    /// The registry's answer, or that there was none.
    #[error("{registry}: {operation}: {problem}")]
    Registry {
        /// Host and port.
        registry: String,
        /// What was asked for; safe to show.
        operation: String,
        /// What came; safe to show.
        problem: String,
        /// How to treat it.
        code: ErrorCode,
    },
    /// A layer could not become part of a disk.
    #[error("unpacking layer {digest}: {problem}")]
    Layer {
        /// The layer's blob.
        digest: Digest,
        /// What is wrong; safe to show.
        problem: String,
        /// How to treat it.
        code: ErrorCode,
    },
    /// The caller has gone.
    #[error("cancelled")]
    Cancelled,
    /// A thread of ours died.
    #[error("{0}")]
    Internal(String),
    /// A kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// The result of an operation on images.
pub type Result<T> = std::result::Result<T, Error>;

fn list(platforms: &[Platform]) -> String {
    let texts: Vec<String> =
        platforms.iter().map(|p| escape(&p.to_string()).into_owned()).collect();
    if texts.is_empty() { "no platform".into() } else { texts.join(", ") }
}

impl Error {
    pub(crate) fn malformed(what: impl AsRef<str>, problem: impl AsRef<str>) -> Error {
        let (what, problem) = (what.as_ref(), problem.as_ref());
        Error::Malformed { what: escape(what).into_owned(), problem: escape(problem).into_owned() }
    }

    pub(crate) fn unsupported(what: impl AsRef<str>, feature: impl AsRef<str>) -> Error {
        let (what, feature) = (what.as_ref(), feature.as_ref());
        Error::Unsupported {
            what: escape(what).into_owned(),
            feature: escape(feature).into_owned(),
        }
    }
}

/// Names a file and an operation in an [`io::Error`].
pub(crate) fn io_error(
    operation: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::Io { operation, path, source }
}

/// The error that was wrapped to go through a reader or writer, or `error` as `wrap` makes it.
pub(crate) fn unwrap_io(error: io::Error, wrap: impl FnOnce(io::Error) -> Error) -> Error {
    match error.downcast::<Error>() {
        Ok(inner) => inner,
        Err(error) => wrap(error),
    }
}

/// The code that an operating system's error has on the wire.
pub(crate) fn io_code(error: &io::Error) -> ErrorCode {
    ApiError::from(io::Error::from(error.kind())).code
}

impl From<Error> for ApiError {
    fn from(error: Error) -> ApiError {
        use Error as E;
        let code = match &error {
            E::Io { source, .. } | E::Archive { source, .. } => {
                let message = format!("{error}: {source}");
                return ApiError::new(io_code(source), message);
            }
            E::Kernel(_) => {
                let E::Kernel(kernel) = error else { unreachable!("matched above") };
                return kernel.into();
            }
            E::Reference { .. } | E::Ambiguous(_) => ErrorCode::InvalidArgument,
            E::NoImage(_) | E::NoBlob(_) | E::NoPlatform { .. } => ErrorCode::NotFound,
            E::Malformed { .. } | E::Digest { .. } => ErrorCode::InvalidData,
            E::Unsupported { .. } => ErrorCode::Unsupported,
            E::InUse(_) => ErrorCode::InUse,
            E::Registry { code, .. } | E::Layer { code, .. } => *code,
            E::Cancelled => ErrorCode::Cancelled,
            E::Internal(_) => ErrorCode::Internal,
        };
        ApiError::new(code, error.to_string())
    }
}
