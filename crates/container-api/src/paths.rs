//! Where state lives: the app root and what is beside the binaries.

use std::env;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// Length in bytes of every disk a VM sees. All disks have this one sparse length, so that a
/// template's placeholder can be swapped for a container's disk without the guest noticing.
pub const DISK_LEN: u64 = 64 << 30;

/// One installation's directory; services with different roots never meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppRoot(PathBuf);

impl AppRoot {
    /// The root named by the user, or the default: `/var/lib/container` for root,
    /// `$XDG_DATA_HOME/container` (`~/.local/share/container`) for everyone else.
    pub fn resolve(named: Option<&Path>) -> io::Result<AppRoot> {
        let path = match named {
            Some(path) if path.as_os_str().is_empty() => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "the app root is empty"));
            }
            Some(path) => path.to_owned(),
            None if nix::unistd::geteuid().is_root() => PathBuf::from("/var/lib/container"),
            None => data_home()?.join("container"),
        };
        Ok(AppRoot(std::path::absolute(path)?))
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The apiserver's state (SQLite).
    pub fn database(&self) -> PathBuf {
        self.0.join("state.db")
    }

    /// The file whose lock says that an apiserver serves this root.
    pub fn lock(&self) -> PathBuf {
        self.0.join("apiserver.lock")
    }

    /// Structured logs of the services.
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// The audit trail.
    pub fn audit(&self) -> PathBuf {
        self.0.join("audit")
    }

    /// What waits to be told to the audit trail ([`crate::audit::observed`]).
    pub fn observed(&self) -> PathBuf {
        self.0.join("observed")
    }

    /// What `container-images` owns.
    pub fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    /// Kernels that `system kernel set` installed.
    pub fn kernels(&self) -> PathBuf {
        self.0.join("kernels")
    }

    /// The bundle that new VMs boot: the one that `configured` (`[kernel] path`) names, else the one
    /// that was installed here last, else the prepared one. It need not exist.
    pub fn kernel(&self, configured: Option<&Path>) -> io::Result<PathBuf> {
        if let Some(path) = configured {
            return Ok(path.to_owned());
        }
        let kernels = self.kernels();
        match std::fs::read_link(kernels.join(crate::images::CURRENT_KERNEL)) {
            Ok(bundle) => Ok(kernels.join(bundle)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => default_kernel(),
            Err(e) => Err(e),
        }
    }

    /// All containers.
    pub fn containers(&self) -> PathBuf {
        self.0.join("containers")
    }

    /// Templates of VMs, a directory each.
    pub fn templates(&self) -> PathBuf {
        self.0.join("templates")
    }

    /// Spare VMs, a directory each.
    pub fn spares(&self) -> PathBuf {
        self.0.join("spares")
    }

    /// Volumes, a directory each.
    pub fn volumes(&self) -> PathBuf {
        self.0.join("volumes")
    }

    /// What `container-network` owns.
    pub fn networks(&self) -> PathBuf {
        self.0.join("networks")
    }

    /// One container's directory.
    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }
}

/// Names of files in a container's directory.
pub mod container_files {
    /// The container's configuration ([`crate::types::ContainerConfig`], JSON).
    pub const CONFIG: &str = "config.json";
    /// What its VM is made of ([`crate::runtime::VmSpec`], JSON).
    pub const VM_SPEC: &str = "vm.json";
    /// The container's writable disk: a sparse ext4 file.
    pub const UPPER: &str = "upper.img";
    /// The program's output, one JSON object per line; `.1`, `.2` … are older.
    pub const OUTPUT: &str = "output.log";
    /// The guest's console and kernel log.
    pub const BOOT_LOG: &str = "boot.log";
    /// How the container ended ([`crate::types::ExitRecord`], JSON).
    pub const EXIT: &str = "exit.json";
    /// The helper's socket.
    pub const SOCKET: &str = "runtime.sock";
    /// The helper's own log.
    pub const RUNTIME_LOG: &str = "runtime.log";
    /// With `--ssh`: a link to the user's SSH agent, set anew whenever a caller has another one.
    /// Whoever connects follows it each time.
    pub const SSH_AGENT: &str = "ssh-agent";
    /// The helper holds this file's lock as long as it lives.
    pub const RUNTIME_LOCK: &str = "runtime.lock";
}

/// Names of files in a template's directory.
pub mod template_files {
    /// The RAM, sparse, as long as it is.
    pub const RAM: &str = "ram";
    /// The device state.
    pub const STATE: &str = "state";
    /// [`crate::runtime::TemplateManifest`], JSON.
    pub const MANIFEST: &str = "template.json";
}

fn home() -> io::Result<PathBuf> {
    let home = match env::var_os("HOME") {
        Some(home) if !home.is_empty() => PathBuf::from(home),
        _ => nix::unistd::User::from_uid(nix::unistd::geteuid())?
            .map(|user| user.dir)
            .ok_or_else(|| io::Error::other("no home directory: set HOME or use --app-root"))?,
    };
    Ok(home)
}

fn xdg(variable: &str, below_home: &str) -> io::Result<PathBuf> {
    match env::var_os(variable).filter(|v: &OsString| Path::new(v).is_absolute()) {
        Some(path) => Ok(path.into()),
        None => Ok(home()?.join(below_home)),
    }
}

fn data_home() -> io::Result<PathBuf> {
    xdg("XDG_DATA_HOME", ".local/share")
}

/// The configuration file: `config.toml` in the app root when there, else
/// `/etc/container/config.toml` for root and `~/.config/container/config.toml` for others.
pub fn config_file(root: &AppRoot) -> io::Result<PathBuf> {
    let own = root.path().join("config.toml");
    if own.exists() {
        return Ok(own);
    }
    if nix::unistd::geteuid().is_root() {
        return Ok("/etc/container/config.toml".into());
    }
    Ok(xdg("XDG_CONFIG_HOME", ".config")?.join("container/config.toml"))
}

/// Finds one of our programs: beside the running one (the build tree), or in `../libexec/container`
/// (an installation).
pub fn program(name: &str) -> io::Result<PathBuf> {
    let exe = env::current_exe()?;
    let dir = exe.parent().unwrap_or(Path::new("/"));
    let places = [
        dir.join(name),
        dir.join("../libexec/container").join(name),
        dir.join("../../bin").join(name),
    ];
    places.iter().find(|p| p.is_file()).cloned().ok_or_else(|| {
        let message = format!("{name} is not beside {}: reinstall container", exe.display());
        io::Error::new(io::ErrorKind::NotFound, message)
    })
}

/// The directory with the prepared kernel: `share/container/kernel` beside the binaries, in the
/// build tree (`target/release/..`) and in an installation (`PREFIX/bin/..`,
/// `PREFIX/libexec/container/../..`) alike. It need not exist.
pub fn default_kernel() -> io::Result<PathBuf> {
    let exe = env::current_exe()?;
    let dir = exe.parent().unwrap_or(Path::new("/"));
    let near = dir.join("../share/container/kernel");
    let far = dir.join("../../share/container/kernel");
    Ok(if !near.exists() && far.exists() { far } else { near })
}
