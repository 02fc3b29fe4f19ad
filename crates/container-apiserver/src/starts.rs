//! Which starts are under way, so that work in the background keeps out of their way.

use std::sync::Arc;

use tokio::sync::watch;

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    begun: u64,
    over: u64,
}

/// Starts under way.
#[derive(Debug, Default)]
pub struct Starts(watch::Sender<Count>);

/// One start; over when dropped.
#[derive(Debug)]
pub struct Start(Arc<Starts>);

impl Starts {
    /// A start begins.
    pub fn begin(self: &Arc<Self>) -> Start {
        self.0.send_modify(|count| count.begun += 1);
        Start(self.clone())
    }

    /// Waits until none is under way.
    pub async fn none(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.subscribe().wait_for(|count| count.begun == count.over).await;
    }

    /// How many there have been.
    pub fn begun(&self) -> u64 {
        self.0.borrow().begun
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| count.over += 1);
    }
}
