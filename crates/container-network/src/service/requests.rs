//! One typed request in, one answer out.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use container_api::Result;
use container_api::network::Request;
use container_api::varlink::{Reply, Responder, Service};

use super::core::Core;
use super::kernel::Kernel;

/// The service behind its socket.
#[derive(Debug)]
pub struct Networks<K>(pub Arc<Core<K>>);

impl<K: Kernel> Service for Networks<K> {
    type Request = Request;

    async fn call(
        &self,
        request: Request,
        _fds: Vec<OwnedFd>,
        _responder: &Responder,
    ) -> Result<Reply> {
        let core = &self.0;
        match request {
            Request::Create(request) => Reply::new(&core.create(&request)?),
            Request::Delete { names, in_use } => Reply::new(&core.delete(&names, &in_use).await?),
            Request::Prune { in_use } => Reply::new(&core.prune(&in_use).await?),
            Request::List { names } => Reply::new(&core.list(&names).await?),
            Request::Check(options) => Reply::new(&core.check(&options)?),
            Request::Park => {
                let (parked, tap) = core.park().await?;
                Reply::with_fds(&parked, vec![tap])
            }
            Request::Attach(request) => {
                let (attached, taps) = core.attach(*request).await?;
                Reply::with_fds(&attached, taps)
            }
            Request::Detach { container } => Reply::new(&core.detach(&container).await?),
            Request::Reconcile { alive } => Reply::new(&core.reconcile(&alive).await?),
            Request::CheckState { alive } => Reply::new(&core.check_state(&alive).await?),
            Request::Traffic { container } => Reply::new(&core.kernel.traffic(&container).await?),
            Request::Dns(request) => core.dns(request).await,
            Request::Shutdown { remove } => {
                let removed = if remove { core.remove_all().await } else { Ok(()) };
                core.shutdown.notify_one();
                Reply::new(&removed?)
            }
        }
    }
}
