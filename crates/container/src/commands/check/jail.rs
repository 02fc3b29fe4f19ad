//! On the host: the probe in a jail like a hypervisor's, and as another user.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;

use container_api::apiserver::SOCKET;
use container_api::paths::{self, container_files};
use container_api::types::{Accelerator, ContainerSnapshot};
use tokio::process::Command;

use super::Row;
use super::answers::{self, JAIL, USER};
use super::stage::{STEP, Stage, word};

/// A user to whom nothing belongs.
const STRANGER: u32 = 2_000_000_011;

/// Both.
pub async fn attacks(
    stage: &Stage<'_>,
    container: Option<&ContainerSnapshot>,
    allowed_missing: &[String],
) -> Vec<Row> {
    let said = from_the_jail(stage, container, allowed_missing).await;
    let mut rows = answers::rows(JAIL, &said, allowed_missing);
    rows.extend(answers::rows(USER, &as_another_user(stage, container).await, &[]));
    rows
}

/// The runtime puts the probe where it puts a hypervisor.
async fn from_the_jail(
    stage: &Stage<'_>,
    container: Option<&ContainerSnapshot>,
    allowed_missing: &[String],
) -> Result<String, String> {
    let status = stage.status().await?;
    let name = stage.name("socket");
    let address = SocketAddr::from_abstract_name(&name).map_err(|e| e.to_string())?;
    // Listens while the probe looks for it.
    let _listener = UnixListener::bind_addr(&address).map_err(|e| e.to_string())?;
    let own = stage.file("disk", &[b'x'; 4096], 0o666)?;
    let shared = stage.file("shared", &[b'x'; 4096], 0o644)?;
    let runtime = paths::program("container-runtime-linux").map_err(|e| e.to_string())?;
    let mut command = Command::new(runtime);
    command.arg("attack").arg(&stage.probe).arg("--own").arg(&own).arg("--shared").arg(&shared);
    let kvm = status.accelerator == Some(Accelerator::Kvm);
    command.args(["--kvm", if kvm { "yes" } else { "no" }, "--abstract", &name]);
    for layer in allowed_missing {
        command.args(["--allow-missing", layer]);
    }
    let services = [Some(status.apiserver_pid), i32::try_from(std::process::id()).ok()];
    let of_container = container.map(|c| [c.runtime_pid, c.hypervisor_pid]).unwrap_or_default();
    for pid in services.into_iter().chain(of_container).flatten() {
        command.args(["--pid", &pid.to_string()]);
    }
    command.arg("--file").arg(stage.session.root().path());
    let said = stage.run(command, STEP).await?.ok()?;
    // What is shared is whole, whatever the probe said.
    match std::fs::read(&shared) {
        Ok(content) if content == [b'x'; 4096] => Ok(said),
        _ => Ok("jail-shared\topen\ta shared file was changed from the jail\n".to_owned() + &said),
    }
}

/// Needs root, who can become anybody.
async fn as_another_user(
    stage: &Stage<'_>,
    container: Option<&ContainerSnapshot>,
) -> Result<String, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("only root can become another user to try".into());
    }
    // Where that user can execute it.
    let bytes = std::fs::read(&stage.probe).map_err(|e| e.to_string())?;
    let program = stage.file("probe", &bytes, 0o755)?;
    let mut command = Command::new(program);
    command.arg("knock").args(doors(stage, container).iter().map(word));
    command.uid(STRANGER).gid(STRANGER).current_dir("/").env_clear();
    stage.run(command, STEP).await?.ok()
}

/// What nobody else may reach.
fn doors(stage: &Stage<'_>, container: Option<&ContainerSnapshot>) -> Vec<PathBuf> {
    let root = stage.session.root();
    let mut doors = vec![
        root.path().join(SOCKET),
        root.database(),
        root.audit(),
        root.containers(),
        root.images(),
        root.networks(),
        root.logs(),
    ];
    if let Some(container) = container {
        let directory = root.container(&container.configuration.id);
        let files = [
            container_files::SOCKET,
            container_files::UPPER,
            container_files::CONFIG,
            container_files::OUTPUT,
        ];
        doors.extend(files.map(|file| directory.join(file)));
    }
    // What an installation does not have yet can't be closed; all are its service's to make.
    doors.retain(|path| path.symlink_metadata().is_ok());
    doors
}
