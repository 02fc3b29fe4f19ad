//! `system df` and `system prune`.

use std::collections::BTreeSet;
use std::sync::Arc;

use container_api::apiserver::PrunedSystem;
use container_api::images;
use container_api::types::{DiskUsage, UsageOf};
use container_api::{ApiError, Result};

use crate::directory::allocated;
use crate::engine::Engine;
use crate::spare::keeper;

impl Engine {
    /// Bytes on the host's disk, by what they are for.
    pub async fn disk_usage(self: &Arc<Self>) -> Result<DiskUsage> {
        let in_use = self.digests_in_use();
        let request = images::Request::DiskUsage { in_use };
        let images: images::DiskUsage = self.images.call(&request).await?;
        let containers = self.containers();
        let active = containers.iter().map(|container| &container.image.index_digest);
        let active = active.collect::<BTreeSet<_>>().len() as u64;
        let images = UsageOf {
            total: images.images,
            active: active.min(images.images),
            size_in_bytes: images.blobs + images.disks,
            reclaimable: images.unused,
            memory_in_bytes: 0,
        };
        let engine = self.clone();
        let measure = move || (engine.containers_usage(), engine.volumes_usage());
        let (containers, volumes) = tokio::task::spawn_blocking(measure)
            .await
            .map_err(|e| ApiError::internal(e.to_string()))?;
        let templates = self.templates.usage(&self.templates_in_use());
        let spares = self.spares.usage();
        Ok(DiskUsage { images, containers, templates, spares, volumes })
    }

    /// Bytes that containers and volumes take on the host's disk.
    pub fn disk_taken(&self) -> u64 {
        self.containers_usage().size_in_bytes + self.volumes_usage().size_in_bytes
    }

    fn containers_usage(&self) -> UsageOf {
        let mut usage = UsageOf::default();
        for container in self.containers() {
            let bytes = allocated(&self.directory(&container));
            usage.total += 1;
            usage.size_in_bytes += bytes;
            match container.live().life.is_active() {
                true => usage.active += 1,
                false => usage.reclaimable += bytes,
            }
        }
        usage
    }

    /// Templates that running VMs and spares come from.
    fn templates_in_use(&self) -> Vec<String> {
        let mut keys = self.spares.templates();
        let containers = self.containers();
        let machines = containers.iter().filter_map(|container| container.live().machine);
        keys.extend(machines.filter_map(|machine| machine.template.clone()));
        keys
    }

    /// Ends all spares, and removes the templates that no running VM comes from.
    pub async fn prune_system(self: &Arc<Self>) -> PrunedSystem {
        let disk = self.spares.usage().size_in_bytes;
        let spares = keeper::end_all(self, false).await;
        let (templates, bytes) = self.templates.prune(&self.templates_in_use());
        PrunedSystem { templates, spares, reclaimed: disk + bytes }
    }
}
