//! Where attacks are made: names of our own, a folder, and this program run again as a user would.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use container_api::apiserver::SystemStatus;
use container_api::types::ContainerSnapshot;
use container_api::{ApiError, ErrorCode, paths};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::image;
use crate::failure::{Failure, Outcome};
use crate::session::Session;

/// The longest that all attacks may take together.
const WHOLE: Duration = Duration::from_secs(225);
/// The longest that one command may take; a cold start of an emulated VM beside other work.
pub const STEP: Duration = Duration::from_secs(90);
/// How long it may take until nothing is left.
const CLEAR: Duration = Duration::from_secs(30);
/// Between two attempts at that.
const PERIOD: Duration = Duration::from_millis(200);
/// What is read of a command's output, in bytes: guests speak there.
const MAX_OUTPUT: u64 = 256 << 10;
/// What the names of everything that a check makes begin with; then its process id.
const PREFIX: &str = "system-check-";

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub output: String,
    /// The last line of its standard error.
    pub complaint: String,
}

impl Said {
    /// The output of a command that has succeeded; else its complaint.
    pub fn ok(self) -> Result<String, String> {
        match self.code {
            Some(0) => Ok(self.output),
            _ if self.complaint.is_empty() => Err(format!("exit code {:?}", self.code)),
            _ => Err(self.complaint),
        }
    }
}

/// One check.
pub struct Stage<'a> {
    /// The installation.
    pub session: &'a Session,
    /// The probe's file.
    pub probe: PathBuf,
    folder: TempDir,
    end: Instant,
    prefix: String,
}

impl<'a> Stage<'a> {
    /// Looks for what it needs; nothing is made in the installation.
    pub fn new(session: &'a Session) -> Outcome<Stage<'a>> {
        let probe = paths::program("container-probe").map_err(ApiError::from)?;
        let failed = |e| Failure::io("a folder for the check", e);
        let folder =
            tempfile::Builder::new().prefix("container-check-").tempdir().map_err(failed)?;
        // Others have to get at what is attacked; what is attacked is all that is here.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).map_err(failed)?;
        let prefix = format!("{PREFIX}{}", std::process::id());
        Ok(Stage { session, probe, folder, end: Instant::now() + WHOLE, prefix })
    }

    /// A name of this check's own.
    pub fn name(&self, of: &str) -> String {
        format!("{}-{of}", self.prefix)
    }

    /// The image's name.
    pub fn image(&self) -> String {
        format!("{PREFIX}image:{}", std::process::id())
    }

    /// A file of this check's own with a mode, whatever the umask.
    pub fn file(&self, name: &str, content: &[u8], mode: u32) -> Result<PathBuf, String> {
        let path = self.folder.path().join(name);
        let write = || -> std::io::Result<()> {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
                std::fs::set_permissions(parent, Permissions::from_mode(0o755))?;
            }
            std::fs::File::create(&path)?.write_all(content)?;
            std::fs::set_permissions(&path, Permissions::from_mode(mode))
        };
        write().map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(path)
    }

    /// The folder that [`Stage::file`] writes into.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `container WORDS…` for the same installation.
    pub fn command(&self, words: &[&str]) -> Result<Command, String> {
        let own = std::env::current_exe().map_err(|e| format!("this program: {e}"))?;
        let mut command = Command::new(own);
        command.arg("--app-root").arg(self.session.root().path()).args(words);
        Ok(command)
    }

    /// Runs `container WORDS…` to its end.
    pub async fn container(&self, words: &[&str]) -> Result<Said, String> {
        self.run(self.command(words)?, STEP).await
    }

    /// Runs `container WORDS…` and reads what it printed as JSON.
    pub async fn json(&self, words: &[&str]) -> Result<Value, String> {
        let output = self.container(words).await?.ok()?;
        serde_json::from_str(&output).map_err(|e| format!("{}: {e}", words.join(" ")))
    }

    /// A container as the service knows it.
    pub async fn inspect(&self, name: &str) -> Result<ContainerSnapshot, String> {
        let mut client = self.session.connect().map_err(|e| e.message)?;
        client.inspect(name).await.map_err(|e| e.message)
    }

    /// What the service says of itself.
    pub async fn status(&self) -> Result<SystemStatus, String> {
        let mut client = self.session.connect().map_err(|e| e.message)?;
        client.status().await.map_err(|e| e.message)
    }

    /// Starts a command that stays, with pipes.
    pub fn spawn(&self, words: &[&str]) -> Result<Child, String> {
        let mut command = self.command(words)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.kill_on_drop(true).spawn().map_err(|e| e.to_string())
    }

    /// Runs a command to its end, within `limit` and what is left of the whole check's time.
    pub async fn run(&self, command: Command, limit: Duration) -> Result<Said, String> {
        let left = self.end.saturating_duration_since(Instant::now());
        self.within(command, limit.min(left)).await
    }

    async fn within(&self, mut command: Command, limit: Duration) -> Result<Said, String> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| format!("{}: {e}", command.as_std().get_program().to_string_lossy()))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let all = async { tokio::join!(bounded(stdout), bounded(stderr), child.wait()) };
        let (output, errors, status) = tokio::time::timeout(limit, all)
            .await
            .map_err(|_| format!("no answer within {} s", limit.as_secs()))?;
        let status = status.map_err(|e| e.to_string())?;
        let line = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let complaint = line.strip_prefix("Error: ").unwrap_or(line).to_owned();
        Ok(Said { code: status.code(), output, complaint })
    }

    /// Loads the image.
    pub async fn load(&self) -> Result<(), String> {
        let probe =
            std::fs::read(&self.probe).map_err(|e| format!("{}: {e}", self.probe.display()))?;
        let archive = image::archive(&self.image(), &probe).map_err(|e| e.to_string())?;
        let file = self.file("image.tar", &archive, 0o600)?;
        let input = file.to_string_lossy().into_owned();
        self.container(&["image", "load", "--input", &input]).await?.ok()?;
        let _ = std::fs::remove_file(file);
        Ok(())
    }

    /// Removes everything that this check has made, and what one before has left that was killed.
    /// A container's network is free a moment after the container is gone, so again until nothing
    /// is left.
    pub async fn clear(&self) -> Result<(), String> {
        let end = Instant::now() + CLEAR;
        loop {
            let left = self.remove().await?;
            match left.is_empty() {
                true => return Ok(()),
                false if Instant::now() > end => {
                    return Err(format!("{} is still there", left.join(", ")));
                }
                false => tokio::time::sleep(PERIOD).await,
            }
        }
    }

    /// Tries once; what could not be removed.
    async fn remove(&self) -> Result<Vec<String>, String> {
        let mut left = Vec::new();
        for (list, remove) in [
            (&["list", "--all", "--quiet"][..], &["delete", "--force"][..]),
            (&["network", "list", "--quiet"], &["network", "delete"]),
            (&["image", "list", "--quiet"], &["image", "delete"]),
        ] {
            // Not within the time for attacks: nothing may stay.
            let run = async |words: &[&str]| self.within(self.command(words)?, CLEAR).await;
            let output = run(list).await?.ok()?;
            let ours = output.lines().map(str::trim).filter(|name| self.is_to_be_removed(name));
            for name in ours {
                if run(&[remove, &[name]].concat()).await?.ok().is_err() {
                    left.push(name.to_owned());
                }
            }
        }
        Ok(left)
    }

    /// Of this check, or of one whose process is gone.
    fn is_to_be_removed(&self, name: &str) -> bool {
        let Some(rest) = name.strip_prefix(PREFIX) else { return false };
        let rest = rest.strip_prefix("image:").unwrap_or(rest);
        let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
        let Ok(pid) = number.parse::<u32>() else { return false };
        pid == std::process::id() || !Path::new(&format!("/proc/{pid}")).exists()
    }
}

/// A word of a command line.
pub fn word(path: impl AsRef<OsStr>) -> String {
    path.as_ref().to_string_lossy().into_owned()
}

async fn bounded(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        let _ = (&mut stream).take(MAX_OUTPUT).read_to_end(&mut bytes).await;
        // The rest is not kept, but its writer must not wait for ever.
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The check can't even begin.
pub fn unavailable(what: &str, why: &str) -> Failure {
    ApiError::new(ErrorCode::Unavailable, format!("{what}: {why}")).into()
}
