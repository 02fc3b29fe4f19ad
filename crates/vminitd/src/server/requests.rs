//! Carries requests out. One place decides what is legal in which state.

use super::processes::{Channel, Phase, Process, Processes, Report, Role, Which, look};
use super::{Server, State, watch};
use crate::announcer::Announcer;
use crate::failure::{Context, Failure};
use crate::files::read_kernel;
use crate::launch::{self, Launched, Launcher, Volumes};
use crate::root::Root;
use crate::{cgroup, kernel_log, setup, sys, validate};
use nix::libc;
use nix::sys::epoll::{Epoll, EpollFlags};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::sync;
use std::time::Instant;
use vminitd_protocol::MAX_PROCESSES;
use vminitd_protocol::message::*;
use vminitd_protocol::mux::{Direction, Mux};

/// The capability to load modules.
const SYS_MODULE: u64 = 1 << 16;

impl Server {
    /// Carries one request out and answers it; a start is answered later.
    pub(super) fn handle(&mut self, request: Request) -> Result<(), Failure> {
        let id = request.id;
        let result = match request.call {
            None => Err(Failure::new(ErrorCode::Unsupported, "request is not known here")),
            Some(Call::Shutdown(_)) => return Err(self.shut_down(id)),
            Some(Call::StartContainer(start)) => self.start_container(id, &start).map(|()| None),
            Some(Call::Exec(process)) => self.exec(id, &process).map(|()| None),
            Some(Call::ConnectSocket(socket)) => self.connect_socket(id, &socket).map(|()| None),
            Some(Call::Archive(archive)) => self.archive(id, &archive).map(|()| None),
            Some(call) => self.simple(call).map(Some),
        };
        match result {
            Ok(Some(reply)) => self.agent.respond(id, reply),
            Ok(None) => {}
            Err(failure) => self.agent.respond(id, Reply::Error(failure.into())),
        }
        Ok(())
    }

    fn simple(&mut self, call: Call) -> Result<Reply, Failure> {
        let done = Ok(Reply::Done(Done {}));
        match call {
            Call::Ping(_) => Ok(Reply::Pong(self.pong())),
            Call::Setup(request) => {
                let (State::Booted | State::Ready) = self.state else { return Err(self.illegal()) };
                self.prepare()?;
                setup::apply(&request)?;
                if !request.sysctls.is_empty() && self.launcher.take().is_some() {
                    // Its namespaces have begun with other parameters.
                    self.make_launcher();
                }
                self.state = State::Ready;
                done
            }
            Call::MountRoot(request) => {
                let State::Ready = self.state else { return Err(self.illegal()) };
                validate::root(&request)?;
                let root = Root::find(&request, &mut self.disks)?;
                let mount = || root.mount();
                let (root, volumes) = Volumes::beside(&request.volumes, &mut self.disks, mount);
                self.volumes = volumes;
                match root {
                    Ok(root) => self.state = State::Rooted(root),
                    Err(failure) => {
                        let _ = self.release_volumes();
                        return Err(failure);
                    }
                }
                done
            }
            Call::UnmountRoot(_) => self.unmount_root().and(done),
            Call::ConfigureNetwork(request) => self.configure_network(&request).and(done),
            Call::AcceptSocket(request) => self.accept_socket(&request).and(done),
            Call::Signal(request) => self.signal(&request).and(done),
            Call::Resize(request) => self.resize(&request).and(done),
            Call::Sync(_) => {
                sync();
                done
            }
            Call::Stats(_) => self.running().map(|()| Reply::Stats(cgroup::stats())),
            Call::Processes(_) => self.running().map(|()| {
                let pids = cgroup::pids().into_iter().take(65536).map(|pid| pid as u32).collect();
                Reply::Processes(vminitd_protocol::message::Processes { pids })
            }),
            Call::BootLog(_) => {
                let text = kernel_log::snapshot().internal("read the kernel's log")?;
                Ok(Reply::BootLog(BootLog { text }))
            }
            Call::LoadDrivers(request) => {
                if let State::Booted = self.state {
                    return Err(self.illegal());
                }
                let loaded = self.initramfs.load_drivers(request.virtualization);
                self.network.look();
                loaded.and(done)
            }
            Call::RaiseFileEvents(request) => self.raise_file_events(&request).and(done),
            Call::Update(request) => {
                let State::Running(_, container) = &self.state else { return Err(self.illegal()) };
                validate::limits(&request.limits)?;
                cgroup::update(&request.limits, container.room)?;
                done
            }
            // Handled by the caller: they don't end with one reply.
            Call::Shutdown(_)
            | Call::StartContainer(_)
            | Call::Exec(_)
            | Call::Archive(_)
            | Call::ConnectSocket(_) => Err(self.illegal()),
        }
    }

    pub(super) fn illegal(&self) -> Failure {
        let state = self.state.wire();
        Failure::new(ErrorCode::InvalidState, format!("not legal in state {state:?}"))
    }

    fn running(&self) -> Result<(), Failure> {
        match self.state {
            State::Running(..) => Ok(()),
            _ => Err(self.illegal()),
        }
    }

    fn pong(&self) -> Pong {
        let uptime = clock_gettime(ClockId::CLOCK_BOOTTIME);
        Pong {
            kernel_release: read_kernel("/proc/sys/kernel/osrelease").unwrap_or_default(),
            state: self.state.wire() as i32,
            uptime_ns: uptime.map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64),
            memory_bytes: cgroup::total_memory_bytes(),
        }
    }

    fn configure_network(&mut self, request: &ConfigureNetwork) -> Result<(), Failure> {
        let (State::Ready | State::Rooted(_)) = self.state else { return Err(self.illegal()) };
        validate::network(request)?;
        if request.interfaces.is_empty() && self.network.is_empty() {
            return Ok(());
        }
        self.initramfs.load_network();
        self.network.configure(request)
    }

    fn unmount_root(&mut self) -> Result<(), Failure> {
        if !matches!(self.state, State::Rooted(_) | State::Stopped(..)) || self.processes.len() > 0
        {
            return Err(self.illegal());
        }
        self.launcher = None;
        self.sockets.clear(&mut self.bulk);
        let released = match std::mem::replace(&mut self.state, State::Ready) {
            State::Rooted(root) => root.release().and(self.release_volumes()),
            State::Stopped(root, container) => {
                let volumes = container.volumes.clone();
                drop(container);
                let released = root.release();
                volumes.iter().try_for_each(|serial| self.disks.release(serial)).and(released)
            }
            _ => Ok(()),
        };
        self.renew().and(released)?;
        // Before the launcher: both make the files of `/etc`, which are the last one's.
        self.rehearsal.make();
        self.make_launcher();
        Ok(())
    }

    /// Unmounts the volumes that no container was started with.
    pub(super) fn release_volumes(&mut self) -> Result<(), Failure> {
        let serials = std::mem::take(&mut self.volumes).give_up();
        serials.iter().try_for_each(|serial| self.disks.release(serial))
    }

    /// Makes the launcher of the next container ahead.
    fn make_launcher(&mut self) {
        match Launcher::ahead() {
            Ok(launcher) => self.launcher = Some(launcher),
            // The next start makes its own, and tells.
            Err(failure) => eprintln!("vminitd: no launcher ahead: {failure}"),
        }
    }

    fn signal(&mut self, request: &Signal) -> Result<(), Failure> {
        let signal = validate::signal(request.signal)?;
        let process = self.find(&request.process)?;
        if !request.all {
            return sys::pidfd_send_signal(&process.pidfd, signal)
                .context(ErrorCode::NoSuchProcess, || format!("signal {:?}", request.process));
        }
        if signal == libc::SIGKILL {
            cgroup::kill_all();
            return Ok(());
        }
        for pid in cgroup::pids() {
            // SAFETY: sends a signal; one that has just ended is no error.
            unsafe { libc::kill(pid, signal) };
        }
        Ok(())
    }

    /// A process of its own raises them; one that is gone has a successor.
    fn raise_file_events(&mut self, request: &RaiseFileEvents) -> Result<(), Failure> {
        self.running()?;
        validate::file_events(request)?;
        let announcer = match self.announcer.take() {
            Some(announcer) => announcer,
            None => Announcer::start(&request.tag)?,
        };
        match announcer.raise(request) {
            Err(failure) if failure.code != ErrorCode::Exhausted => Err(failure),
            raised => {
                self.announcer = Some(announcer);
                raised
            }
        }
    }

    fn find(&self, name: &str) -> Result<&Process, Failure> {
        let living = self.processes.named(name);
        living.filter(|process| !matches!(process.phase, Phase::Exited(_))).ok_or_else(|| {
            Failure::new(ErrorCode::NoSuchProcess, format!("no living process is named {name:?}"))
        })
    }

    fn resize(&mut self, request: &Resize) -> Result<(), Failure> {
        let process = self.find(&request.process)?;
        let terminal = process.terminal.as_ref();
        let terminal = terminal.ok_or_else(|| Failure::invalid("the process has no terminal"))?;
        launch::resize(terminal, request.size).internal("resize the terminal")
    }

    fn start_container(&mut self, id: u64, start: &StartContainer) -> Result<(), Failure> {
        if !matches!(self.state, State::Rooted(_)) {
            return Err(self.illegal());
        }
        validate::container(&start.container)?;
        self.admit(&start.process)?;
        let virtualization = start.container.virtualization;
        if virtualization || start.process.capabilities & SYS_MODULE != 0 {
            // Before there is a program that could be faster than the host's request.
            self.initramfs.load_drivers(virtualization)?;
            self.network.look();
        }
        if virtualization {
            cgroup::allow_kvm()?;
        }
        self.sockets.listen(&self.epoll, &mut self.bulk, &start.container.sockets)?;
        let launcher = self.launcher.take();
        let volumes = std::mem::take(&mut self.volumes);
        let started = launch::start_container(start, volumes, &mut self.disks, launcher);
        let (container, launched) = started.inspect_err(|_| drop(cgroup::lift_limits()))?;
        self.state = match std::mem::replace(&mut self.state, State::Booted) {
            State::Rooted(root) => State::Starting(root, container),
            other => other,
        };
        self.adopt(id, &start.process.process, launched, Role::First)
    }

    fn exec(&mut self, id: u64, process: &ProcessSpec) -> Result<(), Failure> {
        let State::Running(_, container) = &self.state else { return Err(self.illegal()) };
        self.admit(process)?;
        let launched = launch::exec(container, process)?;
        self.adopt(id, &process.process, launched, Role::Exec)
    }

    /// Starts a copy of files.
    fn archive(&mut self, id: u64, request: &Archive) -> Result<(), Failure> {
        let container = match &self.state {
            State::Rooted(_) => None,
            State::Running(_, container) => Some(container),
            _ => return Err(self.illegal()),
        };
        let work = request.work.as_ref();
        let work = work.ok_or_else(|| Failure::invalid("the work is not known here"))?;
        validate::archive(request)?;
        self.has_room(&request.process, request.stdio)?;
        let launched = launch::archive::start(container, &mut self.disks, request, work)?;
        self.adopt(id, &request.process, launched, Role::Archive)
    }

    /// Whether there is room for a process of this name with these streams.
    fn admit(&self, spec: &ProcessSpec) -> Result<(), Failure> {
        validate::process(spec)?;
        self.has_room(&spec.process, spec.stdio)
    }

    fn has_room(&self, name: &str, stdio: Option<Stdio>) -> Result<(), Failure> {
        if self.processes.named(name).is_some() {
            let message = format!("a living process is named {name:?}");
            return Err(Failure::new(ErrorCode::InUse, message));
        }
        if self.processes.len() >= MAX_PROCESSES {
            return Err(Failure::new(ErrorCode::Exhausted, "too many processes"));
        }
        let stdio = stdio.unwrap_or_default();
        let streams = [stdio.stdin, stdio.stdout, stdio.stderr, stdio.terminal];
        if streams.into_iter().flatten().any(|stream| self.bulk.mux.is_open(stream)) {
            return Err(Failure::new(ErrorCode::InUse, "a stream number is in use"));
        }
        Ok(())
    }

    /// Takes a launched child under our wings.
    fn adopt(
        &mut self,
        request: u64,
        name: &str,
        launched: Launched,
        role: Role,
    ) -> Result<(), Failure> {
        let slot = self.processes.next_slot();
        let epoll = &self.epoll;
        let terminal = launched.ends.terminal.is_some();
        watch_end(epoll, &launched.report, EpollFlags::EPOLLIN, slot, Which::Report)?;
        let mux = &mut self.bulk.mux;
        let input = match launched.ends.input {
            None => None,
            Some(end) => {
                let way = if terminal { Direction::Both } else { Direction::ToGuest };
                Some(channel(epoll, mux, end, Some(way), slot, Which::Input)?)
            }
        };
        let [output, error] = launched.ends.outputs;
        let way = (!terminal).then_some(Direction::ToHost);
        let mut open = |end: Option<_>, which| {
            end.map(|end| channel(epoll, mux, end, way, slot, which)).transpose()
        };
        let outputs = [open(output, Which::Output)?, open(error, Which::Error)?];
        let process = Process {
            name: name.to_owned(),
            pid: launched.pid,
            pidfd: launched.pidfd,
            role,
            phase: Phase::starting(request, launched.report),
            input,
            outputs,
            terminal: launched.ends.terminal,
            oom_kills_before: cgroup::oom_kills(),
        };
        self.processes.insert(slot, process);
        Ok(())
    }

    /// Looks at the reports of all that are starting.
    pub(super) fn read_reports(&mut self) {
        for slot in self.processes.slots() {
            let Some(process) = self.processes.get_mut(slot) else { continue };
            let Phase::Starting { request, report, .. } = &process.phase else { continue };
            let request = *request;
            match look(report) {
                Report::Pending => {}
                Report::Running => {
                    process.phase = Phase::Alive;
                    let (pid, first) = (process.pid as u32, process.role == Role::First);
                    if first {
                        self.state = match std::mem::replace(&mut self.state, State::Booted) {
                            State::Starting(root, container) => State::Running(root, container),
                            other => other,
                        };
                    }
                    self.agent.respond(request, Reply::Started(Started { pid }));
                }
                Report::Failed(failure) => self.failed(slot, request, failure),
            }
        }
    }

    /// Gives up on starts that take too long.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        for slot in self.processes.slots() {
            let Some(process) = self.processes.get_mut(slot) else { continue };
            let Phase::Starting { request, deadline, .. } = &process.phase else { continue };
            if *deadline > now {
                continue;
            }
            let request = *request;
            let _ = sys::pidfd_send_signal(&process.pidfd, libc::SIGKILL);
            let failure = Failure::new(ErrorCode::Internal, "the process takes too long to start");
            self.failed(slot, request, failure);
        }
    }

    fn failed(&mut self, slot: u64, request: u64, failure: Failure) {
        let Some(process) = self.processes.remove(slot) else { return };
        let channels = process.input.iter().chain(process.outputs.iter().flatten());
        for channel in channels {
            self.bulk.mux.reset(channel.stream);
        }
        if process.role == Role::First {
            self.state = match std::mem::replace(&mut self.state, State::Booted) {
                State::Starting(root, _) => State::Rooted(root),
                other => other,
            };
            // Those of the next start are its own.
            let _ = cgroup::lift_limits();
        }
        self.agent.respond(request, Reply::Error(failure.into()));
    }
}

fn watch_end(
    epoll: &Epoll,
    fd: &std::os::fd::OwnedFd,
    events: EpollFlags,
    slot: u64,
    which: Which,
) -> Result<(), Failure> {
    watch(epoll, fd, events, Processes::token(slot, which))
}

/// Watches an end and opens its stream, unless `way` says that it is open.
fn channel(
    epoll: &Epoll,
    mux: &mut Mux,
    (stream, fd): (u32, std::os::fd::OwnedFd),
    way: Option<Direction>,
    slot: u64,
    which: Which,
) -> Result<Channel, Failure> {
    let events = match which {
        Which::Input => EpollFlags::EPOLLOUT,
        _ => EpollFlags::EPOLLIN,
    };
    watch_end(epoll, &fd, events, slot, which)?;
    if let Some(way) = way {
        mux.open(stream, way).map_err(|e| Failure::new(ErrorCode::InUse, e.to_string()))?;
    }
    Ok(Channel { fd, stream, ready: true })
}
