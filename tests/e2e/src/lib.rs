//! The harness of the end-to-end tests: installations of their own, images made by
//! code, a real registry, terminals. The benchmarks and the demo use it too.
//!
//! Every test has an [`Installation`]: an app root of its own, a service of its own,
//! and on drop, even in a panic, the end of every process that belongs to it. As root it also has
//! a network of its own ([`isolation`]).

pub mod busybox;
pub mod command;
pub mod debian;
pub mod faults;
pub mod frame;
pub mod installation;
pub mod isolation;
pub mod layer;
pub mod layout;
pub mod processes;
pub mod pty;
pub mod registry;
pub mod serve;
pub mod start_mode;
pub mod surface;
pub mod tools;
pub mod world;

pub use command::{Cmd, Output, Running};
pub use installation::Installation;
pub use layer::Layer;
pub use layout::{Compression, Image};
pub use pty::Terminal;
pub use registry::Registry;
pub use start_mode::StartMode;
pub use world::World;

use std::time::{Duration, Instant};

/// How long a command may take that starts a VM or less, emulated on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Polls until `ready` answers, and panics with `what` when it has not in time.
pub fn wait_for<T>(what: &str, deadline: Duration, mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < end, "{what}: not within {deadline:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// SHA-256 in hex, as digests are written.
pub fn sha256_hex(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
