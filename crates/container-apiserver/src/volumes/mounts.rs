//! The volumes of a new container: named ones, and those made for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use container_api::apiserver::CreateOptions;
use container_api::escape::escape;
use container_api::images::FormatVolume;
use container_api::mounts::{Mount, MountKind, MountOptions, VolumeKind, VolumeOptions};
use container_api::runtime::{VOLUME_SLOTS, VolumeDisk};
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

/// A volume that is to be made, and how its disk is.
type Missing = (Record, Option<FormatVolume>);

impl Engine {
    /// Gives `config` its volumes, those of its image among them, made where they are missing. They
    /// stay while the reservation does.
    pub async fn mount_volumes(
        self: &Arc<Self>,
        asked: &CreateOptions,
        config: &mut ContainerConfig,
        reservation: &Reservation,
    ) -> Result<Made> {
        let mut made = Made { engine: self.clone(), names: Vec::new() };
        let mut wanted: Vec<MountOptions> =
            asked.mounts.iter().filter(|m| m.kind == MountKind::Volume).cloned().collect();
        wanted.extend(image_volumes(config, &wanted)?);
        if wanted.is_empty() {
            check(config)?;
            return Ok(made);
        }
        let _turn = self.volumes.turn.lock().await;
        let mut missing = Vec::new();
        for mount in &wanted {
            let (mount, new) = self.plan_volume(mount)?;
            config.mounts.push(mount);
            missing.extend(new);
        }
        // Nothing is made for a container that can't be.
        check(config)?;
        for (record, format) in missing {
            let own = record.anonymous.then(|| record.name.clone());
            self.make_volume(record, format).await?;
            made.names.extend(own);
        }
        reservation.mounts(names(config));
        Ok(made)
    }

    /// A mount of a volume, and the volume where it is to be made.
    fn plan_volume(&self, asked: &MountOptions) -> Result<(Mount, Option<Missing>)> {
        let destination = destination(&asked.destination)?;
        let name = String::from_utf8(asked.source.0.clone())
            .map_err(|_| ApiError::invalid("a volume's name is not text"))?;
        let (record, missing) = match self.volumes.find(&name) {
            Some(record) => (record, None),
            None => {
                let options = VolumeOptions { name, ..VolumeOptions::default() };
                let (record, format) = options::record(&options)?;
                (record.clone(), Some((record, format)))
            }
        };
        let mount = Mount {
            kind: MountKind::Volume,
            source: record.name.as_str().into(),
            destination,
            read_only: asked.read_only,
            copy: !asked.no_copy && !asked.read_only,
            anonymous: record.anonymous,
            shared: record.kind == VolumeKind::Shared,
            ..Mount::default()
        };
        Ok((mount, missing))
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

/// Anonymous volumes for the image's `VOLUME`s at whose paths nothing else is mounted.
fn image_volumes(config: &ContainerConfig, asked: &[MountOptions]) -> Result<Vec<MountOptions>> {
    let mut taken: BTreeSet<Vec<u8>> =
        asked.iter().map(|mount| plain(mount.destination.as_bytes())).collect();
    taken.extend(config.mounts.iter().map(|mount| plain(mount.destination.as_bytes())));
    taken.extend(config.tmpfs.iter().map(|tmpfs| plain(tmpfs.destination.as_bytes())));
    let mut volumes = Vec::new();
    for path in &config.image_volumes {
        let destination = destination(&path.as_str().into())
            .map_err(|error| error.context("a VOLUME of the image"))?;
        let top = destination.0.split(|byte| *byte == b'/').nth(1);
        if matches!(top, Some(b"proc" | b"sys")) {
            let message = "a VOLUME of the image is in /proc or /sys: nothing can be mounted there";
            return Err(ApiError::invalid(message));
        }
        if taken.insert(destination.0.clone()) {
            let kind = MountKind::Volume;
            volumes.push(MountOptions { kind, destination, ..MountOptions::default() });
        }
    }
    Ok(volumes)
}

/// How many devices have to be plugged.
fn plugs(config: &ContainerConfig) -> usize {
    let mounts = || config.mounts.iter();
    let disks = || mounts().filter(|mount| !mount.is_share());
    let read = disks().filter(|mount| mount.read_only).count();
    let written = disks().count() - read;
    let disks = read + written.saturating_sub(VOLUME_SLOTS);
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
            "too many volumes and networks: {many} devices would be plugged into the VM, which \
             takes {PLUGS}: one for each block volume and VOLUME of the image after the first \
             {VOLUME_SLOTS} that are written to, one for each network after the first, one for all \
             bind mounts and shared volumes. A '--tmpfs PATH', a bind mount or a shared volume in \
             the place of a VOLUME needs none of its own"
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
    use container_api::types::Tmpfs;

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
    fn volumes_of_the_image_are_where_nothing_else_is() {
        let mut config = config("web");
        let places = ["/data", "/a//b/", "/data/", "/bound", "/memory", "/named"];
        config.image_volumes = places.map(String::from).to_vec();
        config.mounts = vec![Mount { destination: "/bound".into(), ..Mount::default() }];
        let tmpfs = Tmpfs { destination: "/memory/".into(), options: Vec::new() };
        config.tmpfs = vec![tmpfs];
        let named = MountOptions { destination: "/named/.".into(), ..MountOptions::default() };
        let volumes = image_volumes(&config, &[named]).unwrap();
        let found: Vec<_> = volumes.iter().map(|mount| mount.destination.clone()).collect();
        assert_eq!(found, [ByteString::from("/data"), ByteString::from("/a/b")]);
        assert!(volumes.iter().all(|mount| mount.source.0.is_empty() && !mount.read_only));
        for bad in ["", "/", "data", "/a/../b", "/proc/x", "/sys"] {
            config.image_volumes = vec![bad.into()];
            image_volumes(&config, &[]).unwrap_err();
        }
    }

    #[test]
    fn what_a_vm_can_not_have_is_refused() {
        let mut config = config("web");
        config.mounts = vec![mount("a", "/a", false), mount("b", "/b", true)];
        check(&config).unwrap();
        assert_eq!(plugs(&config), 1);
        config.mounts.push(mount("a", "/c", false));
        check(&config).unwrap_err();
        config.mounts[2] = mount("c", "/a", true);
        check(&config).unwrap_err();
        config.mounts.pop();
        // Two are written to without being plugged.
        config.mounts.extend((0..5).map(|n| mount(&format!("v{n}"), &format!("/v{n}"), false)));
        assert_eq!(plugs(&config), 5);
        check(&config).unwrap_err();
        config.mounts.pop();
        check(&config).unwrap();
    }
}
