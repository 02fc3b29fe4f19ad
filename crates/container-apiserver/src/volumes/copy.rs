//! Copies into and out of containers that don't run: what of their mounts such a copy sees.
//!
//! | what is mounted | a copy of a path in it, below it or above it |
//! |---|---|
//! | a block volume | sees it, or is refused while another container has it |
//! | a bind mount, a shared volume, a tmpfs | is refused in it and below it, leaves it out above it |
//!
//! That is by the path as it is given: a link on the way is followed in the VM, which has the block
//! volumes alone.

use std::sync::Arc;

use container_api::archive::ArchiveWork;
use container_api::escape::escape;
use container_api::mounts::MountKind;
use container_api::types::ContainerConfig;
use container_api::{ApiError, ErrorCode, Result};

use super::Claim;
use crate::container::Container;
use crate::engine::Engine;

impl Engine {
    /// Claims the volumes that a copy needs; `None` when it does without.
    pub async fn claim_for_copy(
        self: &Arc<Self>,
        container: &Container,
        work: &ArchiveWork,
    ) -> Result<Option<Claim>> {
        let (ArchiveWork::Read { path, .. } | ArchiveWork::Write { path, .. }) = work else {
            return Ok(None);
        };
        let path = clean(path.as_bytes());
        if let Some((what, at)) = absent(&container.config, &path) {
            let at = escape(&String::from_utf8_lossy(at)).into_owned();
            let message = format!(
                "container '{}' does not run, and {at} in it is {what}: start it first",
                container.id()
            );
            return Err(ApiError::new(ErrorCode::InvalidState, message));
        }
        match self.claim_volumes(container).await {
            Err(error) if error.code == ErrorCode::InUse && !meets(&container.config, &path) => {
                Ok(None)
            }
            claimed => claimed,
        }
    }
}

type Path<'a> = Vec<&'a [u8]>;

/// The names of a path, without `.` and `..`.
fn clean(path: &[u8]) -> Path<'_> {
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names
}

/// What is mounted at a path or above it and is not there without a program, and where.
fn absent<'a>(config: &'a ContainerConfig, path: &Path<'_>) -> Option<(&'static str, &'a [u8])> {
    let mounts = config.mounts.iter().map(|mount| {
        let what = match (mount.is_share(), mount.kind) {
            (false, _) => None,
            (true, MountKind::Volume) => Some("a shared volume"),
            (true, _) => Some("a bind mount"),
        };
        (what, mount.destination.as_bytes())
    });
    let tmpfs = config.tmpfs.iter().map(|tmpfs| (Some("a tmpfs"), tmpfs.destination.as_bytes()));
    // The innermost is what the path leads to.
    let (what, at) = mounts
        .chain(tmpfs)
        .filter(|(_, at)| path.starts_with(&clean(at)))
        .max_by_key(|(_, at)| clean(at).len())?;
    what.map(|what| (what, at))
}

/// Whether a block volume is at a path, above it or below it.
fn meets(config: &ContainerConfig, path: &Path<'_>) -> bool {
    let mut disks = config.mounts.iter().filter(|mount| !mount.is_share());
    disks.any(|mount| {
        let at = clean(mount.destination.as_bytes());
        path.starts_with(&at) || at.starts_with(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::config;
    use container_api::mounts::Mount;
    use container_api::types::Tmpfs;

    #[test]
    fn what_is_not_there_is_refused_by_its_name() {
        let mut config = config("web");
        let mount = |kind, shared, at: &str| Mount {
            kind,
            shared,
            destination: at.into(),
            ..Mount::default()
        };
        config.mounts = vec![
            mount(MountKind::Bind, false, "/bound"),
            mount(MountKind::Volume, false, "/data"),
            mount(MountKind::Volume, true, "/both"),
            mount(MountKind::Volume, false, "/bound/inner"),
        ];
        config.tmpfs = vec![Tmpfs { destination: "/run".into(), options: Vec::new() }];
        let what = |path: &str| absent(&config, &clean(path.as_bytes())).map(|(what, _)| what);
        assert_eq!(what("/bound/x"), Some("a bind mount"));
        assert_eq!(what("//./etc/../bound/"), Some("a bind mount"));
        assert_eq!(what("both"), Some("a shared volume"));
        assert_eq!(what("/run/lock"), Some("a tmpfs"));
        for there in ["/", "/data", "/bounds", "/bound/inner/x", "/etc"] {
            assert_eq!(what(there), None, "{there}");
        }
        let meets = |path: &str| meets(&config, &clean(path.as_bytes()));
        assert!(meets("/") && meets("/data") && meets("data/x/") && !meets("/etc"));
    }
}
