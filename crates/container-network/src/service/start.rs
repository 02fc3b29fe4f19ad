//! What a resolver or a forwarder is started with: descriptors, whose numbers its arguments tell.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use container_api::{ApiError, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// Calls that wait to be accepted.
const BACKLOG: i32 = 128;

/// The command line of a resolver or a forwarder. The numbers are those of inherited descriptors.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Arguments {
    /// The network, or the container.
    #[arg(long)]
    pub name: String,
    /// The listening unix socket on which the service speaks to it.
    #[arg(long)]
    pub control: RawFd,
    /// The network namespace.
    #[arg(long)]
    pub network: RawFd,
    /// The user namespace that owns it, if the service has entered one.
    #[arg(long)]
    pub user: Option<RawFd>,
    /// A resolver's sockets in the namespace.
    #[arg(long, value_delimiter = ',')]
    pub sockets: Vec<RawFd>,
    /// Layers of the confinement that may be missing (landlock).
    #[arg(long)]
    pub allow_missing: Vec<String>,
}

/// What a resolver or a forwarder is started with. No other descriptors are open, but the standard
/// ones; it is the leader of its session. Its thread is the only one.
#[derive(Debug)]
pub struct Start {
    /// The network, or the container.
    pub name: String,
    /// Where it serves [`crate::wire::ResolverRequest`] or [`crate::wire::ForwarderRequest`];
    /// listens already, and never blocks.
    pub control: UnixListener,
    /// The network namespace, to enter and to give back. It starts in the host's.
    pub network: OwnedFd,
    /// The user namespace it belongs to, to give back; it is in it already.
    pub user: Option<OwnedFd>,
    /// A resolver's: UDP and TCP at the IPv4 gateway, UDP and TCP at the IPv6 gateway, the TCP ones
    /// listening. Of a forwarder: none, they come with its configuration.
    pub sockets: Vec<OwnedFd>,
    /// Layers of the confinement that may be missing (`landlock`).
    pub allow_missing: Vec<String>,
}

/// Takes the descriptors over.
pub fn take(arguments: Arguments) -> Result<Start> {
    let Arguments { name, control, network, user, sockets, allow_missing } = arguments;
    let mut taken = Vec::new();
    let mut own = |fd: RawFd| -> Result<OwnedFd> {
        if fd <= 2 || taken.contains(&fd) {
            return Err(ApiError::invalid(format!("descriptor {fd} is given twice, or standard")));
        }
        taken.push(fd);
        // SAFETY: only borrowed to ask whether it is open; who is started with it owns it.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
            .map_err(|e| ApiError::invalid(format!("descriptor {fd}: {e}")))?;
        // SAFETY: inherited for this purpose, open, and taken once, as was just checked.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    let control = UnixListener::from(own(control)?);
    let network = own(network)?;
    let user = user.map(&mut own).transpose()?;
    let sockets = sockets.into_iter().map(own).collect::<Result<_>>()?;
    control.set_nonblocking(true)?;
    // Whoever connects is told the process id of who has listened last: this one from now on.
    rustix::net::listen(&control, BACKLOG).map_err(std::io::Error::from)?;
    Ok(Start { name, control, network, user, sockets, allow_missing })
}
