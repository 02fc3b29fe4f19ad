//! The disks that a VM gets while it runs: those of a container when a spare becomes its own, and
//! block volumes.
//!
//! The image's descriptor must come from a read-only mount, which only the jailer makes. It makes
//! one of the whole directory of images ahead, so that none has to be made while somebody waits.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use container_api::runtime::VmSpec;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::hypervisor::{Disk, Jail, Vm, open_shared};
use crate::{vm, volumes};

/// Where images are, on a mount that nobody can write to.
#[derive(Debug)]
pub struct Images {
    directory: PathBuf,
    mount: OwnedFd,
}

impl Images {
    /// Has the jailer mount a directory.
    ///
    /// # Errors
    /// When it can't.
    pub async fn mount(jail: &Jail, directory: &Path) -> Result<Images> {
        let mount = open_shared(jail, directory).await?;
        Ok(Images::on(directory, mount))
    }

    /// Those in `directory`, of which `mount` is a descriptor.
    pub fn on(directory: &Path, mount: OwnedFd) -> Images {
        Images { directory: directory.to_owned(), mount }
    }

    /// Opens an image; `None` when it is elsewhere.
    fn open(&self, path: &Path) -> Option<OwnedFd> {
        let below = path.strip_prefix(&self.directory).ok()?;
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        openat2(&self.mount, below, how).ok()
    }
}

/// A container's disks.
#[derive(Debug)]
pub struct Disks {
    own: Option<Own>,
    volumes: Vec<(Disk, OwnedFd)>,
}

#[derive(Debug)]
struct Own {
    image: Option<OwnedFd>,
    image_path: PathBuf,
    upper: OwnedFd,
    jail: Jail,
}

impl Disks {
    /// Opens what a specification names.
    ///
    /// # Errors
    /// When a writable disk can't be opened, or a volume is in use.
    pub fn open(spec: &VmSpec, images: Option<&Images>, jail: Jail) -> Result<Disks> {
        let own = Own {
            image: images.and_then(|images| images.open(&spec.image_disk)),
            image_path: spec.image_disk.clone(),
            upper: vm::writable_disk(spec)?,
            jail,
        };
        Ok(Disks { own: Some(own), volumes: volumes::open_slots(spec)? })
    }

    /// Of a VM that begins with its own: the volumes that are to be behind its slots, if any.
    ///
    /// # Errors
    /// When one can't be opened or is in use.
    pub fn of_volumes(spec: &VmSpec) -> Result<Option<Disks>> {
        let volumes = volumes::open_slots(spec)?;
        Ok((!volumes.is_empty()).then_some(Disks { own: None, volumes }))
    }

    /// The disks of a VM that these are to be behind.
    pub fn places(&self) -> Vec<Disk> {
        let own = self.own.iter().flat_map(|_| Disk::OWN);
        own.chain(self.volumes.iter().map(|(disk, _)| *disk)).collect()
    }

    /// Puts them behind a VM's, all at once. What was there before stays open until
    /// [`Vm::release_swapped`].
    ///
    /// # Errors
    /// Those of the jailer and the VM.
    pub async fn swap<V: Vm>(self, vm: &V) -> Result<()> {
        let mut files = Vec::new();
        if let Some(Own { image, image_path, upper, jail }) = self.own {
            let image = match image {
                Some(image) => image,
                None => open_shared(&jail, &image_path).await.context("the image")?,
            };
            files.extend([(Disk::Image, Some(image)), (Disk::Upper, Some(upper))]);
        }
        files.extend(self.volumes.into_iter().map(|(disk, file)| (disk, Some(file))));
        Ok(vm.swap_disks(files).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn an_image_is_opened_below_its_directory_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::create_dir(path.join("disks")).unwrap();
        std::fs::write(path.join("disks/a"), "a").unwrap();
        std::fs::write(path.join("outside"), "b").unwrap();
        std::os::unix::fs::symlink("../outside", path.join("disks/link")).unwrap();
        let disks = path.join("disks");
        let images = Images::on(&disks, File::open(&disks).unwrap().into());
        assert!(images.open(&disks.join("a")).is_some());
        for refused in ["disks/link", "disks/../outside", "disks/none", "outside"] {
            assert!(images.open(&path.join(refused)).is_none(), "{refused}");
        }
    }
}
