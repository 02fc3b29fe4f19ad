//! The file server of a container's shares: a process of its own, confined to them.
//!
//! ```text
//! listen ─► connect ourselves ─► server gets the listener, QEMU the connection
//! ```
//! It ends when QEMU does, and at the latest with this process. When it dies before, the guest's
//! calls on the shares fail; the VM lives on.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use container_api::paths;
use container_api::runtime::{SHARE_TAG, Share, VmSpec};
use nix::libc;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use crate::hypervisor::Vm;

/// How long a server that failed may take to say why.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(2);
/// What is kept of what it says, in bytes.
const MAX_WORDS: u64 = 4096;
/// Where it listens for a moment.
const SOCKET: &str = "shares.sock";

/// Serves a container's shares to its VM.
///
/// # Errors
/// When the server does not come up, or the VM does not take its device.
pub async fn serve<V: Vm>(vm: &V, spec: &VmSpec, directory: &Path) -> Result<()> {
    let (mut server, connection) = start(spec, directory)?;
    match vm.plug_share(SHARE_TAG, connection).await {
        Ok(()) => {
            tokio::spawn(async move {
                let words = last_words(&mut server).await;
                match server.wait().await {
                    Ok(status) if status.success() => {}
                    Ok(status) => tracing::warn!(%status, words, "the file server has ended"),
                    Err(error) => tracing::warn!(%error, "the file server is lost"),
                }
            });
            Ok(())
        }
        Err(error) => {
            let words = tokio::time::timeout(LAST_WORDS_LIMIT, last_words(&mut server)).await;
            match words {
                Ok(words) if !words.is_empty() => Err(anyhow!(words)),
                _ => Err(error.into()),
            }
        }
    }
}

fn start(spec: &VmSpec, directory: &Path) -> Result<(Child, OwnedFd)> {
    let (listener, connection) = connect(directory).context("making the file server's socket")?;
    let mut command = Command::new(paths::program("container-fileserver")?);
    let number = listener.as_raw_fd();
    command.arg(number.to_string()).args(&spec.hidden).arg("--");
    for share in &spec.shares {
        arguments(&mut command, share);
    }
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    // SAFETY: a system call that is safe between fork and exec.
    unsafe {
        command.pre_exec(move || match libc::fcntl(number, libc::F_SETFD, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let server = command.spawn().context("starting container-fileserver")?;
    Ok((server, connection))
}

fn arguments(command: &mut Command, share: &Share) {
    let identity = &share.identity;
    command.arg(&share.source);
    command.args([identity.device, identity.inode].map(|number| number.to_string()));
    command.arg(if identity.directory { "d" } else { "f" });
    command.arg(if share.read_only { "ro" } else { "rw" });
}

/// A socket, and a connection to it that waits to be accepted.
fn connect(directory: &Path) -> std::io::Result<(UnixListener, OwnedFd)> {
    // A socket's address has 107 bytes, a path may have more.
    let folder = std::fs::File::open(directory)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    let connection = UnixStream::connect(&path);
    std::fs::remove_file(&path)?;
    Ok((listener, connection?.into()))
}

async fn last_words(server: &mut Child) -> String {
    let mut words = Vec::new();
    if let Some(stderr) = server.stderr.as_mut() {
        let _ = stderr.take(MAX_WORDS).read_to_end(&mut words).await;
    }
    container_api::escape::escape_bytes(words.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_waits_for_whoever_accepts() {
        let directory = tempfile::tempdir().unwrap();
        let (listener, connection) = connect(directory.path()).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        drop(connection);
        listener.accept().unwrap();
    }
}
