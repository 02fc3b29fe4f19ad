//! The loop: one epoll, no thread that outlives a request, no wait that is not in it.
//!
//! Everything is edge-triggered: an event only marks something ready, then
//! [`Server::work`] moves what can move until nothing does. A virtio-serial port
//! without a host would report "hung up" for ever otherwise.

mod agent;
mod bulk;
mod power;
mod processes;
mod pump;
mod requests;
mod sockets;

use crate::announcer::Announcer;
use crate::block::Disks;
use crate::boot::{self, Booted};
use crate::cgroup;
use crate::failure::{Context, Failure};
use crate::kernel_log::Follower;
use crate::launch::{Container, Launcher, Rehearsal, Volumes};
use crate::modules::Initramfs;
use crate::network::Network;
use crate::root::Root;
use agent::Agent;
use bulk::Bulk;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use processes::Processes;
use sockets::Sockets;
use std::fs::File;
use std::os::fd::AsFd;
use vminitd_protocol::message::{GuestState, Happening, OutOfMemory};

/// What an event belongs to, as epoll carries it.
mod token {
    pub const AGENT: u64 = 0;
    pub const BULK: u64 = 1;
    pub const SIGNALS: u64 = 2;
    pub const MEMORY: u64 = 3;
    /// From here on: process slot × 8 + which of its descriptors.
    pub const PROCESSES: u64 = 8;
    /// With this bit: a socket's number.
    pub const SOCKETS: u64 = 1 << 62;
}

/// The guest's whole state.
pub struct Server {
    epoll: Epoll,
    agent: Agent,
    bulk: Bulk,
    initramfs: Initramfs,
    signals: SignalFd,
    /// What a booted guest prepares once it has greeted its host.
    prepared: Option<Prepared>,
    oom_kills: u64,
    state: State,
    disks: Disks,
    /// Mounted with the root, for the container that is to be started in it.
    volumes: Volumes,
    network: Network,
    /// Waits for the next container.
    launcher: Option<Launcher>,
    /// What this guest's next host sets off with its greeting, once.
    rehearsal: Ahead,
    processes: Processes,
    sockets: Sockets,
    /// Once the host has something to announce.
    announcer: Option<Announcer>,
}

/// A rehearsal is made once in the life of a guest, for its clones.
enum Ahead {
    NotYet,
    Made(Option<Rehearsal>),
}

impl Ahead {
    fn make(&mut self) {
        if let Ahead::NotYet = self {
            let made = Rehearsal::ahead().unwrap_or_else(|failure| {
                eprintln!("vminitd: no rehearsal: {failure}");
                None
            });
            *self = Ahead::Made(made);
        }
    }

    fn take(&mut self) -> Option<Rehearsal> {
        match self {
            Ahead::Made(rehearsal) => rehearsal.take(),
            Ahead::NotYet => None,
        }
    }
}

struct Prepared {
    /// Held because it is watched.
    memory_events: Option<File>,
    kernel_log: Follower,
}

/// The state machine of [`vminitd_protocol::message`].
enum State {
    Booted,
    Ready,
    Rooted(Root),
    /// The first process is on its way; Running for the host once it is there.
    Starting(Root, Container),
    Running(Root, Container),
    /// It has ended; what is left of the container goes with the root.
    Stopped(Root, Container),
}

impl State {
    fn wire(&self) -> GuestState {
        match self {
            State::Booted => GuestState::Booted,
            State::Ready => GuestState::Ready,
            State::Rooted(_) | State::Starting(..) => GuestState::Rooted,
            State::Running(..) => GuestState::Running,
            State::Stopped(..) => GuestState::Stopped,
        }
    }
}

/// Serves the host. Returns only what makes going on impossible.
pub fn serve(booted: Booted) -> Failure {
    match Server::new(booted).and_then(|mut server| server.run()) {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

impl Server {
    fn new(booted: Booted) -> Result<Self, Failure> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).internal("create epoll")?;
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block().internal("block SIGCHLD")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&mask, flags).internal("create signalfd")?;
        let server = Server {
            epoll,
            agent: Agent::new(booted.agent),
            bulk: Bulk::new(booted.bulk),
            initramfs: booted.initramfs,
            signals,
            prepared: None,
            oom_kills: 0,
            state: State::Booted,
            disks: Disks::default(),
            volumes: Volumes::default(),
            network: Network::default(),
            launcher: None,
            rehearsal: Ahead::NotYet,
            processes: Processes::default(),
            sockets: Sockets::default(),
            announcer: None,
        };
        let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT;
        watch(&server.epoll, &server.agent, both, token::AGENT)?;
        watch(&server.epoll, &server.bulk, both, token::BULK)?;
        watch(&server.epoll, &server.signals, EpollFlags::EPOLLIN, token::SIGNALS)?;
        Ok(server)
    }

    /// Makes the guest ready for a container, unless it is.
    fn prepare(&mut self) -> Result<(), Failure> {
        if self.prepared.is_none() {
            boot::prepare()?;
            let memory_events = self.watch_memory()?;
            self.prepared = Some(Prepared { memory_events, kernel_log: Follower::new() });
        }
        Ok(())
    }

    /// Forgets all that a container has left in the kernel's accounts.
    fn renew(&mut self) -> Result<(), Failure> {
        let Some(mut prepared) = self.prepared.take() else { return Ok(()) };
        prepared.memory_events = None;
        let renewed = cgroup::renew();
        prepared.memory_events = self.watch_memory()?;
        prepared.kernel_log.skip();
        self.oom_kills = 0;
        self.prepared = Some(prepared);
        renewed
    }

    fn watch_memory(&self) -> Result<Option<File>, Failure> {
        // A kernel without it tells of no kills.
        let Ok(file) = cgroup::memory_events() else { return Ok(None) };
        watch(&self.epoll, &file, EpollFlags::EPOLLPRI, token::MEMORY)?;
        Ok(Some(file))
    }

    fn run(&mut self) -> Result<std::convert::Infallible, Failure> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let more = self.work()?;
            let timeout = if more { EpollTimeout::ZERO } else { self.processes.timeout() };
            let n = match self.epoll.wait(&mut events, timeout) {
                Err(Errno::EINTR) => 0,
                result => result.internal("wait for events")?,
            };
            for event in &events[..n] {
                self.mark(event.data(), event.events());
            }
            self.expire();
        }
    }

    fn mark(&mut self, token: u64, events: EpollFlags) {
        let ends = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        let readable = events.intersects(EpollFlags::EPOLLIN | ends);
        let writable = events.intersects(EpollFlags::EPOLLOUT | ends);
        match token {
            token::AGENT => self.agent.mark(readable, writable),
            token::BULK => self.bulk.mark(readable, writable),
            token::SIGNALS => self.reap(),
            token::MEMORY => self.memory_event(),
            token if token & token::SOCKETS != 0 => {
                self.sockets.mark(token, readable, writable);
            }
            token => self.processes.mark(token, readable, writable),
        }
    }

    /// Moves everything that can move. Returns whether there may be more, so
    /// that no single source keeps the others waiting.
    fn work(&mut self) -> Result<bool, Failure> {
        let mut more = self.bulk.receive()?;
        more |= self.pump();
        more |= self.serve_sockets();
        self.finish_processes();
        self.bulk.flush()?;
        while let Some(request) = self.agent.next_request()? {
            self.handle(request)?;
        }
        self.read_reports();
        if self.agent.was_greeted()
            && let Some(rehearsal) = self.rehearsal.take()
        {
            rehearsal.begin();
        }
        self.agent.flush()?;
        if self.agent.has_host() && self.bulk.has_host() {
            self.prepare()?;
        }
        Ok(more || self.agent.has_more())
    }

    /// Tells the host of processes that the kernel has killed.
    fn memory_event(&mut self) {
        let kills = cgroup::oom_kills();
        if kills > self.oom_kills {
            self.oom_kills = kills;
            let log = self.prepared.as_mut().map(|prepared| &mut prepared.kernel_log);
            let killed = log.and_then(Follower::killed_process).unwrap_or_default();
            self.agent.event(Happening::OutOfMemory(OutOfMemory {
                kernel_message: killed.line,
                kills,
                process: killed.name,
                pid: killed.pid,
                anonymous_bytes: killed.anonymous_bytes,
                limit_bytes: cgroup::memory_limit_bytes(),
            }));
        }
    }
}

fn watch(epoll: &Epoll, fd: impl AsFd, events: EpollFlags, token: u64) -> Result<(), Failure> {
    epoll
        .add(fd, EpollEvent::new(events | EpollFlags::EPOLLET, token))
        .internal("watch a descriptor")
}
