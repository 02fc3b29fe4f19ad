//! What the helper's requests want of the VM itself, carried to the task that owns it.

use std::io;
use std::time::Duration;

use container_api::{ApiError, ErrorCode};
use tokio::sync::{mpsc, oneshot};

use crate::hypervisor::{Error, Vm};

/// Requests that may wait for the VM's owner.
const WAITING: usize = 16;

/// What the host spends on a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostUsage {
    /// Bytes of memory that the VM alone holds.
    pub memory_bytes: u64,
    /// CPU time of its process.
    pub cpu_time: Duration,
}

#[derive(Debug)]
enum Wish {
    Balloon { bytes: u64, answer: oneshot::Sender<Result<(), Error>> },
    Usage { answer: oneshot::Sender<io::Result<HostUsage>> },
}

/// The asking side.
#[derive(Clone, Debug)]
pub struct Port(mpsc::Sender<Wish>);

/// The VM's side.
#[derive(Debug)]
pub struct Wishes(mpsc::Receiver<Wish>);

/// Both sides.
pub fn port() -> (Port, Wishes) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Port(sender), Wishes(receiver))
}

impl Port {
    /// Lets the guest have this much of its RAM in bytes.
    ///
    /// # Errors
    /// `Internal` when the VM refuses, `Unavailable` when there is none.
    pub async fn balloon(&self, bytes: u64) -> Result<(), ApiError> {
        let outcome = self.ask(|answer| Wish::Balloon { bytes, answer }).await?;
        outcome.map_err(|e| ApiError::internal(format!("setting the balloon: {e}")))
    }

    /// What the VM costs.
    ///
    /// # Errors
    /// `Unavailable` when there is none.
    pub async fn usage(&self) -> Result<HostUsage, ApiError> {
        self.ask(|answer| Wish::Usage { answer }).await?.map_err(|_| gone())
    }

    async fn ask<T>(&self, wish: impl FnOnce(oneshot::Sender<T>) -> Wish) -> Result<T, ApiError> {
        let (answer, answered) = oneshot::channel();
        self.0.send(wish(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }
}

fn gone() -> ApiError {
    ApiError::new(ErrorCode::Unavailable, "the VM has ended")
}

impl Wishes {
    /// Fulfils wishes for ever.
    pub async fn fulfil<V: Vm>(&mut self, vm: &V) {
        while let Some(wish) = self.0.recv().await {
            // An answer that nobody waits for any more is no matter.
            match wish {
                Wish::Balloon { bytes, answer } => {
                    let _ = answer.send(vm.set_balloon(bytes).await);
                }
                Wish::Usage { answer } => {
                    let _ = answer.send(usage(vm));
                }
            }
        }
        // Nobody is left to ask.
        std::future::pending().await
    }
}

fn usage<V: Vm>(vm: &V) -> io::Result<HostUsage> {
    Ok(HostUsage { memory_bytes: vm.own_memory()?, cpu_time: vm.cpu_time()? })
}
