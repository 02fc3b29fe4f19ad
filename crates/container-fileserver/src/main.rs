//! `container-fileserver`: a virtio-fs server for the bind mounts of one container.
//!
//! ```text
//! helper ──spawns──► first process                second process (the server)
//!                    user namespace (rootless)
//!                    mount, net, ipc, uts, cgroup, pid namespaces
//!                    forks ──────────────────────► opens each source, compares its identity
//!                    waits, dies with the helper   empty tmpfs, source i mounted at /i, ours hidden
//!                                                  pivot_root, capabilities, landlock, seccomp
//!                                                  accepts QEMU, serves, ends when that goes
//! ```
//! Whoever breaks the server through QEMU has the shared directories, as they were shared: a
//! read-only one is read-only by its mount, which covers what landlock doesn't (modes, owners,
//! attributes, times), and nothing else exists in its root.
//!
//! Arguments: `SOCKET HIDDEN… -- (SOURCE DEVICE INODE d|f rw|ro[,notify] OWNERS)…`, where `SOCKET`
//! is the number of a listening socket to which QEMU's end is connected already, and `OWNERS` is read
//! by [`owners::Owners::parse`]. What the host changes in a share with `notify` goes to stdout
//! ([`events`]).

mod announce;
mod args;
mod confine;
mod events;
mod filesystem;
mod hidden;
mod ids;
mod jail;
mod notify;
mod own;
mod owners;
mod routes;
mod watch;
mod xattr;

use std::fs::File;
use std::os::fd::FromRawFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use announce::Announcements;
use args::Args;
use filesystem::Shares;
use ids::Identities;
use notify::Notifying;
use owners::Maps;
use routes::Routes;
use vhost::vhost_user::Error::{Disconnected, PartialMessage, SocketBroken};
use vhost::vhost_user::Listener;
use vhost_user_backend::{Error, VhostUserDaemon};
use virtiofsd::passthrough::{CachePolicy, Config, PassthroughFs};
use virtiofsd::seccomp::{SeccompAction, enable_seccomp};
use virtiofsd::vhost_user::VhostUserFsBackendBuilder;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use watch::Watcher;

/// Descriptors that the server needs for itself.
const RESERVED: u64 = 64;

/// What failed, in one line.
type Result<T> = std::result::Result<T, String>;

/// `map_err` with what was tried.
fn at<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error}")
}

fn main() -> ExitCode {
    match args::parse(std::env::args_os().skip(1)).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("container-fileserver: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    jail::keep_descriptor(args.socket)?;
    let identities = jail::enter_namespaces()?;
    match jail::fork()? {
        Some(child) => jail::wait(child),
        None => serve(&args, identities),
    }
}

fn serve(args: &Args, identities: Identities) -> Result<()> {
    jail::die_with_parent()?;
    let proc_fds = File::open("/proc/self/fd").map_err(at("open /proc/self/fd"))?;
    let mounts = File::open("/proc/self/mountinfo").map_err(at("open /proc/self/mountinfo"))?;
    let limit = virtiofsd::limits::setup_rlimit_nofile(None).map_err(at("raise open files"))?;
    let owners = jail::build_root(args)?;
    confine::confine(args)?;
    // Before the server's own filter, which has no place for what the watcher does.
    let told = watch(args)?;
    enable_seccomp(SeccompAction::Kill, false).map_err(at("seccomp"))?;
    let mut routes = Routes::new(identities);
    let wanted = args.shares.iter().map(|share| &share.owners).zip(owners);
    let systems = routes.plan(wanted)?;
    let files = limit.saturating_sub(RESERVED) / systems.len() as u64;
    for Maps(users, groups) in systems {
        let config = Config {
            // What the host changes is seen at once.
            entry_timeout: Duration::ZERO,
            attr_timeout: Duration::ZERO,
            cache_policy: CachePolicy::Auto,
            proc_sfd_rawfd: Some(proc_fds.try_clone().map_err(at("/proc/self/fd"))?),
            proc_mountinfo_rawfd: Some(mounts.try_clone().map_err(at("/proc/self/mountinfo"))?),
            guest_fd_limit: files,
            uid_map: Some(users),
            gid_map: Some(groups),
            xattr: true,
            xattrmap: Some(xattr::map()?),
            // Without it the guest would ask for an attribute before each write.
            killpriv_v2: true,
            ..Config::default()
        };
        routes.add(Shares(PassthroughFs::new(config).map_err(at("the file system"))?));
    }
    let files = Notifying(routes, told);
    let backend = VhostUserFsBackendBuilder::default().build(files).map_err(at("the device"))?;
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let daemon = VhostUserDaemon::new("fileserver".into(), Arc::new(backend), memory);
    let mut daemon = daemon.map_err(|error| format!("the server: {error:?}"))?;
    // SAFETY: `keep_descriptor` put the socket there, and nothing else owns it.
    let mut listener = unsafe { Listener::from_raw_fd(jail::SOCKET) };
    daemon.start(&mut listener).map_err(|error| format!("accept QEMU: {error:?}"))?;
    match daemon.wait() {
        Ok(()) => Ok(()),
        // QEMU has ended.
        Err(Error::HandleRequest(Disconnected | PartialMessage | SocketBroken(_))) => Ok(()),
        Err(error) => Err(format!("serve: {error:?}")),
    }
}

/// Watches what is to be watched, if anything is.
fn watch(args: &Args) -> Result<Option<Arc<Announcements>>> {
    if !args.shares.iter().any(|share| share.notify) {
        return Ok(None);
    }
    let all = Arc::new(Announcements::new()?);
    Watcher::new(&args.shares, all.clone())?.start()?;
    Ok(Some(all))
}
