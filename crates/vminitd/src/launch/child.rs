//! The child's way from clone to exec.

use super::mounts::Given;
use super::stdio::ChildEnds;
use super::{
    Container, credentials, environment, filter, init, mounts, order, program, report, socket, user,
};
use crate::failure::{Context, Failure};
use crate::files::{read_regular, write_kernel};
use crate::{setup, sys};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, sethostname, setsid};
use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use vminitd_protocol::message::ErrorCode::{BadCwd, Internal, InvalidRequest, InvalidState};
use vminitd_protocol::message::{ProcessSpec, Rlimit, StartContainer};

/// Longest `/etc/passwd` or `/etc/group` that is looked at, in bytes.
const DATABASE_LIMIT: u64 = 4 << 20;

/// What a child is to do.
pub enum Task<'a> {
    /// Start the container, in the namespaces that it was made in, with these volumes.
    Now(&'a StartContainer, &'a ChildEnds, &'a [OwnedFd]),
    /// The same, once this socket brings what to start.
    Await(&'a OwnedFd),
    /// Start one more process in a living container.
    Join(&'a Container, &'a ProcessSpec, &'a ChildEnds),
}

/// Goes all the way, or reports why not; never returns.
pub fn run(task: Task<'_>, report_end: OwnedFd) -> ! {
    let Err(failure) = go(task, &report_end);
    let _ = nix::unistd::write(&report_end, &report::encode(&failure));
    end()
}

/// A start that is only rehearsed.
pub struct Rehearsed<'a> {
    /// Made ahead.
    pub trees: mounts::Trees,
    /// What is started.
    pub start: &'a StartContainer,
    /// Its streams.
    pub stdio: &'a ChildEnds,
}

/// Goes the way of a first process whose root is mounted here.
pub fn rehearse(rehearsed: Rehearsed<'_>) -> ! {
    let Rehearsed { trees, start, stdio } = rehearsed;
    let _ = enter(trees, start, stdio, Given::default());
    end()
}

/// Connects to a socket in a container, and answers.
pub fn run_connect(container: &Container, path: &[u8], answer: &OwnedFd) -> ! {
    let _ = reset_signals();
    let _ = socket::connect_inside(container, path, answer);
    end()
}

/// Begins copying files, reports that, and does it.
pub fn run_archive<W: FnOnce() -> i32>(
    report_end: OwnedFd,
    begin: impl FnOnce(&OwnedFd) -> Result<W, Failure>,
) -> ! {
    let work = match begin(&report_end) {
        Ok(work) => work,
        Err(failure) => {
            let _ = nix::unistd::write(&report_end, &report::encode(&failure));
            end()
        }
    };
    drop(report_end);
    let code = work();
    // SAFETY: as in `end`.
    unsafe { libc::_exit(code) }
}

/// Leaves behind what a process has from PID 1, but for two descriptors.
pub fn detach_from_parent(one: &OwnedFd, other: &OwnedFd) -> Result<(), Failure> {
    reset_signals()?;
    setsid().internal("start a session")?;
    sys::close_all_but(one, other).internal("close what is PID 1's")
}

fn end() -> ! {
    // SAFETY: ends this process without running what PID 1 registered for exit.
    unsafe { libc::_exit(1) }
}

fn go(task: Task<'_>, report_end: &OwnedFd) -> Result<Infallible, Failure> {
    reset_signals()?;
    setsid().internal("start a session")?;
    match task {
        Task::Join(container, process, stdio) => {
            before_it_is_seen(process)?;
            take_stdio(stdio)?;
            join(container)?;
            sys::new_session_keyring();
            become_program(process, &container.hostname, stdio, false)
        }
        Task::Now(start, stdio, volumes) => {
            enter(make_surroundings()?, start, stdio, Given { root: None, volumes })
        }
        Task::Await(socket) => {
            sys::close_all_but(socket, report_end).internal("close what is PID 1's")?;
            let trees = make_surroundings()?;
            nix::unistd::write(socket, &[1]).internal("tell of being ready")?;
            let Some(order) = order::receive(socket)? else { end() };
            let given = Given { root: Some(&order.root), volumes: &order.volumes };
            enter(trees, &order.start, &order.stdio, given)
        }
    }
}

/// All that a request has no say in.
pub fn make_surroundings() -> Result<mounts::Trees, Failure> {
    // PID 1 is protected; a container begins without.
    write_kernel("/proc/self/oom_score_adj", "0").internal("set oom_score_adj")?;
    // The child was made in the container's cgroup, which becomes its root.
    unshare(CloneFlags::CLONE_NEWCGROUP).internal("create a cgroup namespace")?;
    sys::new_session_keyring();
    mounts::prepare()
}

/// Enters the container and becomes its first program.
fn enter(
    trees: mounts::Trees,
    start: &StartContainer,
    stdio: &ChildEnds,
    given: Given<'_>,
) -> Result<Infallible, Failure> {
    let (spec, process) = (&start.container, &start.process);
    if process.oom_score_adj != 0 {
        before_it_is_seen(process)?;
    }
    take_stdio(stdio)?;
    sethostname(&spec.hostname).context(InvalidRequest, || "set the host name")?;
    // While `/proc/sys` is writable.
    spec.sysctls.iter().try_for_each(setup::sysctl)?;
    mounts::build(trees, spec, given, stdio.terminal)?;
    become_program(process, &spec.hostname, stdio, spec.init)
}

/// Before any part of the container can see this process.
fn before_it_is_seen(process: &ProcessSpec) -> Result<(), Failure> {
    write_kernel("/proc/self/oom_score_adj", &process.oom_score_adj.to_string())
        .context(InvalidRequest, || "set oom_score_adj")
}

fn join(container: &Container) -> Result<(), Failure> {
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    setns(&container.pidfd, namespaces).context(InvalidState, || "join the container's namespaces")
}

fn become_program(
    process: &ProcessSpec,
    hostname: &str,
    stdio: &ChildEnds,
    with_init: bool,
) -> Result<Infallible, Failure> {
    let terminal = stdio.terminal.is_some();
    let identity = identify(process)?;
    enter_cwd(&process.cwd)?;
    own_stdio(identity.uid);
    process.rlimits.iter().try_for_each(set_rlimit)?;
    credentials::limit(process.capabilities)?;
    // While there is a capability for it, and before anything of the container could trace this
    // process: from here on it, and an init beside it, make the container's calls only.
    filter::install(&process.seccomp)?;
    if with_init {
        init::split(terminal, process.capabilities)?;
    }
    umask(Mode::from_bits_truncate(process.umask.unwrap_or(0o022)));
    credentials::become_user(&identity, process.capabilities)?;
    if process.no_new_privileges {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).internal("set no_new_privs")?;
    }
    sys::close_on_exec_from(3).internal("mark descriptors")?;
    let env = environment::build(&process.env, &identity.home, hostname, terminal);
    Err(program::exec(&process.args, env))
}

/// What PID 1 ignores or blocks must not reach the program.
fn reset_signals() -> Result<(), Failure> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .internal("unblock signals")?;
    // SAFETY: restores a default, installs no handler.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.internal("reset SIGPIPE").map(drop)
}

/// Puts the streams where programs look for them.
pub fn take_stdio(stdio: &ChildEnds) -> Result<(), Failure> {
    let [stdin, stdout, stderr] = &stdio.fds;
    dup2_stdin(stdin)
        .and_then(|()| dup2_stdout(stdout))
        .and_then(|()| dup2_stderr(stderr))
        .internal("set the standard streams")?;
    if stdio.terminal.is_some() {
        sys::ioctl_int(stdin, libc::TIOCSCTTY, 0).context(Internal, || "take the terminal")?;
    }
    Ok(())
}

/// A program that isn't root may re-open its streams through `/dev/stdout`.
fn own_stdio(uid: u32) {
    if uid == 0 {
        return;
    }
    for fd in 0..3 {
        // SAFETY: the standard streams are open.
        let fd: BorrowedFd<'_> = unsafe { BorrowedFd::borrow_raw(fd) };
        let is_null = nix::sys::stat::fstat(fd).is_ok_and(|s| {
            nix::sys::stat::major(s.st_rdev) == 1 && s.st_mode & libc::S_IFMT == libc::S_IFCHR
        });
        if !is_null {
            let _ = nix::unistd::fchown(fd.as_fd(), Some(uid.into()), None);
        }
    }
}

fn identify(process: &ProcessSpec) -> Result<user::Identity, Failure> {
    let database = |path: &str| read_regular(Path::new(path), DATABASE_LIMIT).unwrap_or_default();
    let user = process.user.clone().unwrap_or_default();
    user::resolve(&user, &database("/etc/passwd"), &database("/etc/group"))
}

fn enter_cwd(cwd: &[u8]) -> Result<(), Failure> {
    let path = if cwd.is_empty() { Path::new("/") } else { Path::new(OsStr::from_bytes(cwd)) };
    let what = || format!("enter working directory {}", path.display());
    match chdir(path) {
        Err(Errno::ENOENT) => {
            fs::create_dir_all(path)
                .context(BadCwd, || format!("create working directory {}", path.display()))?;
            chdir(path).context(BadCwd, what)
        }
        result => result.context(BadCwd, what),
    }
}

fn set_rlimit(limit: &Rlimit) -> Result<(), Failure> {
    let value = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
    // SAFETY: the structure outlives the call; the number was checked.
    let result = unsafe { libc::setrlimit(limit.resource, &raw const value) };
    Errno::result(result).map(drop).context(InvalidRequest, || {
        format!("set resource limit {} to {}:{}", limit.resource, limit.soft, limit.hard)
    })
}

/// Mounts with string arguments; the last step of every mount in the container.
pub fn mount_on(
    source: &str,
    target: &str,
    kind: &str,
    flags: MsFlags,
    data: &str,
) -> nix::Result<()> {
    mount(Some(source), target, Some(kind), flags, Some(data))
}
