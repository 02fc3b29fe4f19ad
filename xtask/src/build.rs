//! The product's binaries: those of the host by a plain release build, the guest's
//! init as one static file.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::kernel;
use crate::workspace::{ARCH, Workspace, run, step};

/// The host's binaries, as they are installed: the command, then its helpers.
pub const COMMAND: &str = "container";
/// The programs that the command starts, never called by a person.
pub const HELPERS: &[&str] = &[
    "container-apiserver",
    "container-images",
    "container-network",
    "container-runtime-linux",
    "container-jailer",
    "container-fileserver",
];
/// The plugin that QEMU is given, and its file.
pub const PLUGIN: (&str, &str) = ("container-trim", "libcontainer_trim.so");
/// The guest's init.
pub const GUEST: &str = "vminitd";
/// The attacker of `system check`.
pub const PROBE: &str = "container-probe";

/// Everything that `make build` promises.
pub fn all(workspace: &Workspace, (): ()) -> Result<()> {
    host(workspace)?;
    probe(workspace)?;
    kernel::bundle(workspace, ())?;
    step(format!("built: {}", workspace.release().join(COMMAND).display()));
    Ok(())
}

/// The host's binaries.
pub fn host(workspace: &Workspace) -> Result<()> {
    step("host binaries");
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--release", "--package", COMMAND]);
    for helper in HELPERS.iter().chain([&PLUGIN.0]) {
        cargo.args(["--package", helper]);
    }
    run(&mut cargo)
}

/// The guest's init: alone in the initramfs; small, since each boot unpacks it and an
/// emulator translates what runs of it.
pub fn guest(workspace: &Workspace, (): ()) -> Result<PathBuf> {
    step("guest init");
    static_program(workspace, GUEST)
}

/// The attacker of `system check`: alone in its image and in its jail.
pub fn probe(workspace: &Workspace) -> Result<PathBuf> {
    step("probe");
    static_program(workspace, PROBE)
}

/// A program with the C library inside. `--target` keeps the flag away from build scripts
/// and macros.
fn static_program(workspace: &Workspace, package: &str) -> Result<PathBuf> {
    let target = format!("{ARCH}-unknown-linux-gnu");
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    run(workspace
        .cargo()
        .args(["build", "--release", "--package", package, "--target", &target])
        .env("RUSTFLAGS", format!("{flags} -C target-feature=+crt-static").trim_start())
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"))?;
    let built = workspace.target.join(target).join("release").join(package);
    let beside = workspace.release().join(package);
    replace_when_different(&built, &beside)?;
    Ok(beside)
}

/// Copies `from` over `to`, unless both hold the same: what was made from `to` stays valid.
fn replace_when_different(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let new = std::fs::read(from).with_context(|| format!("read {}", from.display()))?;
    if std::fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let fresh = to.with_extension("new");
    std::fs::copy(from, &fresh).with_context(|| format!("copy {}", from.display()))?;
    std::fs::rename(&fresh, to).with_context(|| format!("rename to {}", to.display()))
}
