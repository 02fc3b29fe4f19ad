//! `--volume` and `--mount`.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use container_api::escape::escape_bytes;
use container_api::mount_options::{self, Asked};
use container_api::mounts::{MountKind, MountOptions};
use container_api::types::Tmpfs;
use container_api::{ApiError, ErrorCode, Result};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// All of them: mounts, with absolute sources, and memory file systems.
pub fn all(volumes: &[OsString], mounts: &[OsString]) -> Result<(Vec<MountOptions>, Vec<Tmpfs>)> {
    let (mut found, mut memory) = (Vec::new(), Vec::new());
    let volumes =
        volumes.iter().map(|text| mount_options::volume(text.as_bytes()).map(Asked::Mount));
    for asked in volumes.chain(mounts.iter().map(|text| mount_options::mount(text.as_bytes()))) {
        match asked? {
            Asked::Tmpfs(tmpfs) => memory.push(tmpfs),
            Asked::Mount(mut mount) => {
                if mount.kind == MountKind::Bind {
                    let path = std::path::absolute(mount.source.to_os_string())?;
                    mount.source = path.into_os_string().into();
                }
                found.push(mount);
            }
        }
    }
    Ok((found, memory))
}

/// Opens the sources of all bind mounts, in their order, for the service to look at.
pub fn open_sources(mounts: &[MountOptions]) -> Result<Vec<OwnedFd>> {
    mounts.iter().filter(|mount| mount.kind == MountKind::Bind).map(open_source).collect()
}

fn open_source(mount: &MountOptions) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let opened = open(&*mount.source.to_os_string(), flags, Mode::empty());
    opened.map_err(|errno| {
        let error = ApiError::from(std::io::Error::from(errno));
        let shown = escape_bytes(mount.source.as_bytes());
        match error.code {
            ErrorCode::NotFound => {
                ApiError::not_found(format!("the source of a bind mount does not exist: {shown}"))
            }
            _ => error.context(format!("the source of a bind mount, {shown}")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_and_memory_are_told_apart() {
        let words = |text: &str| vec![OsString::from(text)];
        let (mounts, memory) =
            all(&words("data:/a"), &words("type=tmpfs,target=/t,tmpfs-size=1m")).unwrap();
        assert_eq!((mounts[0].kind, mounts.len()), (MountKind::Volume, 1));
        assert_eq!(memory[0].options, ["size=1m"]);
        let (mounts, _) = all(&[], &words("type=bind,source=/a,target=/b,notify")).unwrap();
        assert_eq!(mounts[0].notify, Some(true));
        all(&words("./src:/a"), &[]).unwrap();
    }

    #[test]
    fn sources_must_exist() {
        let bind = |source: &str| MountOptions { source: source.into(), ..MountOptions::default() };
        assert_eq!(open_sources(&[bind("/")]).unwrap().len(), 1);
        let error = open_sources(&[bind("/no/such/path")]).unwrap_err();
        assert!(error.message.ends_with("does not exist: /no/such/path"), "{error}");
    }
}
