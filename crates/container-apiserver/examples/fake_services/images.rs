//! `container-images`.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use container_api::images::{self, ImageConfig, Progress, Removed, Unpacked};
use container_api::paths::AppRoot;
use container_api::types::*;
use container_api::varlink::{Reply, Responder, Service};
use container_api::{ApiError, ErrorCode};

struct Images {
    root: AppRoot,
}

/// Serves until it is told to end.
pub async fn serve(root: &Path) -> Result<()> {
    let root = AppRoot::resolve(Some(root))?;
    let empty = File::create(root.images().join("empty.img"))?;
    (&empty).write_all(&[7; 100_000])?;
    empty.set_len(1 << 30)?;
    File::create(root.images().join("x.erofs"))?;
    crate::listen(&root.images(), images::SOCKET, Arc::new(Images { root: root.clone() })).await
}

impl Service for Images {
    type Request = images::Request;

    async fn call(
        &self,
        request: images::Request,
        fds: Vec<OwnedFd>,
        responder: &Responder,
    ) -> container_api::Result<Reply> {
        match request {
            images::Request::Prepare { pull } if pull.reference.contains("slow") => {
                tokio::select! {
                    () = responder.hung_up() => {
                        std::fs::write(self.root.images().join("cancelled"), "")?;
                        Err(ApiError::new(ErrorCode::Cancelled, "gone"))
                    }
                    _ = self.report(responder) => self.unpacked(&pull.reference),
                }
            }
            images::Request::Prepare { pull } if pull.reference.contains("missing") => {
                Err(ApiError::not_found("no such image"))
            }
            images::Request::Prepare { pull } => {
                self.report_once(responder).await?;
                self.unpacked(&pull.reference)
            }
            images::Request::DiskUsage { .. } => Reply::new(&images::DiskUsage {
                images: 2,
                blobs: 100,
                disks: 200,
                unreferenced: 30,
                unused: 40,
            }),
            images::Request::FormatVolume(_) => Reply::done(),
            images::Request::EmptyUpper => Reply::new(&self.root.images().join("empty.img")),
            images::Request::Delete { in_use, .. } => {
                Reply::new(&Removed { kept_in_use: in_use, ..Removed::default() })
            }
            images::Request::Save { .. } => {
                for fd in fds {
                    File::from(fd).write_all(b"archive")?;
                }
                Reply::done()
            }
            images::Request::Shutdown => std::process::exit(0),
            _ => Err(ApiError::new(ErrorCode::Unsupported, "the fake can't")),
        }
    }
}

impl Images {
    async fn report_once(&self, responder: &Responder) -> container_api::Result<()> {
        let progress = Progress {
            description: "Fetching image".into(),
            done: 1,
            total: Some(2),
            items: 0,
            total_items: None,
        };
        responder.progress(&progress).await
    }

    async fn report(&self, responder: &Responder) {
        for _ in 0..600 {
            let _ = self.report_once(responder).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn unpacked(&self, reference: &str) -> container_api::Result<Reply> {
        Reply::new(&Unpacked {
            reference: format!("docker.io/library/{reference}:latest"),
            descriptor: Descriptor {
                media_type: "application/vnd.oci.image.index.v1+json".into(),
                digest: format!("sha256:{reference}"),
                size: 1,
            },
            manifest_digest: format!("sha256:manifest-{reference}"),
            platform: Platform::host(),
            disk: self.root.images().join("x.erofs"),
            config: ImageConfig { cmd: vec!["/bin/sh".into()], ..ImageConfig::default() },
        })
    }
}
