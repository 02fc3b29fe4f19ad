//! `system check ID`: one container's posture in words.

use container_api::escape::escape;
use container_api::network::{Egress, HostAccess};
use container_api::posture::{LayerState, Posture};
use container_api::types::ContainerSnapshot;
use container_api::{ApiError, seccomp};

use super::FAILED;
use crate::args::Format;
use crate::failure::{Outcome, print};
use crate::render;
use crate::session::Session;

/// Prints it. Exit code 1 when a layer is missing, allowed or not.
pub async fn explain(session: &Session, id: &str, format: Format) -> Outcome {
    let container = session.connect()?.inspect(id).await?;
    let posture = container
        .posture
        .as_deref()
        .ok_or_else(|| ApiError::internal(format!("{id}: the service tells no posture")))?;
    match format {
        Format::Table => {
            let lines = words(&container, posture);
            let text: String = lines.iter().map(|line| format!("{}\n", escape(line))).collect();
            print(&text)?;
        }
        format => print(&render::data(format, "posture", posture)?)?,
    }
    let missing = |state| matches!(state, LayerState::Missing | LayerState::AllowedMissing);
    Ok(if posture.jail.iter().any(|layer| missing(layer.state)) { FAILED } else { 0 })
}

fn words(container: &ContainerSnapshot, posture: &Posture) -> Vec<String> {
    let config = &container.configuration;
    let mut lines = vec![format!("{} is {}.", config.id, container.status)];
    lines.push("Container:".into());
    lines.push(match config.capabilities.len() {
        0 => "  It has no capability.".into(),
        count => format!("  It has {count} capabilities: {}.", config.capabilities.join(", ")),
    });
    lines.push(match &config.security.seccomp {
        seccomp::Seccomp::Default => {
            "  Its system calls are filtered by the default profile.".into()
        }
        seccomp::Seccomp::Unconfined => "  Its system calls are not filtered.".into(),
        _ => "  Its system calls are filtered by a profile of yours.".into(),
    });
    if config.read_only {
        lines.push("  Its root file system is read-only.".into());
    }
    lines.push("Virtual machine:".into());
    lines.push(match posture.accelerator {
        Some(accelerator) => format!("  It runs in a virtual machine of its own ({accelerator})."),
        None => "  No virtual machine runs now.".into(),
    });
    lines.push(match posture.virtualization {
        true => "  It may run virtual machines itself.".into(),
        false => "  It can't run virtual machines itself.".into(),
    });
    if !posture.jail.is_empty() {
        lines.push("Jail of the hypervisor, as the kernel tells it:".into());
    }
    for layer in &posture.jail {
        let state = match layer.state {
            LayerState::Held => "held",
            LayerState::Missing => "MISSING",
            LayerState::AllowedMissing => "MISSING, allowed by [security] allow_missing",
            LayerState::Unread => "not read",
        };
        lines.push(format!("  {}: {state} ({}).", layer.name, layer.evidence));
    }
    if !posture.cgroups.is_empty() {
        lines.push(format!("  control groups of the host: {}.", posture.cgroups.join(" ")));
    }
    lines.push("What of the host it sees:".into());
    for mount in &posture.mounts {
        let how = if mount.read_only { "read-only" } else { "read and write" };
        let (source, destination) =
            (mount.source.to_string_lossy(), mount.destination.to_string_lossy());
        lines.push(format!("  {source} at {destination}, {how}."));
    }
    if posture.mounts.is_empty() {
        lines.push("  No file.".into());
    }
    if posture.network.ssh {
        lines.push("  Your SSH agent signs for it.".into());
    }
    lines.extend(reach(posture));
    lines
}

fn reach(posture: &Posture) -> Vec<String> {
    let reach = &posture.network;
    let mut lines = vec!["Network:".to_owned()];
    if reach.networks.is_empty() {
        lines.push("  None.".into());
    } else {
        lines.push(format!("  It is on {}.", reach.networks.join(", ")));
        lines.push(match &reach.egress {
            None | Some(Egress::Allow) => "  It may reach what its networks allow.".into(),
            Some(Egress::Only(targets)) if targets.is_empty() => {
                "  It may reach nothing outside.".into()
            }
            Some(Egress::Only(targets)) => {
                format!("  It may reach {} destinations outside alone.", targets.len())
            }
        });
        lines.push(match &reach.host_access {
            HostAccess::Denied => "  It may not reach this host.".into(),
            HostAccess::All => "  It may reach every port of this host's loopback.".into(),
            HostAccess::Ports(ports) => {
                let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
                format!("  It may reach ports {} of this host's loopback.", ports.join(", "))
            }
        });
    }
    for port in &reach.published_ports {
        lines.push(format!(
            "  {} of this host leads to its port {}.",
            port.host, port.container_port
        ));
    }
    for socket in &reach.published_sockets {
        let (host, inside) = (socket.host_path.display(), &socket.container_path);
        lines.push(format!("  The socket {host} leads to its socket {inside}."));
    }
    lines
}
