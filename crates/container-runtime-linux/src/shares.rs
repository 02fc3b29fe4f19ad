//! The file server of a container's shares: a process of its own, confined to them.
//!
//! ```text
//! listen ─► connect ourselves ─► server gets the listener, QEMU the connection
//! ```
//! It ends when QEMU does, and at the latest with this process. When it dies before, the guest's
//! calls on the shares are never answered, and each `sync` waits for them: the container ends.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use container_api::mounts::IdRange;
use container_api::paths;
use container_api::runtime::{SHARE_TAG, Share, VmSpec};
use nix::libc;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::container::{Container, Manner};
use crate::exit;
use crate::file_events;
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
pub async fn serve<V: Vm>(vm: &V, container: &Arc<Container>) -> Result<()> {
    let (mut server, connection) = start(&container.spec, &container.directory)?;
    match vm.plug_share(SHARE_TAG, connection).await {
        Ok(()) => {
            if let Some(events) = server.stdout.take() {
                let container = container.clone();
                tokio::spawn(async move { file_events::forward(&container, events).await });
            }
            let container = container.clone();
            tokio::spawn(async move {
                log_words(&mut server).await;
                let how = match server.wait().await {
                    Ok(status) if status.success() => return,
                    Ok(status) => status.to_string(),
                    Err(error) => error.to_string(),
                };
                tracing::warn!(how, "the file server has ended");
                let reason = format!("the server of its bind mounts has ended ({how})");
                container.conclude(exit::failure(reason), Manner::Kill);
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
    let notify = spec.shares.iter().any(|share| share.notify);
    let events = if notify { Stdio::piped() } else { Stdio::null() };
    command.env_clear().stdin(Stdio::null()).stdout(events).stderr(Stdio::piped());
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
    command.arg(match (share.read_only, share.notify) {
        (false, false) => "rw",
        (true, false) => "ro",
        (false, true) => "rw,notify",
        (true, true) => "ro,notify",
    });
    command.arg(owners(share));
}

/// Whom the files belong to, in one word.
fn owners(share: &Share) -> String {
    if !share.idmap.is_empty() {
        let range = |range: &IdRange| {
            let kind = match (range.users, range.groups) {
                (true, false) => "u",
                (false, true) => "g",
                _ => "",
            };
            format!("{kind}{}:{}:{}", range.guest, range.host, range.count)
        };
        return format!("idmap={}", share.idmap.iter().map(range).collect::<Vec<_>>().join(";"));
    }
    let ids = [("uid", share.uid), ("gid", share.gid)];
    let ids = ids.into_iter().filter_map(|(name, id)| Some(format!("{name}={}", id?)));
    let ids: Vec<_> = ids.collect();
    if ids.is_empty() { "-".into() } else { ids.join(",") }
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

/// Logs what the server says, line by line, up to a bound; the rest is read all the same.
async fn log_words(server: &mut Child) {
    let Some(stderr) = server.stderr.as_mut() else { return };
    let mut lines = BufReader::new(stderr.take(MAX_WORDS)).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        tracing::warn!("{}", container_api::escape::escape(&line));
    }
    if let Some(stderr) = server.stderr.as_mut() {
        let _ = tokio::io::copy(stderr, &mut tokio::io::sink()).await;
    }
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
    fn owners_are_one_word() {
        use container_api::mounts::FileIdentity;
        let identity = FileIdentity { device: 1, inode: 2, directory: true };
        let mut share = Share {
            source: "/a".into(),
            identity,
            read_only: false,
            notify: false,
            uid: None,
            gid: None,
            idmap: Vec::new(),
        };
        assert_eq!(owners(&share), "-");
        share.gid = Some(7);
        assert_eq!(owners(&share), "gid=7");
        share.uid = Some(5);
        assert_eq!(owners(&share), "uid=5,gid=7");
        let range = |users, groups| IdRange { users, groups, guest: 1, host: 2, count: 3 };
        share.idmap = vec![range(true, true), range(false, true), range(true, false)];
        assert_eq!(owners(&share), "idmap=1:2:3;g1:2:3;u1:2:3");
    }

    #[test]
    fn a_connection_waits_for_whoever_accepts() {
        let directory = tempfile::tempdir().unwrap();
        let (listener, connection) = connect(directory.path()).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        drop(connection);
        listener.accept().unwrap();
    }
}
