//! `container-jailer`: builds a jail around one program and executes it there.
//!
//! The jail of a hypervisor: an unprivileged uid without capabilities that can
//! gain none, in namespaces of its own, on a read-only root that holds the
//! program, its libraries and nothing else, with exactly the descriptors that
//! its starter named.
//!
//! ```text
//! starter ──spawns──► first process                      second process (becomes the program)
//!                     limits descriptors
//!                     root: opens what will be bound or shared
//!                     unshare(user), uid map
//!                     unshare(mount pid net ipc uts cgroup)
//!                     makes the tap
//!                     plain user: opens it
//!                     clone(CLONE_PARENT) ─────────────► child of the starter, pid 1 of the jail
//!                     "pid N" on the status fd           inner uid, new root, /proc, pivot_root
//!                     exits                              limits, no capabilities, no_new_privs,
//!                                                        landlock, PDEATHSIG, seccomp
//!                                                        exec ── closes the status fd
//! ```
//!
//! Status protocol: `pid N` when the second process exists, `error STEP: TEXT`
//! when either process fails. End of file without an error line: the program
//! runs. Exit codes are in [`error::Error::exit_code`]. `--check` builds the
//! whole jail and executes nothing.
//!
//! Why the shared files can't be written: each is opened on a detached,
//! read-only clone of its mount. `fchmod` and re-opening through
//! `/proc/self/fd` then fail with `EROFS`, whoever owns the file.

mod args;
mod confine;
mod descriptors;
mod error;
mod ioctl;
mod listener;
mod namespaces;
mod notify;
mod process;
mod root;
mod seccomp;
mod tap;

use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::process::ExitCode;

use args::{Args, Parsed};
use error::{Error, Step};

fn main() -> ExitCode {
    let args = match args::parse(std::env::args_os().skip(1)) {
        Ok(Parsed::Run(args)) => *args,
        Ok(Parsed::Help) => {
            print!("{}", args::HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("container-jailer: {error}");
            return ExitCode::from(error.exit_code());
        }
    };
    let status = args.status_fd;
    match first_process(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report_error(status, &error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Everything up to the clone, then leaves the rest to the second process.
fn first_process(args: Args) -> Result<(), Error> {
    descriptors::close_all_but(&args)?;
    descriptors::refuse_directories(&args)?;
    descriptors::reserve_numbers(&args)?;
    error::apparmor_restricts();
    let starter = process::Starter::of_this_process(args.parent)?;
    let ids = namespaces::Ids::for_caller(&args)?;

    // Root opens everything while it still has its rights over the files of
    // others; a plain user can't clone a mount before the namespaces exist.
    let opened = match ids.is_privileged() {
        true => {
            namespaces::enter_mount_namespace()?;
            Some(open_files(&args)?)
        }
        false => None,
    };
    namespaces::enter_user_namespace(&ids)?;
    namespaces::enter_others(&args)?;
    if let Some(number) = args.tap {
        tap::make(number)?;
    }
    let sources = match opened {
        Some(sources) => sources,
        None => open_files(&args)?,
    };
    if let Some(socket) = args.send {
        return descriptors::send_shared(&args, socket);
    }

    match process::clone_second(args.check)? {
        process::Clone::First(child) if args.check => process::wait_for_check(child),
        process::Clone::First(child) => {
            write_status(args.status_fd, &format!("pid {child}\n"));
            Ok(())
        }
        process::Clone::Second => {
            let failed = second_process(&args, &starter, &sources);
            let code = match failed {
                Ok(()) => 0,
                Err(error) => {
                    report_error(args.status_fd, &error);
                    error.exit_code()
                }
            };
            process::exit_now(code)
        }
    }
}

/// Files to bind, as detached mounts; shared files go to their numbers.
fn open_files(args: &Args) -> Result<Vec<OwnedFd>, Error> {
    let sources = root::open_sources(args)?;
    root::open_shared(args)?;
    Ok(sources)
}

/// The part inside the new pid namespace. Returns only in `--check` mode or
/// with an error.
fn second_process(
    args: &Args,
    starter: &process::Starter,
    sources: &[OwnedFd],
) -> Result<(), Error> {
    process::die_with_starter()?;
    process::reset_signals_and_session()?;
    namespaces::become_inner_uid()?;
    root::build_and_enter(args, sources)?;
    confine::hide_host_name();
    confine::set_limits(args)?;
    confine::page_size(args);
    confine::drop_capabilities()?;
    confine::no_new_privileges()?;
    confine::landlock(args)?;
    // Last, because a change of credentials clears it.
    process::die_with_starter()?;
    starter.check_alive()?;
    if !args.check {
        // The status descriptor must not outlive the exec.
        descriptors::set_close_on_exec(args.status_fd)?;
    }
    if let Some(socket) = args.notify {
        descriptors::set_close_on_exec(socket)?;
        notify::install(socket)?;
    }
    seccomp::install(args)?;
    if args.check {
        return Ok(());
    }
    Err(process::exec(args))
}

fn report_error(fd: RawFd, error: &Error) {
    write_status(fd, &format!("error {error}\n"));
}

/// Writes one line; a starter that no longer reads is not an error here, its
/// death ends the jail anyway.
fn write_status(fd: RawFd, line: &str) {
    if fd == std::io::stderr().as_raw_fd() {
        let _ = std::io::stderr().write_all(line.as_bytes());
        return;
    }
    // SAFETY: the descriptor was checked to be open when the arguments were
    // applied, and nothing in this program closes it.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let _ = rustix::io::write(fd, line.as_bytes());
}

/// The step in which an operation failed, for `map_err`.
fn at(step: Step) -> impl Fn(rustix::io::Errno) -> Error {
    move |errno| Error::system(step, step.name(), errno)
}
