//! Making templates in the background: one at a time, when no start is under way.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use container_api::escape::escape_bytes;
use container_api::paths::{self, container_files as files};
use container_api::{ApiError, Result};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::check::{self, Fault};
use super::disk::{self, Found, SHAPE};
use super::shape::Shape;
use crate::directory::{copy_disk, remove_tree, write_json};
use crate::engine::Engine;
use crate::helper::Helper;
use crate::kernel::Kernel;
use crate::pressure;

/// For one template: an emulated boot at low priority on a loaded host takes long.
const DEADLINE: Duration = Duration::from_secs(300);
/// How long no start must have been under way.
const QUIET: Duration = Duration::from_millis(100);
/// How long that is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How patient the check of templates is (`nice(2)`).
const CHECK_NICE: i32 = 19;
/// Most that is kept of what a maker says.
const MAX_WORDS: u64 = 16 << 10;
/// The maker ends itself when this service does.
const LEFT_OVER: Duration = Duration::from_secs(2);

/// Waits for a moment without starts, but not for ever.
async fn quiet(engine: &Engine) {
    let _ = timeout(PATIENCE, engine.quiet(QUIET)).await;
}

/// Makes what is wanted; never ends.
pub async fn run(engine: Arc<Engine>) {
    loop {
        engine.templates.wake.notified().await;
        loop {
            quiet(&engine).await;
            let Some((shape, kernel)) = engine.templates.next() else { break };
            let begun = Instant::now();
            tracing::info!(template = shape.key, resources = ?shape.resources, "a template is made");
            match make(&engine, &shape, &kernel).await {
                Ok(found) => {
                    tracing::info!(
                        template = shape.key,
                        took_ms = begun.elapsed().as_millis() as u64,
                        bytes = found.bytes,
                        "a template is ready"
                    );
                    engine.templates.made(found);
                    engine.spares.look();
                }
                Err(error) => {
                    tracing::warn!(template = shape.key, %error, "a template was not made");
                    engine.templates.failed(&shape, error.message);
                }
            }
        }
    }
}

async fn make(engine: &Arc<Engine>, shape: &Shape, kernel: &Kernel) -> Result<Found> {
    if let Some(short) = pressure::short_of_memory() {
        return Err(ApiError::internal(short));
    }
    let root = engine.templates.root().to_owned();
    let directory = disk::begin(&root, &shape.key)?;
    let done = async {
        make_in(engine, shape, kernel, &directory).await?;
        let path = directory.clone();
        let read = move || -> std::result::Result<Found, Fault> {
            let found = disk::read(&path)?;
            let checked = Some(check::check(&path, &found.manifest)?);
            Ok(Found { checked, ..found })
        };
        let found = at_low_priority(read).await?;
        let found = found.map_err(|fault| ApiError::internal(fault.to_string()))?;
        disk::commit(&root, &directory, &shape.key)?;
        Ok(found)
    };
    let done = done.await;
    if done.is_err()
        && let Err(error) = remove_tree(&directory)
    {
        tracing::warn!(path = %directory.display(), %error, "an unfinished template stays");
    }
    done
}

/// Does what reads a whole template.
async fn at_low_priority<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new().name("check".into()).spawn(move || {
        // Of this thread alone.
        if let Err(error) = rustix::process::nice(CHECK_NICE) {
            tracing::debug!(%error, "templates are checked at the usual priority");
        }
        let _ = done.send(work());
    })?;
    result.await.map_err(io::Error::other)
}

async fn make_in(
    engine: &Arc<Engine>,
    shape: &Shape,
    kernel: &Kernel,
    directory: &Path,
) -> Result<()> {
    let report = engine.probe.usable().await?;
    let uid = engine.jail_uids.take();
    let upper = directory.join(files::UPPER);
    let empty = engine.empty_upper().await?;
    copy_disk(&empty, &upper)?;
    let mut spec = engine.vm_spec(kernel, &report, shape.resources)?;
    spec.virtualization = shape.virtualization;
    spec.image_disk = kernel.warm_image.clone();
    spec.upper_disk = upper;
    spec.jail_uid = uid.get();
    write_json(directory, files::VM_SPEC, &spec)?;
    write_json(directory, SHAPE, shape)?;
    let mut command = Command::new(paths::program("container-runtime-linux")?);
    command.arg("template").arg(directory);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command.process_group(0);
    // SAFETY: prctl is async-signal-safe and touches no memory of ours.
    unsafe { command.pre_exec(end_with_parent) };
    let mut child = command.spawn()?;
    if let Some(pid) = child.id() {
        Helper::write_identity(directory, pid as i32)?;
    }
    let stderr = child.stderr.take();
    let work = async { tokio::join!(words(stderr), child.wait()) };
    let (said, status) = timeout(DEADLINE, work).await.map_err(|_| {
        ApiError::internal(format!("making it took more than {} s", DEADLINE.as_secs()))
    })?;
    let status = status?;
    if status.success() {
        return Ok(());
    }
    let line = said.trim_ascii().split(|b| *b == b'\n').next_back().unwrap_or_default();
    match line.is_empty() {
        true => Err(ApiError::internal(format!("its maker ended early ({status})"))),
        false => Err(ApiError::internal(escape_bytes(line))),
    }
}

/// A maker is of no use without the service that started it: nobody would take what it makes.
fn end_with_parent() -> io::Result<()> {
    use rustix::process::{Signal, set_parent_process_death_signal};
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

async fn words(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        let _ = (&mut stream).take(MAX_WORDS).read_to_end(&mut bytes).await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
    bytes
}

/// Makes known what lies on the disk; the answer is what was being made when a former service
/// ended.
pub fn begin(engine: &Arc<Engine>) -> Result<Vec<PathBuf>> {
    let scan = disk::scan(engine.templates.root())?;
    scan.found.into_iter().for_each(|found| engine.templates.add(found));
    Ok(scan.unfinished)
}

/// Removes what can't be used: unfinished and stale templates, and those that are damaged.
pub async fn check(engine: Arc<Engine>, unfinished: Vec<PathBuf>) {
    clear(unfinished).await;
    if let Ok(report) = engine.probe.usable().await {
        engine.templates.drop_stale(&report.template_identity);
    }
    quiet(&engine).await;
    let checker = engine.clone();
    if let Err(error) = at_low_priority(move || checker.templates.check_all()).await {
        tracing::warn!(%error, "templates are checked when they are used");
    }
    engine.spares.look();
}

/// Removes what is being made, when the service ends.
pub async fn give_up(engine: &Engine) {
    if let Ok(scan) = disk::scan(engine.templates.root()) {
        clear(scan.unfinished).await;
    }
}

/// Ends makers that a former service has left, and removes what they made.
async fn clear(unfinished: Vec<PathBuf>) {
    for directory in unfinished {
        if let Ok(Some(maker)) = Helper::find_in(&directory) {
            tracing::warn!(pid = maker.handle.identity().pid, "a maker of templates is ended");
            maker.handle.kill();
            let _ = timeout(LEFT_OVER, maker.handle.ended()).await;
        }
        if let Err(error) = remove_tree(&directory) {
            tracing::warn!(path = %directory.display(), %error, "an unfinished template stays");
        }
    }
}
