//! The app root as the service finds it: private, writable, and served by one process only.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use container_api::paths::AppRoot;
use container_api::{ApiError, ErrorCode, Result};
use rustix::fs::{FlockOperation, flock};

use crate::process::Identity;

/// How long a service that has ended may hold the lock: its threads end one after the other, and
/// one that writes to a busy disk only when it has written.
const DYING_DEADLINE: Duration = Duration::from_secs(15);

/// The proof that this process alone serves its app root; held until the process ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// The holder is about to end: who wants the lock from now on waits for it.
    pub fn ending(&self) {
        let _ = self.file.set_len(0);
    }
}

/// Makes the app root and its directories (mode 0700) where they are missing, and refuses one
/// that others could write to.
pub fn prepare(root: &AppRoot) -> Result<()> {
    let at = |path: &Path| format!("app root {}", path.display());
    let path = root.path();
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|e| ApiError::from(e).context(at(path)))?;
    }
    make_private(path).map_err(|e| e.context(at(path)))?;
    let (state, kept) = (
        [root.logs(), root.images(), root.kernels()],
        [root.containers(), root.templates(), root.spares(), root.networks(), root.volumes()],
    );
    for directory in state.into_iter().chain(kept) {
        make_private(&directory).map_err(|e| e.context(directory.display()))?;
    }
    Ok(())
}

fn make_private(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e.into()),
        _ => {}
    }
    let found = fs::metadata(path)?;
    if !found.is_dir() {
        return Err(ApiError::invalid("is not a directory"));
    }
    let me = nix::unistd::geteuid().as_raw();
    if found.uid() != me {
        let message = format!("belongs to uid {}, not to uid {me}", found.uid());
        return Err(ApiError::new(ErrorCode::PermissionDenied, message));
    }
    if found.mode() & 0o022 != 0 {
        let message = format!(
            "others can write to it (mode {:o}): run 'chmod go-w {}'",
            found.mode() & 0o7777,
            path.display()
        );
        return Err(ApiError::new(ErrorCode::PermissionDenied, message));
    }
    Ok(())
}

/// Takes the app root for this process, or says who has it.
pub fn lock(root: &AppRoot) -> Result<Lock> {
    let path = root.lock();
    let about = |e: std::io::Error| ApiError::from(e).context(path.display());
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(about)?;
    let end = Instant::now() + DYING_DEADLINE;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(e) => return Err(about(e.into())),
        }
        let holder = holder(&file);
        let dying = holder.is_none_or(|pid| Identity::of(pid).is_err());
        if !dying || Instant::now() >= end {
            let message = format!(
                "the service of {} already runs (pid {})",
                root.path().display(),
                holder.map_or("unknown".into(), |pid| pid.to_string())
            );
            return Err(ApiError::new(ErrorCode::AlreadyExists, message));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(about)?;
    Ok(Lock { file })
}

/// The process that the lock's file names.
fn holder(file: &File) -> Option<i32> {
    let mut text = [0; 32];
    let n = file.read_at(&mut text, 0).ok()?;
    std::str::from_utf8(&text[..n]).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn one_process_has_a_private_root() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        let root = AppRoot::resolve(Some(&path)).unwrap();
        prepare(&root).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        let held = lock(&root).unwrap();
        let error = lock(&root).unwrap_err();
        let pid = format!("already runs (pid {})", std::process::id());
        assert!(error.message.contains(&pid), "{error}");
        held.ending();
        let next = std::thread::spawn(move || lock(&root).map(drop));
        drop(held);
        next.join().unwrap().unwrap();
    }

    #[test]
    fn a_root_that_others_can_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let root = AppRoot::resolve(Some(directory.path())).unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = prepare(&root).unwrap_err();
        assert!(error.message.contains("chmod go-w"), "{error}");
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        prepare(&AppRoot::resolve(Some(&file)).unwrap()).unwrap_err();
    }
}
