//! `stop` and `kill`: asking a container to end, and making it.

use std::time::Duration;

use container_api::runtime::{CALL_DEADLINE, Request};
use container_api::types::ExitRecord;
use container_api::{ApiError, ErrorCode, Result};
use tokio::time::timeout;

use crate::container::Container;
use crate::engine::Engine;
use crate::helper::END_DEADLINE;
use crate::lifecycle::Event;
use crate::validate::signal;

/// Longest time between the signal and the kill.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// What the helper may need beside that: the kill, and an orderly end of the guest.
const ORDERLY_END: Duration = Duration::from_secs(30).saturating_add(CALL_DEADLINE);
/// `SIGKILL`.
const KILL: i32 = 9;

impl Engine {
    /// Ends a container: `signal` (or its own), then the kill after `patience`. One that does not
    /// run is no error.
    pub async fn stop(
        &self,
        container: &Container,
        signal: Option<&str>,
        patience: Duration,
    ) -> Result<()> {
        let number = signal::parse(signal.unwrap_or(&container.config.stop_signal))?;
        self.asked(container);
        self.end(container, number, patience.min(MAX_TIMEOUT)).await
    }

    /// Ends a container at once.
    pub async fn kill(&self, container: &Container) -> Result<()> {
        self.asked(container);
        self.end(container, KILL, Duration::ZERO).await
    }

    /// Ends a container because the service ends, which is no wish of its user.
    pub async fn end_with_service(&self, container: &Container, patience: Duration) -> Result<()> {
        let number = signal::parse(&container.config.stop_signal)?;
        self.end(container, number, patience.min(MAX_TIMEOUT)).await
    }

    /// Its user wants it to end, and to stay so.
    pub fn asked(&self, container: &Container) {
        if container.ask_to_end() {
            container.update(|live| {
                if let Some(exit) = &mut live.life.exit {
                    exit.stop_requested = true;
                }
            });
            self.write_down(container);
        }
    }

    async fn end(&self, container: &Container, signal: i32, patience: Duration) -> Result<()> {
        let live = container.live();
        let Some(machine) = live.machine.filter(|_| live.life.is_active()) else { return Ok(()) };
        self.apply(container, Event::StopAsked);
        let request = Request::Stop { signal, timeout_ms: patience.as_millis() as u64 };
        let deadline = patience + ORDERLY_END;
        let answer: Result<ExitRecord> = machine.helper.call(&request, &[], Some(deadline)).await;
        if let Err(error) = answer
            && error.code != ErrorCode::Disconnected
        {
            tracing::warn!(container = container.id(), %error, "a helper is killed in place of a stop");
            machine.helper.handle.kill();
        }
        let over = container.until(|live| live.removed || live.life.is_idle());
        timeout(END_DEADLINE * 2, over).await.map(drop).map_err(|_| {
            let message = format!("container '{}' does not end", container.id());
            ApiError::new(ErrorCode::Timeout, message)
        })
    }
}
