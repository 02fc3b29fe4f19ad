//! How much of everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::wire::Connections;

/// TCP connections of one container in one direction, over all workers.
pub const MAX_CONNECTIONS: usize = 16_384;
/// Clients of UDP that are remembered, in one direction.
pub const MAX_CLIENTS: usize = 4_096;
/// Workers of one direction.
pub const MAX_WORKERS: usize = 32;
/// After this much silence a client of UDP is forgotten, as the kernel forgets a stream (`nf_conntrack_udp_timeout_stream`).
pub const CLIENT_IDLE: Duration = Duration::from_secs(120);
/// When there is no room, a client of UDP that was silent for this long makes room for a new one.
pub const CLIENT_SPARE: Duration = Duration::from_secs(5);
/// What a read takes at most.
pub const CHUNK: usize = 128 << 10;
/// What a read takes at most while [`MANY_HELD`] bytes wait for slow readers in a worker.
pub const SMALL_CHUNK: usize = 4 << 10;
/// See [`SMALL_CHUNK`].
pub const MANY_HELD: usize = 32 << 20;
/// Chunks of one connection before others have their turn.
pub const TURN: usize = 8;
/// Connections accepted, or datagrams read, before others have their turn.
pub const BATCH: usize = 64;
/// Descriptors of a worker's table that no connection gets.
const RESERVED: usize = 64;
/// Descriptors that are kept for clients of UDP, in the first worker.
const _: () = assert!(MAX_CLIENTS + 2 * RESERVED < MAX_CONNECTIONS);

/// What all workers count together.
#[derive(Debug, Default)]
pub struct Counters {
    /// Open.
    pub tcp: AtomicU64,
    /// Remembered.
    pub udp: AtomicU64,
    /// Refused for want of descriptors.
    pub refused: AtomicU64,
}

/// Shared by all threads.
pub type Shared = Arc<Counters>;

impl Counters {
    /// As it is told.
    pub fn read(&self) -> Connections {
        Connections {
            tcp: self.tcp.load(Ordering::Relaxed),
            udp: self.udp.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

/// Raises the limit on open files as far as it goes, and says what it is.
pub fn open_files() -> nix::Result<usize> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(usize::try_from(hard).unwrap_or(usize::MAX))
}

/// How many descriptors a worker's connections may take; `open`: its limit on open files.
pub fn room(open: usize) -> usize {
    open.saturating_sub(RESERVED).min(2 * (MAX_CONNECTIONS + MAX_CLIENTS))
}
