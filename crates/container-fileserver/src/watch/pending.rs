//! Events that wait to be sent, joined where they are of one file.

use std::collections::{HashMap, VecDeque};

use crate::events::{Event, Place, change};

/// Events that may wait; beyond it they are left out and counted.
pub const MOST: usize = 1024;

/// A queue, and where in it a file's last event is.
#[derive(Default)]
pub struct Pending {
    queue: VecDeque<Event>,
    /// By path; the number of the queue's first event is `first`.
    last: HashMap<Vec<u8>, u64>,
    first: u64,
    /// What was left out since it was asked for.
    left_out: usize,
}

impl Pending {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// How many were left out since the last time.
    pub fn left_out(&mut self) -> usize {
        std::mem::take(&mut self.left_out)
    }

    fn push(&mut self, event: Event) -> bool {
        if self.queue.len() >= MOST {
            self.left_out += 1;
            return false;
        }
        self.queue.push_back(event);
        true
    }

    fn waiting(&mut self, path: &[u8]) -> Option<&mut Event> {
        let at = self.last.get(path)?.checked_sub(self.first)?;
        self.queue.get_mut(usize::try_from(at).ok()?)
    }

    /// A file has changed.
    pub fn changed(&mut self, place: Place, kind: u32, changes: u32) {
        if let Some(event) = self.waiting(&place.path) {
            event.changes |= changes;
            return;
        }
        let number = self.first + self.queue.len() as u64;
        let path = place.path.clone();
        if self.push(Event { changes, kind, place, ..Event::default() }) {
            self.last.insert(path, number);
        }
    }

    /// A file is gone. Nobody is told of one that came and went at once.
    pub fn deleted(&mut self, place: Place, kind: u32) {
        let waiting = self.waiting(&place.path);
        let unknown = waiting.is_some_and(|event| {
            let new = event.changes & change::CREATED != 0;
            event.changes = if new { 0 } else { event.changes };
            new
        });
        self.last.remove(&place.path);
        if !unknown {
            self.push(Event { changes: change::DELETED, kind, place, ..Event::default() });
        }
    }

    /// A file is elsewhere; what comes is another event, also at a place of the same name.
    pub fn moved(&mut self, changes: u32, kind: u32, place: Place, to: Option<Place>) {
        self.last.remove(&place.path);
        if let Some(to) = &to {
            self.last.remove(&to.path);
        }
        self.push(Event { changes, kind, place, to, token: 0 });
    }

    /// The next one.
    pub fn pop(&mut self) -> Option<Event> {
        loop {
            let event = self.queue.pop_front()?;
            if self.last.get(&event.place.path) == Some(&self.first) {
                self.last.remove(&event.place.path);
            }
            self.first += 1;
            if event.changes != 0 {
                return Some(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &str) -> Place {
        Place { parent: 1, path: path.into() }
    }

    fn all(pending: &mut Pending) -> Vec<(String, u32)> {
        let text = |event: Event| (String::from_utf8(event.place.path).unwrap(), event.changes);
        std::iter::from_fn(|| pending.pop()).map(text).collect()
    }

    #[test]
    fn changes_of_a_file_are_one_event() {
        let mut pending = Pending::default();
        pending.changed(place("0/a"), 0, change::CREATED);
        pending.changed(place("0/b"), 0, change::MODIFIED);
        pending.changed(place("0/a"), 0, change::CLOSED);
        let joined = change::CREATED | change::CLOSED;
        assert_eq!(pending.pop().unwrap().changes, joined);
        pending.changed(place("0/a"), 0, change::MODIFIED);
        let rest = [("0/b".into(), change::MODIFIED), ("0/a".into(), change::MODIFIED)];
        assert_eq!(all(&mut pending), rest);
        assert!(pending.last.is_empty());
    }

    #[test]
    fn nothing_is_joined_over_an_end() {
        let mut pending = Pending::default();
        pending.changed(place("0/a"), 0, change::MODIFIED);
        pending.deleted(place("0/a"), 0);
        pending.changed(place("0/a"), 0, change::CREATED);
        pending.moved(change::MOVED, 0, place("0/a"), Some(place("0/b")));
        pending.changed(place("0/b"), 0, change::MODIFIED);
        pending.changed(place("0/c"), 0, change::CREATED);
        pending.deleted(place("0/c"), 0);
        let expected = [
            ("0/a", change::MODIFIED),
            ("0/a", change::DELETED),
            ("0/a", change::CREATED),
            ("0/a", change::MOVED),
            ("0/b", change::MODIFIED),
        ];
        assert_eq!(all(&mut pending), expected.map(|(path, changes)| (path.into(), changes)));
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut pending = Pending::default();
        for number in 0..MOST + 10 {
            pending.changed(place(&number.to_string()), 0, change::MODIFIED);
        }
        assert_eq!((pending.left_out(), pending.left_out()), (10, 0));
        assert_eq!(all(&mut pending).len(), MOST);
        assert!(pending.last.is_empty() && pending.is_empty());
    }
}
