//! `volume create`, `delete`, `list` and `prune`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use container_api::images::{FormatVolume, Request};
use container_api::mounts::{PrunedVolumes, Volume, VolumeOptions};
use container_api::paths::DISK_LEN;
use container_api::types::UsageOf;
use container_api::{ApiError, ErrorCode, Result};

use super::{DISK, Record, options};
use crate::directory::remove_tree;
use crate::engine::Engine;

impl Engine {
    /// Makes a volume.
    pub async fn create_volume(self: &Arc<Self>, asked: &VolumeOptions) -> Result<Volume> {
        let (record, format) = options::record(asked)?;
        self.disk_left().await?;
        let _turn = self.volumes.turn.lock().await;
        self.make_volume(record.clone(), format).await?;
        Ok(self.volumes.show(&record, &[]))
    }

    /// Makes a volume; the caller has the turn.
    pub(super) async fn make_volume(
        &self,
        record: Record,
        format: Option<FormatVolume>,
    ) -> Result<()> {
        let name = record.name.clone();
        if self.volumes.find(&name).is_some() {
            let message = format!("a volume named '{name}' exists already");
            return Err(ApiError::new(ErrorCode::AlreadyExists, message));
        }
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.no_space(),
            _ => ApiError::from(error).context(format!("making volume '{name}'")),
        };
        let staged = self.volumes.stage(&record).map_err(failed)?;
        if let Some(format) = format {
            let disk = new_file(&staged.path().join(DISK)).map_err(failed)?;
            self.format_disk(&disk, format).await?;
            disk.sync_all().map_err(failed)?;
        }
        self.volumes.commit(staged, record).map_err(failed)
    }

    /// Makes an empty file an empty volume's disk.
    async fn format_disk(&self, disk: &File, format: FormatVolume) -> Result<()> {
        // By the service that may: this one writes no file systems.
        let request = Request::FormatVolume(format);
        self.images.call_with::<()>(&request, disk.as_fd()).await?;
        // All disks of VMs have one length; the file system has its own.
        disk.set_len(DISK_LEN).map_err(ApiError::from)
    }

    /// Makes the disk of a volume as most are, which is nobody's: for a throwaway container.
    pub async fn throwaway_volume(&self, path: &Path) -> Result<()> {
        let disk = new_file(path)?;
        self.format_disk(&disk, options::format(DISK_LEN, None)?).await
    }

    /// Removes a volume that no container has.
    pub async fn delete_volume(&self, name: &str) -> Result<()> {
        let _turn = self.volumes.turn.lock().await;
        if self.volumes.find(name).is_none() {
            return Err(no_volume(name));
        }
        let users = self.volume_users();
        let users: Vec<&str> =
            users.iter().filter(|(v, _)| v == name).map(|(_, user)| user.as_str()).collect();
        if !users.is_empty() {
            let message = format!(
                "volume '{name}' is used by {}: delete {} first",
                containers(&users),
                if users.len() == 1 { "that" } else { "those" }
            );
            return Err(ApiError::new(ErrorCode::InUse, message));
        }
        self.remove_volume(name).await.map(drop)
    }

    async fn remove_volume(&self, name: &str) -> Result<u64> {
        let failed = |e: io::Error| ApiError::from(e).context(format!("removing volume '{name}'"));
        let aside = self.volumes.set_aside(name).map_err(failed)?;
        tokio::task::spawn_blocking(move || remove_tree(&aside))
            .await
            .map_err(|e| ApiError::internal(e.to_string()))?
            .map_err(failed)
    }

    /// All volumes as `volume list` shows them.
    pub async fn list_volumes(self: &Arc<Self>) -> Result<Vec<Volume>> {
        let users = self.volume_users();
        let engine = self.clone();
        let list = move || {
            let all = engine.volumes.all();
            all.iter().map(|record| engine.volumes.show(record, &users)).collect()
        };
        tokio::task::spawn_blocking(list).await.map_err(|e| ApiError::internal(e.to_string()))
    }

    /// Removes all volumes that no container has.
    pub async fn prune_volumes(&self) -> Result<PrunedVolumes> {
        let _turn = self.volumes.turn.lock().await;
        let users = self.volume_users();
        let mut pruned = PrunedVolumes::default();
        for record in self.volumes.all() {
            if !users.iter().any(|(volume, _)| *volume == record.name) {
                pruned.reclaimed += self.remove_volume(&record.name).await?;
                pruned.names.push(record.name);
            }
        }
        Ok(pruned)
    }

    /// Removes the volumes that were made for a container that removes itself.
    pub async fn remove_anonymous(&self, names: &[String]) {
        if names.is_empty() {
            return;
        }
        let _turn = self.volumes.turn.lock().await;
        let users = self.volume_users();
        for name in names {
            let used = users.iter().any(|(volume, _)| volume == name);
            if !used
                && self.volumes.find(name).is_some()
                && let Err(error) = self.remove_volume(name).await
            {
                tracing::error!(volume = name, %error, "an anonymous volume stays");
            }
        }
    }

    /// What volumes hold, for `system df`.
    pub fn volumes_usage(&self) -> UsageOf {
        let users = self.volume_users();
        let mut usage = UsageOf::default();
        for record in self.volumes.all() {
            let bytes = self.volumes.allocated(&record);
            usage.total += 1;
            usage.size_in_bytes += bytes;
            match users.iter().any(|(volume, _)| *volume == record.name) {
                true => usage.active += 1,
                false => usage.reclaimable += bytes,
            }
        }
        usage
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// `container 'a'`, `containers 'a', 'b'`.
fn containers(ids: &[&str]) -> String {
    let quoted: Vec<String> = ids.iter().map(|id| format!("'{id}'")).collect();
    let word = if ids.len() == 1 { "container" } else { "containers" };
    format!("{word} {}", quoted.join(", "))
}

/// There is no volume of this name.
pub fn no_volume(name: &str) -> ApiError {
    let shown: String = name.chars().take(128).collect();
    ApiError::not_found(format!("no volume '{}'", container_api::escape::escape(&shown)))
}
