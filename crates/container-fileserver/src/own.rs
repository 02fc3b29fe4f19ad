//! What the server itself changes for the guest, so that the guest is not told of it.
//!
//! ```text
//! server:   begin ── change ── ended        (the event is in the kernel's queue by now)
//! watcher:        round begins ── reads all ── round ends: forgets what ended before it began
//! ```
//! So each change is known until its events were read for certain, whatever time that takes, and
//! no longer. A change of the host to the same file within that moment is taken for the guest's.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Changes that are remembered; beyond it the guest may be told of its own.
const MOST: usize = 1 << 16;

/// What an event is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// A file's content or attributes, by its inode number on the host.
    Inode(u64),
    /// A name in the directory with this inode number.
    Name(u64, Vec<u8>),
}

#[derive(Clone, Copy, Default)]
struct Known {
    running: u32,
    /// In which round it has ended last.
    ended: u64,
}

#[derive(Default)]
struct Table {
    round: u64,
    known: HashMap<Key, Known>,
}

/// Changes under way, and those whose events may not have been read yet.
#[derive(Default)]
pub struct Own(Mutex<Table>);

impl Own {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change.
    pub fn make<T, E>(&self, keys: &[Key], change: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let mut table = self.table();
        if table.known.len() > MOST {
            table.known.retain(|_, known| known.running > 0);
        }
        for key in keys {
            table.known.entry(key.clone()).or_default().running += 1;
        }
        drop(table);
        let made = change();
        let mut table = self.table();
        let round = table.round;
        for key in keys {
            let Some(known) = table.known.get_mut(key) else { continue };
            known.running = known.running.saturating_sub(1);
            if made.is_ok() {
                known.ended = round + 1;
            } else if known.running == 0 && known.ended == 0 {
                table.known.remove(key);
            }
        }
        made
    }

    /// Whether an event is of the server's making.
    pub fn has(&self, key: &Key) -> bool {
        self.table().known.contains_key(key)
    }

    /// The watcher begins to read all events.
    pub fn round_begins(&self) {
        self.table().round += 1;
    }

    /// There are no more events to read.
    pub fn round_ends(&self) {
        let mut table = self.table();
        let round = table.round;
        table.known.retain(|_, known| known.running > 0 || known.ended > round);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(own: &Own, key: &Key) {
        own.make(std::slice::from_ref(key), || Ok::<_, ()>(())).unwrap();
    }

    #[test]
    fn a_change_is_known_until_its_events_were_read() {
        let own = Own::default();
        let (a, b) = (Key::Inode(1), Key::Name(2, b"b".to_vec()));
        make(&own, &a);
        own.round_begins();
        make(&own, &b);
        assert!(own.has(&a) && own.has(&b));
        own.round_ends();
        // The events of `b` may have come after the last read.
        assert!(!own.has(&a) && own.has(&b));
        own.round_begins();
        own.round_ends();
        assert!(!own.has(&b));
    }

    #[test]
    fn what_runs_is_known_and_what_failed_is_not() {
        let own = Own::default();
        let key = Key::Inode(7);
        let failed = own.make(std::slice::from_ref(&key), || {
            own.round_begins();
            own.round_ends();
            assert!(own.has(&key));
            Err::<(), _>(())
        });
        assert!(failed.is_err() && !own.has(&key));
    }

    #[test]
    fn the_table_is_bounded() {
        let own = Own::default();
        for inode in 0..(MOST as u64 * 2) {
            make(&own, &Key::Inode(inode));
        }
        assert!(own.table().known.len() <= MOST + 1);
    }
}
