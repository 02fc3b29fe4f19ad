//! The small init of `--init`: it stays PID 1 of the container, forwards
//! signals to the program, reaps what is orphaned, and ends with the program's
//! exit code.
//!
//! It executes our own program anew: PID 1 of the guest, whose copy it is until
//! then, may come from a template, and its addresses and stack canary with it.

use super::credentials;
use crate::failure::{Context, Failure};
use crate::sys;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, setpgid};
use std::ffi::CString;
use vminitd_protocol::message::ErrorCode::Exhausted;

/// What the init is called by; its arguments are the program's process id and
/// the capability mask.
pub const NAME: &str = "container-init";

/// Returns in the process that becomes the program; its parent becomes the init.
pub fn split(terminal: bool, capabilities: u64) -> Result<(), Failure> {
    // Before there is anything to be told of, and over the exec.
    let (all, mut before) = (SigSet::all(), SigSet::empty());
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), Some(&mut before))
        .internal("block signals")?;
    // The plain call: a filter of system calls may know no other.
    // SAFETY: this process has one thread, so the child may go on with everything it has.
    match unsafe { fork() }.context(Exhausted, || "create a process")? {
        ForkResult::Child => {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)
                .internal("unblock signals")?;
            let own_group = setpgid(Pid::from_raw(0), Pid::from_raw(0));
            own_group.internal("create a process group")?;
            if terminal {
                into_foreground()?;
            }
            Ok(())
        }
        ForkResult::Parent { child } => become_init(child.as_raw(), capabilities),
    }
}

fn become_init(program: i32, capabilities: u64) -> ! {
    // Not one descriptor of PID 1 of the guest, nor the program's streams: they
    // end with the program.
    let _ = sys::close_from(0);
    let words = [NAME.to_owned(), program.to_string(), capabilities.to_string()];
    let words: Vec<CString> = words.into_iter().filter_map(|w| CString::new(w).ok()).collect();
    sys::execve(c"/proc/self/exe", &words, &[]);
    // SAFETY: ends this process, and with it the container.
    unsafe { libc::_exit(1) }
}

/// Ctrl-C must reach the program, not its init.
fn into_foreground() -> Result<(), Failure> {
    let mut blocked = SigSet::empty();
    blocked.add(nix::sys::signal::Signal::SIGTTOU);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&blocked), None).internal("block SIGTTOU")?;
    let mut group = nix::unistd::getpid().as_raw();
    sys::ioctl_ref(std::io::stdin(), libc::TIOCSPGRP, &mut group)
        .internal("enter the terminal's foreground")?;
    sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&blocked), None).internal("unblock SIGTTOU")
}

/// The init itself, executed by [`split`].
pub fn serve() -> ! {
    let number = |at| std::env::args().nth(at).and_then(|word| word.parse::<u64>().ok());
    let (program, capabilities) = (number(1).unwrap_or(0) as i32, number(2).unwrap_or(0));
    // The container can't look into it; nobody can write its file, which PID 1 runs.
    let _ = sys::prctl(libc::PR_SET_DUMPABLE, 0);
    // SAFETY: the name is NUL-terminated and shorter than 16 bytes.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"init".as_ptr()) };
    let _ = sys::close_from(0);
    let held = credentials::known(capabilities);
    let _ = sys::capset(held, held, 0);
    let all = SigSet::all();
    loop {
        // SAFETY: the set is valid and no information is asked for.
        let signal = unsafe { libc::sigwaitinfo(all.as_ref(), std::ptr::null_mut()) };
        match signal {
            libc::SIGCHLD => {
                if let Some(code) = reap(program) {
                    // SAFETY: ends this process, and with it the container.
                    unsafe { libc::_exit(code) }
                }
            }
            signal if signal > 0 => {
                // SAFETY: sends a signal to our own child, not reaped yet.
                unsafe { libc::kill(program, signal) };
            }
            _ => {}
        }
    }
}

/// Reaps all that ended; the program's exit code once it is among them.
fn reap(program: i32) -> Option<i32> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == program => return Some(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == program => {
                return Some(128 + signal as i32);
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
            _ => {}
        }
    }
}
