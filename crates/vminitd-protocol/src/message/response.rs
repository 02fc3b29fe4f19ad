//! Answers.

/// Answers the request of the same id.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    /// The request's id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What came of it.
    #[prost(oneof = "Reply", tags = "2, 3, 4, 5, 6, 7, 8")]
    pub reply: Option<Reply>,
}

/// What came of a request.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Reply {
    /// It failed and changed nothing that isn't said.
    #[prost(message, tag = "2")]
    Error(Error),
    /// It is done and there is nothing to tell.
    #[prost(message, tag = "3")]
    Done(Done),
    /// Answers a ping.
    #[prost(message, tag = "4")]
    Pong(Pong),
    /// A process runs: its program was executed.
    #[prost(message, tag = "5")]
    Started(Started),
    /// Answers [`super::Call::Stats`].
    #[prost(message, tag = "6")]
    Stats(Stats),
    /// Answers [`super::Call::BootLog`].
    #[prost(message, tag = "7")]
    BootLog(BootLog),
    /// Answers [`super::Call::Processes`].
    #[prost(message, tag = "8")]
    Processes(Processes),
}

/// Why a request failed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Error {
    /// The class of failure.
    #[prost(enumeration = "ErrorCode", tag = "1")]
    pub code: i32,
    /// The system's error number; 0 when there is none.
    #[prost(int32, tag = "2")]
    pub errno: i32,
    /// One line that names the operation and its object.
    #[prost(string, tag = "3")]
    pub message: String,
}

/// Classes of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ErrorCode {
    /// Nothing below fits.
    Internal = 0,
    /// The request is malformed or beyond a limit.
    InvalidRequest = 1,
    /// The guest's state doesn't allow it.
    InvalidState = 2,
    /// The program doesn't exist in the container: exit code 127.
    CommandNotFound = 3,
    /// The program exists and can't be executed: exit code 126.
    NotExecutable = 4,
    /// The user or group isn't known in the container.
    BadUser = 5,
    /// The working directory can't be entered or made.
    BadCwd = 6,
    /// No living process has this name.
    NoSuchProcess = 7,
    /// A living process has this name already, or a stream this number.
    InUse = 8,
    /// A device, file system or mount failed.
    Mount = 9,
    /// Out of memory, processes or another resource.
    Exhausted = 10,
    /// This kernel can't do it.
    Unsupported = 11,
}

/// See [`Reply::Done`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Done {}

/// See [`Reply::Pong`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Pong {
    /// Release of the guest's kernel, `uname -r`.
    #[prost(string, tag = "1")]
    pub kernel_release: String,
    /// The guest's state.
    #[prost(enumeration = "GuestState", tag = "2")]
    pub state: i32,
    /// Time since boot in nanoseconds.
    #[prost(uint64, tag = "3")]
    pub uptime_ns: u64,
    /// Memory of the VM as the guest's kernel counts it, in bytes.
    #[prost(uint64, tag = "4")]
    pub memory_bytes: u64,
}

/// See the module's drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum GuestState {
    /// Up, knows nothing of its host.
    Booted = 0,
    /// Set up, no root.
    Ready = 1,
    /// The root is mounted.
    Rooted = 2,
    /// The container's first process runs.
    Running = 3,
    /// The container's first process has ended.
    Stopped = 4,
}

/// See [`Reply::Started`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Started {
    /// Its process id as the guest's PID 1 sees it.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

/// What the container uses.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Stats {
    /// Memory in bytes, page cache included.
    #[prost(uint64, tag = "1")]
    pub memory_bytes: u64,
    /// Memory limit in bytes.
    #[prost(uint64, tag = "2")]
    pub memory_limit_bytes: u64,
    /// CPU time in microseconds.
    #[prost(uint64, tag = "3")]
    pub cpu_usec: u64,
    /// Processes and threads.
    #[prost(uint64, tag = "4")]
    pub pids: u64,
    /// Bytes read from the disks.
    #[prost(uint64, tag = "5")]
    pub block_read_bytes: u64,
    /// Bytes written to the disks.
    #[prost(uint64, tag = "6")]
    pub block_written_bytes: u64,
    /// Page cache that could be dropped, in bytes.
    #[prost(uint64, tag = "7")]
    pub inactive_file_bytes: u64,
}

/// The container's processes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Processes {
    /// Process ids as the guest's PID 1 sees them, at most 65536.
    #[prost(uint32, repeated, tag = "1")]
    pub pids: Vec<u32>,
}

/// The kernel's log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BootLog {
    /// As `dmesg` shows it; the newest [`crate::MAX_BOOT_LOG`] bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub text: Vec<u8>,
}

impl Error {
    /// An error without a system error number.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Error { code: code as i32, errno: 0, message: message.into() }
    }
}
