//! `system status`.

use std::time::Duration;

use container_api::apiserver::SystemStatus;
use container_api::paths;

use crate::engine::Engine;
use crate::kernel;

/// How long a status waits for the probe; within the caller's deadline.
const PROBE_PATIENCE: Duration = Duration::from_secs(15);
/// What a container needs besides this service.
const PROGRAMS: [&str; 4] =
    ["container-images", "container-network", "container-runtime-linux", "container-jailer"];

impl Engine {
    /// How the service and its host are.
    pub async fn status(&self) -> SystemStatus {
        let mut problems = Vec::new();
        let missing = PROGRAMS.iter().filter_map(|name| paths::program(name).err());
        problems.extend(missing.map(|error| error.to_string()));
        let kernel = kernel::choose(&self.root, None, self.config.kernel.path.as_deref());
        if let Err(error) = &kernel {
            problems.push(error.message.clone());
        }
        let kernel = kernel.ok();
        let report = self.probe.report(PROBE_PATIENCE).await;
        let problem = match &report {
            Ok(report) => report.problem.clone(),
            Err(error) => Some(error.message.clone()),
        };
        let usable = problem.is_none();
        problems.extend(problem);
        let report = report.ok();
        let program = std::env::current_exe().unwrap_or_default();
        let running = self.containers().iter().filter(|c| c.live().life.is_active()).count();
        SystemStatus {
            status: "running".into(),
            app_root: self.root.path().to_owned(),
            install_root: program.parent().unwrap_or(&program).to_owned(),
            api_server_version: env!("CARGO_PKG_VERSION").into(),
            apiserver_pid: std::process::id() as i32,
            accelerator: report.as_ref().filter(|_| usable).map(|report| report.accelerator),
            accelerator_reason: report
                .as_ref()
                .map_or_else(String::new, |report| report.accelerator_reason.clone()),
            hypervisor_version: report
                .as_ref()
                .map_or_else(String::new, |report| report.hypervisor_version.clone()),
            kernel_version: kernel.as_ref().and_then(|kernel| kernel.version.clone()),
            kernel_path: kernel.map(|kernel| kernel.directory),
            problems,
            running_containers: running,
            templates: self.templates.statuses(),
            spares: self.spares.statuses(),
        }
    }
}
