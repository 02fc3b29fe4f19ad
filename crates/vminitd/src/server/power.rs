//! Reaping, killing, and the end.

use super::processes::{Exit, Phase, Role};
use super::{Server, State};
use crate::failure::Failure;
use crate::root::UNMOUNT_LIMIT;
use crate::{block, cgroup, sys};
use nix::errno::Errno;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::sync;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};
use vminitd_protocol::GUEST_KILL_LIMIT;
use vminitd_protocol::message::{Done, Reply};

impl Server {
    /// Reaps everything that has ended: the host's processes and orphans alike.
    pub(super) fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => self.exited(pid.as_raw(), code as u32, 0),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    self.exited(pid.as_raw(), 128 + signal as u32, signal as u32);
                }
                Err(Errno::EINTR) => {}
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    fn exited(&mut self, pid: i32, code: u32, signal: u32) {
        self.read_reports();
        let Some(process) = self.processes.by_pid(pid) else { return };
        let killed = signal == nix::libc::SIGKILL as u32;
        let out_of_memory = killed && cgroup::oom_kills() > process.oom_kills_before;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        process.phase =
            Phase::Exited(Exit { code, signal, out_of_memory, at_ns: now.as_nanos() as u64 });
        if process.role == Role::Archive {
            // One that has stopped the container may have been killed.
            cgroup::thaw();
        }
        for output in process.outputs.iter_mut().flatten() {
            output.ready = true;
        }
        if out_of_memory {
            self.memory_event();
        }
        if self.processes.by_pid(pid).is_none() && self.is_first(pid) {
            self.state = match std::mem::replace(&mut self.state, State::Booted) {
                State::Running(root, container) | State::Starting(root, container) => {
                    State::Stopped(root, container)
                }
                other => other,
            };
        }
    }

    fn is_first(&mut self, pid: i32) -> bool {
        self.processes
            .iter_mut()
            .any(|(_, process)| process.role == Role::First && process.pid == pid)
    }

    /// Ends the VM: [`vminitd_protocol::message::Call::Shutdown`].
    pub(super) fn shut_down(&mut self, request: u64) -> Failure {
        let result = self.stop_everything();
        let reply = match result {
            Ok(()) => Reply::Done(Done {}),
            Err(failure) => Reply::Error(failure.into()),
        };
        self.agent.respond(request, reply);
        self.agent.flush_for_good();
        match reboot(RebootMode::RB_POWER_OFF) {
            Ok(never) => match never {},
            Err(errno) => Failure {
                code: vminitd_protocol::message::ErrorCode::Internal,
                errno: errno as i32,
                message: "power off".to_owned(),
            },
        }
    }

    fn stop_everything(&mut self) -> Result<(), Failure> {
        cgroup::kill_all();
        for (_, process) in self.processes.iter_mut().filter(|(_, p)| p.copies()) {
            let _ = sys::pidfd_send_signal(&process.pidfd, nix::libc::SIGKILL);
        }
        let deadline = Instant::now() + GUEST_KILL_LIMIT;
        while !cgroup::is_empty() || self.processes.iter_mut().any(|(_, p)| p.copies()) {
            if Instant::now() > deadline {
                sync();
                return Err(cgroup::still_populated());
            }
            sleep(Duration::from_millis(1));
            self.reap();
        }
        // Output and exits that the host has not seen yet still go out.
        self.reap();
        self.pump();
        self.finish_processes();
        self.bulk.flush()?;
        match std::mem::replace(&mut self.state, State::Booted) {
            State::Rooted(root) => root.unmount().and(self.release_volumes()),
            State::Starting(root, container)
            | State::Running(root, container)
            | State::Stopped(root, container) => {
                let volumes = container.volumes.clone();
                drop(container);
                let unmounted = root.unmount();
                // They were mounted in its namespace alone, which the kernel takes apart now.
                for serial in &volumes {
                    let device = self.disks.find(serial)?;
                    block::wait_unused(&device, UNMOUNT_LIMIT)?;
                }
                unmounted
            }
            State::Booted | State::Ready => Ok(()),
        }
    }
}
