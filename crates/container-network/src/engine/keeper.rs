//! Keeping a network's uplink alive: started, watched, started again, ended.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use container_api::error::{ApiError, Result};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::namespace::{Privilege, Worker};
use super::network::Network;
use super::{host, uplink};

/// The task that keeps a network's uplink alive.
pub(super) struct Keeper {
    pub(super) stop: watch::Sender<bool>,
    pub(super) task: JoinHandle<()>,
}

/// See [`Keeper`].
pub(super) struct Keeping {
    pub(super) pasta: PathBuf,
    pub(super) run: PathBuf,
    pub(super) network: String,
    pub(super) mtu: u32,
    pub(super) privilege: Privilege,
    pub(super) worker: Worker<Network>,
    pub(super) namespace: OwnedFd,
    pub(super) host: watch::Receiver<host::State>,
    pub(super) stopped: watch::Receiver<bool>,
    pub(super) tried: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Keeping {
    /// Until it is told to stop: then the uplink's process ends too. It doesn't when the engine just
    /// goes away.
    pub(super) async fn keep(mut self) {
        let mut process = self.survivor().await;
        let mut child = None;
        let mut pause = Duration::from_millis(500);
        while !*self.stopped.borrow() {
            if let Some(running) = process {
                self.say_tried();
                let ended = self.wait_for_end(running).await;
                process = None;
                match ended {
                    Some(true) => {}
                    Some(false) => running.kill(),
                    None => return,
                }
                uplink::forget(&self.run, &self.network);
                reap(child.take()).await;
                continue;
            }
            let _ = self.host.borrow_and_update();
            match self.try_once().await {
                Ok(Some((new, running))) => {
                    (child, process) = (Some(new), Some(running));
                    pause = Duration::from_millis(500);
                }
                Ok(None) => {
                    self.say_tried();
                    tokio::select! {
                        changed = self.host.changed() => if changed.is_err() { return },
                        _ = self.stopped.changed() => {}
                    }
                }
                Err(error) => {
                    self.say_tried();
                    tracing::warn!(%error, network = self.network, "no uplink; it is tried again");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        told = self.stopped.changed() => if told.is_err() { return },
                    }
                    pause = (pause * 2).min(Duration::from_secs(30));
                }
            }
        }
        if let Some(running) = process {
            running.kill();
            uplink::forget(&self.run, &self.network);
            reap(child).await;
        }
    }

    fn say_tried(&mut self) {
        if let Some(tried) = self.tried.take() {
            let _ = tried.send(());
        }
    }

    /// What an earlier service has left, when it works.
    async fn survivor(&self) -> Option<uplink::Process> {
        let process = uplink::find(&self.run, &self.network)?;
        let works = self.worker.run(|network| Ok(uplink::present(&mut network.netlink))).await;
        if matches!(works, Ok(true)) {
            return Some(process);
        }
        process.kill();
        None
    }

    /// `None`: the host leads nowhere at present.
    async fn try_once(&self) -> Result<Option<(std::process::Child, uplink::Process)>> {
        let host = self.host.borrow().clone();
        if !host.leads4 && !host.leads6 {
            return Ok(None);
        }
        let (pasta, run, network) = (self.pasta.clone(), self.run.clone(), self.network.clone());
        let (privilege, namespace) = (self.privilege, uplink::duplicate(&self.namespace)?);
        let state = host.clone();
        let started = tokio::task::spawn_blocking(move || {
            let plan = uplink::Plan {
                pasta: &pasta,
                run: &run,
                network: &network,
                privilege,
                host: &state,
            };
            uplink::start(&plan, &namespace)
        });
        let (child, process) =
            started.await.map_err(|_| ApiError::internal("the start of pasta failed"))??;
        let mtu = self.mtu;
        let set_up = self.worker.run(move |n| uplink::configure(&mut n.netlink, &host, mtu)).await;
        if let Err(error) = set_up {
            process.kill();
            reap(Some(child)).await;
            return Err(error);
        }
        Ok(Some((child, process)))
    }

    /// Answer: whether it has ended; else it was told to stop. `None`: the engine is gone.
    async fn wait_for_end(&mut self, process: uplink::Process) -> Option<bool> {
        let Some(handle) = process.open() else { return Some(true) };
        // SAFETY: an owned descriptor stays the same until the task drops it.
        let handle = unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) };
        let Ok(handle) = handle else { return Some(true) };
        tokio::select! {
            _ = handle.readable() => Some(true),
            told = self.stopped.changed() => told.is_ok().then_some(false),
        }
    }
}

/// A child that has been killed ends soon.
async fn reap(child: Option<std::process::Child>) {
    if let Some(mut child) = child {
        let _ = tokio::task::spawn_blocking(move || child.wait()).await;
    }
}
