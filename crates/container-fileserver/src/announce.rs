//! What is being told to the guest, and the answers that its announcer gets meanwhile.
//!
//! ```text
//! watcher ── event, token ──► helper ──► vminitd ──► announcer, a process of the guest
//!    sent ──► waiting                                   │ open the directory
//!             waiting ──► active ◄── SETATTR root, mtime = token ┘
//!             active:    ◄── LOOKUP: "there is none" / "there is one", though it is otherwise
//!                        ◄── MKNOD, UNLINK, RENAME, …: "done", though nothing is done
//! ```
//! The guest's kernel raises an event where it believes to change something. The announcer makes
//! it believe so. Its requests have a user and a process number that no other has
//! ([`is_announcer`]), and none of them ever changes anything here: it is answered from this table
//! or refused. A guest that makes such requests up tells stories to itself.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use virtiofsd::filesystem::Context;
use virtiofsd::soft_idmap::Id;

use crate::events::{Event, Place, change};
use crate::own::Own;
use crate::{Result, at};

/// The announcer's user. No requests of this user and without a process number come from anybody
/// else: PID 1 has other users, and the container's processes have numbers.
pub const ANNOUNCER: u32 = 0xfffe_fd01;
/// The name in the root where a file comes from that was not in a share, or goes to.
pub const ELSEWHERE: &[u8] = b".elsewhere";
/// Events that may have been sent and not told yet.
pub const WINDOW: usize = 256;
/// Names that are remembered, in each of two halves.
const NAMES: usize = 1 << 15;
/// Inode numbers that stand for files which are no more; no file system here has them.
const MADE_UP: u64 = 1 << 63;

/// Whether a request is one of the announcer's.
pub fn is_announcer(ctx: &Context) -> bool {
    ctx.pid == 0 && ctx.uid.into_inner() == ANNOUNCER
}

/// What a name is in the event that is being told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It is to be made.
    New,
    /// It is to go.
    Gone,
    /// What goes is to have this name.
    Target,
}

/// An event that is being told.
#[derive(Clone, Debug)]
pub struct Active {
    /// What.
    pub event: Event,
    /// Its name was made, or has gone.
    pub done: bool,
}

impl Active {
    /// What a name in the directory with this inode number is to the event; `root`: the directory
    /// is the root of all shares.
    pub fn role(&self, parent: u64, root: bool, name: &[u8]) -> Option<Role> {
        let Event { changes, place, to, .. } = &self.event;
        let is = |place: &Place| !root && place.parent == parent && place.name() == name;
        let elsewhere = root && name == ELSEWHERE;
        match *changes {
            _ if self.done => None,
            change::DELETED => is(place).then_some(Role::Gone),
            change::MOVED if is(place) => Some(Role::Gone),
            change::MOVED => to.as_ref().is_some_and(is).then_some(Role::Target),
            change::MOVED_IN if elsewhere => Some(Role::Gone),
            change::MOVED_IN => is(place).then_some(Role::Target),
            change::MOVED_OUT if elsewhere => Some(Role::Target),
            change::MOVED_OUT => is(place).then_some(Role::Gone),
            some => (some & change::CREATED != 0 && is(place)).then_some(Role::New),
        }
    }
}

/// Which inode the guest has for a name: two halves, of which the older one is dropped.
#[derive(Default)]
struct Names {
    new: HashMap<(u64, Vec<u8>), u64>,
    old: HashMap<(u64, Vec<u8>), u64>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Event>,
    active: Option<Active>,
    names: Names,
    made_up: u64,
}

/// Shared by the watcher and the file system.
pub struct Announcements {
    /// What the guest changes itself.
    pub own: Own,
    state: Mutex<State>,
    progress: OwnedFd,
}

impl Announcements {
    /// Nothing to tell yet.
    pub fn new() -> Result<Announcements> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let progress = eventfd(0, flags).map_err(at("make an eventfd"))?;
        Ok(Announcements { own: Own::default(), state: Mutex::default(), progress })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable when something was told.
    pub fn progress(&self) -> BorrowedFd<'_> {
        self.progress.as_fd()
    }

    /// How many events more may be sent.
    pub fn room(&self) -> usize {
        WINDOW.saturating_sub(self.state().waiting.len())
    }

    /// An event is on its way.
    pub fn sent(&self, event: Event) {
        self.state().waiting.push_back(event);
    }

    /// Forgets what nobody has told in time; answers how many.
    pub fn give_up(&self) -> usize {
        let mut state = self.state();
        std::mem::take(&mut state.waiting).len()
    }

    /// The announcer begins with an event. Those before it are not told any more.
    pub fn begin(&self, token: u64) -> bool {
        let mut state = self.state();
        let Some(at) = state.waiting.iter().position(|event| event.token == token) else {
            return false;
        };
        let event = state.waiting.drain(..=at).next_back();
        state.active = event.map(|event| Active { event, done: false });
        drop(state);
        // A full counter wakes as well.
        let _ = rustix::io::write(&self.progress, &1u64.to_ne_bytes());
        true
    }

    /// What is being told.
    pub fn active(&self) -> Option<Active> {
        self.state().active.clone()
    }

    /// The name of the event was made, or has gone.
    pub fn done(&self) {
        if let Some(active) = &mut self.state().active {
            active.done = true;
        }
    }

    /// A number for an inode that there is not.
    pub fn make_up(&self) -> u64 {
        let mut state = self.state();
        state.made_up = (state.made_up + 1) % MADE_UP;
        MADE_UP | state.made_up
    }

    /// The guest has this inode for a name.
    pub fn remember(&self, parent: u64, name: &[u8], inode: u64) {
        let names = &mut self.state().names;
        if names.new.len() >= NAMES {
            names.old = std::mem::take(&mut names.new);
        }
        names.new.insert((parent, name.to_vec()), inode);
    }

    /// The inode that the guest has for a name, when that is known.
    pub fn recall(&self, parent: u64, name: &[u8]) -> Option<u64> {
        let names = &self.state().names;
        let key = (parent, name.to_vec());
        names.new.get(&key).or_else(|| names.old.get(&key)).copied()
    }

    /// The guest has no such name any more.
    pub fn forget(&self, parent: u64, name: &[u8]) {
        let names = &mut self.state().names;
        let key = (parent, name.to_vec());
        names.new.remove(&key);
        names.old.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(token: u64, changes: u32) -> Event {
        let place = |path: &[u8], parent| Place { parent, path: path.to_vec() };
        let to = (changes == change::MOVED).then(|| place(b"0/b", 6));
        Event { token, changes, place: place(b"0/d/a", 5), to, ..Event::default() }
    }

    #[test]
    fn only_what_was_sent_begins_and_what_was_before_is_over() {
        let all = Announcements::new().unwrap();
        assert!(!all.begin(1) && all.active().is_none());
        for token in [1, 2, 3] {
            all.sent(event(token, change::DELETED));
        }
        assert_eq!(all.room(), WINDOW - 3);
        assert!(all.begin(2) && !all.begin(1) && !all.begin(2));
        assert_eq!(all.active().unwrap().event.token, 2);
        assert_eq!((all.room(), all.give_up(), all.room()), (WINDOW - 1, 1, WINDOW));
    }

    #[test]
    fn names_have_roles_until_it_is_done() {
        let role = |changes, parent, root, name: &[u8]| {
            Active { event: event(1, changes), done: false }.role(parent, root, name)
        };
        assert_eq!(role(change::CREATED | change::CLOSED, 5, false, b"a"), Some(Role::New));
        assert_eq!(role(change::CREATED, 6, false, b"a"), None);
        assert_eq!(role(change::MODIFIED, 5, false, b"a"), None);
        assert_eq!(role(change::DELETED, 5, false, b"a"), Some(Role::Gone));
        assert_eq!(role(change::MOVED, 5, false, b"a"), Some(Role::Gone));
        assert_eq!(role(change::MOVED, 6, false, b"b"), Some(Role::Target));
        assert_eq!(role(change::MOVED_IN, 1, true, ELSEWHERE), Some(Role::Gone));
        assert_eq!(role(change::MOVED_IN, 5, false, b"a"), Some(Role::Target));
        assert_eq!(role(change::MOVED_OUT, 1, true, ELSEWHERE), Some(Role::Target));
        assert_eq!(role(change::MOVED_OUT, 5, false, b"a"), Some(Role::Gone));
        // The root may have a share's inode number.
        assert_eq!(role(change::DELETED, 5, true, b"a"), None);
        let done = Active { event: event(1, change::DELETED), done: true };
        assert_eq!(done.role(5, false, b"a"), None);
    }

    #[test]
    fn names_are_remembered_up_to_a_bound() {
        let all = Announcements::new().unwrap();
        for number in 0..(NAMES as u64 * 3) {
            all.remember(1, &number.to_le_bytes(), number);
        }
        let last = NAMES as u64 * 3 - 1;
        assert_eq!(all.recall(1, &last.to_le_bytes()), Some(last));
        assert_eq!(all.recall(1, &0u64.to_le_bytes()), None);
        all.forget(1, &last.to_le_bytes());
        assert_eq!(all.recall(1, &last.to_le_bytes()), None);
        let state = all.state();
        assert!(state.names.new.len() + state.names.old.len() <= 2 * NAMES);
    }
}
