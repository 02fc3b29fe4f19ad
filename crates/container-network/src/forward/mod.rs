//! The forwarder of one container's ports, a process of its own.
//!
//! ```text
//! service ──(unix socket)──► control        the main thread; configuration, in the host's network
//!                              ├─door─► worker "out"   host's listeners → container's addresses
//!                              │           └─door─► worker, worker …  once the first is full
//!                              └─door─► worker "in"    host access: container's listeners → host
//! ```
//! A socket belongs to the network namespace of the thread that made it, wherever it is used. So a
//! worker lives where its connections lead; whom it accepts them from doesn't matter. The thread of
//! the first worker enters the container's namespace, and only then is the process confined.
//!
//! Each worker has a table of descriptors of its own, so that the limit on open files is one of a
//! worker: two descriptors a connection. Descriptors go from table to table through [`door`]s.
//! When all are full, or [`limits::MAX_CONNECTIONS`] are open, a new connection is reset.
//!
//! The container sees a client by its own address, where that means something there
//! ([`socket::own_address`]) and the container's answers to it come this way
//! ([`crate::wire::Route::keep_client`]); else it sees its gateway. Sockets with a stranger's
//! address (`IP_TRANSPARENT`) are the one thing that the workers' threads keep a capability for:
//! `CAP_NET_RAW`, within the container's namespace, and no raw sockets (`confine`). The engine's
//! rules lead the answers back here, and let nobody pose as a neighbour.

mod control;
mod door;
pub(crate) mod limits;
mod slab;
mod socket;
mod tcp;
mod udp;
mod worker;

pub use control::run;
