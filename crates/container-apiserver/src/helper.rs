//! A container's helper (`container-runtime-linux`): started so that it outlives this service,
//! found again after it, and called on its socket.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use container_api::paths::container_files as names;
use container_api::runtime::Request;
use container_api::socket;
use container_api::types::ExitRecord;
use container_api::varlink::Client;
use container_api::{ApiError, ErrorCode, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::nice;
use serde::de::DeserializeOwned;

use crate::directory::{read_json, write_json};
use crate::priority;
use crate::process::{Handle, Identity};
use crate::store::Runtime;

/// From the helper's start to its socket: no VM has to boot for that.
pub const SOCKET_DEADLINE: Duration = Duration::from_secs(10);
/// From the container's end, or a kill, to the end of the helper's process: it answers its callers
/// first.
pub const END_DEADLINE: Duration = Duration::from_secs(8);

/// The first of the descriptors that a helper inherits beside the standard streams.
const FIRST_TAP: RawFd = 3;

/// In a directory that a process of this service works in, which one that is ([`Runtime`], JSON).
const PROCESS: &str = "process.json";

/// How a helper is started.
#[derive(Debug)]
pub struct Launch {
    /// The program's first argument.
    pub command: &'static str,
    /// Start it at [`priority::LOW`].
    pub low_priority: bool,
    /// Taps of its NICs, which it inherits.
    pub taps: Vec<OwnedFd>,
}

/// A helper's process and where it is reached.
#[derive(Debug)]
pub struct Helper {
    /// The process.
    pub handle: Arc<Handle>,
    directory: PathBuf,
    /// Ours to reap when we started it; after a restart of this service it is somebody else's.
    child: Mutex<Option<Child>>,
}

impl Helper {
    /// Starts one for the container or the spare in `directory`, in a session of its own.
    pub fn launch(program: &Path, directory: &Path, launch: Launch) -> io::Result<Helper> {
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(directory.join(names::RUNTIME_LOG))?;
        let mut command = Command::new(program);
        command.arg(launch.command).arg(directory);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let low = launch.low_priority;
        // Above the places that they get, so that none is overwritten before it is moved.
        let count = launch.taps.len();
        let taps = launch
            .taps
            .iter()
            .map(|tap| fcntl_dupfd_cloexec(tap, FIRST_TAP + count as RawFd))
            .collect::<rustix::io::Result<Vec<OwnedFd>>>()?;
        if count > 0 {
            command.arg("--taps").arg(count.to_string());
        }
        // SAFETY: setsid, nice and dup2 are async-signal-safe and touch no memory of ours.
        unsafe { command.pre_exec(move || become_helper(low, &taps)) };
        let mut child = command.spawn()?;
        let opened = Identity::of(child.id() as i32).and_then(Handle::open);
        match opened {
            Ok(Some(handle)) => {
                let handle = Arc::new(handle);
                let child = Mutex::new(Some(child));
                Ok(Helper { handle, directory: directory.to_owned(), child })
            }
            other => {
                let _ = child.kill();
                let status = child.wait()?;
                Err(other.err().filter(|e| e.kind() != io::ErrorKind::NotFound).unwrap_or_else(
                    || io::Error::other(format!("it ended at once ({status}): see its log")),
                ))
            }
        }
    }

    /// Looks for a living helper of the container in `directory`: by what was recorded, else by
    /// who answers on its socket, else by who holds its lock.
    pub fn find(directory: &Path, recorded: Option<&Runtime>) -> io::Result<Option<Helper>> {
        let recorded = recorded
            .filter(|runtime| runtime.boot_id == crate::process::boot_id())
            .map(|runtime| runtime.process);
        let identity = match recorded {
            Some(identity) => Some(identity),
            None => by_socket(directory).or_else(|| by_lock(directory)),
        };
        identity.map_or(Ok(None), |identity| Self::hold(identity, directory))
    }

    fn hold(identity: Identity, directory: &Path) -> io::Result<Option<Helper>> {
        let handle = Handle::open(identity)?;
        Ok(handle.map(|handle| Helper {
            handle: Arc::new(handle),
            directory: directory.to_owned(),
            child: Mutex::new(None),
        }))
    }

    /// Looks for a living process that works in `directory`: who answers on its socket, who holds
    /// its lock, or whom [`Helper::write_identity`] named.
    pub fn find_in(directory: &Path) -> io::Result<Option<Helper>> {
        let recorded = || {
            let runtime: Runtime = read_json(&directory.join(PROCESS)).ok()?;
            (runtime.boot_id == crate::process::boot_id()).then_some(runtime.process)
        };
        let identity = by_socket(directory).or_else(|| by_lock(directory)).or_else(recorded);
        identity.map_or(Ok(None), |identity| Self::hold(identity, directory))
    }

    /// Writes down which process works in `directory`.
    pub fn write_identity(directory: &Path, pid: i32) -> io::Result<()> {
        match Identity::of(pid) {
            Ok(identity) => write_json(directory, PROCESS, &Runtime::now(identity)),
            // It has ended at once, and is not to be found.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The same process, now with another directory.
    pub fn moved_to(mut self, directory: &Path) -> Helper {
        self.directory = directory.to_owned();
        self
    }

    /// A connection to its socket. While it starts, the socket may not be there yet.
    pub async fn connect(&self) -> Result<Client> {
        let end = tokio::time::Instant::now() + SOCKET_DEADLINE;
        let mut pause = Duration::from_millis(1);
        loop {
            match socket::try_connect(&self.directory, names::SOCKET) {
                Ok(stream) => return Ok(Client::new(stream)?),
                Err(error) if tokio::time::Instant::now() >= end => {
                    let message = format!("the helper does not answer on its socket ({error})");
                    return Err(ApiError::new(ErrorCode::Timeout, message));
                }
                Err(_) => {}
            }
            tokio::select! {
                () = self.handle.ended() => {
                    let message = "the helper has ended";
                    return Err(ApiError::new(ErrorCode::Disconnected, message));
                }
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_millis(20)),
            }
        }
    }

    /// One call on a connection of its own.
    pub async fn call<R: DeserializeOwned>(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        deadline: Option<Duration>,
    ) -> Result<R> {
        self.connect().await?.call(request, fds, deadline).await
    }

    /// Waits for the end of the process, kills it when that takes longer than `patience`, and
    /// reaps it. Says how it ended, where that can be known.
    pub async fn end_within(&self, patience: Duration) -> Option<String> {
        if tokio::time::timeout(patience, self.handle.ended()).await.is_err() {
            tracing::warn!(
                pid = self.handle.identity().pid,
                container = %self.directory.display(),
                "a helper did not end and is killed"
            );
            self.handle.kill();
            // A killed process ends unless the kernel holds it.
            let _ = tokio::time::timeout(END_DEADLINE, self.handle.ended()).await;
        }
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let status = child.as_mut()?.try_wait().ok()??;
        *child = None;
        Some(match (status.signal(), status.code()) {
            (Some(signal), _) => format!("killed by {}", crate::validate::signal::name(signal)),
            (None, code) => format!("exit code {}", code.unwrap_or(0)),
        })
    }
}

/// Removes the socket that a helper which was killed has left in `directory`.
pub fn forget_socket(directory: &Path) {
    if let Err(error) = std::fs::remove_file(directory.join(names::SOCKET))
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(directory = %directory.display(), %error, "a socket stays");
    }
}

/// Runs in the child before the program is executed.
fn become_helper(low_priority: bool, taps: &[OwnedFd]) -> io::Result<()> {
    nix::unistd::setsid()?;
    for (place, tap) in (FIRST_TAP..).zip(taps) {
        // SAFETY: whoever owned this number is in the parent; the child executes a program next,
        // which closes all that is not given to it.
        let given = unsafe { nix::unistd::dup2_raw(tap, place) }?;
        // It is the program's.
        let _ = given.into_raw_fd();
    }
    if low_priority {
        nice(priority::LOW)?;
    }
    Ok(())
}

fn by_socket(directory: &Path) -> Option<Identity> {
    let stream = socket::try_connect(directory, names::SOCKET).ok()?;
    let peer = socket::peer(&stream).ok()?;
    Identity::of(peer.pid).ok()
}

fn by_lock(directory: &Path) -> Option<Identity> {
    let mut file = std::fs::File::open(directory.join(names::RUNTIME_LOCK)).ok()?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            (&mut file).take(32).read_to_string(&mut pid).ok()?;
            Identity::of(pid.trim().parse().ok()?).ok()
        }
        _ => None,
    }
}

/// The exit record that a helper has left in `directory`.
pub fn left_record(directory: &Path) -> Option<ExitRecord> {
    let mut text = Vec::new();
    let file = std::fs::File::open(directory.join(names::EXIT)).ok()?;
    file.take(64 << 10).read_to_end(&mut text).ok()?;
    let mut record: ExitRecord = serde_json::from_slice(&text)
        .map_err(|error| tracing::warn!(%error, "an exit record is malformed"))
        .ok()?;
    // The guest may have chosen these words.
    record.reason = container_api::escape::escape(&record.reason).into_owned();
    Some(record)
}
