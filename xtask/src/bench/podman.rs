//! The peer of a start: Debian's podman with runc, as root, with an installation of its own below
//! the target directory.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::stamp::{Stamp, file_digest};
use crate::workspace::{Workspace, make_dir, run, step};

/// What the figures call it.
pub const NAME: &str = "podman run --rm";

/// What only this benchmark needs.
const PACKAGES: &[&str] = &["podman", "runc", "netavark", "aardvark-dns", "iptables"];

/// Limits that a container may have on any machine: podman's own ask for more than some allow.
const CONFIG: &str = "\
[containers]
default_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]
";

/// A podman that is ready.
pub struct Podman {
    folder: PathBuf,
}

impl Podman {
    /// Installs it when it is missing, saying so, and imports nothing yet.
    pub fn prepare(workspace: &Workspace) -> Result<Self> {
        if !e2e::processes::is_root() {
            bail!("podman is measured with its default network, as root: run this as root");
        }
        let there = |program: &str| {
            let quiet = || Stdio::null();
            let mut command = Command::new(program);
            command.arg("--version").stdout(quiet()).stderr(quiet());
            command.status().is_ok_and(|status| status.success())
        };
        if !(there("podman") && there("runc")) {
            step(format!("this benchmark's peer is missing: installing {}", PACKAGES.join(" ")));
            run(Command::new("apt-get").args(["update", "-q"]))?;
            run(Command::new("apt-get")
                .args(["install", "-q", "-y", "--no-install-recommends"])
                .args(PACKAGES)
                .env("DEBIAN_FRONTEND", "noninteractive"))?;
        }
        let folder = workspace.target.join("bench/podman");
        make_dir(&folder)?;
        std::fs::write(folder.join("containers.conf"), CONFIG).context("write containers.conf")?;
        Ok(Self { folder })
    }

    /// Imports the root file system in `tar` as the image `name`, once.
    pub fn import(&self, tar: &Path, name: &str) -> Result<()> {
        let stamp =
            Stamp::new(self.folder.join(format!("{name}.stamp"))).word("tar", &file_digest(tar)?);
        if stamp.is_current() {
            return Ok(());
        }
        run(self.command(&["import", "--quiet"]).arg(tar).arg(format!("{name}:latest")))?;
        stamp.write()
    }

    /// `podman ARGS…`.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("podman");
        for option in ["root", "runroot", "tmpdir"] {
            command.arg(format!("--{option}")).arg(self.folder.join(option));
        }
        command.args(["--runtime", "runc"]).args(args);
        command.env("CONTAINERS_CONF", self.folder.join("containers.conf"));
        command
    }
}
