//! Bind mounts: what of the host a container may see, and whether it is still what it was.
//!
//! ```text
//! create ─► descriptor (opened by the caller) ─► identity ─► checked ─► kept in the configuration
//! start  ─► the path anew ─► same identity? ─► file server, which compares it once more
//! ```
//! Every check is made on what was opened: a path only says how to find it again.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use container_api::apiserver::CreateOptions;
use container_api::escape::{escape, escape_bytes};
use container_api::mount_options::check_owners;
use container_api::mounts::{FileIdentity, Mount, MountKind, MountOptions};
use container_api::paths::config_file;
use container_api::runtime::Share;
use container_api::types::{ByteString, ContainerConfig};
use container_api::{ApiError, ErrorCode, Result};

use crate::engine::Engine;
use crate::validate::mount::{check_path, plain};
use crate::volumes::no_volume;

/// Refused themselves.
const SENSITIVE: [&str; 10] = [
    "/",
    "/boot",
    "/etc",
    "/etc/gshadow",
    "/etc/shadow",
    "/etc/ssh",
    "/etc/sudoers",
    "/root",
    "/run",
    "/var/lib",
];
/// Refused, and whatever is in them.
const SENSITIVE_TREES: [&str; 10] = [
    "/dev",
    "/proc",
    "/run/containerd",
    "/run/crio",
    "/run/docker",
    "/run/podman",
    "/sys",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/docker",
];
/// Of the user's home, as [`SENSITIVE_TREES`].
const SENSITIVE_AT_HOME: [&str; 2] = [".gnupg", ".ssh"];
/// Where nothing can be mounted, nor below.
const SYSTEM: [&str; 3] = ["/dev", "/proc", "/sys"];

fn place(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

fn places<'a>(paths: impl IntoIterator<Item = &'a Path>) -> BTreeSet<(u64, u64)> {
    paths.into_iter().filter_map(|path| fs::metadata(path).ok()).map(|m| place(&m)).collect()
}

impl Engine {
    /// Gives `config` its bind mounts; `sources` are the descriptors that came with the request.
    pub fn mount_binds(
        &self,
        asked: &CreateOptions,
        sources: &[OwnedFd],
        config: &mut ContainerConfig,
    ) -> Result<()> {
        let binds = asked.mounts.iter().filter(|mount| mount.kind == MountKind::Bind);
        let binds: Vec<_> = binds.collect();
        if binds.len() != sources.len() {
            let (binds, sources) = (binds.len(), sources.len());
            let message = format!("{binds} bind mounts, but {sources} descriptors");
            return Err(ApiError::invalid(message));
        }
        for (asked, source) in binds.into_iter().zip(sources) {
            config.mounts.push(self.bind(asked, source)?);
        }
        Ok(())
    }

    fn bind(&self, asked: &MountOptions, source: &OwnedFd) -> Result<Mount> {
        check_owners(asked)?;
        let destination = destination(&asked.destination)?;
        let path = PathBuf::from(asked.source.to_os_string());
        let shown = escape_bytes(asked.source.as_bytes());
        if !path.is_absolute() {
            let message = format!("the source of a bind mount is not absolute: {shown}");
            return Err(ApiError::invalid(message));
        }
        let opened = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
        let found = fs::metadata(&opened)?;
        let identity = identity(&found).ok_or_else(|| {
            ApiError::invalid(format!(
                "the source of a bind mount is neither a directory nor a regular file: {shown}"
            ))
        })?;
        if look_up(&path)? != Some(identity) {
            return Err(changed(&path));
        }
        self.check_source(&fs::canonicalize(&opened)?, &found, asked.dangerous)?;
        Ok(Mount {
            kind: MountKind::Bind,
            source: asked.source.clone(),
            destination,
            read_only: asked.read_only,
            identity: Some(identity),
            dangerous: asked.dangerous,
            notify: asked.notify.unwrap_or(false),
            uid: asked.uid,
            gid: asked.gid,
            idmap: asked.idmap.clone(),
            ..Mount::default()
        })
    }

    /// Refuses what would give a container the host, or this installation.
    fn check_source(&self, path: &Path, found: &Metadata, dangerous: bool) -> Result<()> {
        let here = place(found);
        let around = places(path.ancestors());
        let shown = escape(&path.to_string_lossy()).into_owned();
        let own = self.hidden();
        let own = places(own.iter().map(PathBuf::as_path));
        if own.contains(&here) || !around.is_disjoint(&own) {
            let message = format!("{shown} belongs to this installation: no container sees it");
            return Err(ApiError::invalid(message));
        }
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let home: Vec<_> = SENSITIVE_AT_HOME.iter().map(|name| home.join(name)).collect();
        let trees = SENSITIVE_TREES.iter().map(Path::new);
        let trees = places(trees.chain(home.iter().map(PathBuf::as_path)));
        let sensitive = places(SENSITIVE.iter().map(Path::new)).contains(&here)
            || trees.contains(&here)
            || !around.is_disjoint(&trees);
        if sensitive && !dangerous {
            return Err(ApiError::invalid(format!(
                "{shown} is a sensitive part of the host: '--mount type=bind,…,dangerous' shares \
                 it all the same"
            )));
        }
        Ok(())
    }

    /// Directories of this installation, which every share shows empty.
    pub fn hidden(&self) -> Vec<PathBuf> {
        let config = config_file(&self.root).ok();
        let config = config.and_then(|file| file.parent().map(Path::to_owned));
        std::iter::once(self.root.path().to_owned()).chain(config).collect()
    }

    /// What the file server of a container serves, in the order of its mounts; nothing that has
    /// become another file since it was checked.
    pub fn shares(&self, config: &ContainerConfig) -> Result<Vec<Share>> {
        let shares = config.mounts.iter().filter(|mount| mount.is_share());
        shares
            .map(|mount| {
                let source = match mount.kind {
                    MountKind::Bind => PathBuf::from(mount.source.to_os_string()),
                    MountKind::Volume => {
                        let name = mount.source.to_string_lossy();
                        let record = self.volumes.find(&name).ok_or_else(|| no_volume(&name))?;
                        self.volumes.source(&record)
                    }
                };
                let now = look_up(&source)?;
                let kept = mount.identity.or(now);
                let identity = kept.filter(|kept| now == Some(*kept));
                Ok(Share {
                    identity: identity.ok_or_else(|| changed(&source))?,
                    source,
                    read_only: mount.read_only,
                    notify: mount.notify,
                    uid: mount.uid,
                    gid: mount.gid,
                    idmap: mount.idmap.clone(),
                })
            })
            .collect()
    }
}

fn identity(found: &Metadata) -> Option<FileIdentity> {
    let directory = found.is_dir();
    let (device, inode) = place(found);
    (directory || found.is_file()).then_some(FileIdentity { device, inode, directory })
}

/// What a path leads to now; `None`: nothing that can be shared.
fn look_up(path: &Path) -> Result<Option<FileIdentity>> {
    match fs::metadata(path) {
        Ok(found) => Ok(identity(&found)),
        Err(error) => {
            let error = ApiError::from(error);
            let shown = escape(&path.to_string_lossy()).into_owned();
            Err(match error.code {
                ErrorCode::NotFound => ApiError::not_found(format!(
                    "the source of a bind mount does not exist any more: {shown}"
                )),
                _ => error.context(format!("the source of a bind mount, {shown}")),
            })
        }
    }
}

fn changed(path: &Path) -> ApiError {
    let shown = escape(&path.to_string_lossy()).into_owned();
    ApiError::new(
        ErrorCode::InvalidState,
        format!(
            "the source of a bind mount is another file than the one that was checked: {shown}; \
             create the container anew to mount what is there now"
        ),
    )
}

/// A path in the container without `.` and doubled slashes, at which something may be mounted.
fn destination(path: &ByteString) -> Result<ByteString> {
    check_path("the target of a bind mount,", path.as_bytes())?;
    let clean = plain(path.as_bytes());
    let top = clean.split(|byte| *byte == b'/').nth(1);
    let system = SYSTEM.iter().any(|system| top == Some(&system.as_bytes()[1..]));
    if clean.is_empty() || system {
        let shown = escape_bytes(path.as_bytes());
        return Err(ApiError::invalid(format!(
            "nothing can be mounted at {shown}: not at /, and not in /proc, /sys and /dev"
        )));
    }
    Ok(ByteString(clean))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_made_plain_and_never_the_systems() {
        for (given, clean) in [("/a", "/a"), ("//a/./b//c/", "/a/b/c"), ("/device", "/device")] {
            assert_eq!(destination(&given.into()).unwrap(), ByteString::from(clean));
        }
        for bad in ["", "a", "/", "//.", "/a/..", "/proc", "/sys/x", "/./dev/null"] {
            destination(&bad.into()).unwrap_err();
        }
    }

    #[test]
    fn a_source_is_known_by_its_identity() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("source");
        fs::write(&path, "a").unwrap();
        let first = look_up(&path).unwrap().unwrap();
        assert!(!first.directory);
        fs::write(directory.path().join("other"), "b").unwrap();
        fs::rename(directory.path().join("other"), &path).unwrap();
        assert_ne!(look_up(&path).unwrap().unwrap(), first);
        assert_eq!(look_up(Path::new("/dev/null")).unwrap(), None);
        fs::remove_file(&path).unwrap();
        assert_eq!(look_up(&path).unwrap_err().code, ErrorCode::NotFound);
    }
}
