//! `container-runtime-linux template`, and what is restored from one.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use container_api::paths::{container_files, template_files as names};
use container_api::ram;
use container_api::runtime::{TemplateFiles, TemplateManifest, VmSpec};
use container_api::types::Timestamp;

use crate::control;

/// What the RAM of every template holds, and where.
const CONTENT: (&[u8], u64) = (b"guest", 1 << 20);

/// The lock that says that a process works in `directory`.
pub fn lock(directory: &Path) -> Result<File> {
    let mut lock = File::create(directory.join(container_files::RUNTIME_LOCK))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .context("another helper")?;
    writeln!(lock, "{}", std::process::id())?;
    Ok(lock)
}

pub fn spec(directory: &Path) -> Result<VmSpec> {
    Ok(serde_json::from_slice(&std::fs::read(directory.join(container_files::VM_SPEC))?)?)
}

/// Makes a template: `fake-template` may say `fail` or `hang`.
pub fn make(directory: &Path) -> Result<()> {
    let _lock = lock(directory)?;
    let spec = spec(directory)?;
    ensure!(spec.template.is_none() && spec.image_disk.ends_with("warm.erofs"));
    let log = std::env::current_exe()?.with_file_name("../made");
    let mut made = OpenOptions::new().append(true).create(true).open(log)?;
    writeln!(made, "{} {}", spec.resources.memory_in_bytes >> 20, std::process::id())?;
    let ram_file =
        File::options().read(true).write(true).create_new(true).open(directory.join(names::RAM))?;
    ram_file.set_len(spec.resources.memory_in_bytes)?;
    ram_file.write_all_at(CONTENT.0, CONTENT.1)?;
    match control("template").as_str() {
        "fail" => bail!("no luck\u{1b}"),
        "hang" => std::thread::sleep(Duration::from_secs(600)),
        _ => std::thread::sleep(Duration::from_millis(50)),
    }
    std::fs::write(directory.join(names::STATE), "state")?;
    let manifest = TemplateManifest {
        ram_len: spec.resources.memory_in_bytes,
        ram_digest: ram::digest(&ram_file)?.0,
        state_digest: ram::sha256(b"state"),
        created_date: Timestamp::now(),
    };
    std::fs::write(directory.join(names::MANIFEST), serde_json::to_vec(&manifest)?)?;
    std::fs::remove_file(&spec.upper_disk)?;
    Ok(())
}

/// Checks that a VM can be restored: RAM and state are a template's.
pub fn restore(spec: &VmSpec, files: &TemplateFiles) -> Result<()> {
    let ram = File::open(&files.ram)?;
    let mut found = [0; CONTENT.0.len()];
    ram.read_exact_at(&mut found, CONTENT.1)?;
    ensure!(found == CONTENT.0, "the RAM is not a template's");
    ensure!(ram.metadata()?.len() == spec.resources.memory_in_bytes);
    ensure!(std::fs::read(&files.state)? == b"state");
    Ok(())
}
