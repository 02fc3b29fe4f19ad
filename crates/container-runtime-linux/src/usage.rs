//! What a container uses, in the guest and on the host.

use container_api::runtime::Usage;
use container_api::{ApiError, ErrorCode, memory};
use vminitd_protocol::message::{Call, Reply, StatsRequest};

use crate::container::Container;
use crate::port::Port;
use crate::state::State;

/// What the VM behind `port` and this helper cost the host; nothing of the guest.
///
/// # Errors
/// When the VM has gone.
pub async fn of_host(port: &Port) -> Result<Usage, ApiError> {
    let host = port.usage().await?;
    let own = memory::own(std::process::id() as i32)
        .map_err(|e| ApiError::internal(format!("reading /proc: {e}")))?;
    Ok(Usage {
        host_memory_bytes: host.memory_bytes + own,
        host_cpu_usec: u64::try_from(host.cpu_time.as_micros()).unwrap_or(u64::MAX),
        ..Usage::default()
    })
}

/// What a container uses.
///
/// # Errors
/// When the VM has gone or its guest does not answer.
pub async fn of_container(container: &Container) -> Result<Usage, ApiError> {
    let usage = Usage {
        memory_limit_bytes: container.resources().memory_in_bytes,
        ..of_host(&container.port).await?
    };
    if !matches!(container.state(), State::Running | State::Stopping) {
        return Ok(usage);
    }
    match container.ask(Call::Stats(StatsRequest {})).await? {
        Reply::Stats(stats) => Ok(Usage {
            pids: stats.pids,
            memory_bytes: stats.memory_bytes.saturating_sub(stats.inactive_file_bytes),
            cpu_usec: stats.cpu_usec,
            block_read_bytes: stats.block_read_bytes,
            block_written_bytes: stats.block_written_bytes,
            ..usage
        }),
        _ => Err(ApiError::new(ErrorCode::Disconnected, "the guest's answer makes no sense")),
    }
}
