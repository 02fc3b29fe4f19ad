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
//! The address of the client is not kept: the container sees its gateway. To keep it takes a
//! capability (`CAP_NET_ADMIN`, for `IP_TRANSPARENT`) and rules that lead the answers back, and it
//! can't be done for clients on the host's loopback address at all.

mod control;
mod door;
pub(crate) mod limits;
mod slab;
mod socket;
mod tcp;
mod udp;
mod worker;

pub use control::run;
