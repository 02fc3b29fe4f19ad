//! The audit trail: who asked for what, what was decided, what came of it.
//!
//! ```text
//! request ──► describe ──► decision ──► on disk ──► the operation ──► result
//!                              │            └── can't be written: refused,
//!                              │                unless it frees or ends something
//!                          one thread: lines of all requests that wait, one write, one fdatasync
//! ```
//! The form of the trail and its check are [`container_api::audit`]'s. Requests that change nothing
//! leave no record. `observed` adds what containers were seen doing.

pub mod anchor;
pub mod describe;
mod observed;
mod trail;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use container_api::audit::{Event, Requester};
use container_api::config::AuditConfig;
use container_api::paths::AppRoot;
use container_api::varlink::Reply;
use container_api::{ApiError, ErrorCode, Result};

use describe::{Description, Weight};
pub use trail::Trail;
use writer::Writer;

/// How long a record may take to be on disk.
const DEADLINE: Duration = Duration::from_secs(10);

/// The trail of one installation.
#[derive(Debug)]
pub struct Audit {
    writer: Writer,
    /// Operations that went on without a record, since the last one that has one.
    unrecorded: AtomicU64,
    /// What containers were seen doing, and is beyond their quotas.
    observed: tokio::sync::Mutex<observed::Observed>,
    /// Where others put it.
    outbox: PathBuf,
}

/// An operation whose decision is recorded.
#[derive(Debug)]
pub struct Operation {
    decision: u64,
    begun: Instant,
    recorded: Duration,
}

impl Audit {
    /// Opens the trail and says that the service begins.
    ///
    /// # Errors
    /// When it can't be read or written.
    pub fn open(root: &AppRoot, config: &AuditConfig) -> Result<Audit> {
        let trail = Trail::open(&root.audit(), trail::Bounds::of(config)?)?;
        let anchors = anchor::Anchors::new(root, config);
        Ok(Audit {
            writer: Writer::start(trail, anchors)?,
            unrecorded: AtomicU64::new(0),
            observed: Default::default(),
            outbox: root.observed(),
        })
    }

    /// Records that an operation may begin; when this returns it is on disk.
    ///
    /// # Errors
    /// When it can't be: the operation must not begin.
    pub async fn begin(
        &self,
        described: &Description,
        requester: impl FnOnce() -> Requester,
    ) -> Result<Option<Operation>> {
        if described.weight == Weight::Reads {
            return Ok(None);
        }
        let begun = Instant::now();
        let unrecorded = self.unrecorded.swap(0, Ordering::Relaxed);
        if unrecorded > 0 {
            self.writer.note(Event::Unrecorded { operations: unrecorded });
        }
        let event = Event::Decision {
            operation: described.operation.to_owned(),
            subject: described.subject.clone(),
            arguments: described.arguments.clone(),
            requester: requester(),
            allowed: true,
            reason: None,
        };
        match self.writer.record(event, DEADLINE).await {
            Ok(decision) => {
                let recorded = begun.elapsed();
                Ok(Some(Operation { decision, begun, recorded }))
            }
            Err(error) => {
                self.unrecorded.fetch_add(unrecorded, Ordering::Relaxed);
                if described.weight == Weight::Frees {
                    self.unrecorded.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(operation = described.operation, %error, "not recorded");
                    return Ok(None);
                }
                let message = format!("the audit trail can't be written: {}", error.message);
                Err(ApiError::new(error.code, message))
            }
        }
    }

    /// Records what came of an operation.
    pub fn end(&self, operation: Option<Operation>, outcome: &Result<Reply>) {
        let Some(operation) = operation else { return };
        let error = outcome.as_ref().err();
        self.writer.note(Event::Result {
            of: operation.decision,
            result: error.map_or("ok".to_owned(), |e| format!("{:?}", e.code)),
            error: error.map(|e| describe::short(&e.message)),
            duration_us: operation.begun.elapsed().as_micros() as u64,
            recorded_us: operation.recorded.as_micros() as u64,
        });
    }

    /// Records that somebody was turned away.
    pub fn refused(&self, operation: &str, requester: Requester, reason: &str) {
        self.writer.note(Event::Decision {
            operation: operation.to_owned(),
            subject: None,
            arguments: serde_json::Map::new(),
            requester,
            allowed: false,
            reason: Some(describe::short(reason)),
        });
    }

    /// Says that the service ends in order; all is on disk when this returns.
    pub async fn close(&self) {
        self.collect(true).await;
        if let Err(error) = self.writer.record(Event::Ended {}, DEADLINE).await {
            tracing::error!(%error, "the end is not recorded");
        }
        self.writer.end();
    }
}

/// The errors of the writing thread.
fn gone() -> ApiError {
    ApiError::new(ErrorCode::Unavailable, "its writer has ended")
}
