//! The guest kernel: the distribution's own kernel package, downloaded without
//! installing it, made into a bundle by `container-images`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::{self, Apt};
use crate::build;
use crate::stamp::Stamp;
use crate::workspace::{ARCH, Workspace, make_dir, remove_dir, run, step};

/// The packages that bring a kernel for virtual machines, best first: Debian's cloud
/// kernel, Ubuntu's virtual one. What they depend on holds the files.
fn package_names() -> Vec<String> {
    let debian = if ARCH == "aarch64" { "arm64" } else { "amd64" };
    vec![format!("linux-image-cloud-{debian}"), "linux-image-virtual".to_owned()]
}

/// A kernel package that was downloaded.
pub struct Packages {
    /// The package files: kernel and modules may come in several.
    pub files: Vec<PathBuf>,
}

/// Makes the bundle of the build tree, or leaves it when nothing changed.
pub fn bundle(workspace: &Workspace, (): ()) -> Result<PathBuf> {
    let packages = of_the_machine(workspace)?;
    let init = build::guest(workspace, ())?;
    let images = workspace.release().join("container-images");
    if !images.exists() {
        build::host(workspace)?;
    }
    let bundle = workspace.bundle();
    packages.make_bundle(&images, &init, &bundle)?;
    Ok(bundle)
}

/// The kernel package of the machine's own sources.
pub fn of_the_machine(workspace: &Workspace) -> Result<Packages> {
    Packages::download(&Apt::of_the_machine(), &workspace.target.join("kernel"))
}

/// Makes a bundle of a kernel file that needs no modules, unless it is there already.
pub fn bundle_of_binary(images: &Path, binary: &Path, init: &Path, bundle: &Path) -> Result<()> {
    let stamp = Stamp::new(bundle.with_extension("stamp"))
        .file("images", images)?
        .file("kernel", binary)?
        .file("init", init)?;
    if bundle.join("bundle.json").exists() && stamp.is_current() {
        return Ok(());
    }
    let mut command = Command::new(images);
    command.args(["kernel-bundle", "--output"]).arg(bundle).arg("--binary").arg(binary);
    run(command.arg("--init").arg(init))?;
    stamp.write()
}

impl Packages {
    /// Downloads the newest kernel package of `apt` into `folder`. One that is there is
    /// kept: a newer package in the archive alone does not make a build slow.
    pub fn download(apt: &Apt, folder: &Path) -> Result<Self> {
        let complete = folder.join("complete");
        let packages = folder.join("packages");
        if complete.exists() {
            let mut files: Vec<PathBuf> = std::fs::read_dir(&packages)
                .with_context(|| format!("read {}", packages.display()))?
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<_, _>>()?;
            files.sort();
            return Ok(Self { files });
        }
        step("guest kernel: downloading the distribution's package (it is not installed)");
        let package =
            package_names().into_iter().find(|name| apt.candidate(name).is_ok()).context(
                "the package sources have no kernel for virtual machines; run apt-get update",
            )?;
        let mut names = apt.closure(&package, |name| {
            name.starts_with("linux-image-") || name.starts_with("linux-modules-")
        })?;
        // The first only depends on the others.
        if names.len() > 1 {
            names.remove(0);
        }
        let mut files = apt.download(&names, &packages)?;
        files.sort();
        std::fs::write(&complete, names.join("\n")).context("note the kernel package")?;
        Ok(Self { files })
    }

    /// Makes a bundle, unless it is there already. When only the guest's init changed,
    /// its initramfs alone is made again.
    pub fn make_bundle(&self, images: &Path, init: &Path, bundle: &Path) -> Result<()> {
        let mut kernel =
            Stamp::new(bundle.with_extension("kernel-stamp")).file("images", images)?;
        for file in &self.files {
            kernel = kernel.word("package", &file.to_string_lossy());
        }
        let initramfs = Stamp::new(bundle.with_extension("init-stamp")).file("init", init)?;
        let there = bundle.join("bundle.json").exists() && kernel.is_current();
        if there && initramfs.is_current() {
            return Ok(());
        }
        let mut command = Command::new(images);
        if there {
            step("guest kernel: initramfs with the new guest init");
            command.args(["kernel-initramfs", "--bundle"]).arg(bundle);
        } else {
            step("guest kernel: bundle");
            make_dir(bundle.parent().context("a bundle without a folder")?)?;
            command.args(["kernel-bundle", "--output"]).arg(bundle);
            for file in &self.files {
                command.arg("--deb").arg(file);
            }
        }
        run(command.arg("--init").arg(init))?;
        kernel.write()?;
        initramfs.write()
    }

    /// Unpacks the packages below `root`, once.
    pub fn unpack(&self, root: &Path) -> Result<()> {
        if root.exists() {
            return Ok(());
        }
        let fresh = root.with_extension("new");
        remove_dir(&fresh)?;
        apt::unpack(&self.files, &fresh)?;
        std::fs::rename(&fresh, root).context("rename the unpacked kernel")
    }
}
