//! The way to `container-images`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use container_api::Result;
use container_api::images::{Request, SILENCE, SOCKET};
use container_api::paths::AppRoot;
use container_api::varlink::Responder;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::companion::{Companion, Place};
use crate::process::Identity;

/// From the request to end to the end.
const END_DEADLINE: Duration = Duration::from_secs(3);
/// Progress that may wait for a slow caller; what is more is left out.
const PROGRESS_QUEUE: usize = 64;

/// The service and how to reach it.
#[derive(Debug)]
pub struct Images(Companion);

impl Images {
    /// Starts nothing yet.
    pub fn new(root: &AppRoot) -> Images {
        let place = Place {
            name: "image service",
            program: "container-images",
            directory: AppRoot::images,
            socket: SOCKET,
            log: "images.log",
        };
        Images(Companion::new(root, place))
    }

    /// One call; progress goes to the caller behind `responder` as it comes.
    pub async fn relay<R: DeserializeOwned>(
        &self,
        request: &Request,
        fds: &[OwnedFd],
        responder: &Responder,
    ) -> Result<R> {
        let mut client = self.0.connect().await?;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let (sender, mut progress) = mpsc::channel::<Value>(PROGRESS_QUEUE);
        let call = client.call_with_progress(request, &fds, Some(SILENCE), move |item| {
            let _ = sender.try_send(item);
        });
        tokio::pin!(call);
        loop {
            tokio::select! {
                biased;
                Some(item) = progress.recv() => responder.progress(&item).await?,
                answer = &mut call => {
                    while let Ok(item) = progress.try_recv() {
                        responder.progress(&item).await?;
                    }
                    return answer;
                }
            }
        }
    }

    /// One call whose progress interests nobody.
    pub async fn call<R: DeserializeOwned>(&self, request: &Request) -> Result<R> {
        let mut client = self.0.connect().await?;
        client.call_with_progress(request, &[], Some(SILENCE), |_: Value| {}).await
    }

    /// One call that brings a descriptor.
    pub async fn call_with<R: DeserializeOwned>(
        &self,
        request: &Request,
        fd: BorrowedFd<'_>,
    ) -> Result<R> {
        let mut client = self.0.connect().await?;
        client.call_with_progress(request, &[fd], Some(SILENCE), |_: Value| {}).await
    }

    /// Looks who answers now.
    pub fn look(&self) {
        let _ = self.0.try_connect();
    }

    /// The service's process, as it was reached last.
    pub fn process(&self) -> Option<Identity> {
        *self.0.peer().borrow()
    }

    /// Ends the service when it runs.
    pub async fn end(&self) {
        self.0.end(&Request::Shutdown, END_DEADLINE).await;
    }
}
