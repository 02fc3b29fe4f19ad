//! Where the user's SSH agent is, for containers with `--ssh`: a link in the container's directory,
//! so that a caller with another agent is followed at once.

use std::io;
use std::path::Path;

use container_api::paths::container_files::SSH_AGENT;
use container_api::{ApiError, Result};

use crate::container::Container;
use crate::engine::Engine;

impl Engine {
    /// Sets the link to the agent of a caller who has one.
    pub fn has_ssh_agent(&self, container: &Container, agent: Option<&Path>) -> Result<()> {
        let Some(agent) = agent.filter(|_| container.config.ssh) else { return Ok(()) };
        if !agent.is_absolute() {
            return Err(ApiError::invalid("SSH_AUTH_SOCK is not an absolute path"));
        }
        link(&self.directory(container), agent)
            .map_err(|e| ApiError::from(e).context("linking the SSH agent"))
    }
}

fn link(directory: &Path, agent: &Path) -> io::Result<()> {
    let place = directory.join(SSH_AGENT);
    if std::fs::read_link(&place).is_ok_and(|now| now == agent) {
        return Ok(());
    }
    let temporary = directory.join(format!(".{SSH_AGENT}"));
    match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    std::os::unix::fs::symlink(agent, &temporary)?;
    std::fs::rename(&temporary, &place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_follows_the_agent() {
        let directory = tempfile::tempdir().unwrap();
        for agent in ["/tmp/a", "/tmp/a", "/tmp/b"] {
            link(directory.path(), Path::new(agent)).unwrap();
            let found = std::fs::read_link(directory.path().join(SSH_AGENT)).unwrap();
            assert_eq!(found, Path::new(agent));
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
