//! The process of `run`, `create` and `exec`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::Args;
use container_api::apiserver::ProcessOptions;
use container_api::{ApiError, Result};

use super::{environment, values};

/// Options of a process.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Process options")]
pub struct Process {
    /// Set an environment variable (key=value; a key alone takes the host's value)
    #[arg(short, long, value_name = "ENV")]
    pub env: Vec<OsString>,
    /// Read environment variables from a file (key=value lines, # comments)
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Set the group ID of the process
    #[arg(long, value_name = "GID")]
    pub gid: Option<u32>,
    /// Keep standard input open and pass it on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set the user (name|uid[:group|gid])
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Set the user ID of the process
    #[arg(long, value_name = "UID")]
    pub uid: Option<u32>,
    /// Set the working directory in the container
    #[arg(short, long, visible_alias = "cwd", value_name = "DIR")]
    pub workdir: Option<OsString>,
    /// Set a resource limit (name=soft[:hard])
    #[arg(long, value_name = "LIMIT")]
    pub ulimit: Vec<String>,
}

impl Process {
    /// The typed request. Reads the environment files, and the host's variables with `host`.
    pub fn options(
        &self,
        arguments: &[OsString],
        host: impl Fn(&OsStr) -> Option<OsString>,
    ) -> Result<ProcessOptions> {
        if self.user.is_some() && self.uid.is_some() {
            return Err(ApiError::invalid("--user and --uid exclude each other"));
        }
        Ok(ProcessOptions {
            arguments: arguments.iter().map(|a| a.as_os_str().into()).collect(),
            environment: environment::collect(&self.env_file, &self.env, host)?,
            working_directory: self.workdir.as_deref().map(Into::into),
            terminal: self.tty,
            interactive: self.interactive,
            user: self.user.clone(),
            uid: self.uid,
            gid: self.gid,
            rlimits: self.ulimit.iter().map(|u| values::ulimit(u)).collect::<Result<_>>()?,
        })
    }
}
