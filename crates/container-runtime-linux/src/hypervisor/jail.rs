//! Starting a program through `container-jailer`.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::Command;

use super::child::{Child, Output};
use super::error::{Error, Phase, shown};

/// The longest that making a jail may take; it is about 10 ms on an idle
/// machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// The jailer's status is two short lines.
const MAX_STATUS: u64 = 4096;

/// How jails are made on this host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Jail {
    /// The `container-jailer` program.
    pub jailer: PathBuf,
    /// Unprivileged uid and gid outside the jail; needed as root, where else
    /// the caller's own are used.
    pub host_ids: Option<(u32, u32)>,
    /// Layers that the configuration allows to be missing, by the jailer's
    /// names.
    pub allow_missing: Vec<String>,
}

/// A file of the host at a place in the jail.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JailFile {
    /// Path on the host.
    pub source: PathBuf,
    /// Path in the jail.
    pub target: PathBuf,
}

/// The descriptors a jailed program gets, and no others.
pub struct Descriptors {
    kept: Vec<OwnedFd>,
    shared: Vec<(RawFd, PathBuf)>,
    tap: Option<RawFd>,
    listener: Option<OwnedFd>,
    status_read: pipe::Receiver,
    status_write: OwnedFd,
}

impl Descriptors {
    /// All descriptors that are passed as they are; each keeps its number.
    pub fn new(kept: Vec<OwnedFd>) -> Result<Descriptors, Error> {
        let (read, status_write) =
            io_pipe().map_err(Error::io(Phase::Spawn, "making the status pipe"))?;
        let status_read = pipe::Receiver::from_owned_fd(read)
            .map_err(Error::io(Phase::Spawn, "reading the status pipe"))?;
        Ok(Descriptors {
            kept,
            shared: Vec::new(),
            tap: None,
            listener: None,
            status_read,
            status_write,
        })
    }

    /// A file that the jailer opens so that nobody can write to it. Returns
    /// its number in the jail.
    pub fn share(&mut self, path: PathBuf) -> RawFd {
        let number = self.free_number();
        self.shared.push((number, path));
        number
    }

    /// A tap that the jailer makes and that leads nowhere. Returns its number
    /// in the jail.
    pub fn tap(&mut self) -> RawFd {
        let number = self.free_number();
        self.tap = Some(number);
        number
    }

    /// A socket over which the jailer sends a seccomp listener for the calls that
    /// [`super::listener`] answers, before the program runs. It sends none where
    /// the kernel gives none.
    pub fn listen(&mut self) -> Result<StdStream, Error> {
        let (ours, theirs) =
            StdStream::pair().map_err(Error::io(Phase::Spawn, "making a socket pair"))?;
        self.listener = Some(theirs.into());
        Ok(ours)
    }

    /// A number that no descriptor of the jail has. All that are kept must be
    /// here by then.
    fn free_number(&self) -> RawFd {
        let taken = |number: &RawFd| {
            self.kept.iter().any(|fd| fd.as_raw_fd() == *number)
                || self.shared.iter().any(|(fd, _)| fd == number)
                || self.tap == Some(*number)
                || self.listener.as_ref().is_some_and(|fd| fd.as_raw_fd() == *number)
                || self.status_write.as_raw_fd() == *number
        };
        (3..).find(|number| !taken(number)).unwrap_or(RawFd::MAX)
    }
}

/// A program for a jail.
pub struct Program<'a> {
    /// Files in its root.
    pub files: &'a [JailFile],
    /// Its descriptors beside 0, 1 and 2.
    pub descriptors: Descriptors,
    /// Whether it gets /dev/kvm.
    pub kvm: bool,
    /// Limits by the jailer's names.
    pub limits: Vec<(&'static str, u64)>,
    /// `NAME=VALUE`.
    pub env: Vec<OsString>,
    /// The program's path in the jail, then its arguments.
    pub command: Vec<OsString>,
}

impl Program<'_> {
    fn jailer_arguments(&self, jail: &Jail) -> Vec<OsString> {
        let mut words = ids(jail);
        let mut push = |option: &str, values: &[OsString]| {
            words.push(option.into());
            words.extend_from_slice(values);
        };
        let descriptors = &self.descriptors;
        push("--status-fd", &[number(descriptors.status_write.as_raw_fd())]);
        push("--parent", &[number(std::process::id())]);
        for layer in &jail.allow_missing {
            push("--allow-missing", &[layer.into()]);
        }
        for file in self.files {
            push("--bind", &[(&file.source).into(), (&file.target).into()]);
        }
        for (fd, path) in &descriptors.shared {
            push("--share", &[number(fd), path.into()]);
        }
        for fd in &descriptors.kept {
            push("--keep", &[number(fd.as_raw_fd())]);
        }
        if let Some(fd) = descriptors.tap {
            push("--tap", &[number(fd)]);
        }
        if let Some(fd) = &descriptors.listener {
            push("--notify", &[number(fd.as_raw_fd())]);
        }
        // The emulator asks for huge pages for its cache, which fills in small steps.
        push(if self.kvm { "--kvm" } else { "--small-pages" }, &[]);
        for (name, value) in &self.limits {
            push("--limit", &[format!("{name}={value}").into()]);
        }
        for variable in &self.env {
            push("--env", std::slice::from_ref(variable));
        }
        push("--", &self.command);
        words
    }
}

fn ids(jail: &Jail) -> Vec<OsString> {
    let Some((uid, gid)) = jail.host_ids else {
        return Vec::new();
    };
    let words = ["--host-uid".into(), number(uid), "--host-gid".into(), number(gid)];
    words.into()
}

/// Lets a child have these descriptors, which close on exec here.
fn inherit(command: &mut std::process::Command, fds: Vec<RawFd>) {
    // SAFETY: between fork and exec it calls fcntl alone, which is allowed
    // there; the closure allocates nothing.
    unsafe {
        command.pre_exec(move || {
            for fd in &fds {
                if nix::libc::fcntl(*fd, nix::libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

fn number(value: impl ToString) -> OsString {
    value.to_string().into()
}

/// Starts a program in its jail. When this returns the program runs, as a
/// child of this process that dies with the calling thread.
pub async fn spawn(jail: &Jail, program: Program<'_>) -> Result<Child, Error> {
    let arguments = program.jailer_arguments(jail);
    let Descriptors { kept, listener, status_read, status_write, .. } = program.descriptors;
    let (output_read, output_write) =
        io_pipe().map_err(Error::io(Phase::Spawn, "making the output pipe"))?;
    let stderr =
        output_write.try_clone().map_err(Error::io(Phase::Spawn, "making the output pipe"))?;

    let mut inherited: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    inherited.push(status_write.as_raw_fd());
    inherited.extend(listener.iter().map(AsRawFd::as_raw_fd));
    let mut command = std::process::Command::new(&jail.jailer);
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(output_write).stderr(stderr);
    inherit(&mut command, inherited);
    let mut command = Command::from(command);
    command.kill_on_drop(true);
    let spawned = command.spawn();
    // The parent's copies of the pipes' write ends.
    drop(command);
    drop((kept, listener, status_write));
    let mut jailer =
        spawned.map_err(Error::io(Phase::Spawn, format!("starting {}", jail.jailer.display())))?;
    let output = Output::collect(output_read)?;

    let made = async {
        let (pid, error) = read_status(status_read).await?;
        let child = pid.map(|pid| Child::adopt(pid, output.clone())).transpose()?;
        let status =
            jailer.wait().await.map_err(Error::io(Phase::Spawn, "waiting for the jailer"))?;
        match (child, error) {
            (Some(child), None) if status.success() => Ok(child),
            (child, error) => Err(refusal(child, error, status.code(), &output).await),
        }
    };
    match tokio::time::timeout(DEADLINE, made).await {
        Ok(result) => result,
        Err(_) => Err(Error::TimedOut {
            phase: Phase::Spawn,
            operation: "container-jailer".into(),
            limit: DEADLINE,
        }),
    }
}

/// Opens a file so that nobody who gets the descriptor can write to the file
/// by it: on a read-only mount, made by the jailer. For a program that runs
/// already.
pub async fn open_shared(jail: &Jail, path: &Path) -> Result<OwnedFd, Error> {
    let (ours, theirs) =
        StdStream::pair().map_err(Error::io(Phase::Spawn, "making a socket pair"))?;
    let socket = theirs.as_raw_fd();
    let placed = if socket == 3 { 4 } else { 3 };
    let words = ["--send".into(), number(socket), "--share".into(), number(placed), path.into()];
    run(jail, &words, vec![socket]).await?;
    receive(&ours).map_err(Error::io(Phase::Spawn, "receiving a descriptor"))
}

/// Builds a jail with a tap, and nothing in it.
pub async fn check_tap(jail: &Jail) -> Result<(), Error> {
    let mut words: Vec<OsString> = vec!["--check".into(), "--tap".into(), number(3)];
    for layer in &jail.allow_missing {
        words.extend(["--allow-missing".into(), layer.into()]);
    }
    run(jail, &words, Vec::new()).await
}

/// Runs the jailer to its end.
async fn run(jail: &Jail, words: &[OsString], inherited: Vec<RawFd>) -> Result<(), Error> {
    let mut command = std::process::Command::new(&jail.jailer);
    command.args(words).args(ids(jail)).env_clear().stdin(Stdio::null());
    inherit(&mut command, inherited);
    let mut command = Command::from(command);
    command.kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output());
    let output = output.await.map_err(|_| Error::TimedOut {
        phase: Phase::Spawn,
        operation: "container-jailer".into(),
        limit: DEADLINE,
    })?;
    let output =
        output.map_err(Error::io(Phase::Spawn, format!("starting {}", jail.jailer.display())))?;
    if output.status.success() {
        return Ok(());
    }
    let line = String::from_utf8_lossy(&output.stderr);
    Err(Error::Jail {
        line: shown(line.trim_start_matches("error "), 1024),
        code: output.status.code(),
    })
}

/// Takes the one descriptor that is in the socket already.
pub(super) fn receive(socket: &StdStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut parts = [io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part
            && let [fd] = fds[..]
        {
            // SAFETY: the kernel just made this descriptor for us.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// The error of a jail that could not be made, with its exit code from
/// whichever of the two processes found it.
async fn refusal(
    child: Option<Child>,
    line: Option<String>,
    code: Option<i32>,
    output: &Output,
) -> Error {
    let code = match child {
        Some(child) => child.wait().await.code,
        None => code,
    };
    let line = match line {
        Some(line) => line,
        // Usage errors and a jailer that can't run come this way.
        None => format!("container-jailer: {}", output.settled().await),
    };
    Error::Jail { line, code }
}

/// Reads until the program executes (or fails): `pid N`, `error LINE`.
async fn read_status(status: pipe::Receiver) -> Result<(Option<i32>, Option<String>), Error> {
    let mut text = Vec::new();
    status
        .take(MAX_STATUS)
        .read_to_end(&mut text)
        .await
        .map_err(Error::io(Phase::Spawn, "reading the jailer's status"))?;
    let text = String::from_utf8_lossy(&text);
    let mut pid = None;
    let mut error = None;
    for line in text.lines() {
        if let Some(number) = line.strip_prefix("pid ") {
            pid = number.parse().ok();
        } else if let Some(line) = line.strip_prefix("error ") {
            error.get_or_insert_with(|| shown(line, 1024));
        }
    }
    Ok((pid, error))
}

/// A pipe, read end first, closed on exec.
fn io_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: writes two descriptors into an array of two.
    if unsafe { nix::libc::pipe2(fds.as_mut_ptr(), nix::libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call just returned both.
    unsafe { Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))) }
}
