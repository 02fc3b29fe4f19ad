//! Frames from the guest, and what it tells unasked.

use super::{Response, SocketConnected};

/// One frame from the guest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GuestMessage {
    /// What it is.
    #[prost(oneof = "GuestBody", tags = "1, 2")]
    pub body: Option<GuestBody>,
}

/// A response or an event.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum GuestBody {
    /// Answers a request.
    #[prost(message, tag = "1")]
    Response(Response),
    /// Tells what happened.
    #[prost(message, tag = "2")]
    Event(Event),
}

/// Something that happened in the guest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Event {
    /// What happened.
    #[prost(oneof = "Happening", tags = "1, 2, 3")]
    pub happening: Option<Happening>,
}

/// Kinds of events.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Happening {
    /// A process ended. All its output was handed to the bulk port before, each
    /// output stream closed by an EOF frame; wait for those as well.
    #[prost(message, tag = "1")]
    ProcessExited(ProcessExited),
    /// The kernel killed a process of the container for want of memory.
    #[prost(message, tag = "2")]
    OutOfMemory(OutOfMemory),
    /// A program has connected to one of the sockets on which the guest listens. It waits for
    /// [`super::Call::AcceptSocket`].
    #[prost(message, tag = "3")]
    SocketConnected(SocketConnected),
}

/// How a process ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProcessExited {
    /// The host's name for it.
    #[prost(string, tag = "1")]
    pub process: String,
    /// Exit code, or 128 + signal.
    #[prost(uint32, tag = "2")]
    pub exit_code: u32,
    /// The signal that ended it; 0 when none did.
    #[prost(uint32, tag = "3")]
    pub signal: u32,
    /// Whether the container ran out of memory while the process lived and it
    /// was ended by SIGKILL.
    #[prost(bool, tag = "4")]
    pub out_of_memory: bool,
    /// Wall clock of the guest at the exit, nanoseconds since 1970.
    #[prost(uint64, tag = "5")]
    pub exited_at_ns: u64,
}

/// See [`Happening::OutOfMemory`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct OutOfMemory {
    /// The kernel's line about it, when it was found: which process, how large.
    #[prost(string, tag = "1")]
    pub kernel_message: String,
    /// How many kills the container has seen so far.
    #[prost(uint64, tag = "2")]
    pub kills: u64,
    /// Name of the killed process (its `comm`), as the container gave it; empty
    /// when the kernel's line was not found.
    #[prost(string, tag = "3")]
    pub process: String,
    /// Its process id as the guest's PID 1 saw it; 0 when not known.
    #[prost(uint32, tag = "4")]
    pub pid: u32,
    /// Memory that it held for itself (the kernel's `anon-rss`), in bytes.
    #[prost(uint64, tag = "5")]
    pub anonymous_bytes: u64,
    /// The container's memory limit at that time, in bytes.
    #[prost(uint64, tag = "6")]
    pub limit_bytes: u64,
}
