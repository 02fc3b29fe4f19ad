//! `make install`: everything into a PREFIX, and out again.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::args::Args;
use crate::build;
use crate::workspace::{Workspace, make_dir, output, remove_dir, run, step};

/// Where to.
pub struct Options {
    prefix: PathBuf,
    destdir: PathBuf,
}

impl Options {
    /// Everything for `prefix`, written below `destdir`.
    pub fn new(prefix: &str, destdir: &Path) -> Self {
        Self { prefix: prefix.into(), destdir: destdir.to_owned() }
    }

    /// `--prefix DIR [--destdir DIR]`.
    pub fn parse(mut args: Args) -> Result<Self> {
        let prefix = PathBuf::from(args.required("--prefix")?);
        let destdir = PathBuf::from(args.value("--destdir")?.unwrap_or_default());
        args.finish()?;
        ensure!(prefix.is_absolute(), "PREFIX must be an absolute path");
        Ok(Self { prefix, destdir })
    }

    /// The prefix below the destination directory.
    fn staged(&self) -> PathBuf {
        if self.destdir.as_os_str().is_empty() {
            return self.prefix.clone();
        }
        self.destdir.join(self.prefix.strip_prefix("/").unwrap_or(&self.prefix))
    }
}

/// The units, with `@PREFIX@` to be replaced, and where each goes below the prefix.
const UNITS: &[(&str, &str)] = &[
    ("system/container.service", include_str!("../../packaging/systemd/system.service.in")),
    ("system/container.socket", include_str!("../../packaging/systemd/system.socket.in")),
    ("user/container.service", include_str!("../../packaging/systemd/user.service.in")),
    ("user/container.socket", include_str!("../../packaging/systemd/user.socket.in")),
];

/// Installs binaries, kernel, units, man pages and completions.
pub fn install(workspace: &Workspace, options: &Options) -> Result<()> {
    build::all(workspace, ())?;
    let staged = options.staged();
    step(format!("installing into {}", staged.display()));
    binaries(workspace, &staged)?;
    let prefix = options.prefix.to_string_lossy();
    for (name, text) in UNITS {
        let path = staged.join("lib/systemd").join(name);
        write(&path, &text.replace("@PREFIX@", &prefix))?;
    }
    write(
        &staged.join("share/doc/container/README.md"),
        &std::fs::read_to_string(workspace.root.join("README.md")).context("read README.md")?,
    )?;
    documents(workspace, &staged)?;
    apparmor(workspace, options)
}

/// The binaries and the kernel bundle alone.
pub fn binaries(workspace: &Workspace, prefix: &Path) -> Result<()> {
    let release = workspace.release();
    copy(&release.join(build::COMMAND), &prefix.join("bin").join(build::COMMAND), 0o755)?;
    for helper in build::HELPERS.iter().chain([&build::GUEST, &build::PROBE]) {
        copy(&release.join(helper), &prefix.join("libexec/container").join(helper), 0o755)?;
    }
    let (_, plugin) = build::PLUGIN;
    copy(&release.join(plugin), &prefix.join("libexec/container").join(plugin), 0o755)?;
    let bundle = prefix.join("share/container/kernel");
    remove_dir(&bundle)?;
    copy_folder(&workspace.bundle(), &bundle)
}

/// Takes away what [`install`] put there.
pub fn uninstall(_: &Workspace, options: &Options) -> Result<()> {
    let staged = options.staged();
    let remove = |path: PathBuf| match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    };
    remove(staged.join("bin").join(build::COMMAND))?;
    for folder in ["libexec/container", "share/container", "share/doc/container"] {
        remove_dir(&staged.join(folder))?;
    }
    for (name, _) in UNITS {
        remove(staged.join("lib/systemd").join(name))?;
    }
    for completion in COMPLETIONS {
        remove(staged.join(completion))?;
    }
    for entry in std::fs::read_dir(staged.join("share/man/man1")).into_iter().flatten() {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name == "container.1" || name.starts_with("container-") {
            remove(path)?;
        }
    }
    Ok(())
}

/// Where the shells look for completions, below the prefix.
const COMPLETIONS: &[&str] = &[
    "share/bash-completion/completions/container",
    "share/zsh/site-functions/_container",
    "share/fish/vendor_completions.d/container.fish",
];

/// Man pages and completions, which the command's own parser describes.
fn documents(workspace: &Workspace, staged: &Path) -> Result<()> {
    step("man pages and completions");
    run(workspace
        .cargo()
        .args(["run", "--quiet", "--package", "xtask", "--features", "documents", "--"])
        .arg("documents")
        .arg(staged))
}

/// Ubuntu's profile for those who make namespaces, when this installation is for this machine.
fn apparmor(workspace: &Workspace, options: &Options) -> Result<()> {
    let switch = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
    let restricted = std::fs::read_to_string(switch).is_ok_and(|value| value.trim() == "1");
    if !restricted || !options.destdir.as_os_str().is_empty() {
        return Ok(());
    }
    let script = workspace.root.join("packaging/apparmor/install.sh");
    let check = Command::new(&script).arg("--check").arg(&options.prefix).status();
    if check.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    let is_root = output(Command::new("id").arg("-u"))?.trim() == "0";
    let mut install = if is_root { Command::new(&script) } else { Command::new("sudo") };
    if !is_root {
        install.arg(&script);
    }
    step(format!(
        "this system restricts user namespaces: installing an AppArmor profile for container{}",
        if is_root { "" } else { ", with sudo" }
    ));
    run(install.arg(&options.prefix))
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    make_dir(to)?;
    for entry in std::fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            copy(&entry.path(), &target, 0o644)?;
        }
    }
    Ok(())
}

/// Copies by way of a new file, so that a running program keeps the old one.
fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    make_dir(to.parent().context("a file without a folder")?)?;
    let fresh =
        to.with_file_name(format!(".{}.new", to.file_name().unwrap_or_default().to_string_lossy()));
    // Disks are as long as all disks and mostly holes.
    run(Command::new("cp").arg("--sparse=always").arg(from).arg(&fresh))?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("set the mode of {}", fresh.display()))?;
    std::fs::rename(&fresh, to).with_context(|| format!("rename to {}", to.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    make_dir(path.parent().context("a file without a folder")?)?;
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
