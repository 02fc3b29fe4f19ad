//! A container's limits within the shape of its VM: a cgroup in the guest keeps the container to
//! them, and the balloon keeps the VM's memory from the host's view to little more.

use std::time::{Duration, Instant};

use container_api::types::Resources;
use container_api::{ApiError, ErrorCode};
use vminitd_protocol::REQUEST_TIMEOUT;
use vminitd_protocol::message::{Call, Limits, LoadDrivers, Ping, Reply, StatsRequest, Update};

use crate::container::Container;
use crate::exit;

/// The least memory limit in bytes: enough for a small static program.
const MIN_MEMORY: u64 = 6 << 20;
/// Memory in bytes that a guest has beyond its container's limit: kernel, init, page cache. A part
/// of the shape's RAM comes on top for the kernel's list of pages.
const GUEST_MEMORY: u64 = 64 << 20;
const PAGE_LIST_PART: u64 = 64;

/// What the guest enforces: nothing where the VM's shape does.
pub fn for_guest(limits: Resources, shape: Resources, pids: Option<u64>) -> Limits {
    let memory = limits.memory_in_bytes;
    Limits {
        memory_bytes: if memory < shape.memory_in_bytes { memory } else { 0 },
        cpu_milli: if limits.cpus < shape.cpus { u64::from(limits.cpus) * 1000 } else { 0 },
        pids: pids.unwrap_or(0),
    }
}

/// How much of the VM's RAM its guest may have, in bytes.
fn guest_memory(limits: Resources, shape: Resources) -> u64 {
    let all = shape.memory_in_bytes;
    if limits.memory_in_bytes >= all {
        return all;
    }
    all.min(limits.memory_in_bytes + GUEST_MEMORY + all / PAGE_LIST_PART)
}

/// Checks limits against the shape.
///
/// # Errors
/// `InvalidArgument` with what the shape allows.
pub fn check(limits: Resources, shape: Resources) -> Result<(), ApiError> {
    if limits.cpus == 0 || limits.cpus > shape.cpus {
        let (wanted, max) = (limits.cpus, shape.cpus);
        return Err(ApiError::invalid(format!(
            "{wanted} CPUs: the container's VM was started with {max}, so 1 to {max} are possible until it is started anew"
        )));
    }
    let (wanted, max) = (limits.memory_in_bytes, shape.memory_in_bytes);
    if wanted < MIN_MEMORY || wanted > max {
        return Err(ApiError::invalid(format!(
            "{} MiB of memory: the container's VM was started with {} MiB, so {} to {} MiB are possible until it is started anew",
            wanted >> 20,
            max >> 20,
            MIN_MEMORY >> 20,
            max >> 20
        )));
    }
    Ok(())
}

/// Loads the drivers that a boot leaves out; again is nothing.
///
/// # Errors
/// Those of the guest.
pub async fn load_drivers(container: &Container) -> Result<(), ApiError> {
    let guest = container.guest()?;
    let virtualization = container.spec.virtualization;
    let call = Call::LoadDrivers(LoadDrivers { virtualization });
    guest.control.command(call, REQUEST_TIMEOUT).await.map_err(exit::api_error)
}

/// Has the balloon hold the VM to the limits in force, when they are less than its shape.
///
/// # Errors
/// When the VM refuses.
pub async fn hold(container: &Container) -> Result<(), ApiError> {
    let _turn = container.updating.lock().await;
    let (limits, shape) = (container.resources(), container.spec.resources);
    match guest_memory(limits, shape) {
        bytes if bytes < shape.memory_in_bytes => container.port.balloon(bytes).await,
        _ => Ok(()),
    }
}

/// Changes the limits of a running container.
///
/// # Errors
/// `InvalidArgument` beyond the shape, `ResourceExhausted` below what the container holds; nothing
/// has changed then.
pub async fn update(container: &Container, wanted: Resources) -> Result<(), ApiError> {
    let shape = container.spec.resources;
    check(wanted, shape)?;
    let _turn = container.updating.lock().await;
    let before = container.resources();
    let (old, new) = (guest_memory(before, shape), guest_memory(wanted, shape));
    if old != new {
        load_drivers(container).await?;
    }
    // The guest has the memory before its container may use it, and loses it after.
    if new > old {
        container.port.balloon(new).await?;
    }
    let limits = for_guest(wanted, shape, container.config.pids_limit);
    if let Err(error) = container.ask(Call::Update(Update { limits })).await {
        if new > old {
            let _ = container.port.balloon(old).await;
        }
        return Err(error);
    }
    container.limited(wanted);
    tracing::info!(target: "audit", cpus = wanted.cpus, memory = wanted.memory_in_bytes, "new limits");
    if new >= old {
        return Ok(());
    }
    container.port.balloon(new).await.map_err(|error| {
        let message = format!("the limit is in force, but the VM's memory stays: {error}");
        ApiError::new(ErrorCode::Internal, message)
    })
}

/// Longest that the balloon may go on before it is let go again.
const RECLAIM_LIMIT: Duration = Duration::from_secs(20);
const RECLAIM_STEP: Duration = Duration::from_millis(100);
/// A balloon that has moved by less than [`MOVED`] bytes for so long has what it can get. A guest
/// that drops its cache on a busy host stands still for a while before it goes on.
const STANDSTILL: Duration = Duration::from_secs(2);
const MOVED: u64 = 2 << 20;

/// Has the guest give back what it can do without: the balloon takes all but what the container
/// holds and some room to grow, which drops page cache, and gives it back at once. The pages that
/// are free then are reported to the host.
///
/// # Errors
/// When the VM or its guest refuses.
pub async fn reclaim(container: &Container) -> Result<(), ApiError> {
    let _turn = container.updating.lock().await;
    let shape = container.spec.resources;
    let allowed = guest_memory(container.resources(), shape);
    let Reply::Stats(stats) = container.ask(Call::Stats(StatsRequest {})).await? else {
        return Err(ApiError::new(ErrorCode::Disconnected, "the guest's answer makes no sense"));
    };
    let held = stats.memory_bytes.saturating_sub(stats.inactive_file_bytes);
    let target = kept(held, shape);
    if target >= allowed {
        return Ok(());
    }
    load_drivers(container).await?;
    container.port.balloon(target).await?;
    let waited = shrink(container, target).await;
    container.port.balloon(allowed).await?;
    let left = waited?;
    tracing::info!(target_mib = target >> 20, reached_mib = left >> 20, "memory was given back");
    Ok(())
}

/// Waits until the guest's memory is down to `target` bytes, or stands still; what it is then.
async fn shrink(container: &Container, target: u64) -> Result<u64, ApiError> {
    let begun = Instant::now();
    let (mut least, mut moved) = (memory(container).await?, begun);
    while least > target && begun.elapsed() < RECLAIM_LIMIT && moved.elapsed() < STANDSTILL {
        tokio::time::sleep(RECLAIM_STEP).await;
        let now = memory(container).await?;
        if least.saturating_sub(now) >= MOVED {
            (least, moved) = (now, Instant::now());
        }
    }
    Ok(least)
}

/// What a guest keeps whose container holds `held` bytes.
fn kept(held: u64, shape: Resources) -> u64 {
    held + held / 4 + GUEST_MEMORY + shape.memory_in_bytes / PAGE_LIST_PART
}

/// The guest's memory in bytes as its kernel counts it.
async fn memory(container: &Container) -> Result<u64, ApiError> {
    match container.ask(Call::Ping(Ping {})).await? {
        Reply::Pong(pong) => Ok(pong.memory_bytes),
        _ => Err(ApiError::new(ErrorCode::Disconnected, "the guest's answer makes no sense")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(cpus: u32, mib: u64) -> Resources {
        Resources { cpus, memory_in_bytes: mib << 20 }
    }

    #[test]
    fn the_shape_needs_no_limit() {
        let shape = resources(2, 1024);
        assert_eq!(for_guest(shape, shape, None), Limits::default());
        let less = for_guest(resources(1, 512), shape, Some(7));
        assert_eq!((less.memory_bytes, less.cpu_milli), (512 << 20, 1000));
        assert_eq!(guest_memory(shape, shape), 1024 << 20);
        assert_eq!(guest_memory(resources(2, 512), shape), (512 + 64 + 16) << 20);
        assert_eq!(guest_memory(resources(2, 1000), shape), 1024 << 20);
    }

    #[test]
    fn beyond_the_shape_is_refused_with_what_it_allows() {
        let shape = resources(2, 1024);
        assert!(check(resources(1, 6), shape).is_ok() && check(shape, shape).is_ok());
        for (wanted, word) in [
            (resources(3, 512), "1 to 2"),
            (resources(0, 512), "1 to 2"),
            (resources(2, 1025), "6 to 1024 MiB"),
            (resources(2, 1), "6 to 1024 MiB"),
        ] {
            let error = check(wanted, shape).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument);
            assert!(error.message.contains(word), "{error}");
        }
    }
}
