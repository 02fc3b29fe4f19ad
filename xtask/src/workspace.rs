//! Where things lie, and how commands are run and shown.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The source tree and cargo's target directory.
pub struct Workspace {
    /// The folder of the workspace's `Cargo.toml`.
    pub root: PathBuf,
    /// Cargo's target directory, wherever the user put it.
    pub target: PathBuf,
    /// `cargo metadata`, without the packages of the registry.
    pub metadata: Value,
}

impl Workspace {
    /// Asks cargo.
    pub fn find() -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--no-deps"])
            .stderr(Stdio::inherit())
            .output()
            .context("run cargo metadata")?;
        if !output.status.success() {
            bail!("cargo metadata failed");
        }
        let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
        let path = |field: &str| {
            metadata[field].as_str().map(PathBuf::from).with_context(|| format!("no {field}"))
        };
        Ok(Self { root: path("workspace_root")?, target: path("target_directory")?, metadata })
    }

    /// The folder of the release binaries.
    pub fn release(&self) -> PathBuf {
        self.target.join("release")
    }

    /// The guest kernel bundle of the build tree, where the binaries look for it.
    pub fn bundle(&self) -> PathBuf {
        self.target.join("share/container/kernel")
    }

    /// A cargo command in this workspace.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root);
        command
    }
}

/// The name of this machine's architecture, as the kernel says it.
pub const ARCH: &str = std::env::consts::ARCH;

/// Prints what is done now.
pub fn step(what: impl AsRef<str>) {
    eprintln!("==> {}", what.as_ref());
}

/// Runs a command with the terminal's own input and output.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.status().with_context(|| format!("run {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

/// Runs a command and returns what it printed; its errors go to the terminal.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of {shown}"))
}

/// Makes a folder and those above it.
pub fn make_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))
}

/// Removes a folder with all in it, when there is one.
pub fn remove_dir(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}
