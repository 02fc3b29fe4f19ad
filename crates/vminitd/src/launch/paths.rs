//! Masked and read-only paths.

use super::child::mount_on;
use crate::failure::{Context, Failure};
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::statvfs;
use std::fs;
use std::path::Path;
use vminitd_protocol::message::ErrorCode::Mount;

const NONE: Option<&str> = None;

/// Hides a path: a file behind `null`, a directory behind an empty tmpfs.
/// Returns whether there is one.
pub fn mask(path: &Path, null: &str) -> Result<bool, Failure> {
    let Ok(meta) = fs::metadata(path) else { return Ok(false) };
    let masked = if meta.is_dir() {
        let flags =
            MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some("size=0k,mode=755"))
    } else {
        mount(Some(null), path, NONE, MsFlags::MS_BIND, NONE)
    };
    masked.context(Mount, || format!("mask {}", path.display())).map(|()| true)
}

/// Makes a path read-only by a mount of its own. Returns whether there is one.
pub fn bind_read_only(path: &Path) -> Result<bool, Failure> {
    if !path.exists() {
        return Ok(false);
    }
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(path), path, NONE, flags, NONE)
        .context(Mount, || format!("bind {} to itself", path.display()))?;
    make_read_only(path).map(|()| true)
}

/// Makes the mount at a path read-only, its other flags kept.
pub fn make_read_only(path: &Path) -> Result<(), Failure> {
    let what = || format!("make {} read-only", path.display());
    let kept = statvfs(path).context(Mount, what)?.flags().bits();
    // These have the same numbers in both calls; MS_RELATIME is the default.
    let keep = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
    let kept = MsFlags::from_bits_truncate(kept) & keep;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | kept;
    mount(NONE, path, NONE, flags, NONE).context(Mount, what)
}

/// A tmpfs with the options of a system directory.
pub fn mount_system_tmpfs(target: &str, flags: MsFlags, data: &str) -> Result<(), Failure> {
    mount_on("tmpfs", target, "tmpfs", flags, data)
        .context(Mount, || format!("mount a tmpfs at {target}"))
}
