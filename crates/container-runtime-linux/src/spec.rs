//! From the container's configuration to the guest's words.

use container_api::ApiError;
use container_api::mounts::Mount;
use container_api::runtime::{GuestNetwork, SHARE_TAG};
use container_api::types::{self, ByteString, ContainerConfig, ProcessConfig};
use vminitd_protocol::capability;
use vminitd_protocol::message::{
    ContainerSpec, DiskSource, Limits, MountSource, MountSpec, ProcessSpec, RLIMITS, Rlimit,
    ShareSource, StartContainer, Stdio, TerminalSize, TmpfsMount, User,
};

use crate::hypervisor::Disk;
use crate::volumes::{self, Place};
use crate::{seccomp, sockets};

/// A terminal whose size nobody tells.
const DEFAULT_SIZE: types::TerminalSize = types::TerminalSize { rows: 24, columns: 80 };

/// The container and its first process.
///
/// # Errors
/// `InvalidArgument` for names that the guest's kernel doesn't know.
pub fn container(
    config: &ContainerConfig,
    network: Option<&GuestNetwork>,
    limits: Limits,
) -> Result<ContainerSpec, ApiError> {
    let bytes = |paths: &[String]| paths.iter().map(|p| p.clone().into_bytes()).collect();
    Ok(ContainerSpec {
        hostname: config.hostname.clone(),
        read_only_root: config.read_only,
        masked_paths: bytes(&config.masked_paths),
        read_only_paths: bytes(&config.readonly_paths),
        tmpfs: config.tmpfs.iter().map(tmpfs).collect::<Result<_, _>>()?,
        shm_size_bytes: config.shm_size,
        init: config.use_init,
        hosts: network.map(|network| network.hosts.clone().into_bytes()).unwrap_or_default(),
        resolv_conf: network.and_then(resolv_conf).unwrap_or_default(),
        limits: Some(limits),
        sockets: sockets::in_guest(config),
        mounts: mounts(&config.mounts),
        virtualization: config.virtualization,
        ..ContainerSpec::default()
    })
}

/// Shares and volumes, each by its number among its kind.
fn mounts(mounts: &[Mount]) -> Vec<MountSpec> {
    let disks = mounts.iter().filter(|mount| !mount.is_share());
    let (mut shares, mut disks) = (0.., volumes::places(disks.map(|mount| mount.read_only)));
    let mut source = move |mount: &Mount| match mount.is_share() {
        true => MountSource::Share(ShareSource {
            tag: SHARE_TAG.into(),
            name: shares.next().unwrap_or(0).to_string(),
            file: mount.identity.is_some_and(|identity| !identity.directory),
            copy: mount.copy,
        }),
        false => MountSource::Disk(DiskSource {
            // There is one for each.
            serial: disks.next().map(Place::serial).unwrap_or_default(),
            copy: mount.copy,
        }),
    };
    let spec = move |mount: &Mount| MountSpec {
        path: mount.destination.0.clone(),
        read_only: mount.read_only,
        source: Some(source(mount)),
    };
    mounts.iter().map(spec).collect()
}

/// The block volumes among mounts.
pub fn disks(mounts: &[Mount]) -> Vec<MountSpec> {
    let mut all = self::mounts(mounts);
    all.retain(|mount| matches!(mount.source, Some(MountSource::Disk(_))));
    all
}

/// Those whose disks a VM has without plugging.
pub fn in_slots(mounts: &[Mount]) -> Vec<MountSpec> {
    let slot = |mount: &MountSpec| match &mount.source {
        Some(MountSource::Disk(disk)) => Disk::SLOTS.iter().any(|slot| slot.name() == disk.serial),
        _ => false,
    };
    let mut all = self::mounts(mounts);
    all.retain(slot);
    all
}

/// The start of the first process.
///
/// # Errors
/// As [`container`] and [`process`].
pub fn start(
    config: &ContainerConfig,
    network: Option<&GuestNetwork>,
    limits: Limits,
    id: &str,
    stdio: Stdio,
    size: Option<types::TerminalSize>,
) -> Result<Box<StartContainer>, ApiError> {
    Ok(Box::new(StartContainer {
        container: container(config, network, limits)?,
        process: process(config, &config.init_process, id, stdio, size)?,
    }))
}

/// A file that is to be empty has a line: without any the guest leaves the image's.
fn resolv_conf(network: &GuestNetwork) -> Option<Vec<u8>> {
    let text = network.resolv_conf.as_ref()?;
    Some(if text.is_empty() { b"\n".to_vec() } else { text.clone().into_bytes() })
}

/// A process of the container.
///
/// # Errors
/// `InvalidArgument` for unknown capabilities and resource limits.
pub fn process(
    config: &ContainerConfig,
    process: &ProcessConfig,
    id: &str,
    stdio: Stdio,
    size: Option<types::TerminalSize>,
) -> Result<ProcessSpec, ApiError> {
    let bytes = |strings: &[ByteString]| strings.iter().map(|s| s.0.clone()).collect::<Vec<_>>();
    let mut args = vec![process.executable.0.clone()];
    args.extend(bytes(&process.arguments));
    let capabilities = capabilities(&config.capabilities)?;
    let size = size.unwrap_or(DEFAULT_SIZE);
    let size = TerminalSize { rows: size.rows.into(), columns: size.columns.into() };
    Ok(ProcessSpec {
        process: id.to_owned(),
        args,
        env: bytes(&process.environment),
        cwd: process.working_directory.0.clone(),
        user: Some(user(process)),
        terminal: process.terminal.then_some(size),
        stdio: Some(stdio),
        rlimits: process.rlimits.iter().map(rlimit).collect::<Result<_, _>>()?,
        capabilities,
        no_new_privileges: config
            .security
            .no_new_privileges
            .unwrap_or_else(|| no_new_privileges(capabilities)),
        seccomp: seccomp::compile(&config.security.seccomp, &config.capabilities)?,
        ..ProcessSpec::default()
    })
}

fn user(process: &ProcessConfig) -> User {
    let additional_gids = process.supplemental_groups.clone();
    match &process.user {
        types::User::Raw { user_string } => {
            User { name: user_string.clone(), additional_gids, ..User::default() }
        }
        types::User::Id { uid, gid } => {
            User { uid: Some(*uid), gid: Some(*gid), additional_gids, ..User::default() }
        }
    }
}

fn capabilities(names: &[String]) -> Result<u64, ApiError> {
    names.iter().try_fold(0, |mask, name| {
        let bit = capability::parse(name)
            .ok_or_else(|| ApiError::invalid(format!("unknown capability {name:?}")))?;
        Ok(mask | bit)
    })
}

/// Set-id programs (`su`, `sudo`, `ping`) are part of many images, so they work as long as the
/// capabilities that they live on are granted; without those, nothing may gain privileges.
fn no_new_privileges(capabilities: u64) -> bool {
    let set_id =
        capability::parse("SETUID").unwrap_or(0) | capability::parse("SETGID").unwrap_or(0);
    capabilities & set_id == 0
}

fn rlimit(limit: &types::Rlimit) -> Result<Rlimit, ApiError> {
    let name = limit.limit.to_ascii_lowercase();
    let name = name.strip_prefix("rlimit_").unwrap_or(&name);
    let (_, resource) = RLIMITS
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| ApiError::invalid(format!("unknown resource limit {:?}", limit.limit)))?;
    Ok(Rlimit { resource: *resource, soft: limit.soft, hard: limit.hard })
}

/// Docker's defaults: no programs, no set-id bits, no devices.
fn tmpfs(mount: &types::Tmpfs) -> Result<TmpfsMount, ApiError> {
    let mut spec =
        TmpfsMount { path: mount.destination.clone().into_bytes(), ..TmpfsMount::default() };
    for option in &mount.options {
        let refused = || {
            let destination = &mount.destination;
            ApiError::invalid(format!("unknown option {option:?} of the tmpfs {destination:?}"))
        };
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let number = |radix| u32::from_str_radix(value, radix).map_err(|_| refused());
        match name {
            "size" => spec.size_bytes = size(value).ok_or_else(refused)?,
            "mode" => spec.mode = Some(number(8)?),
            "uid" => spec.uid = number(10)?,
            "gid" => spec.gid = number(10)?,
            "ro" => spec.read_only = true,
            "rw" => spec.read_only = false,
            "exec" => spec.exec = true,
            "noexec" => spec.exec = false,
            "suid" => spec.suid = true,
            "nosuid" => spec.suid = false,
            "dev" => spec.dev = true,
            "nodev" => spec.dev = false,
            _ => return Err(refused()),
        }
    }
    Ok(spec)
}

/// Bytes with an optional `k`, `m` or `g`.
fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()?.to_ascii_lowercase() {
        b'k' => (&text[..text.len() - 1], 10),
        b'm' => (&text[..text.len() - 1], 20),
        b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mount(options: &[&str]) -> Result<TmpfsMount, ApiError> {
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        tmpfs(&types::Tmpfs { destination: "/t".into(), options })
    }

    #[test]
    fn tmpfs_options() {
        let spec = mount(&["size=64m", "mode=1770", "ro", "exec", "uid=5"]).unwrap();
        assert_eq!((spec.size_bytes, spec.mode, spec.uid), (64 << 20, Some(0o1770), 5));
        assert!(spec.read_only && spec.exec && !spec.suid && !spec.dev);
        assert!(mount(&["wat"]).is_err());
        assert!(mount(&["size=99999999999g"]).is_err());
        assert!(mount(&["size="]).is_err());
    }

    #[test]
    fn names_of_limits_and_capabilities() {
        let limit = |name: &str| types::Rlimit { limit: name.into(), soft: 1, hard: 2 };
        assert_eq!(rlimit(&limit("RLIMIT_NOFILE")).unwrap().resource, 7);
        assert!(rlimit(&limit("RLIMIT_WAT")).is_err());
        assert_eq!(capabilities(&["CAP_CHOWN".into()]).unwrap(), 1);
        assert!(capabilities(&["CAP_WAT".into()]).is_err());
        assert!(no_new_privileges(0) && !no_new_privileges(capability::DEFAULT));
    }

    proptest! {
        #[test]
        fn sizes_never_panic(text: String) {
            let _ = size(&text);
        }
    }
}
