//! What a process is made of.

/// One process: the container's first, or an exec.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProcessSpec {
    /// The host's name for it, 1 to 128 bytes, unique among living processes.
    #[prost(string, tag = "1")]
    pub process: String,
    /// Arguments; the first is the program, looked up in `PATH` when it has no `/`.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub args: Vec<Vec<u8>>,
    /// `NAME=value` each; the last of a name wins. `PATH`, `HOME`, `HOSTNAME`
    /// and, with a terminal, `TERM` are added when missing.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub env: Vec<Vec<u8>>,
    /// Working directory, absolute, made when missing; empty means `/`.
    #[prost(bytes = "vec", tag = "4")]
    pub cwd: Vec<u8>,
    /// As whom it runs; unset means uid 0 and gid 0.
    #[prost(message, optional, tag = "5")]
    pub user: Option<User>,
    /// A terminal of this size, or none.
    #[prost(message, optional, tag = "6")]
    pub terminal: Option<TerminalSize>,
    /// Its streams on the bulk port.
    #[prost(message, optional, tag = "7")]
    pub stdio: Option<Stdio>,
    /// Resource limits; what is not named is inherited from PID 1 of the guest.
    #[prost(message, repeated, tag = "8")]
    pub rlimits: Vec<Rlimit>,
    /// Capability mask ([`crate::capability`]): the bounding set, and for
    /// uid 0 what the process holds.
    #[prost(uint64, tag = "9")]
    pub capabilities: u64,
    /// Whether set-id programs and file capabilities give nothing.
    #[prost(bool, tag = "10")]
    pub no_new_privileges: bool,
    /// `/proc/self/oom_score_adj`, −1000 to 1000.
    #[prost(sint32, tag = "11")]
    pub oom_score_adj: i32,
    /// File mode creation mask; unset means 022.
    #[prost(uint32, optional, tag = "12")]
    pub umask: Option<u32>,
    /// A program of the kernel's classic BPF that judges its system calls: instructions of 8 bytes
    /// as the guest's processor has them. Empty: all calls are made.
    #[prost(bytes = "vec", tag = "13")]
    pub seccomp: Vec<u8>,
}

/// As whom a process runs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct User {
    /// `name`, `uid`, `name:group`, `uid:gid` and the like, resolved in the
    /// container's `/etc/passwd` and `/etc/group`; empty means uid 0.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Overrides the uid that `name` gave.
    #[prost(uint32, optional, tag = "2")]
    pub uid: Option<u32>,
    /// Overrides the gid that `name` gave.
    #[prost(uint32, optional, tag = "3")]
    pub gid: Option<u32>,
    /// Supplementary groups beside those of `/etc/group`.
    #[prost(uint32, repeated, tag = "4")]
    pub additional_gids: Vec<u32>,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct TerminalSize {
    /// Rows.
    #[prost(uint32, tag = "1")]
    pub rows: u32,
    /// Columns.
    #[prost(uint32, tag = "2")]
    pub columns: u32,
}

/// Stream numbers on the bulk port, chosen by the host, never reused in one
/// connection. What is unset is `/dev/null`.
///
/// The host opens a stream in its [`crate::mux::Mux`] before it sends the
/// request; the guest opens it while it carries the request out.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Stdio {
    /// Host to guest.
    #[prost(uint32, optional, tag = "1")]
    pub stdin: Option<u32>,
    /// Guest to host.
    #[prost(uint32, optional, tag = "2")]
    pub stdout: Option<u32>,
    /// Guest to host.
    #[prost(uint32, optional, tag = "3")]
    pub stderr: Option<u32>,
    /// Both ways; with a terminal this one is used alone.
    #[prost(uint32, optional, tag = "4")]
    pub terminal: Option<u32>,
}

/// One resource limit.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Rlimit {
    /// Number of the resource (`RLIMIT_NOFILE` is 7), below 16.
    #[prost(uint32, tag = "1")]
    pub resource: u32,
    /// Soft limit; `u64::MAX` is unlimited.
    #[prost(uint64, tag = "2")]
    pub soft: u64,
    /// Hard limit; `u64::MAX` is unlimited.
    #[prost(uint64, tag = "3")]
    pub hard: u64,
}

/// Name and number of each resource limit that `--ulimit` can set.
pub const RLIMITS: &[(&str, u32)] = &[
    ("cpu", 0),
    ("fsize", 1),
    ("data", 2),
    ("stack", 3),
    ("core", 4),
    ("rss", 5),
    ("nproc", 6),
    ("nofile", 7),
    ("memlock", 8),
    ("as", 9),
    ("locks", 10),
    ("sigpending", 11),
    ("msgqueue", 12),
    ("nice", 13),
    ("rtprio", 14),
    ("rttime", 15),
];
