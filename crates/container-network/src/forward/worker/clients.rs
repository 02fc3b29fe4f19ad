//! Clients of UDP in a worker.

use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use std::sync::atomic::Ordering;

use super::super::limits;
use super::super::slab::Key;
use super::super::udp;
use super::{Direction, SWEEP, Thing, Worker};

impl Worker {
    pub(super) fn datagrams(&mut self, key: Key) {
        for _ in 0..limits::BATCH {
            let Some(Thing::Datagrams(listener)) = self.things.get_mut(key) else { return };
            let (from, length) = match listener.receive(&mut self.buffer) {
                Ok(datagram) => datagram,
                Err(nix::errno::Errno::EAGAIN) => return,
                // An error that an earlier answer has met.
                Err(_) => continue,
            };
            let client = listener.clients.get(&from).copied().or_else(|| self.client(key, from));
            if let Some(Thing::Client(client)) = client.and_then(|key| self.things.get_mut(key)) {
                client.send(&self.buffer[..length]);
            }
        }
    }

    /// A new client of UDP, if there is room for it.
    fn client(&mut self, listener_key: Key, from: udp::From) -> Option<Key> {
        let now = Instant::now();
        if self.clients >= self.direction.clients() && !self.make_room(now) {
            return None;
        }
        let Some(Thing::Datagrams(listener)) = self.things.get_mut(listener_key) else {
            return None;
        };
        let socket = listener.open(from).ok()?;
        let client = udp::Client { socket, listener: listener_key, from, last: now };
        let key = self.things.insert(Thing::Client(Box::new(client)));
        if let Some(Thing::Datagrams(listener)) = self.things.get_mut(listener_key) {
            listener.clients.insert(from, key);
        }
        if self.clients == 0 {
            self.sweep = now + SWEEP;
        }
        self.clients += 1;
        self.used.fetch_add(1, Ordering::Relaxed);
        self.direction.counters.udp.fetch_add(1, Ordering::Relaxed);
        let Some(Thing::Client(client)) = self.things.get_mut(key) else { return None };
        let data = EventData::new_u64(key.token(false));
        if epoll::add(&self.epoll, &client.socket, data, EventFlags::IN).is_err() {
            self.forget(key);
            return None;
        }
        Some(key)
    }

    /// Forgets the client that has been silent for longest, if that is long enough.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.crowded.is_some_and(|then| now.duration_since(then) < Duration::from_secs(1)) {
            return false;
        }
        let clients = self.things.iter().filter_map(|(key, thing)| match thing {
            Thing::Client(client) => Some((client.last, key)),
            _ => None,
        });
        match clients.min_by_key(|(last, _)| *last) {
            Some((last, key)) if now.duration_since(last) >= limits::CLIENT_SPARE => {
                self.forget(key);
                true
            }
            _ => {
                self.crowded = Some(now);
                false
            }
        }
    }

    pub(super) fn forget(&mut self, key: Key) {
        let Some(Thing::Client(client)) = self.things.remove(key) else { return };
        if let Some(Thing::Datagrams(listener)) = self.things.get_mut(client.listener) {
            listener.clients.remove(&client.from);
        }
        self.clients -= 1;
        self.used.fetch_sub(1, Ordering::Relaxed);
        self.direction.counters.udp.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn answers(&mut self, key: Key) {
        for _ in 0..limits::BATCH {
            let Some(Thing::Client(client)) = self.things.get_mut(key) else { return };
            let Some(length) = client.receive(&mut self.buffer) else { return };
            let (listener, from) = (client.listener, client.from);
            if let Some(Thing::Datagrams(listener)) = self.things.get_mut(listener) {
                // One that can't go is lost, as datagrams are.
                let _ = listener.answer(from, &self.buffer[..length]);
            }
        }
    }
}

impl Direction {
    /// How many clients of UDP there may be.
    pub(super) fn clients(&self) -> usize {
        limits::MAX_CLIENTS.min(self.room / 4)
    }
}
