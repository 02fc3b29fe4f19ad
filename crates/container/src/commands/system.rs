//! `system …`.

use std::time::Duration;

use container_api::apiserver::{Request, SLOW, SystemStatus};
use container_api::{ApiError, ErrorCode};
use serde_json::json;

use super::{audit, check, dns, kernel, service_logs, usage};
use crate::args::Format;
use crate::args::system::{Command, Formatted, Kernel, Start};
use crate::failure::{OURS, Outcome, complain, print, print_line, warn};
use crate::render::{self, table};
use crate::session::Session;

/// How long containers get to end before they are killed.
const CONTAINERS: Duration = Duration::from_secs(5);

/// Runs one of the commands.
pub async fn run(session: &Session, command: &Command) -> Outcome {
    match command {
        Command::Start(args) => start(session, args).await,
        Command::Stop => stop(session).await,
        Command::Status(args) => status(session, args).await,
        Command::Version(args) => version(session, args).await,
        Command::Logs(args) => service_logs::logs(session, args).await,
        Command::Audit(command) => audit::run(session, command).await,
        Command::Check(args) => check::run(session, args).await,
        Command::Df(args) => usage::df(session, args).await,
        Command::Prune(args) => usage::prune(session, args).await,
        Command::Kernel(Kernel::Set(args)) => kernel::set(session, args).await,
        Command::Dns(command) => dns::run(session, command).await,
    }
}

async fn start(session: &Session, args: &Start) -> Outcome {
    if args.foreground {
        return Err(session.become_service().into());
    }
    let deadline = Duration::from_secs(args.timeout.into());
    let mut client = match session.connect() {
        Err(error) if error.code == ErrorCode::Unavailable => session.start(deadline).await?,
        other => other?,
    };
    let status = match client.status().await {
        // A service that was just about to end.
        Err(error) if error.code == ErrorCode::Disconnected => {
            client = session.start(deadline).await?;
            client.status().await?
        }
        other => other?,
    };
    print_line(&format!(
        "apiserver is running (pid {}, {})",
        status.apiserver_pid,
        status.app_root.display()
    ))?;
    print_line(&accelerator(&status))?;
    for problem in &status.problems {
        warn(problem);
    }
    Ok(0)
}

fn accelerator(status: &SystemStatus) -> String {
    match status.accelerator {
        Some(accelerator) => format!("accelerator: {accelerator} ({})", status.accelerator_reason),
        None => format!("accelerator: none ({})", status.accelerator_reason),
    }
}

/// Ends the containers, then the service. When none runs, all is as asked for.
async fn stop(session: &Session) -> Outcome {
    let mut client = match session.connect() {
        Err(error) if error.code == ErrorCode::Unavailable => {
            return print("apiserver is not running\n").map(|()| 0);
        }
        other => other?,
    };
    let timeout_ms = CONTAINERS.as_millis() as u64;
    let request = Request::Shutdown { stop_containers: true, timeout_ms };
    match client.call::<()>(&request, &[], Some(CONTAINERS + SLOW)).await {
        // It may be gone before its answer is.
        Err(error) if error.code != ErrorCode::Disconnected => return Err(error.into()),
        _ => {}
    }
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    while session.connect().is_ok() {
        if tokio::time::Instant::now() > end {
            return Err(ApiError::new(ErrorCode::Timeout, "the service still answers").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(0)
}

async fn status(session: &Session, args: &Formatted) -> Outcome {
    let status = match session.connect() {
        Err(error) if error.code == ErrorCode::Unavailable => {
            return not_running(session, args.format);
        }
        other => other?.status().await?,
    };
    if args.format != Format::Table {
        return print(&render::data(args.format, "system", &status)?).map(|()| 0);
    }
    let kernel = match (&status.kernel_version, &status.kernel_path) {
        (Some(version), Some(path)) => format!("{version} ({})", path.display()),
        (version, _) => version.clone().unwrap_or_else(|| "none".into()),
    };
    let mut rows = vec![
        ["status".into(), status.status.clone()],
        ["appRoot".into(), status.app_root.display().to_string()],
        ["installRoot".into(), status.install_root.display().to_string()],
        ["apiServerVersion".into(), status.api_server_version.clone()],
        ["apiserverPid".into(), status.apiserver_pid.to_string()],
        ["accelerator".into(), status.accelerator.map_or("none".into(), |a| a.to_string())],
        ["acceleratorReason".into(), status.accelerator_reason.clone()],
        ["hypervisorVersion".into(), status.hypervisor_version.clone()],
        ["kernel".into(), kernel],
        ["runningContainers".into(), status.running_containers.to_string()],
    ];
    rows.extend(status.templates.iter().map(|t| ["template".into(), render::usage::template(t)]));
    rows.extend(status.spares.iter().map(|s| ["spare".into(), render::usage::spare(s)]));
    print(&table(["FIELD", "VALUE"], &rows))?;
    for problem in &status.problems {
        warn(problem);
    }
    Ok(0)
}

fn not_running(session: &Session, format: Format) -> Outcome {
    match format {
        Format::Table => complain("apiserver is not running: 'container system start' starts it"),
        format => {
            let status = json!({"status": "not running", "appRoot": session.root().path()});
            print(&render::data(format, "system", &status)?)?;
        }
    }
    Ok(OURS)
}

async fn version(session: &Session, args: &Formatted) -> Outcome {
    let own = env!("CARGO_PKG_VERSION").to_owned();
    let service = match session.connect() {
        Ok(mut client) => Some(client.status().await?.api_server_version),
        Err(error) if error.code == ErrorCode::Unavailable => None,
        Err(error) => return Err(error.into()),
    };
    if args.format != Format::Table {
        let mut versions = vec![json!({"appName": "container", "version": own})];
        versions.extend(
            service.map(|version| json!({"appName": "container-apiserver", "version": version})),
        );
        return print(&render::data(args.format, "components", &versions)?).map(|()| 0);
    }
    let service = service.unwrap_or_else(|| "not running".into());
    let rows = [["container".into(), own], ["container-apiserver".into(), service]];
    print(&table(["COMPONENT", "VERSION"], &rows)).map(|()| 0)
}
