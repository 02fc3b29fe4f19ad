//! The main thread: what the service asks of the forwarder.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use container_api::varlink::{Reply, Responder, Service, serve};
use container_api::{ApiError, ErrorCode, Result, socket};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, move_into_link_name_space};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, Notify};

use super::door::{Door, Order};
use super::limits::{self, Shared};
use super::worker::{self, Direction};
use crate::confine;
use crate::service::start::Start;
use crate::wire::{ForwarderConfig, ForwarderRequest, Route, Side};

/// What it is called where it can't be confined.
const WHO: &str = "the forwarder of published ports";
/// How long a worker may take for an order.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long the one who ended it may take to read the answer.
const FAREWELL: Duration = Duration::from_secs(1);

/// The process, until it is asked to end.
///
/// It can't remove its socket: whoever ends it, or finds it dead, does.
pub fn run(start: Start) -> Result<()> {
    let Start { name, control, network, user, allow_missing, .. } = start;
    let room = limits::room(limits::open_files().map_err(|e| {
        ApiError::new(ErrorCode::Unavailable, format!("raising the limit on open files: {e}"))
    })?);
    let counters = Shared::default();
    let direction = |name| Direction {
        name,
        room,
        open: Arc::new(AtomicUsize::new(0)),
        counters: counters.clone(),
    };
    let inwards = direction("inwards");
    let number = network.as_raw_fd();
    let allowed = allow_missing.clone();
    let enter = move || -> Result<()> {
        // SAFETY: the calling thread owns it, and waits for this one.
        let network = unsafe { BorrowedFd::borrow_raw(number) };
        move_into_link_name_space(network, Some(LinkNameSpaceType::Network)).map_err(|e| {
            ApiError::new(
                ErrorCode::Unavailable,
                format!("the forwarder of {name} can't enter its network namespace: {e}"),
            )
        })?;
        // For sockets with a client's address; these threads alone, which are in that namespace.
        confine::enter_keeping(CapabilitySet::NET_RAW, WHO, &allowed)
    };
    let outwards = direction("outwards");
    let published = worker::start(inwards, Arc::default(), enter)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    confine::enter(WHO, &allow_missing)?;
    runtime.block_on(async {
        let published = Entrance::new(published)?;
        let entrances = Mutex::new(Entrances { published, host: None });
        let forwarder = Forwarder {
            network,
            user,
            entrances,
            host: outwards,
            counters,
            ended: AtomicBool::new(false),
        };
        listen(control, Arc::new(forwarder)).await
    })
}

async fn listen(control: UnixListener, forwarder: Arc<Forwarder>) -> Result<()> {
    let control = tokio::net::UnixListener::from_std(control)?;
    let end = Arc::new(Notify::new());
    loop {
        let stream = tokio::select! {
            () = end.notified() => return Ok(()),
            stream = control.accept() => match stream {
                Ok((stream, _)) => stream.into_std()?,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection of the service");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        if !socket::peer(&stream).is_ok_and(socket::is_owner) {
            continue;
        }
        let (forwarder, end) = (forwarder.clone(), end.clone());
        tokio::spawn(async move {
            if let Err(error) = serve(forwarder.clone(), stream).await {
                tracing::debug!(%error, "serving");
            }
            // The caller has read the answer and gone.
            if forwarder.ended.load(Ordering::Relaxed) {
                end.notify_one();
            }
        });
    }
}

struct Forwarder {
    network: OwnedFd,
    user: Option<OwnedFd>,
    entrances: Mutex<Entrances>,
    /// For host access: its worker starts with the first route.
    host: Direction,
    counters: Shared,
    ended: AtomicBool,
}

/// The doors of the first workers.
struct Entrances {
    published: Entrance,
    host: Option<Entrance>,
}

/// A worker's door, to wait at.
struct Entrance(AsyncFd<Door>);

impl Entrance {
    fn new(door: Door) -> Result<Entrance> {
        // SAFETY: a door owns its descriptor, always the same.
        let door = unsafe { AsyncFd::register_with_interest(door, Interest::READABLE) };
        Ok(Entrance(door.map_err(std::io::Error::from)?))
    }

    async fn order(&self, order: &Order, fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.0.get_ref().send(order, fds)?;
        let answer = self.0.async_io(Interest::READABLE, Door::answered);
        match tokio::time::timeout(DEADLINE, answer).await {
            Ok(answer) => answer?.map_err(ApiError::internal),
            Err(_) => Err(ApiError::new(ErrorCode::Timeout, "a thread of the forwarder is stuck")),
        }
    }
}

impl Forwarder {
    async fn configure(&self, config: ForwarderConfig, fds: Vec<OwnedFd>, add: bool) -> Result<()> {
        if config.routes.len() != fds.len() {
            return Err(ApiError::invalid(format!(
                "{} sockets came for the {} routes of {}",
                fds.len(),
                config.routes.len(),
                config.container
            )));
        }
        let pairs = config.routes.into_iter().zip(&fds);
        let (published, access): (Vec<_>, Vec<_>) =
            pairs.partition(|(route, _)| route.listens == Side::Host);
        let mut entrances = self.entrances.lock().await;
        if entrances.host.is_none() && !access.is_empty() {
            let door = worker::start(self.host.clone(), Arc::default(), || Ok::<_, ApiError>(()))?;
            entrances.host = Some(Entrance::new(door)?);
        }
        give(&entrances.published, published, add).await?;
        match &entrances.host {
            Some(host) => give(host, access, add).await,
            None => Ok(()),
        }
    }
}

async fn give(to: &Entrance, pairs: Vec<(Route, &OwnedFd)>, add: bool) -> Result<()> {
    if add && pairs.is_empty() {
        return Ok(());
    }
    let (routes, fds): (Vec<_>, Vec<_>) =
        pairs.into_iter().map(|(route, fd)| (route, fd.as_fd())).unzip();
    to.order(&Order::Routes { routes, add }, &fds).await
}

impl Service for Forwarder {
    type Request = ForwarderRequest;

    async fn call(
        &self,
        request: ForwarderRequest,
        fds: Vec<OwnedFd>,
        _: &Responder,
    ) -> Result<Reply> {
        match request {
            ForwarderRequest::Configure(config) => self.configure(config, fds, false).await?,
            ForwarderRequest::Add(config) => self.configure(config, fds, true).await?,
            ForwarderRequest::Namespaces => {
                let mut namespaces = vec![self.network.try_clone()?];
                namespaces.extend(self.user.as_ref().map(OwnedFd::try_clone).transpose()?);
                return Reply::with_fds(&(), namespaces);
            }
            ForwarderRequest::Connections => return Reply::new(&self.counters.read()),
            ForwarderRequest::End => {
                self.ended.store(true, Ordering::Relaxed);
                // In case the caller keeps the connection.
                tokio::spawn(async {
                    tokio::time::sleep(FAREWELL).await;
                    std::process::exit(0);
                });
            }
        }
        Reply::done()
    }
}
