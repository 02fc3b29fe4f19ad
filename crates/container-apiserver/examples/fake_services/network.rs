//! `container-network`: networks without packets. What it is asked is appended, a line each, to
//! `network-log` in the installation. `fake-network` may say `refuse` (attachments), `forget`
//! (parked taps are unknown) or `die` (in the midst of an attachment).

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use container_api::network::{
    Attach, Attached, Attachment, BoundPort, Mac, Network, Parked, Request, SOCKET, Traffic,
};
use container_api::paths::AppRoot;
use container_api::varlink::{Reply, Responder, Service};
use container_api::{ApiError, ErrorCode};
use ipnet::{Ipv4Net, Ipv6Net};

use crate::control;

struct Networks {
    root: AppRoot,
}

/// Serves until it is told to end.
pub async fn serve(root: &Path) -> Result<()> {
    let root = AppRoot::resolve(Some(root))?;
    std::fs::create_dir_all(root.networks().join("attachments"))?;
    let networks = Networks { root: root.clone() };
    networks.note("serve")?;
    crate::listen(&root.networks(), SOCKET, Arc::new(networks)).await
}

/// A descriptor that is recognised by what it names.
fn tap(name: &str) -> std::io::Result<OwnedFd> {
    Ok(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?)
}

impl Networks {
    fn note(&self, line: &str) -> std::io::Result<()> {
        let log = std::env::current_exe()?.with_file_name("../network-log");
        let mut log = OpenOptions::new().append(true).create(true).open(log)?;
        // One write a line: several of these may live at once.
        log.write_all(format!("{line}\n").as_bytes())
    }

    fn attachment_file(&self, container: &str) -> std::path::PathBuf {
        self.root.networks().join("attachments").join(container)
    }

    fn attach(&self, attach: &Attach) -> container_api::Result<Reply> {
        let parked = attach.parked.as_deref().unwrap_or("-");
        self.note(&format!("attach {} {parked}", attach.container))?;
        match control("network").as_str() {
            "refuse" => return Err(ApiError::new(ErrorCode::InUse, "port 80 is in use")),
            "forget" if attach.parked.is_some() => {
                return Err(ApiError::not_found("no such tap"));
            }
            "die" => std::process::exit(1),
            _ => {}
        }
        File::create(self.attachment_file(&attach.container))?;
        let mut attached = Attached {
            nameservers: vec![Ipv4Addr::new(192, 168, 64, 1).into()],
            domain: Some("test".into()),
            ..Attached::default()
        };
        let mut taps = Vec::new();
        for (n, choice) in (2..).zip(&attach.options.networks) {
            attached.attachments.push(Attachment {
                container: attach.container.clone(),
                network: choice.network.clone(),
                hostname: attach.hostname.clone(),
                aliases: choice.aliases.clone(),
                ipv4_address: Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 64, n), 24),
                ipv4_gateway: Ipv4Addr::new(192, 168, 64, 1),
                ipv6_address: Ipv6Net::new_assert(
                    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into()),
                    64,
                ),
                ipv6_gateway: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
                default_route: n == 2,
                mac_address: Mac([2, 0, 0, 0, 0, n]),
                mtu: 1500,
            });
            if n > 2 || attach.parked.is_none() {
                taps.push(tap(&format!("tap-{n}"))?);
            }
        }
        for port in &attach.options.published_ports {
            attached.ports.push(BoundPort {
                host: (Ipv4Addr::LOCALHOST, port.host_port.max(1)).into(),
                container_port: port.container_port,
                protocol: port.protocol,
            });
        }
        Reply::with_fds(&attached, taps)
    }

    fn reconcile(&self, alive: &[String]) -> container_api::Result<Reply> {
        self.note(&format!("reconcile {}", alive.join(",")))?;
        for entry in std::fs::read_dir(self.root.networks().join("attachments"))? {
            let entry = entry?;
            if !alive.iter().any(|id| entry.file_name() == id.as_str()) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Reply::done()
    }
}

impl Service for Networks {
    type Request = Request;

    async fn call(
        &self,
        request: Request,
        _: Vec<OwnedFd>,
        _: &Responder,
    ) -> container_api::Result<Reply> {
        match request {
            Request::Check(options) => {
                match options.networks.iter().find(|n| n.network.starts_with("no-")) {
                    Some(choice) => {
                        Err(ApiError::not_found(format!("no network '{}'", choice.network)))
                    }
                    None => Reply::done(),
                }
            }
            Request::Park => {
                self.note("park")?;
                Reply::with_fds(&Parked { tap: "parked-0".into() }, vec![tap("parked-0")?])
            }
            Request::Attach(attach) => self.attach(&attach),
            Request::Detach { container } => {
                self.note(&format!("detach {container}"))?;
                let _ = std::fs::remove_file(self.attachment_file(&container));
                Reply::done()
            }
            Request::Reconcile { alive } => self.reconcile(&alive),
            Request::Traffic { .. } => Reply::new(&Traffic { rx_bytes: 5, tx_bytes: 7 }),
            Request::Delete { names, in_use } => {
                self.note(&format!("delete {} {}", names.join(","), in_use.join(",")))?;
                Reply::new(&names)
            }
            Request::Prune { in_use } => Reply::new(&in_use),
            Request::List { .. } => Reply::new(&Vec::<Network>::new()),
            Request::Shutdown { remove } => {
                self.note(&format!("shutdown {remove}"))?;
                std::process::exit(0)
            }
            _ => Err(ApiError::new(ErrorCode::Unsupported, "the fake can't")),
        }
    }
}
