//! The contract between the host's helper and `vminitd`, PID 1 of the guest.
//!
//! Two virtio-serial ports carry everything:
//!
//! ```text
//!            agent                                   bulk
//!  host ── HELLO(nonce) ─────► guest       host ── HELLO(nonce) ─────► guest
//!       ◄── WELCOME(nonce) ───                  ◄── WELCOME(nonce) ───
//!       ── Request frames ───►                  ◄─ stream frames, both ways ─►
//!       ◄─ Response, Event ───                     (stdin, stdout, stderr, tty)
//! ```
//!
//! Everything here is sans-I/O: bytes go in, typed values come out, and memory
//! is bounded whatever the peer sends. The blocking guest and the asynchronous
//! host use the same state machines.
//!
//! - [`handshake`]: finds the peer in a byte stream that may begin with rubbish.
//! - [`frame`]: length-prefixed control frames.
//! - [`message`]: requests, responses and events, encoded as protobuf.
//! - [`mux`]: byte streams with credit flow control over the `bulk` port.
//! - [`capability`]: names, numbers and the default set of capabilities.
//!
//! Within one [`GENERATION`] the schema only grows: new fields and variants get
//! new tags. A test compares it with a frozen copy.

pub mod capability;
pub mod frame;
pub mod handshake;
pub mod message;
pub mod mux;

use std::time::Duration;

/// Generation of this protocol. Peers of different generations refuse each other.
pub const GENERATION: u32 = 1;

/// Name of the virtio-serial port for control messages.
pub const AGENT_PORT: &str = "agent";
/// Name of the virtio-serial port for stdio streams.
pub const BULK_PORT: &str = "bulk";

/// Serial number of the virtio-blk device that holds the image's EROFS.
pub const IMAGE_SERIAL: &str = "image";
/// Serial number of the virtio-blk device that holds the container's ext4.
pub const UPPER_SERIAL: &str = "upper";

/// Longest control frame in bytes, without its length prefix. Linux takes 2 MiB
/// of arguments and environment; they arrive twice at most, with room to spare.
pub const MAX_CONTROL_FRAME: usize = 8 << 20;
/// Longest payload of one bulk data frame in bytes.
pub const MAX_BULK_CHUNK: usize = 64 << 10;
/// Credit window of one stream and direction in bytes: the most that a receiver
/// ever holds for a stream whose consumer is slow.
pub const STREAM_WINDOW: usize = 256 << 10;
/// Most streams that may be open at once.
pub const MAX_STREAMS: usize = 1024;
/// Most processes (the container's first and its execs) alive at once.
pub const MAX_PROCESSES: usize = 256;
/// Most NICs of a guest: the VM's own, and one in each place for devices that come later.
pub const MAX_INTERFACES: usize = 5;
/// Most addresses of one NIC.
pub const MAX_ADDRESSES: usize = 16;
/// Most sockets on which the guest listens.
pub const MAX_SOCKETS: usize = 8;
/// Most connections of sockets at once, in both directions.
pub const MAX_SOCKET_CONNECTIONS: usize = 128;
/// Longest path of a socket in the container in bytes: the longest that can be connected to.
pub const MAX_SOCKET_PATH: usize = 107;
/// Most changes of files in one request.
pub const MAX_FILE_EVENTS: usize = 64;
/// Longest path of a changed file in bytes.
pub const MAX_FILE_PATH: usize = 4095;
/// Most bytes of the paths of one request's changes.
pub const MAX_FILE_EVENT_BYTES: usize = 32 << 10;
/// The user that raises events, for whom a file server changes nothing.
pub const FILE_EVENT_USER: u32 = 0xfffe_fd01;
/// The name in the root of a file system for where a file comes from that was not in it.
pub const FILE_EVENT_ELSEWHERE: &str = ".elsewhere";
/// Most bytes of kernel log in one answer.
pub const MAX_BOOT_LOG: usize = 1 << 20;

/// How long the host waits for the first handshake of a VM that boots.
/// Emulated on a busy host a boot of 2 s may take many times as long.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// How long the host waits for a handshake with a guest that runs already.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the host waits for the response to any request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the host waits, after `Shutdown`, for the VM to power off.
pub const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time that the guest spends in one request before it answers.
pub const GUEST_REQUEST_LIMIT: Duration = Duration::from_secs(40);
/// How long the guest waits for a NIC that is being plugged in.
pub const GUEST_NIC_LIMIT: Duration = Duration::from_secs(20);
/// How long the guest waits for killed processes to be gone before it unmounts.
pub const GUEST_KILL_LIMIT: Duration = Duration::from_secs(5);
/// How long the host waits, after `ProcessExited`, for the end of the process's
/// output streams: they travel on another port and may arrive later.
pub const STREAM_END_TIMEOUT: Duration = Duration::from_secs(10);

const _: () = {
    assert!(GUEST_REQUEST_LIMIT.as_secs() < REQUEST_TIMEOUT.as_secs());
    assert!(GUEST_KILL_LIMIT.as_secs() * 2 < POWER_OFF_TIMEOUT.as_secs());
    assert!(GUEST_KILL_LIMIT.as_secs() < GUEST_REQUEST_LIMIT.as_secs());
    assert!(GUEST_NIC_LIMIT.as_secs() < GUEST_REQUEST_LIMIT.as_secs());
    assert!(HANDSHAKE_TIMEOUT.as_secs() < BOOT_TIMEOUT.as_secs());
    assert!(STREAM_WINDOW >= 4 * MAX_BULK_CHUNK);
    assert!(MAX_CONTROL_FRAME >= 2 * (2 << 20));
    assert!(MAX_BOOT_LOG < MAX_CONTROL_FRAME);
    assert!(2 * MAX_FILE_PATH < MAX_FILE_EVENT_BYTES);
    assert!(MAX_SOCKET_CONNECTIONS + 3 * MAX_PROCESSES < MAX_STREAMS);
};
