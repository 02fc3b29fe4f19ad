//! The living processes that the host has named.
//!
//! ```text
//! Starting ──report ends──► Alive ──waitpid──► Exited ──output drained──► gone
//!     └──report fails, or too late──► gone (its exit is reaped unseen)
//! ```

use super::token;
use crate::failure::Failure;
use crate::launch::report::{self, MAX_LEN};
use nix::errno::Errno;
use nix::sys::epoll::EpollTimeout;
use nix::unistd::read;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use vminitd_protocol::GUEST_REQUEST_LIMIT;

/// Which descriptor of a process a token means.
#[derive(Clone, Copy)]
pub enum Which {
    Report = 0,
    Input = 1,
    Output = 2,
    Error = 3,
}

/// One process.
pub struct Process {
    /// The host's name for it.
    pub name: String,
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// What it is to the container.
    pub role: Role,
    pub phase: Phase,
    pub input: Option<Channel>,
    pub outputs: [Option<Channel>; 2],
    /// Master of its terminal.
    pub terminal: Option<OwnedFd>,
    /// Kills for want of memory when it was started.
    pub oom_kills_before: u64,
}

/// What a process is to the container.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The one that the container lives and dies with.
    First,
    /// One more.
    Exec,
    /// None of its own: it copies files.
    Archive,
}

/// How far a process is.
pub enum Phase {
    /// Not at its program yet; the request to answer.
    Starting { request: u64, report: OwnedFd, deadline: Instant },
    /// Running its program.
    Alive,
    /// Ended; the wait status.
    Exited(Exit),
}

/// How a process ended.
#[derive(Clone, Copy)]
pub struct Exit {
    pub code: u32,
    pub signal: u32,
    pub out_of_memory: bool,
    pub at_ns: u64,
}

/// One of our ends and its stream.
pub struct Channel {
    pub fd: OwnedFd,
    pub stream: u32,
    /// Whether the last attempt did not end in "would block".
    pub ready: bool,
}

impl Process {
    /// It copies files still.
    pub fn copies(&self) -> bool {
        self.role == Role::Archive && !matches!(self.phase, Phase::Exited(_))
    }
}

/// All of them, by slots that are never reused.
#[derive(Default)]
pub struct Processes {
    slots: BTreeMap<u64, Process>,
    last_slot: u64,
}

/// What a report pipe said.
pub enum Report {
    /// Nothing yet.
    Pending,
    /// The program runs.
    Running,
    /// It doesn't.
    Failed(Failure),
}

impl Processes {
    /// Number for a new process.
    pub fn next_slot(&mut self) -> u64 {
        self.last_slot += 1;
        self.last_slot
    }

    pub fn token(slot: u64, which: Which) -> u64 {
        token::PROCESSES + slot * 8 + which as u64
    }

    pub fn insert(&mut self, slot: u64, process: Process) {
        self.slots.insert(slot, process);
    }

    pub fn remove(&mut self, slot: u64) -> Option<Process> {
        self.slots.remove(&slot)
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Process)> {
        self.slots.iter_mut().map(|(slot, process)| (*slot, process))
    }

    pub fn slots(&self) -> Vec<u64> {
        self.slots.keys().copied().collect()
    }

    pub fn get_mut(&mut self, slot: u64) -> Option<&mut Process> {
        self.slots.get_mut(&slot)
    }

    /// By the host's name.
    pub fn named(&self, name: &str) -> Option<&Process> {
        self.slots.values().find(|process| process.name == name)
    }

    /// By process id, while not reaped.
    pub fn by_pid(&mut self, pid: i32) -> Option<&mut Process> {
        let alive = |p: &&mut Process| p.pid == pid && !matches!(p.phase, Phase::Exited(_));
        self.slots.values_mut().find(alive)
    }

    pub fn mark(&mut self, token: u64, readable: bool, writable: bool) {
        let Some(token) = token.checked_sub(token::PROCESSES) else { return };
        let Some(process) = self.slots.get_mut(&(token / 8)) else { return };
        let (channel, ready) = match token % 8 {
            1 => (&mut process.input, writable),
            2 => (&mut process.outputs[0], readable),
            3 => (&mut process.outputs[1], readable),
            _ => return, // A report is looked at in any case.
        };
        if let Some(channel) = channel {
            channel.ready |= ready;
        }
    }

    /// Until the next start that takes too long.
    pub fn timeout(&self) -> EpollTimeout {
        let now = Instant::now();
        let left = self.deadlines().min().map(|at| at.saturating_duration_since(now));
        // Rounded up: waking a little early would spin.
        left.map_or(EpollTimeout::NONE, |left| {
            EpollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(EpollTimeout::MAX)
        })
    }

    fn deadlines(&self) -> impl Iterator<Item = Instant> {
        self.slots.values().filter_map(|process| match process.phase {
            Phase::Starting { deadline, .. } => Some(deadline),
            _ => None,
        })
    }
}

impl Phase {
    pub fn starting(request: u64, report: OwnedFd) -> Self {
        Phase::Starting { request, report, deadline: Instant::now() + GUEST_REQUEST_LIMIT }
    }
}

/// Looks at a report pipe without waiting.
pub fn look(pipe: &OwnedFd) -> Report {
    let mut bytes = [0u8; MAX_LEN];
    match read(pipe, &mut bytes) {
        Ok(0) => Report::Running,
        Ok(n) => Report::Failed(report::decode(&bytes[..n])),
        Err(Errno::EAGAIN | Errno::EINTR) => Report::Pending,
        Err(_) => Report::Running,
    }
}
