//! What this host can run VMs with: asked of `container-runtime-linux probe` once, at the start.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use container_api::config::{RuntimeConfig, SecurityConfig};
use container_api::escape::escape_bytes;
use container_api::runtime::ProbeReport;
use container_api::{ApiError, ErrorCode, Result, paths};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::timeout;

/// The probe starts QEMU a few times and proves KVM; a loaded host takes seconds for that.
const DEADLINE: Duration = Duration::from_secs(60);
/// Longest report in bytes.
const MAX_REPORT: u64 = 1 << 20;

/// The report, once it is there.
#[derive(Debug)]
pub struct Probe {
    report: watch::Sender<Option<Result<Arc<ProbeReport>>>>,
}

impl Default for Probe {
    fn default() -> Self {
        Probe { report: watch::Sender::new(None) }
    }
}

impl Probe {
    /// Asks, and keeps the answer.
    pub async fn run(&self, runtime: &RuntimeConfig, security: &SecurityConfig) {
        let answer = ask(runtime, security).await;
        match &answer {
            Ok(report) => tracing::info!(
                accelerator = %report.accelerator,
                reason = report.accelerator_reason,
                hypervisor = report.hypervisor_version,
                problem = report.problem,
                "this host was probed"
            ),
            Err(error) => tracing::error!(%error, "this host can't be probed"),
        }
        self.report.send_replace(Some(answer.map(Arc::new)));
    }

    /// The report; waits for it at most `patience`.
    pub async fn report(&self, patience: Duration) -> Result<Arc<ProbeReport>> {
        let mut receiver = self.report.subscribe();
        match timeout(patience, receiver.wait_for(Option::is_some)).await {
            Ok(Ok(report)) => {
                report.clone().unwrap_or_else(|| Err(ApiError::internal("no report")))
            }
            Ok(Err(_)) => Err(ApiError::internal("the probe was given up")),
            Err(_) => {
                let message = "this host is still being probed for a hypervisor: try again";
                Err(ApiError::new(ErrorCode::Timeout, message))
            }
        }
    }

    /// The report for a start: an error when no VM can run here.
    pub async fn usable(&self) -> Result<Arc<ProbeReport>> {
        let report = self.report(DEADLINE).await?;
        match &report.problem {
            Some(problem) => Err(ApiError::new(ErrorCode::Unavailable, problem.clone())),
            None => Ok(report),
        }
    }
}

async fn ask(runtime: &RuntimeConfig, security: &SecurityConfig) -> Result<ProbeReport> {
    let mut command = Command::new(paths::program("container-runtime-linux")?);
    command.arg("probe").arg("--accelerator").arg(runtime.accelerator.name());
    if let Some(qemu) = &runtime.qemu {
        command.arg("--qemu").arg(qemu);
    }
    for directory in &runtime.qemu_libraries {
        command.arg("--qemu-libraries").arg(directory);
    }
    if let Some(data) = &runtime.qemu_data {
        command.arg("--qemu-data").arg(data);
    }
    for layer in &security.allow_missing {
        command.arg("--allow-missing").arg(layer);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let run = async { tokio::join!(bounded(stdout), bounded(stderr), child.wait()) };
    let (output, errors, status) = timeout(DEADLINE, run).await.map_err(|_| {
        let message = format!("probing for a hypervisor took more than {} s", DEADLINE.as_secs());
        ApiError::new(ErrorCode::Timeout, message)
    })?;
    let status = status?;
    if !status.success() {
        let line = errors.trim_ascii().split(|b| *b == b'\n').next_back().unwrap_or_default();
        let message = format!("probing for a hypervisor failed ({status}): {}", escape_bytes(line));
        return Err(ApiError::new(ErrorCode::Unavailable, message));
    }
    serde_json::from_slice(&output)
        .map_err(|e| ApiError::new(ErrorCode::InvalidData, format!("the probe's report: {e}")))
}

async fn bounded(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        let _ = stream.take(MAX_REPORT).read_to_end(&mut bytes).await;
    }
    bytes
}
