//! Making a template: the state of a VM in which everything is ready and nobody's program has run.
//!
//! ```text
//! boot ─► drivers ─► throwaway containers ─► memory given back ─► pause ─► state ─► VM ended
//!                                                                               ─► RAM, state, manifest
//! ```
//! The manifest is written last: a directory without it is no template.

use std::fs::{File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use container_api::paths::{container_files, template_files as names};
use container_api::ram;
use container_api::runtime::{TemplateManifest, VmSpec};
use container_api::types::Timestamp;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vminitd_protocol::REQUEST_TIMEOUT;
use vminitd_protocol::message::{Call, LoadDrivers, Ping, Reply};

use crate::boot::{self, Found, NotFound, Patience, Search, Way};
use crate::console::BootLog;
use crate::directory::{self, Log};
use crate::guest::{Guest, GuestError};
use crate::hypervisor::{Hypervisor, Jail, Qemu, Vm};
use crate::timeline::Timeline;
use crate::vm::{self, Blueprint};
use crate::{setup, throwaway};

/// For the boot: with the least priority on a busy host it takes long.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// For the balloon, each way.
const BALLOON_LIMIT: Duration = Duration::from_secs(120);
const BALLOON_STEP: Duration = Duration::from_millis(100);
/// A balloon that has not moved for so long moves no more.
const BALLOON_REST: Duration = Duration::from_secs(2);
/// What the guest keeps, in bytes, while the balloon takes the rest.
const KEPT_MEMORY: u64 = 128 << 20;
/// What the kernel may count differently after the balloon, in bytes.
const TOLERANCE: u64 = 1 << 20;

/// Makes the template that `vm.json` in `directory` describes. Blocks.
///
/// # Errors
/// When it can't be made; the directory has no manifest then.
pub fn make(directory: &Path) -> Result<()> {
    let directory = std::path::absolute(directory)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let _lock = directory::lock(&directory)?;
    Log::begin(&directory)?;
    give_way().context("lowering the priority")?;
    let spec: VmSpec = directory::read_json(&directory, container_files::VM_SPEC)?;
    let jail = vm::jail(spec.allow_missing.clone(), spec.jail_uid)?;
    let patience = Patience { boot: BOOT_LIMIT, ..Patience::default() };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(make_with(&Qemu, &directory, spec, jail, patience))
        .inspect_err(|error| tracing::error!(error = format!("{error:#}"), "no template"))
}

/// Everything else goes first, here and in all that is started from here.
fn give_way() -> Result<()> {
    use nix::libc;
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: both change scheduling parameters of this process alone; the pointer is valid.
    let done = unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 19) == 0
            && libc::sched_setscheduler(0, libc::SCHED_IDLE, &parameters) == 0
    };
    if done { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}

/// [`make`] with any hypervisor.
///
/// # Errors
/// As [`make`].
pub async fn make_with<H: Hypervisor>(
    hypervisor: &H,
    directory: &Path,
    spec: VmSpec,
    jail: Jail,
    patience: Patience,
) -> Result<()> {
    let upper_disk = spec.upper_disk.clone();
    let ram_len = spec.resources.memory_in_bytes;
    let virtualization = spec.virtualization;
    let memory = memfd_create("template", MFdFlags::MFD_CLOEXEC).context("making the RAM")?;
    let memory = File::from(memory);
    memory.set_len(ram_len).context("making the RAM")?;
    let blueprint = Blueprint::new(spec, jail, Some(memory.try_clone()?))?;
    let search = Search {
        hypervisor,
        blueprint: &blueprint,
        patience,
        boot_log: BootLog::create(directory),
        timeline: &Timeline::new(0),
        cancelled: async || std::future::pending().await,
        started: |_| {},
    };
    let found = search.find(Way::BootOnce).await.map_err(|not_found| match not_found {
        NotFound::Failed(record) => anyhow!(record.reason),
        NotFound::Cancelled => anyhow!("given up"),
    })?;
    let state = create(directory, names::STATE)?;
    let saved = save(found, ram_len, virtualization, state.try_clone()?.into()).await;
    let _ = std::fs::remove_file(upper_disk);
    saved?;
    write(directory, &memory, &state)
}

/// Warms the VM up, saves its state and ends it.
async fn save<V: Vm>(
    found: Found<V>,
    ram_len: u64,
    virtualization: bool,
    state: OwnedFd,
) -> Result<()> {
    let began = Instant::now();
    let Found { vm, guest, mut events, .. } = found;
    let all = async {
        let ask = |call| guest.control.command(call, REQUEST_TIMEOUT);
        ask(setup::set_up(&[])?).await?;
        let drivers = Call::LoadDrivers(LoadDrivers { virtualization });
        ask(drivers).await.context("loading the drivers")?;
        throwaway::run(&guest, &mut events, throwaway::Work::Usual, &[]).await?;
        give_memory_back(&vm, &guest, ram_len).await?;
        vm.pause().await?;
        vm.save(state).await.context("saving the state")
    };
    let saved = tokio::select! {
        saved = all => saved,
        exit = vm.ended() => Err(anyhow!("the VM ended: {exit}")),
    };
    boot::end(&vm).await;
    tracing::info!(ms = began.elapsed().as_millis() as u64, "warmed up and saved");
    saved
}

/// Leaves holes in the RAM where the guest has nothing: the balloon takes what is free and gives
/// it back.
async fn give_memory_back<V: Vm>(vm: &V, guest: &Guest, ram_len: u64) -> Result<()> {
    let drop_caches = setup::set_up(&[("vm.drop_caches", "3"), ("vm.compact_memory", "1")])?;
    guest.control.command(drop_caches, REQUEST_TIMEOUT).await.context("dropping the caches")?;
    let kept = KEPT_MEMORY.max(ram_len / 8);
    if kept >= ram_len {
        return Ok(());
    }
    let all = memory(guest).await?;
    vm.set_balloon(kept).await?;
    let began = Instant::now();
    let taken = until(guest, |memory| memory + (ram_len - kept) <= all + TOLERANCE).await?;
    tracing::info!(taken, ms = began.elapsed().as_millis() as u64, "the balloon has what is free");
    vm.set_balloon(ram_len).await?;
    if !until(guest, |memory| memory + TOLERANCE >= all).await? {
        bail!("the guest did not get its memory back from the balloon");
    }
    if !taken {
        tracing::warn!("the balloon did not get all memory that is free: the template is larger");
    }
    Ok(())
}

/// Waits until the guest's memory is as wanted; false when it does not get there.
async fn until(guest: &Guest, wanted: impl Fn(u64) -> bool) -> Result<bool, GuestError> {
    let end = Instant::now() + BALLOON_LIMIT;
    let (mut last, mut moved) = (0, Instant::now());
    while Instant::now() < end && moved.elapsed() < BALLOON_REST {
        let now = memory(guest).await?;
        if wanted(now) {
            return Ok(true);
        }
        if now.abs_diff(last) > TOLERANCE {
            (last, moved) = (now, Instant::now());
        }
        tokio::time::sleep(BALLOON_STEP).await;
    }
    Ok(false)
}

/// The guest's memory in bytes as its kernel counts it.
async fn memory(guest: &Guest) -> Result<u64, GuestError> {
    match guest.control.call(Call::Ping(Ping {}), REQUEST_TIMEOUT).await? {
        Reply::Pong(pong) => Ok(pong.memory_bytes),
        _ => Err(GuestError::Nonsense { call: "ping" }),
    }
}

fn create(directory: &Path, name: &str) -> Result<File> {
    let path = directory.join(name);
    let mut options = File::options();
    let file = options.create(true).read(true).write(true).truncate(true).mode(0o600).open(&path);
    file.with_context(|| format!("making {}", path.display()))
}

/// Nobody is to write to it any more.
fn finish(file: &File) -> std::io::Result<()> {
    file.set_permissions(Permissions::from_mode(0o444))?;
    file.sync_all()
}

/// Writes the files so that the manifest is there only with the others.
fn write(directory: &Path, memory: &File, state: &File) -> Result<()> {
    let began = Instant::now();
    let file = create(directory, names::RAM)?;
    let (ram_digest, bytes) = ram::copy_and_digest(memory, &file).context("writing the RAM")?;
    let state_bytes = std::fs::read(directory.join(names::STATE)).context("reading the state")?;
    for file in [&file, state] {
        finish(file).context("writing the template")?;
    }
    let manifest = TemplateManifest {
        ram_len: memory.metadata()?.len(),
        ram_digest,
        state_digest: ram::sha256(&state_bytes),
        created_date: Timestamp::now(),
    };
    let temporary = format!("{}.new", names::MANIFEST);
    let mut file = create(directory, &temporary)?;
    std::io::Write::write_all(&mut file, &serde_json::to_vec(&manifest)?)?;
    finish(&file)?;
    std::fs::rename(directory.join(temporary), directory.join(names::MANIFEST))?;
    File::open(directory)?.sync_all()?;
    let (mib, ms) = (bytes >> 20, began.elapsed().as_millis() as u64);
    tracing::info!(mib, state = state_bytes.len(), ms, "written");
    Ok(())
}
