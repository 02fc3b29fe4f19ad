//! A service of ours beside this one: started on first need, started again when it is gone, one
//! connection per request.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use container_api::escape::escape;
use container_api::paths::{self, AppRoot};
use container_api::socket;
use container_api::varlink::Client;
use container_api::{ApiError, ErrorCode, Result};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::process::Identity;

/// From the service's start to its first answer.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// Bytes after which the service's log is set aside at its next start. It says one line a request.
const MAX_LOG: u64 = 8 << 20;

/// Longest last line of a log that is read.
const LAST_LINE: u64 = 16 << 10;

/// Which service, and where.
#[derive(Debug)]
pub struct Place {
    /// What it is called in messages.
    pub name: &'static str,
    /// Its program.
    pub program: &'static str,
    /// The directory of its socket.
    pub directory: fn(&AppRoot) -> PathBuf,
    /// Its socket there.
    pub socket: &'static str,
    /// Its log's file in [`AppRoot::logs`].
    pub log: &'static str,
}

/// The service and how to reach it.
#[derive(Debug)]
pub struct Companion {
    root: AppRoot,
    place: Place,
    starting: AsyncMutex<()>,
    child: Mutex<Option<Child>>,
    /// Whom the last connection reached.
    peer: watch::Sender<Option<Identity>>,
}

impl Companion {
    /// Starts nothing yet.
    pub fn new(root: &AppRoot, place: Place) -> Companion {
        Companion {
            root: root.clone(),
            place,
            starting: AsyncMutex::new(()),
            child: Mutex::new(None),
            peer: watch::Sender::new(None),
        }
    }

    /// A connection to the service if it runs.
    pub fn try_connect(&self) -> Result<Client> {
        let stream = socket::try_connect(&(self.place.directory)(&self.root), self.place.socket)?;
        let client = Client::new(stream)?;
        if !socket::is_owner(client.peer()) {
            let message = format!("somebody else's {} answers", self.place.name);
            return Err(ApiError::internal(message));
        }
        let pid = client.peer().pid;
        if self.peer.borrow().is_none_or(|known| known.pid != pid) {
            // One that ends this moment can't be looked at, and is not asked for long either.
            self.peer.send_replace(Identity::of(pid).ok());
        }
        Ok(client)
    }

    /// A connection to the service, which is started when it doesn't run.
    pub async fn connect(&self) -> Result<Client> {
        if let Ok(client) = self.try_connect() {
            return Ok(client);
        }
        // Whoever comes while it starts waits for the same one.
        let _starting = self.starting.lock().await;
        let end = Instant::now() + START_DEADLINE;
        let mut spawned = false;
        loop {
            match self.try_connect() {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() >= end => {
                    return Err(error.context(format!("the {} does not answer", self.place.name)));
                }
                Err(_) => {}
            }
            match self.child_runs() {
                true => {}
                false if !spawned => {
                    self.spawn()?;
                    spawned = true;
                }
                false => {
                    return Err(self.ended_at_once());
                }
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// What a service that could not start has said last, as an error of ours.
    fn ended_at_once(&self) -> ApiError {
        let log = self.root.logs().join(self.place.log);
        let message = match last_error(&log) {
            Some(error) => format!("the {} can't start: {error}", self.place.name),
            None => format!("the {} ended at once: see {}", self.place.name, log.display()),
        };
        ApiError::new(ErrorCode::Unavailable, message)
    }

    /// Who answers, as it changes: the service that was reached last.
    pub fn peer(&self) -> watch::Receiver<Option<Identity>> {
        self.peer.subscribe()
    }

    /// Forgets a service that has ended, and reaps it.
    pub fn gone(&self, which: Identity) {
        self.child_runs();
        self.peer.send_if_modified(|peer| match *peer == Some(which) {
            true => peer.take().is_some(),
            false => false,
        });
    }

    fn child_runs(&self) -> bool {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        match child.as_mut().map(Child::try_wait) {
            Some(Ok(None)) => true,
            Some(ended) => {
                tracing::warn!(service = self.place.name, ?ended, "a service has ended");
                *child = None;
                false
            }
            None => false,
        }
    }

    fn spawn(&self) -> Result<()> {
        let program = paths::program(self.place.program)?;
        let log = self.root.logs().join(self.place.log);
        if std::fs::metadata(&log).is_ok_and(|found| found.len() > MAX_LOG) {
            std::fs::rename(&log, log.with_extension("log.1"))?;
        }
        let log = OpenOptions::new().append(true).create(true).mode(0o600).open(log)?;
        let child = Command::new(&program)
            .arg("serve")
            .arg("--app-root")
            .arg(self.root.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // A Ctrl-C for this service in the foreground is not one for that.
            .process_group(0)
            .spawn()
            .map_err(|e| ApiError::from(e).context(program.display()))?;
        tracing::info!(service = self.place.name, pid = child.id(), "a service was started");
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        Ok(())
    }

    /// Ends the service when it runs: with `request`, and after `patience` by a kill.
    pub async fn end(&self, request: &impl Serialize, patience: Duration) {
        if let Ok(mut client) = self.try_connect() {
            let ended = client.call::<_, Value>(request, &[], Some(patience)).await;
            if let Err(error) = ended
                && error.code != ErrorCode::Disconnected
            {
                tracing::warn!(service = self.place.name, %error, "a service was told to end");
            }
        }
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut child) = child else { return };
        let gone = async {
            while matches!(child.try_wait(), Ok(None)) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(patience, gone).await.is_err() {
            tracing::warn!(service = self.place.name, "a service does not end and is killed");
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The error in the last line of a service's log, if that is one.
fn last_error(log: &Path) -> Option<String> {
    let mut file = std::fs::File::open(log).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LAST_LINE))).ok()?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).ok()?;
    let line = tail.trim_ascii_end().rsplit(|b| *b == b'\n').next()?;
    let line: Value = serde_json::from_slice(line).ok()?;
    let error = line.get("fields")?.get("error")?.as_str()?;
    (line.get("level")? == "ERROR").then(|| escape(error).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_is_found() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let say = |text: &str| std::fs::write(log.path(), text).unwrap();
        let error = r#"{"level":"ERROR","fields":{"message":"ended","error":"no\u001b nft"}}"#;
        say(&format!("{}\n{error}\n", "x".repeat(100_000)));
        assert_eq!(last_error(log.path()).as_deref(), Some("no\\u{1b} nft"));
        for other in ["", "\n", "killed\n", r#"{"level":"INFO","fields":{"error":"x"}}"#, "{}"] {
            say(&format!("{error}\n{other}"));
            let found = last_error(log.path());
            assert_eq!(found.is_some(), other.trim().is_empty(), "{other:?}");
        }
    }
}
