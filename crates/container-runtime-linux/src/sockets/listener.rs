//! A listening socket that a user has asked for, at a place of the user's choice.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use container_api::{ApiError, ErrorCode, escape};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use tokio::net::UnixStream;

/// A socket's file; removed when this is dropped, unless another one has taken its place.
#[derive(Debug)]
pub struct Bound {
    directory: OwnedFd,
    name: PathBuf,
    /// Held so that no later file gets the number of its inode.
    file: File,
}

impl Bound {
    /// Short whatever the directory's path is: a socket's address ends at 107 bytes.
    fn path(directory: &OwnedFd, name: &Path) -> PathBuf {
        Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let path = Self::path(&self.directory, &self.name);
        let inode = |meta: Metadata| (meta.dev(), meta.ino());
        let there = std::fs::symlink_metadata(&path).map(inode);
        if self.file.metadata().map(inode).is_ok_and(|own| there.is_ok_and(|there| there == own)) {
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// Listens at `path`, for the user alone. A socket that nobody serves any more is replaced.
pub fn bind(path: &Path) -> Result<(Bound, UnixListener), ApiError> {
    let shown = || escape::escape(&path.display().to_string()).to_string();
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ApiError::invalid(format!("{} is no place for a socket", shown())));
    };
    let failed = |e: io::Error| ApiError::from(e).context(format!("publishing {}", shown()));
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = nix::fcntl::open(parent, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
    let name = PathBuf::from(name);
    let place = Bound::path(&directory, &name);
    if let Ok(meta) = std::fs::symlink_metadata(&place) {
        let served = || match StdStream::connect(&place) {
            Err(e) => e.kind() != io::ErrorKind::ConnectionRefused,
            Ok(_) => true,
        };
        if !meta.file_type().is_socket() || served() {
            let message = format!("{} exists: remove it, or publish elsewhere", shown());
            return Err(ApiError::new(ErrorCode::AlreadyExists, message));
        }
        std::fs::remove_file(&place).map_err(failed)?;
    }
    let listener = UnixListener::bind(&place).map_err(failed)?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = nix::fcntl::open(&place, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
    let bound = Bound { directory, name, file: file.into() };
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok((bound, listener))
}

/// Hands every connection over, for ever.
pub async fn serve(listener: UnixListener, mut take: impl FnMut(UnixStream)) {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "serving a published socket"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => take(stream),
            Err(error) => {
                // Out of descriptors, say: others must end first.
                tracing::warn!(%error, "accepting on a published socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_taken_and_given_back() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(150));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("app.sock");
        let (bound, listener) = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(bind(&path).unwrap_err().code, ErrorCode::AlreadyExists);
        drop(listener);
        // Nobody serves it: it is replaced, and the former owner leaves the new one alone.
        let (new, _listener) = bind(&path).unwrap();
        drop(bound);
        assert!(path.exists());
        drop(new);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(bind(&path).unwrap_err().code, ErrorCode::AlreadyExists);
        assert_eq!(bind(Path::new("/")).unwrap_err().code, ErrorCode::InvalidArgument);
        bind(&root.path().join("nowhere/s")).unwrap_err();
    }
}
