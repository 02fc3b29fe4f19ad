//! Which guest kernel a container boots.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use container_api::escape::escape;
use container_api::images::{
    BUNDLE_INITRAMFS, BUNDLE_KERNEL, BUNDLE_KVM_INITRAMFS, BUNDLE_WARM_IMAGE, KernelBundle,
};
use container_api::paths::{self, AppRoot};
use container_api::{ApiError, ErrorCode, Result};
use tokio::process::Command;

/// What to do when there is no kernel.
const ADVICE: &str = "run 'container system kernel set --recommended'";

/// For unpacking a kernel and writing an initramfs.
const BUNDLE_DEADLINE: Duration = Duration::from_secs(60);

/// A bundle that is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its directory.
    pub directory: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// The image of the throwaway container; a bundle of an earlier version has none.
    pub warm_image: PathBuf,
    /// `uname -r`, when the bundle says so.
    pub version: Option<String>,
    /// Whether it has KVM.
    pub virtualization: bool,
}

/// The container's own kernel, else the configured one, else what `kernel set` installed, else the
/// prepared one beside the programs.
pub fn choose(root: &AppRoot, own: Option<&Path>, configured: Option<&Path>) -> Result<Kernel> {
    match own {
        Some(path) => read(path).map_err(|e| e.context("--kernel")),
        None => read(&root.kernel(configured)?),
    }
}

fn read(directory: &Path) -> Result<Kernel> {
    // The links on the way may be changed under a running container.
    let directory = std::fs::canonicalize(directory).map_err(|_| {
        let message = format!("no kernel at {}: {ADVICE}", directory.display());
        ApiError::new(ErrorCode::Unavailable, message)
    })?;
    let mut found = Kernel::at(&directory);
    for file in [&found.kernel, &found.initramfs] {
        if !file.metadata().is_ok_and(|found| found.is_file() && found.len() > 0) {
            let message = format!("the kernel has no {}: {ADVICE}", file.display());
            return Err(ApiError::new(ErrorCode::Unavailable, message));
        }
    }
    if let Ok(bundle) = KernelBundle::read(&directory) {
        found.virtualization = bundle.virtualization;
        found.version = Some(bundle.version);
    }
    Ok(found)
}

impl Kernel {
    /// The bundle in `directory`, which is not looked at.
    pub fn at(directory: &Path) -> Kernel {
        Kernel {
            directory: directory.to_owned(),
            kernel: directory.join(BUNDLE_KERNEL),
            initramfs: directory.join(BUNDLE_INITRAMFS),
            warm_image: directory.join(BUNDLE_WARM_IMAGE),
            version: None,
            virtualization: false,
        }
    }

    /// The same for a VM in which VMs are run: with KVM's modules, where KVM is not built in.
    pub fn with_kvm(self) -> Kernel {
        let initramfs = self.directory.join(BUNDLE_KVM_INITRAMFS);
        match initramfs.exists() {
            true => Kernel { initramfs, ..self },
            false => self,
        }
    }
}

/// Makes a bundle in `target` of a kernel file that needs no modules.
pub async fn bundle(file: &Path, target: &Path) -> Result<()> {
    let source = file.file_name().unwrap_or_default();
    let mut command = Command::new(paths::program("container-images")?);
    command.arg("kernel-bundle").arg("--output").arg(target);
    command.arg("--init").arg(paths::program("vminitd")?);
    command.arg("--binary").arg(file).arg("--source").arg(source);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let failed = |why: &str| {
        let message = format!("--kernel {}: {}", file.display(), escape(why));
        ApiError::new(ErrorCode::InvalidData, message)
    };
    let output = tokio::time::timeout(BUNDLE_DEADLINE, command.output())
        .await
        .map_err(|_| failed("making a bundle of it took too long"))??;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let line = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    Err(failed(line.strip_prefix("error: ").unwrap_or(line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_must_be_whole() {
        let directory = tempfile::tempdir().unwrap();
        let root = AppRoot::resolve(Some(directory.path())).unwrap();
        let bundle = directory.path().join("bundle");
        let missing = choose(&root, None, Some(&bundle)).unwrap_err();
        assert_eq!(missing.code, ErrorCode::Unavailable);
        assert!(missing.message.contains("kernel set --recommended"));
        std::fs::create_dir(&bundle).unwrap();
        std::fs::write(bundle.join(BUNDLE_KERNEL), "k").unwrap();
        std::fs::write(bundle.join(BUNDLE_INITRAMFS), "").unwrap();
        assert!(choose(&root, Some(&bundle), None).unwrap_err().message.contains("initramfs"));
        std::fs::write(bundle.join(BUNDLE_INITRAMFS), "i").unwrap();
        let kernel = choose(&root, Some(&bundle), None).unwrap();
        assert_eq!((kernel.directory.as_path(), kernel.version), (bundle.as_path(), None));
        std::fs::create_dir(root.kernels()).unwrap();
        std::os::unix::fs::symlink(&bundle, root.kernels().join("current")).unwrap();
        choose(&root, None, None).unwrap();
    }
}
