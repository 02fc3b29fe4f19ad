//! The guest as the helper speaks to it: two ports, one client.
//!
//! [`connect`] finds the guest on both ports; from then on [`Control`] carries calls and events
//! and [`Bulk`] the streams. Both are driven by tasks of their own, so a slow stream stops nothing
//! else, and a call that is given up tears no frame.

mod bulk;
mod control;
mod handshake;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::mpsc;
use vminitd_protocol::frame::MessageTooLong;
use vminitd_protocol::handshake::{GenerationMismatch, Port};
use vminitd_protocol::message;

pub use bulk::{Bulk, Filled};
pub use control::{Control, GuestEvent};
pub use handshake::random;

/// A failed exchange with the guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The guest answered that it can't.
    #[error("{}", container_api::escape::escape(&.0.message))]
    Refused(message::Error),
    /// No answer in time.
    #[error("the guest did not answer '{call}' within {} s", .limit.as_secs())]
    Silent {
        /// What was asked.
        call: &'static str,
        /// The deadline.
        limit: Duration,
    },
    /// The channel is of no use any more.
    #[error("the guest's channel was lost: {0}")]
    Lost(String),
    /// An answer to another question.
    #[error("the guest's answer to '{call}' makes no sense")]
    Nonsense {
        /// What was asked.
        call: &'static str,
    },
    /// The request is too large for the channel.
    #[error("the request is too large")]
    TooLarge(#[from] MessageTooLong),
    /// The guest's init is of another version.
    #[error("the kernel bundle holds another version's init: prepare the kernel anew")]
    Generation(#[from] GenerationMismatch),
}

/// The client.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Calls.
    pub control: Arc<Control>,
    /// Streams.
    pub bulk: Arc<Bulk>,
}

/// Shakes hands on both ports and starts the tasks that drive them. Returns the client and the
/// guest's events. Waits as long as the guest boots: the caller has the deadline.
///
/// # Errors
/// [`GuestError::Lost`], [`GuestError::Generation`].
pub async fn connect(
    agent: UnixStream,
    bulk: UnixStream,
) -> Result<(Guest, mpsc::Receiver<GuestEvent>), GuestError> {
    let (control_rest, bulk_rest) = tokio::try_join!(
        handshake::shake_hands(&agent, Port::Agent),
        handshake::shake_hands(&bulk, Port::Bulk),
    )?;
    let (control, events) = Control::spawn(agent, control_rest);
    let bulk = Bulk::spawn(bulk, bulk_rest);
    Ok((Guest { control, bulk }, events))
}
