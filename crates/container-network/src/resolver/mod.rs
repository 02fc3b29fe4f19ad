//! The resolver of one network, a process of its own.
//!
//! ```text
//!              ┌─ known here: containers, the host, reverse ──────────────────► answer
//! packet ─► parse ─► decide ─ not allowed, or nobody to ask ─────────────────► NXDOMAIN
//!              └─ outside ─► cache ─► upstream ─► addresses that may be told ─┬► answer
//!                                                 restricted: pins in force ──┘
//! ```
//! A container is known by the address it asks from, which the rules of its tap vouch for. It has
//! a share of everything: questions a second, questions outside, connections. Those over it are
//! dropped before they are read.
//!
//! Under egress rules a container learns addresses (A and AAAA) of allowed names and nothing else;
//! the rules let these addresses through before it hears of them. Nothing of its question goes
//! outside but the allowed name, in lower case, and the type. Two names on one address can't be
//! told apart.
//!
//! It is single-threaded, without capabilities, and can neither open files nor start programs.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use container_api::{ApiError, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::Notify;

use crate::service::start::Start;

mod answer;
mod cache;
mod control;
mod guest;
mod message;
mod names;
mod pins;
mod policy;

mod serve;
mod upstream;

pub use answer::{Begun, Pending, Resolver};

/// Descriptors that it may need: questions outside, connections of both kinds, and some.
const DESCRIPTORS: u64 = 2048;

/// Answers the network's questions until it is told to end.
///
/// It can't remove its socket: whoever ends it, or finds it dead, does.
pub fn run(start: Start) -> Result<()> {
    let Start { name, control, network, user, sockets, allow_missing } = start;
    descriptors().map_err(|e| e.context("raising the limit on open files"))?;
    // The namespaces are held as long as the process lives.
    let namespaces: Vec<OwnedFd> = [Some(network), user].into_iter().flatten().collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    crate::confine::enter("the resolver", &allow_missing)?;
    runtime.block_on(async {
        let resolver = Arc::new(Resolver::default());
        for socket in sockets {
            serve::Socket::new(socket)?.serve(resolver.clone());
        }
        tracing::info!(network = name, "answering");
        let end = Arc::new(Notify::new());
        control::serve(control, control::Control { resolver, namespaces, end }).await
    })
}

fn descriptors() -> Result<()> {
    let failed = |errno: nix::Error| ApiError::from(std::io::Error::from(errno));
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    if soft < DESCRIPTORS {
        let limit = DESCRIPTORS.min(hard);
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard).map_err(failed)?;
    }
    Ok(())
}

/// A lock that a panic elsewhere doesn't spoil: what it guards is whole after each statement.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
