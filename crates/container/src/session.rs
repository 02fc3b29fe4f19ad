//! The connection to the service, and starting it when a command needs one and none runs.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use container_api::apiserver::ApiClient;
use container_api::paths::{self, AppRoot};
use container_api::{ApiError, ErrorCode, Result};

/// How long a service may take until it answers.
pub const START: Duration = Duration::from_secs(20);

/// What the commands of one invocation share.
#[derive(Clone, Debug)]
pub struct Session {
    root: AppRoot,
    debug: bool,
    begun: Instant,
}

impl Session {
    /// The installation named by `--app-root`, by the environment, or the default one.
    pub fn new(named: Option<PathBuf>, debug: bool) -> Result<Session> {
        let from_environment =
            || std::env::var_os("CONTAINER_APP_ROOT").filter(|v| !v.is_empty()).map(PathBuf::from);
        let named = named.or_else(from_environment);
        let root = AppRoot::resolve(named.as_deref())?;
        Ok(Session { root, debug, begun: Instant::now() })
    }

    /// The installation's directory.
    pub fn root(&self) -> &AppRoot {
        &self.root
    }

    /// With `--debug`: says what happens, and when.
    pub fn debug(&self, what: impl std::fmt::Display) {
        if self.debug {
            let shown = what.to_string();
            let shown = container_api::escape::escape(&shown);
            eprintln!("[{:>9.3} ms] {shown}", self.begun.elapsed().as_secs_f64() * 1e3);
        }
    }

    /// Connects to a service that runs.
    pub fn connect(&self) -> Result<ApiClient> {
        ApiClient::connect(&self.root)
    }

    /// Connects, and starts the service first when none runs.
    pub async fn connect_or_start(&self) -> Result<ApiClient> {
        match self.connect() {
            Err(error) if error.code == ErrorCode::Unavailable => {
                self.debug("no service runs: starting it");
                self.start(START).await
            }
            other => other,
        }
    }

    /// Starts the service, which goes into the background when it is ready, and connects.
    pub async fn start(&self, deadline: Duration) -> Result<ApiClient> {
        let begun = Instant::now();
        let failure = self.spawn_service(deadline).await.err();
        // Another command may have started it at the same moment: then ours has refused to, and
        // the other one will answer soon.
        let grace = if failure.is_some() { Duration::from_secs(2) } else { deadline };
        let end = (Instant::now() + grace).min(begun + deadline.max(Duration::from_secs(2)));
        loop {
            match self.connect() {
                Err(error) if error.code == ErrorCode::Unavailable && Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) if error.code == ErrorCode::Unavailable => {
                    return Err(failure.unwrap_or(error));
                }
                other => {
                    self.debug("the service is ready");
                    return other;
                }
            }
        }
    }

    async fn spawn_service(&self, deadline: Duration) -> Result<()> {
        let program = paths::program("container-apiserver")?;
        let failed = |why: String| {
            let message = format!("the service did not start: {why}");
            ApiError::new(ErrorCode::Unavailable, message)
        };
        // A file, not a pipe: the service outlives this and may keep its end open.
        let mut said = tempfile::tempfile().map_err(|e| failed(e.to_string()))?;
        let stderr = said.try_clone()?;
        let mut child = tokio::process::Command::new(&program)
            .arg("--app-root")
            .arg(self.root.path())
            .arg("--daemon")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(|e| failed(format!("{}: {e}", program.display())))?;
        match tokio::time::timeout(deadline, child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(failed(last_words(&mut said).unwrap_or(status.to_string()))),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => {
                let _ = child.start_kill();
                Err(failed(format!("not ready within {} s", deadline.as_secs())))
            }
        }
    }

    /// Becomes the service, in the foreground. Returns only when that fails.
    pub fn become_service(&self) -> ApiError {
        use std::os::unix::process::CommandExt;
        let program = match paths::program("container-apiserver") {
            Ok(program) => program,
            Err(error) => return error.into(),
        };
        let arguments = [OsStr::new("--app-root"), self.root.path().as_os_str()];
        let error = std::process::Command::new(&program).args(arguments).exec();
        ApiError::from(error).context(program.display())
    }
}

/// The last line that a program has said, without its own `Error: `.
fn last_words(said: &mut File) -> Option<String> {
    let mut text = Vec::new();
    said.rewind().ok()?;
    said.take(64 << 10).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?.trim();
    let line = line.strip_prefix("container-apiserver: ").unwrap_or(line);
    Some(line.strip_prefix("Error: ").unwrap_or(line).to_owned())
}
