//! Resolvers and forwarders as the service sees them: started so that they outlive it, found again
//! after it, called on their sockets, ended.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use container_api::varlink::Client;
use container_api::{ApiError, ErrorCode, Result, socket};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use crate::engine::Handles;
use crate::wire::{ForwarderRequest, ResolverRequest};

/// For an answer: they have nothing to wait for.
const DEADLINE: Duration = Duration::from_secs(5);
/// From the request to end to the end; then they are killed.
const END_DEADLINE: Duration = Duration::from_millis(500);

/// What a process carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A network's names.
    Resolver,
    /// A container's ports.
    Forwarder,
}

impl Kind {
    /// The program's command, and how its sockets' names begin.
    fn command(self) -> &'static str {
        match self {
            Kind::Resolver => "resolver",
            Kind::Forwarder => "forward",
        }
    }

    /// The socket of a network's or a container's process: the name itself, where that is not too
    /// long for a socket's address.
    pub fn socket(self, name: &str) -> String {
        const LONGEST: usize = 63;
        let command = self.command();
        if name.len() <= LONGEST {
            return format!("{command}-{name}.sock");
        }
        // FNV-1a. No name has a `~`, so no short one is the same.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let begin: String = name.chars().take(40).collect();
        format!("{command}-{begin}~{hash:016x}.sock")
    }

    /// Which kind a socket's name belongs to.
    pub fn of_socket(socket: &str) -> Option<Kind> {
        let of = |kind: Kind| {
            let rest = socket.strip_prefix(kind.command()).and_then(|rest| rest.strip_prefix('-'));
            rest.is_some_and(|rest| rest.ends_with(".sock")).then_some(kind)
        };
        of(Kind::Resolver).or_else(|| of(Kind::Forwarder))
    }
}

/// What a process is started with; see [`super::start::Start`].
#[derive(Debug)]
pub struct Birth {
    /// Which.
    pub kind: Kind,
    /// The network or the container.
    pub name: String,
    /// Where it serves.
    pub control: UnixListener,
    /// Its namespaces.
    pub handles: Handles,
    /// A resolver's sockets.
    pub sockets: Vec<OwnedFd>,
}

/// What starts processes: this program, or a test.
pub trait Spawn: Send + Sync + 'static {
    /// Starts one. The answer is `None` where it is no process.
    fn spawn(&self, birth: Birth) -> Result<Option<Child>>;
}

/// Starts this program.
#[derive(Debug)]
pub struct Program {
    /// The installation's directory of networks: whoever lists processes sees whose they are.
    pub directory: PathBuf,
    /// Layers of the confinement that may be missing.
    pub allow_missing: Vec<String>,
}

impl Spawn for Program {
    fn spawn(&self, birth: Birth) -> Result<Option<Child>> {
        let Birth { kind, name, control, handles, sockets } = birth;
        let mut inherited = vec![control.as_raw_fd(), handles.network.as_raw_fd()];
        inherited.extend(handles.user.as_ref().map(AsRawFd::as_raw_fd));
        inherited.extend(sockets.iter().map(AsRawFd::as_raw_fd));
        let mut command = Command::new(own_program());
        command.arg0(title(&self.directory)).arg(kind.command()).args(["--name", &name]);
        let mut number = |option: &str, fd: RawFd| {
            command.arg(format!("--{option}={fd}"));
        };
        number("control", control.as_raw_fd());
        number("network", handles.network.as_raw_fd());
        if let Some(user) = &handles.user {
            number("user", user.as_raw_fd());
        }
        for fd in &sockets {
            number("sockets", fd.as_raw_fd());
        }
        for layer in &self.allow_missing {
            command.args(["--allow-missing", layer]);
        }
        let kept = ["CONTAINER_LOG", "RUST_BACKTRACE"];
        let kept: Vec<(&str, OsString)> =
            kept.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))).collect();
        command.env_clear().envs(kept).current_dir("/");
        // Its log is the service's.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        // SAFETY: setsid and fcntl are async-signal-safe and touch no memory of ours.
        unsafe { command.pre_exec(move || become_carrier(&inherited)) };
        let child = command
            .spawn()
            .map_err(|e| ApiError::from(e).context(format!("starting a {}", kind.command())))?;
        tracing::info!(pid = child.id(), kind = kind.command(), name, "a process was started");
        Ok(Some(child))
    }
}

/// What the processes of the installation with this directory of networks are called.
pub fn title(directory: &Path) -> OsString {
    let mut title = OsString::from("container-network ");
    title.push(directory);
    title
}

/// Where this program is; one that an upgrade has replaced is still there to be executed.
fn own_program() -> PathBuf {
    let named = std::env::current_exe().ok().filter(|path| path.is_file());
    named.unwrap_or_else(|| "/proc/self/exe".into())
}

/// Runs in the child before the program is executed.
fn become_carrier(inherited: &[RawFd]) -> io::Result<()> {
    nix::unistd::setsid()?;
    for fd in inherited {
        // SAFETY: the parent owns it, and this process has its copy.
        let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    Ok(())
}

/// A process that carries traffic.
#[derive(Debug)]
pub struct Carrier {
    kind: Kind,
    socket: String,
    run: PathBuf,
    /// `None`: no process, in tests.
    pid: Option<i32>,
    /// The same, held.
    pidfd: Option<AsyncFd<OwnedFd>>,
    /// Ours to reap, when we started it.
    child: Mutex<Option<Child>>,
}

impl Carrier {
    /// Starts one, with its socket in `run`.
    pub fn start(
        spawn: &dyn Spawn,
        run: &Path,
        kind: Kind,
        name: &str,
        handles: Handles,
        sockets: Vec<OwnedFd>,
    ) -> Result<Carrier> {
        let socket = kind.socket(name);
        let control = socket::bind(run, &socket)
            .map_err(|e| ApiError::from(e).context(format!("binding {socket}")))?;
        let birth = Birth { kind, name: name.to_owned(), control, handles, sockets };
        let mut child = spawn.spawn(birth)?;
        let open = |child: &Child| pidfd(i32::try_from(child.id()).unwrap_or(0));
        let pidfd = match child.as_ref().map(open).transpose() {
            Ok(pidfd) => pidfd,
            Err(error) => {
                if let Some(child) = &mut child {
                    let _ = child.kill();
                    let _ = child.wait();
                }
                return Err(error);
            }
        };
        let run = run.to_owned();
        let pid = child.as_ref().and_then(|child| i32::try_from(child.id()).ok());
        Ok(Carrier { kind, socket, run, pid, pidfd, child: Mutex::new(child) })
    }

    /// One that a former service has started and that answers; `None` when nobody does.
    pub async fn find(run: &Path, kind: Kind, name: &str) -> Option<Carrier> {
        let socket = kind.socket(name);
        let (pid, _) = ask(run, kind, &socket).await.ok()?;
        let pidfd = pidfd_of_other(pid)
            .map_err(|error| tracing::warn!(%error, socket, "a survivor has just ended"));
        let (run, child) = (run.to_owned(), Mutex::new(None));
        let pidfd = pidfd.ok()?;
        let pid = pidfd.as_ref().map(|_| pid);
        Some(Carrier { kind, socket, run, pid, pidfd, child })
    }

    /// Its process.
    pub fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// Its socket's name.
    pub fn socket(&self) -> &str {
        &self.socket
    }

    /// Whether its process has ended.
    pub fn has_ended(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let Some(pidfd) = &self.pidfd else { return false };
        let mut fds = [PollFd::new(pidfd.get_ref(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }

    /// One call.
    pub async fn call<Q: Serialize, R: DeserializeOwned>(
        &self,
        request: &Q,
        fds: &[OwnedFd],
    ) -> Result<R> {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let call = async { self.connect()?.call(request, &fds, Some(DEADLINE)).await };
        call.await.map_err(|error| error.context(&self.socket))
    }

    /// A connection.
    pub fn connect(&self) -> Result<Client> {
        Ok(Client::new(socket::try_connect(&self.run, &self.socket)?)?)
    }

    /// Resolves when the process has ended, and reaps it.
    pub async fn ended(&self) {
        match &self.pidfd {
            Some(pidfd) => {
                let _ = pidfd.readable().await;
            }
            None => std::future::pending().await,
        }
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ok(Some(status))) = child.as_mut().map(Child::try_wait) {
            tracing::info!(%status, socket = self.socket, "a process has ended");
            *child = None;
        }
    }

    /// Asks it to end, and kills it when it doesn't.
    pub async fn end(&self) {
        let request = async {
            match self.kind {
                Kind::Resolver => self.call::<_, ()>(&ResolverRequest::End, &[]).await,
                Kind::Forwarder => self.call::<_, ()>(&ForwarderRequest::End, &[]).await,
            }
        };
        let ended = async {
            let _ = request.await;
            if self.pidfd.is_some() {
                self.ended().await;
            }
        };
        if timeout(END_DEADLINE, ended).await.is_err()
            && let Some(pidfd) = &self.pidfd
        {
            tracing::warn!(socket = self.socket, "a process does not end and is killed");
            if let Err(error) = pidfd_send_signal(pidfd.get_ref(), Signal::KILL)
                && error != rustix::io::Errno::SRCH
            {
                tracing::warn!(socket = self.socket, %error, "killing a process");
            }
            let _ = timeout(DEADLINE, self.ended()).await;
        }
        let _ = std::fs::remove_file(self.run.join(&self.socket));
    }
}

fn pidfd(pid: i32) -> Result<AsyncFd<OwnedFd>> {
    let gone = || ApiError::new(ErrorCode::Disconnected, "it has ended");
    let pid = Pid::from_raw(pid).ok_or_else(gone)?;
    let fd = pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(io::Error::from)?;
    // SAFETY: an `OwnedFd` names the same open descriptor until `AsyncFd` drops it.
    let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    Ok(fd.map_err(io::Error::from)?)
}

/// As [`pidfd`]; `None` for this process itself, which tests find behind their sockets.
fn pidfd_of_other(pid: i32) -> Result<Option<AsyncFd<OwnedFd>>> {
    let own = u32::try_from(pid).is_ok_and(|pid| pid == std::process::id());
    (!own).then(|| pidfd(pid)).transpose()
}

/// The process behind a socket, as long as it answers, and the namespaces that it holds.
async fn ask(run: &Path, kind: Kind, socket: &str) -> Result<(i32, Handles)> {
    let mut client = Client::new(socket::try_connect(run, socket)?)?;
    if !socket::is_owner(client.peer()) {
        return Err(ApiError::new(ErrorCode::PermissionDenied, "somebody else answers"));
    }
    let pid = client.peer().pid;
    let deadline = Some(DEADLINE);
    let ((), fds) = match kind {
        Kind::Resolver => client.call_for_fds(&ResolverRequest::Namespaces, &[], deadline).await?,
        Kind::Forwarder => {
            client.call_for_fds(&ForwarderRequest::Namespaces, &[], deadline).await?
        }
    };
    let mut fds = fds.into_iter();
    let network = fds.next().ok_or_else(|| ApiError::internal("no namespace came"))?;
    Ok((pid, Handles { network, user: fds.next() }))
}

/// What is left of a former service: sockets that still answer, and the namespaces behind them.
/// Sockets that nobody serves are removed.
pub async fn survivors(run: &Path) -> io::Result<Vec<(String, Handles)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(run)? {
        let Ok(socket) = entry?.file_name().into_string() else { continue };
        let Some(kind) = Kind::of_socket(&socket) else { continue };
        match ask(run, kind, &socket).await {
            Ok((_, handles)) => found.push((socket, handles)),
            Err(error) => {
                tracing::info!(socket, %error, "nobody is left behind a socket");
                let _ = std::fs::remove_file(run.join(&socket));
            }
        }
    }
    Ok(found)
}

/// Ends what a former service has left and nobody knows any more.
pub async fn end_unknown(run: &Path, socket: &str) {
    let Some(kind) = Kind::of_socket(socket) else { return };
    let Ok((pid, _)) = ask(run, kind, socket).await else { return };
    let Ok(pidfd) = pidfd_of_other(pid) else { return };
    let (run, socket) = (run.to_owned(), socket.to_owned());
    let pid = pidfd.as_ref().map(|_| pid);
    Carrier { kind, socket, run, pid, pidfd, child: Mutex::new(None) }.end().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_sockets() {
        assert_eq!(Kind::Resolver.socket("default"), "resolver-default.sock");
        let (long, other) = ("x".repeat(128), format!("{}y", "x".repeat(127)));
        let socket = Kind::Forwarder.socket(&long);
        assert!(socket.len() <= 80 && socket != Kind::Forwarder.socket(&other), "{socket}");
        assert_eq!(Kind::of_socket(&socket), Some(Kind::Forwarder));
        assert_eq!(Kind::of_socket("resolver-a.sock"), Some(Kind::Resolver));
        assert_eq!(Kind::of_socket("network.sock"), None);
    }
}
