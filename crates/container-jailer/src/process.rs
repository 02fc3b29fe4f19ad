//! The two processes, and the life line to the starter.

use std::ffi::CString;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno as NixErrno;
use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::args::Args;
use crate::at;
use crate::error::{Error, Step};

/// The last `errno` as rustix's type.
pub fn last_errno() -> Errno {
    Errno::from_raw_os_error(NixErrno::last_raw())
}

/// The process that started the jailer, held by a pidfd: inside the pid
/// namespace `getppid` is always 0 and can't tell whether it still lives.
pub struct Starter {
    pidfd: Option<OwnedFd>,
}

impl Starter {
    /// Takes hold of the parent; with `expected`, only if it is that process.
    pub fn of_this_process(expected: Option<u32>) -> Result<Starter, Error> {
        let Some(expected) = expected else {
            return Ok(Starter { pidfd: None });
        };
        // From here on the death of the starter ends this process.
        die_with_starter()?;
        // SAFETY: takes a pid and flags, returns a new descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, expected, 0) };
        if fd < 0 {
            return Err(Error::system(Step::Starter, "pidfd_open", last_errno()));
        }
        // SAFETY: the call just returned this descriptor.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
        if parent != Some(expected as i32) {
            return Err(Error::Refused {
                step: Step::Starter,
                what: format!("the parent is {parent:?}, not {expected}"),
            });
        }
        Ok(Starter { pidfd: Some(pidfd) })
    }

    /// Closes the gap between the clone and `PR_SET_PDEATHSIG`.
    pub fn check_alive(&self) -> Result<(), Error> {
        let Some(pidfd) = &self.pidfd else {
            return Ok(());
        };
        let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match rustix::event::poll(&mut polled, Some(&now)).map_err(at(Step::Starter))? {
            0 => Ok(()),
            _ => Err(Error::Refused { step: Step::Starter, what: "the starter has ended".into() }),
        }
    }
}

/// SIGKILL when the starter (its spawning thread) ends.
pub fn die_with_starter() -> Result<(), Error> {
    // SAFETY: sets an attribute of this process.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) } < 0 {
        return Err(at(Step::Starter)(last_errno()));
    }
    Ok(())
}

/// Which of the two processes this is.
pub enum Clone {
    /// The first, with the child's pid in its own pid namespace.
    First(i32),
    /// The second.
    Second,
}

/// Clones this process. With `own_child` false the clone is a child of the
/// starter, not of this process.
pub fn clone_second(own_child: bool) -> Result<Clone, Error> {
    let parent_flag = if own_child { 0 } else { libc::CLONE_PARENT };
    let flags = (libc::SIGCHLD | parent_flag) as libc::c_ulong;
    // SAFETY: like fork: no stack, no shared memory; this program has one
    // thread, so the child may go on running all of its code.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        0 => Ok(Clone::Second),
        pid if pid > 0 => Ok(Clone::First(pid as i32)),
        _ => Err(at(Step::Clone)(last_errno())),
    }
}

/// Waits for the second process of `--check` and ends with its code.
pub fn wait_for_check(child: i32) -> Result<(), Error> {
    let mut status = 0;
    // SAFETY: waits for a child of this process, writes to a local.
    if unsafe { libc::waitpid(child, &mut status, 0) } < 0 {
        return Err(at(Step::Clone)(last_errno()));
    }
    if libc::WIFEXITED(status) {
        exit_now(libc::WEXITSTATUS(status) as u8)
    }
    Err(Error::Refused {
        step: Step::Clone,
        what: format!("the jail ended with wait status {status:#x}"),
    })
}

/// Ends without running the destructors of the other process's state.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code.into()) }
}

/// No terminal, default signal actions, nothing blocked.
pub fn reset_signals_and_session() -> Result<(), Error> {
    // A process that is a session leader already has no terminal to lose.
    let _ = rustix::process::setsid();
    for signal in 1..=64 {
        // SAFETY: resets an action; the numbers that can't be set are refused.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    nix::sys::signal::SigSet::empty().thread_set_mask().map_err(|_| at(Step::Session)(last_errno()))
}

/// Executes the program; returns only the error.
pub fn exec(args: &Args) -> Error {
    let mut argv: Vec<*const libc::c_char> = args.command.iter().map(|w| w.as_ptr()).collect();
    argv.push(std::ptr::null());
    let mut envp: Vec<*const libc::c_char> = args.env.iter().map(|w| w.as_ptr()).collect();
    envp.push(std::ptr::null());
    let program: &CString = &args.command[0];
    // SAFETY: both vectors end with a null pointer and outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Error::system(Step::Exec, program.to_string_lossy(), last_errno())
}

/// Forks a child that runs `work` and exits with its success.
pub fn run_in_child(work: impl FnOnce() -> Result<(), Errno>) -> Result<i32, Error> {
    match clone_second(true)? {
        Clone::First(child) => Ok(child),
        Clone::Second => match work() {
            Ok(()) => exit_now(0),
            Err(errno) => exit_now(errno.raw_os_error() as u8),
        },
    }
}

/// The exit code of such a child, as the error it stands for.
pub fn wait_for_child(child: i32, what: &str) -> Result<(), Error> {
    let mut status = 0;
    // SAFETY: waits for a child of this process, writes to a local.
    if unsafe { libc::waitpid(child, &mut status, 0) } < 0 {
        return Err(at(Step::Clone)(last_errno()));
    }
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
        (true, 0) => Ok(()),
        (true, code) => Err(Error::system(Step::UidMap, what, Errno::from_raw_os_error(code))),
        _ => Err(Error::Refused {
            step: Step::UidMap,
            what: format!("{what}: wait status {status:#x}"),
        }),
    }
}
