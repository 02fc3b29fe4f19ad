//! Threads that live in a namespace, and the user namespace that owns them all.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::mpsc;

use container_api::error::{ApiError, ErrorCode, Result};
use container_api::network::Protocol;
use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

/// `NS_GET_USERNS`: the user namespace that owns another one.
const NS_GET_USERNS: u8 = 0x1;
const NSIO: u8 = 0xb7;
nix::ioctl_none!(ns_get_userns, NSIO, NS_GET_USERNS);

/// What the engine may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Privilege {
    /// It may configure the host's network namespace too.
    Root,
    /// Its own user namespace's alone.
    User,
}

/// Turns an error of the kernel's into one line that says what was tried.
pub(super) fn failed(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> ApiError {
    move |error| ApiError::from(error).context(what)
}

/// The network namespace of the calling thread.
pub(super) fn current_network() -> Result<OwnedFd> {
    File::open("/proc/thread-self/ns/net")
        .map(OwnedFd::from)
        .map_err(failed("cannot open the network namespace"))
}

/// Makes the user namespace or joins the one of a survivor, where the process isn't allowed to
/// configure networks; it stays in the host's network namespace.
pub(super) fn enter(user: Option<BorrowedFd<'_>>) -> Result<Privilege> {
    if owns_the_host()? {
        return Ok(Privilege::Root);
    }
    match user {
        Some(user) if same_user(user)? => {}
        Some(user) => setns(user, CloneFlags::CLONE_NEWUSER).map_err(|error| {
            failed("cannot join the user namespace of the networks that are up")(error.into())
        })?,
        None => make_user()?,
    }
    Ok(Privilege::User)
}

fn make_user() -> Result<()> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| {
        let error = io::Error::from(error);
        let message = format!(
            "cannot make a user namespace: {error}; networks without root need unprivileged user \
             namespaces (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces, \
             kernel.apparmor_restrict_unprivileged_userns)"
        );
        ApiError::new(ErrorCode::Unavailable, message)
    })?;
    let write = |file: &str, text: String| {
        std::fs::write(format!("/proc/self/{file}"), text)
            .map_err(failed(format!("cannot write {file} of the user namespace")))
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {uid} 1"))?;
    write("gid_map", format!("0 {gid} 1"))
}

/// Whether the network namespace that the process is in belongs to its own user namespace and it
/// has the capabilities that count.
fn owns_the_host() -> Result<bool> {
    const ADMIN: u64 = 1 << 12 | 1 << 21; // CAP_NET_ADMIN, CAP_SYS_ADMIN
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(failed("cannot read the process's capabilities"))?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    if effective & ADMIN != ADMIN {
        return Ok(false);
    }
    let network = current_network()?;
    // SAFETY: the descriptor is a namespace's; the ioctl takes no argument.
    let owner = match unsafe { ns_get_userns(network.as_raw_fd()) } {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(fd) => unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) },
        // The owner is an ancestor of ours.
        Err(nix::errno::Errno::EPERM) => return Ok(false),
        Err(error) => return Err(failed("cannot find the network's owner")(error.into())),
    };
    same_user(owner.as_fd())
}

/// Whether that user namespace is our own.
fn same_user(user: BorrowedFd<'_>) -> Result<bool> {
    let own = File::open("/proc/self/ns/user").map_err(failed("cannot open /proc/self/ns/user"))?;
    let id = |fd: BorrowedFd<'_>| {
        nix::sys::stat::fstat(fd)
            .map(|stat| (stat.st_dev, stat.st_ino))
            .map_err(|error| failed("cannot compare user namespaces")(error.into()))
    };
    Ok(id(user)? == id(own.as_fd())?)
}

type Task<S> = Box<dyn FnOnce(&mut S) + Send>;

/// A thread in a network namespace that owns what is known of it. Everything done there is done by
/// it, one after the other. It ends with its last handle.
pub(super) struct Worker<S> {
    tasks: mpsc::Sender<Task<S>>,
}

impl<S> Clone for Worker<S> {
    fn clone(&self) -> Self {
        Worker { tasks: self.tasks.clone() }
    }
}

impl<S: 'static> Worker<S> {
    /// Starts a thread in `existing` or a new namespace; `prepare` makes its state there.
    pub(super) async fn start(
        name: &str,
        existing: Option<OwnedFd>,
        prepare: impl FnOnce() -> Result<S> + Send + 'static,
    ) -> Result<Worker<S>> {
        let (tasks, queue) = mpsc::channel::<Task<S>>();
        let (ready, prepared) = oneshot::channel();
        // The kernel shows 15 characters.
        std::thread::Builder::new()
            .name(format!("net {name}"))
            .spawn(move || {
                let state = go(existing).and_then(|()| prepare());
                let mut state = match state {
                    Ok(state) => {
                        let _ = ready.send(Ok(()));
                        state
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        return;
                    }
                };
                while let Ok(task) = queue.recv() {
                    task(&mut state);
                }
            })
            .map_err(failed(format!("cannot start the thread of network {name}")))?;
        prepared.await.map_err(|_| ended())??;
        Ok(Worker { tasks })
    }

    /// Runs a closure there. It runs to its end even when the caller goes away.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut S) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let task: Task<S> = Box::new(move |state| {
            let _ = answer.send(task(state));
        });
        self.tasks.send(task).map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

fn ended() -> ApiError {
    ApiError::new(ErrorCode::Unavailable, "the network was removed meanwhile")
}

fn go(existing: Option<OwnedFd>) -> Result<()> {
    match existing {
        Some(namespace) => setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|error| failed("cannot enter the network namespace")(error.into())),
        None => unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|error| failed("cannot make a network namespace")(error.into())),
    }
}

/// Writes settings below `/proc/sys/net` of the calling thread's namespace.
pub(super) fn sysctl(settings: &[(&str, &str)]) -> Result<()> {
    for (name, value) in settings {
        std::fs::write(format!("/proc/sys/net/{name}"), value)
            .map_err(failed(format!("cannot set net/{name} to {value}")))?;
    }
    Ok(())
}

/// The same for a setting that only some hosts have.
pub(super) fn sysctl_where_present(name: &str, value: &str) -> Result<()> {
    match sysctl(&[(name, value)]) {
        Err(error) if error.code == ErrorCode::NotFound => Ok(()),
        other => other,
    }
}

/// A socket in the calling thread's namespace.
pub(super) fn listen(protocol: Protocol, address: SocketAddr) -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Tcp {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    if protocol == Protocol::Tcp {
        rustix::net::listen(&socket, 4096)?;
    }
    Ok(socket)
}
