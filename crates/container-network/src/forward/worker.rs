//! A thread that forwards: one loop over events, connections, and clients of UDP.

mod clients;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use container_api::network::Protocol;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::SocketType;

use super::door::{self, Door, Order};
use super::limits::{self, Shared};
use super::slab::{Key, Slab};
use super::tcp::{Outcome, Pair, Turn};
use super::{socket, udp};
use crate::wire::Route;

const DOOR: u64 = u64::MAX;
/// How long nothing is accepted after the kernel had no room for a connection.
const PAUSE: Duration = Duration::from_millis(50);
/// How often clients of UDP are looked through for idle ones.
const SWEEP: Duration = Duration::from_secs(10);

/// What workers of one direction share.
#[derive(Clone, Debug)]
pub struct Direction {
    /// The threads' name.
    pub name: &'static str,
    /// Descriptors that connections of one worker may take.
    pub room: usize,
    /// Connections of all its workers.
    pub open: Arc<AtomicUsize>,
    /// Of the process.
    pub counters: Shared,
}

/// Another worker, to which connections go when there is no room here.
#[derive(Debug)]
struct Sibling {
    door: Door,
    used: Arc<AtomicUsize>,
}

/// A TCP listener.
#[derive(Debug)]
struct Listener {
    socket: OwnedFd,
    route: Route,
}

/// What the kernel reports about.
#[derive(Debug)]
enum Thing {
    Listener(Listener),
    Pair(Box<Pair>),
    Datagrams(Box<udp::Listener>),
    Client(Box<udp::Client>),
}

/// The state of the thread.
#[derive(Debug)]
pub struct Worker {
    door: Door,
    epoll: OwnedFd,
    direction: Direction,
    things: Slab<Thing>,
    /// Connections that want another turn.
    again: VecDeque<Key>,
    /// Descriptors that connections use, or will: whoever assigns one counts it.
    used: Arc<AtomicUsize>,
    siblings: Vec<Sibling>,
    listeners: Vec<Key>,
    clients: usize,
    buffer: Vec<u8>,
    held: usize,
    paused: Option<Instant>,
    sweep: Instant,
    /// When there last was no room for a client of UDP, nor one to be forgotten.
    crowded: Option<Instant>,
}

impl Worker {
    /// For a thread that has a table of its own.
    pub fn new(door: Door, direction: Direction, used: Arc<AtomicUsize>) -> io::Result<Worker> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &door, EventData::new_u64(DOOR), EventFlags::IN)?;
        Ok(Worker {
            door,
            epoll,
            direction,
            things: Slab::default(),
            again: VecDeque::new(),
            used,
            siblings: Vec::new(),
            listeners: Vec::new(),
            clients: 0,
            buffer: vec![0; limits::CHUNK],
            held: 0,
            paused: None,
            sweep: Instant::now(),
            crowded: None,
        })
    }

    /// Forwards until the door is closed.
    pub fn run(mut self) -> io::Result<()> {
        let mut events: Vec<Event> = Vec::with_capacity(512);
        loop {
            events.clear();
            let timeout = self.timeout().map(|time| Timespec {
                tv_sec: time.as_secs() as i64,
                tv_nsec: i64::from(time.subsec_nanos()),
            });
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let token = event.data.u64();
                if token == DOOR {
                    if !self.orders()? {
                        return Ok(());
                    }
                    continue;
                }
                self.event(token, event.flags);
            }
            for _ in 0..self.again.len() {
                let Some(key) = self.again.pop_front() else { break };
                if let Some(Thing::Pair(pair)) = self.things.get_mut(key) {
                    pair.queued = false;
                    self.turn(key, Outcome::Again);
                }
            }
            self.timers();
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let now = Instant::now();
        let sweep = (self.clients > 0).then(|| self.sweep.saturating_duration_since(now));
        let paused = self.paused.map(|until| until.saturating_duration_since(now));
        match self.again.is_empty() {
            false => Some(Duration::ZERO),
            true => [sweep, paused].into_iter().flatten().min(),
        }
    }

    fn timers(&mut self) {
        let now = Instant::now();
        if self.paused.is_some_and(|until| until <= now) {
            self.paused = None;
            self.listen(EventFlags::IN);
        }
        if self.clients > 0 && self.sweep <= now {
            self.sweep = now + SWEEP;
            let idle = self.things.iter().filter_map(|(key, thing)| match thing {
                Thing::Client(client) if client.is_idle(now) => Some(key),
                _ => None,
            });
            for key in idle.collect::<Vec<_>>() {
                self.forget(key);
            }
        }
    }

    /// Takes one order; whether there may be more.
    fn orders(&mut self) -> io::Result<bool> {
        let (order, mut fds) = match self.door.receive() {
            Ok(Some(order)) => order,
            Ok(None) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        };
        match order {
            Order::Routes { routes, add } => {
                let outcome = self.routes(routes, fds, add).map_err(|error| error.to_string());
                self.door.answer(outcome)?;
            }
            Order::Connection { target, fallback, keep } => match fds.pop() {
                Some(client) => self.forward(client, target, fallback, keep),
                // The kernel had no room for it in our table.
                None => self.closed(),
            },
        }
        Ok(true)
    }

    fn routes(&mut self, routes: Vec<Route>, fds: Vec<OwnedFd>, add: bool) -> io::Result<()> {
        if !add {
            for key in std::mem::take(&mut self.listeners) {
                self.stop(key);
            }
        }
        if routes.len() != fds.len() {
            return Err(io::Error::other(format!(
                "{} sockets came for {} routes",
                fds.len(),
                routes.len()
            )));
        }
        let lost = |r: &Route| r.protocol == Protocol::Udp && r.target.port() == 0;
        if routes.iter().any(lost) {
            return Err(io::Error::other("a datagram does not tell which port it was sent to"));
        }
        for (route, socket) in routes.into_iter().zip(fds) {
            rustix::io::ioctl_fionbio(&socket, true)?;
            let thing = match route.protocol {
                Protocol::Tcp => Thing::Listener(Listener { socket, route }),
                Protocol::Udp => Thing::Datagrams(Box::new(udp::Listener::new(socket, route)?)),
            };
            let key = self.things.insert(thing);
            self.listeners.push(key);
            self.used.fetch_add(1, Ordering::Relaxed);
            let socket = match self.things.get_mut(key) {
                Some(Thing::Listener(listener)) => &listener.socket,
                Some(Thing::Datagrams(listener)) => listener.socket(),
                _ => continue,
            };
            let data = EventData::new_u64(key.token(false));
            epoll::add(&self.epoll, socket, data, EventFlags::IN)?;
        }
        Ok(())
    }

    /// Gives a listening socket back.
    fn stop(&mut self, key: Key) {
        self.used.fetch_sub(1, Ordering::Relaxed);
        if let Some(Thing::Datagrams(listener)) = self.things.remove(key) {
            for client in listener.clients.into_values() {
                self.forget(client);
            }
        }
    }

    fn event(&mut self, token: u64, flags: EventFlags) {
        let (key, target) = Key::of_token(token);
        match self.things.get_mut(key) {
            Some(Thing::Pair(pair)) => {
                let outcome = pair.event(target, flags);
                self.turn(key, outcome);
            }
            Some(Thing::Listener(_)) => self.accept(key),
            Some(Thing::Datagrams(_)) => self.datagrams(key),
            Some(Thing::Client(_)) => self.answers(key),
            // An event of something that an earlier event of this round has ended.
            None => {}
        }
    }

    /// Goes on with a connection.
    fn turn(&mut self, key: Key, outcome: Outcome) {
        let Some(Thing::Pair(pair)) = self.things.get_mut(key) else { return };
        let mut turn = Turn { buffer: &mut self.buffer, held: &mut self.held };
        let outcome = match outcome {
            Outcome::Again => pair.turn(&mut turn),
            Outcome::Fallback(address) => retarget(&self.epoll, pair, key, address),
            other => other,
        };
        match outcome {
            Outcome::Wait => {}
            Outcome::Again | Outcome::Fallback(_) => {
                if !std::mem::replace(&mut pair.queued, true) {
                    self.again.push_back(key);
                }
            }
            Outcome::Closed | Outcome::Reset => {
                if let Some(Thing::Pair(pair)) = self.things.remove(key) {
                    self.held -= pair.held();
                    if outcome == Outcome::Reset {
                        pair.reset();
                    }
                }
                self.closed();
            }
        }
    }

    /// Counts a connection that has ended.
    fn closed(&self) {
        uncount(&self.direction, &self.used);
    }

    fn accept(&mut self, key: Key) {
        for _ in 0..limits::BATCH {
            let Some(Thing::Listener(listener)) = self.things.get_mut(key) else { return };
            match socket::accept(&listener.socket) {
                Ok(client) => {
                    let keep = listener.route.keep_client;
                    let ends = destination(&listener.route, &client);
                    match ends {
                        Some((target, fallback)) => self.place(client, target, fallback, keep),
                        None => self.refuse(client),
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.paused = Some(Instant::now() + PAUSE);
                    return self.listen(EventFlags::empty());
                }
                // The client has gone meanwhile, or the network had an error for it.
                Err(_) => {}
            }
        }
    }

    fn refuse(&self, client: OwnedFd) {
        self.direction.counters.refused.fetch_add(1, Ordering::Relaxed);
        socket::reset(client);
    }

    /// What listening sockets are watched for.
    fn listen(&mut self, flags: EventFlags) {
        for key in &self.listeners {
            if let Some(Thing::Listener(listener)) = self.things.get_mut(*key) {
                let data = EventData::new_u64(key.token(false));
                if let Err(error) = epoll::modify(&self.epoll, &listener.socket, data, flags) {
                    tracing::warn!(%error, "watching a listening socket");
                }
            }
        }
    }

    /// Gives a new connection to whoever has room.
    fn place(
        &mut self,
        client: OwnedFd,
        target: SocketAddr,
        fallback: Option<SocketAddr>,
        keep: bool,
    ) {
        if self.direction.open.load(Ordering::Relaxed) >= limits::MAX_CONNECTIONS {
            return self.refuse(client);
        }
        // What clients of UDP may still take stays free.
        let datagrams = self
            .listeners
            .iter()
            .any(|key| matches!(self.things.get(*key), Some(Thing::Datagrams(_))));
        let kept =
            if datagrams { self.direction.clients().saturating_sub(self.clients) } else { 0 };
        let room = self.direction.room.saturating_sub(kept);
        if self.used.load(Ordering::Relaxed) + 2 <= room {
            count(&self.direction, &self.used);
            return self.forward(client, target, fallback, keep);
        }
        let sibling = match self.sibling() {
            Ok(sibling) => sibling.and_then(|index| self.siblings.get(index)),
            Err(error) => {
                tracing::warn!(%error, "starting another thread for connections");
                None
            }
        };
        let Some(sibling) = sibling else { return self.refuse(client) };
        count(&self.direction, &sibling.used);
        let order = Order::Connection { target, fallback, keep };
        if sibling.door.send(&order, &[client.as_fd()]).is_err() {
            uncount(&self.direction, &sibling.used);
            self.refuse(client);
        }
    }

    /// Another worker with room, if there can be one.
    fn sibling(&mut self) -> io::Result<Option<usize>> {
        let room = self.direction.room;
        let free = |sibling: &Sibling| sibling.used.load(Ordering::Relaxed) + 2 <= room;
        if !self.siblings.iter().any(free) && self.siblings.len() + 1 < limits::MAX_WORKERS {
            let used = Arc::new(AtomicUsize::new(0));
            let door = start(self.direction.clone(), used.clone(), || Ok::<_, io::Error>(()))?;
            self.siblings.push(Sibling { door, used });
        }
        Ok(self.siblings.iter().position(free))
    }

    /// Starts to forward a connection that is counted already.
    fn forward(
        &mut self,
        client: OwnedFd,
        target: SocketAddr,
        fallback: Option<SocketAddr>,
        keep: bool,
    ) {
        let address = keep.then(|| socket::client(&client)).flatten();
        let first = socket::connect_as(address, SocketType::STREAM, target);
        let (socket, fallback) = match (first, fallback) {
            (Err(_), Some(other)) => (socket::connect(SocketType::STREAM, other), None),
            (first, fallback) => (first, fallback),
        };
        let Ok(socket) = socket else {
            socket::reset(client);
            return self.closed();
        };
        let key = self.things.insert(Thing::Pair(Box::new(Pair::new(client, socket, fallback))));
        let Some(Thing::Pair(pair)) = self.things.get_mut(key) else { return };
        let watched =
            watch(&self.epoll, pair, key, false).and_then(|()| watch(&self.epoll, pair, key, true));
        if watched.is_err() {
            self.turn(key, Outcome::Reset);
        }
    }
}

/// Starts a worker. It lives in the network namespace of the calling thread unless `prepare`
/// enters another.
pub fn start<E: From<io::Error> + Send + 'static>(
    direction: Direction,
    used: Arc<AtomicUsize>,
    prepare: impl FnOnce() -> Result<(), E> + Send + 'static,
) -> Result<Door, E> {
    let name = direction.name;
    door::spawn(name, prepare, move |door| {
        let outcome = Worker::new(door, direction, used).and_then(Worker::run);
        if let Err(error) = outcome {
            // Without this thread ports would stand open and lead nowhere.
            tracing::error!(%error, name, "forwarding");
            std::process::exit(1);
        }
    })
}

fn count(direction: &Direction, used: &AtomicUsize) {
    used.fetch_add(2, Ordering::Relaxed);
    direction.open.fetch_add(1, Ordering::Relaxed);
    direction.counters.tcp.fetch_add(1, Ordering::Relaxed);
}

fn uncount(direction: &Direction, used: &AtomicUsize) {
    used.fetch_sub(2, Ordering::Relaxed);
    direction.open.fetch_sub(1, Ordering::Relaxed);
    direction.counters.tcp.fetch_sub(1, Ordering::Relaxed);
}

/// Where a connection leads; `None`: nowhere.
fn destination(route: &Route, client: &OwnedFd) -> Option<(SocketAddr, Option<SocketAddr>)> {
    if route.target.port() != 0 {
        return Some((route.target, route.fallback));
    }
    let port = socket::wanted_port(client).ok()?;
    let allowed = route.ports.is_empty() || route.ports.contains(&port);
    let at = |mut address: SocketAddr| {
        address.set_port(port);
        address
    };
    allowed.then(|| (at(route.target), route.fallback.map(at)))
}

fn watch(epoll: &OwnedFd, pair: &Pair, key: Key, target: bool) -> rustix::io::Result<()> {
    let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
    epoll::add(epoll, pair.socket(target), EventData::new_u64(key.token(target)), flags)
}

fn retarget(epoll: &OwnedFd, pair: &mut Pair, key: Key, address: SocketAddr) -> Outcome {
    let Ok(socket) = socket::connect(SocketType::STREAM, address) else { return Outcome::Reset };
    pair.retarget(socket);
    match watch(epoll, pair, key, true) {
        Ok(()) => Outcome::Wait,
        Err(_) => Outcome::Reset,
    }
}
