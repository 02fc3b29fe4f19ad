//! The volumes of a new container: named ones, and those made for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use container_api::apiserver::CreateOptions;
use container_api::escape::escape;
use container_api::mounts::{Mount, MountKind, MountOptions, VolumeKind, VolumeOptions};
use container_api::runtime::VolumeDisk;
use container_api::types::{ByteString, ContainerConfig};
use container_api::{ApiError, ErrorCode, Result};

use super::{Record, options, requests::no_volume};
use crate::engine::{Engine, Reservation};
use crate::validate::mount::{check_path, plain};

/// Devices that a VM takes beside those that it has from the beginning.
const PLUGS: usize = 4;

/// Volumes that were made for a container that may not come to be; removed on drop unless kept.
#[derive(Debug)]
pub struct Made {
    engine: Arc<Engine>,
    names: Vec<String>,
}

impl Made {
    /// The container exists.
    pub fn keep(mut self) {
        self.names.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let names = std::mem::take(&mut self.names);
        if !names.is_empty() {
            let engine = self.engine.clone();
            tokio::spawn(async move { engine.remove_anonymous(&names).await });
        }
    }
}

impl Engine {
    /// Gives `config` its volumes, made where they are missing. They stay while the reservation
    /// does.
    pub async fn mount_volumes(
        self: &Arc<Self>,
        asked: &CreateOptions,
        config: &mut ContainerConfig,
        reservation: &Reservation,
    ) -> Result<Made> {
        let mut made = Made { engine: self.clone(), names: Vec::new() };
        let wanted: Vec<MountOptions> =
            asked.mounts.iter().filter(|m| m.kind == MountKind::Volume).cloned().collect();
        if wanted.is_empty() {
            return Ok(made);
        }
        let _turn = self.volumes.turn.lock().await;
        for mount in &wanted {
            let mount = self.mount_volume(mount, &mut made).await?;
            config.mounts.push(mount);
        }
        check(config)?;
        reservation.mounts(names(config));
        Ok(made)
    }

    async fn mount_volume(&self, asked: &MountOptions, made: &mut Made) -> Result<Mount> {
        let destination = destination(&asked.destination)?;
        let name = String::from_utf8(asked.source.0.clone())
            .map_err(|_| ApiError::invalid("a volume's name is not text"))?;
        let known = self.volumes.find(&name);
        let record = match known {
            Some(record) => record,
            None => {
                let options = VolumeOptions { name, ..VolumeOptions::default() };
                let (record, format) = options::record(&options)?;
                self.make_volume(record.clone(), format).await?;
                if record.anonymous {
                    made.names.push(record.name.clone());
                }
                record
            }
        };
        Ok(Mount {
            kind: MountKind::Volume,
            source: record.name.as_str().into(),
            destination,
            read_only: asked.read_only,
            copy: !asked.no_copy && !asked.read_only,
            anonymous: record.anonymous,
            shared: record.kind == VolumeKind::Shared,
            ..Mount::default()
        })
    }

    /// The disks of a container's block volumes, in the order of its mounts; none that is damaged.
    pub fn volume_disks(&self, config: &ContainerConfig) -> Result<Vec<VolumeDisk>> {
        let volumes = config.mounts.iter().filter(|mount| !mount.is_share());
        volumes
            .map(|mount| {
                let name = mount.source.to_string_lossy();
                let record = self.volumes.find(&name).ok_or_else(|| no_volume(&name))?;
                let path = self.volumes.source(&record);
                check_disk(&record, &path)?;
                Ok(VolumeDisk { path, read_only: mount.read_only })
            })
            .collect()
    }
}

fn check_disk(record: &Record, path: &std::path::Path) -> Result<()> {
    use container_api::paths::DISK_LEN;
    let damaged = |why: String| {
        let message = format!(
            "volume '{}' is damaged: {why} ({}); put the file back, or delete the volume",
            record.name,
            path.display()
        );
        ApiError::new(ErrorCode::InvalidData, message)
    };
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() && found.len() == DISK_LEN => Ok(()),
        Ok(found) => Err(damaged(format!("its disk has {} bytes, not {DISK_LEN}", found.len()))),
        Err(error) => Err(damaged(format!("its disk can't be read: {error}"))),
    }
}

/// A path in the container without `.` and doubled slashes.
fn destination(path: &ByteString) -> Result<ByteString> {
    check_path("volume", path.as_bytes())?;
    let clean = plain(path.as_bytes());
    if clean.is_empty() {
        return Err(ApiError::invalid("a volume can't take the place of the container's root"));
    }
    Ok(ByteString(clean))
}

/// How many devices have to be plugged.
fn plugs(config: &ContainerConfig) -> usize {
    let mounts = || config.mounts.iter();
    let disks = mounts().filter(|mount| !mount.is_share()).count();
    let share = usize::from(mounts().any(Mount::is_share));
    let nics = config.network.networks.len().saturating_sub(1);
    disks + share + nics
}

fn check(config: &ContainerConfig) -> Result<()> {
    let mut places = BTreeSet::new();
    let mut disks = BTreeSet::new();
    for mount in &config.mounts {
        if !places.insert(&mount.destination) {
            let shown = escape(&mount.destination.to_string_lossy()).into_owned();
            return Err(ApiError::invalid(format!("two mounts have the destination {shown}")));
        }
        if !mount.is_share() && !disks.insert(&mount.source) {
            let name = mount.source.to_string_lossy();
            let message = format!("volume '{name}' is a disk, and can be mounted once only");
            return Err(ApiError::invalid(message));
        }
    }
    match plugs(config) {
        0..=PLUGS => Ok(()),
        many => Err(ApiError::invalid(format!(
            "too many volumes and networks: they need {many} devices to be plugged into the VM, \
             which takes {PLUGS}"
        ))),
    }
}

/// The volumes that a container has.
pub fn names(config: &ContainerConfig) -> Vec<String> {
    let volumes = config.mounts.iter().filter(|mount| mount.kind == MountKind::Volume);
    volumes.map(|mount| mount.source.to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::config;

    fn mount(name: &str, at: &str, read_only: bool) -> Mount {
        let (kind, source) = (MountKind::Volume, name.into());
        Mount { kind, source, destination: at.into(), read_only, ..Mount::default() }
    }

    #[test]
    fn destinations_are_made_plain() {
        for (given, clean) in [("/a", "/a"), ("//a/./b//c/", "/a/b/c")] {
            assert_eq!(destination(&given.into()).unwrap(), ByteString::from(clean));
        }
        for bad in ["", "a", "/", "//.", "/a/.."] {
            destination(&bad.into()).unwrap_err();
        }
    }

    #[test]
    fn what_a_vm_can_not_have_is_refused() {
        let mut config = config("web");
        config.mounts = vec![mount("a", "/a", false), mount("b", "/b", false)];
        check(&config).unwrap();
        assert_eq!(plugs(&config), 2);
        config.mounts.push(mount("a", "/c", false));
        check(&config).unwrap_err();
        config.mounts[2] = mount("c", "/a", true);
        check(&config).unwrap_err();
        config.mounts.pop();
        config.mounts.extend((0..3).map(|n| mount(&format!("v{n}"), &format!("/v{n}"), true)));
        check(&config).unwrap_err();
        config.mounts.pop();
        check(&config).unwrap();
    }
}
