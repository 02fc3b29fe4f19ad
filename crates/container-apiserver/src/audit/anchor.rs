//! Heads of the trail, kept where whoever changes the trail may not reach.
//!
//! An anchor file on another file system or machine, or opened append-only (`chattr +a`), and the
//! system's log (journald or syslog, by `/dev/log`) tell of a tail that was cut and of a chain that
//! was written anew. They do not stop root, nor the owner before the next anchor.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use container_api::audit::Head;
use container_api::config::AuditConfig;
use container_api::paths::AppRoot;
use container_api::types::Timestamp;

use super::trail::add_line;

/// The system's log.
const SYSLOG: &str = "/dev/log";
/// Facility "log audit", severity "informational" (RFC 5424, section 6.2.1).
const PRIORITY: u8 = 13 * 8 + 6;
/// With nothing to anchor.
const IDLE: Duration = Duration::from_secs(3600);

/// Where heads go, and when.
#[derive(Debug)]
pub struct Anchors {
    file: Option<PathBuf>,
    syslog: Option<PathBuf>,
    period: Duration,
    root: PathBuf,
    /// The last one that was anchored.
    told: u64,
    since: Instant,
}

impl Anchors {
    /// Those of the configuration.
    pub fn new(root: &AppRoot, config: &AuditConfig) -> Anchors {
        Anchors {
            file: config.anchor.clone(),
            syslog: config.syslog.then(|| SYSLOG.into()),
            period: Duration::from_secs(config.anchor_seconds),
            root: root.path().to_owned(),
            told: 0,
            since: Instant::now(),
        }
    }

    /// A file alone.
    #[cfg(test)]
    pub fn to(file: PathBuf) -> Anchors {
        Anchors {
            file: Some(file),
            syslog: None,
            period: IDLE,
            root: PathBuf::new(),
            told: 0,
            since: Instant::now(),
        }
    }

    /// How long until `head` is to be anchored.
    pub fn next(&self, head: &Head) -> Duration {
        match self.told == head.sequence {
            true => IDLE,
            false => self.period.saturating_sub(self.since.elapsed()),
        }
    }

    /// Anchors a head.
    pub fn drop(&mut self, head: &Head) {
        self.since = Instant::now();
        if self.told == head.sequence {
            return;
        }
        self.told = head.sequence;
        if let Some(file) = &self.file
            && let Err(error) = add_line(file, &format!("{} {head}\n", Timestamp::now()))
        {
            tracing::error!(file = %file.display(), %error, "anchoring the audit trail's head");
        }
        if let Some(socket) = &self.syslog
            && let Err(error) = log(socket, &self.root, head)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "telling the system's log the audit trail's head");
        }
    }
}

fn log(socket: &Path, root: &Path, head: &Head) -> std::io::Result<()> {
    let socket_end = UnixDatagram::unbound()?;
    socket_end.set_nonblocking(true)?;
    socket_end.connect(socket)?;
    let (root, pid) = (root.display().to_string(), std::process::id());
    let root = container_api::escape::escape(&root).into_owned();
    let text = format!("<{PRIORITY}>container-audit[{pid}]: head {head} of {root}");
    socket_end.send(text.as_bytes()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_told_once_to_file_and_log() {
        let folder = tempfile::tempdir().unwrap();
        let (file, socket) = (folder.path().join("anchor"), folder.path().join("log"));
        let heard = UnixDatagram::bind(&socket).unwrap();
        let mut anchors = Anchors {
            syslog: Some(socket),
            root: "/app\nroot".into(),
            period: Duration::ZERO,
            ..Anchors::to(file.clone())
        };
        let head = Head { sequence: 3, ..Head::genesis() };
        assert!(anchors.next(&head).is_zero());
        anchors.drop(&head);
        anchors.drop(&head);
        assert_eq!(anchors.next(&head), IDLE);
        assert_eq!(container_api::audit::anchored(&file).unwrap(), std::slice::from_ref(&head));
        let mut text = [0; 256];
        let n = heard.recv(&mut text).unwrap();
        let text = std::str::from_utf8(&text[..n]).unwrap();
        assert!(text.starts_with("<110>container-audit["), "{text}");
        assert!(text.ends_with(&format!("head {head} of /app\\nroot")), "{text}");
    }
}
