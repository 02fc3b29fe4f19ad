//! `container-runtime-linux spare`: `fake-spare` may say `slow` (is never ready), `refuse` (can't
//! be adopted) or `die` (at its adoption).

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use container_api::paths::container_files as names;
use container_api::runtime::{Phase, Request, State};
use container_api::types::VmOrigin;
use container_api::varlink::{Reply, Responder, Service};
use container_api::{ApiError, ErrorCode};
use tokio::sync::Notify;

use crate::control;
use crate::helper::{Helper, hypervisor};
use crate::template;

struct Spare {
    directory: PathBuf,
    hypervisor: Mutex<Option<Child>>,
    hypervisor_pid: i32,
    lock: Mutex<Option<File>>,
    ready: Mutex<bool>,
    adopted: Mutex<Option<Arc<Helper>>>,
    taken: Notify,
    taps: Vec<String>,
}

/// Waits to be adopted, and is then a container's helper.
pub async fn run(directory: &Path, taps: usize) -> Result<()> {
    let taps = crate::inherited_taps(taps)?;
    let lock = template::lock(directory)?;
    let spec = template::spec(directory)?;
    ensure!(spec.image_disk.ends_with("warm.erofs"));
    template::restore(&spec, spec.template.as_ref().context("no template")?)?;
    let hypervisor = hypervisor()?;
    let spare = Arc::new(Spare {
        directory: directory.to_owned(),
        hypervisor_pid: hypervisor.id() as i32,
        hypervisor: Mutex::new(Some(hypervisor)),
        lock: Mutex::new(Some(lock)),
        ready: Mutex::new(false),
        adopted: Mutex::new(None),
        taken: Notify::new(),
        taps,
    });
    let restored = spare.clone();
    tokio::spawn(async move {
        let pause = || tokio::time::sleep(std::time::Duration::from_millis(20));
        pause().await;
        while control("spare") == "slow" {
            pause().await;
        }
        *restored.ready.lock().expect("whole") = true;
    });
    let serve = crate::listen(directory, names::SOCKET, spare.clone());
    tokio::pin!(serve);
    tokio::select! {
        served = &mut serve => served?,
        () = spare.taken.notified() => {}
    }
    let helper = spare.adopted.lock().expect("whole").take().context("adopted")?;
    // Connections that are open stay so until their calls are answered.
    helper.serve().await
}

impl Spare {
    fn adopt(&self, container: &Path, more: usize) -> Result<()> {
        let spec = template::spec(container)?;
        if let Some(network) = &spec.network {
            ensure!(network.interfaces.len() == self.taps.len() + more);
        }
        std::fs::write(container.join("taps"), self.taps.join(" "))?;
        ensure!(spec.image_disk.ends_with("x.erofs"));
        let hypervisor = self.hypervisor.lock().expect("whole").take().context("taken")?;
        let origin = VmOrigin::Spare;
        let helper = Helper::new(container, template::lock(container)?, hypervisor, origin)?;
        helper.bind()?;
        *self.adopted.lock().expect("whole") = Some(helper);
        std::fs::remove_file(self.directory.join(names::SOCKET))?;
        self.lock.lock().expect("whole").take();
        self.taken.notify_one();
        Ok(())
    }
}

impl Service for Spare {
    type Request = Request;

    async fn call(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
        _: &Responder,
    ) -> container_api::Result<Reply> {
        let refused = |why: String| Err(ApiError::new(ErrorCode::InvalidState, why));
        match request {
            Request::State => Reply::new(&State {
                phase: if *self.ready.lock().expect("whole") {
                    Phase::Ready
                } else {
                    Phase::Booting
                },
                started_date: None,
                exit: None,
                pid: std::process::id() as i32,
                hypervisor_pid: Some(self.hypervisor_pid),
                resources: None,
                vm_origin: Some(VmOrigin::Spare),
                out_of_memory_kills: Vec::new(),
            }),
            Request::WarmUp => match control("spare").as_str() {
                "cold" => refused("not warm".into()),
                _ => Reply::done(),
            },
            Request::Adopt { directory, taps } => match control("spare").as_str() {
                "refuse" => refused("not today".into()),
                "die" => std::process::exit(1),
                _ if taps != fds.len() => refused("taps are missing".into()),
                _ => match self.adopt(&directory, taps) {
                    Ok(()) => Reply::done(),
                    Err(error) => refused(format!("{error:#}")),
                },
            },
            _ => refused("it is a spare".into()),
        }
    }
}
