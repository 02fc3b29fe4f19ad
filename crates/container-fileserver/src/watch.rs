//! Watches the shares for what the host changes in them.
//!
//! ```text
//! inotify ──► round: read all ──► own? ──► pending: joined, bounded ──► a few at a time, where
//!    ▲            │ new directories                                     the window has room
//!    └── watched ─┘
//! ```
//! A thread of its own, with a system call filter of its own: it reads directories, watches them
//! and writes messages. When the kernel's queue overflows, all directories are looked at again,
//! so that none is unwatched; what was lost stays untold.

mod filter;
mod pending;
mod tree;

use std::fs;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{ReadFlags, Reader};
use rustix::io::Errno;

use crate::announce::Announcements;
use crate::args::Share;
use crate::events::{Event, Place, change};
use crate::own::Key;
use crate::{Result, at};
use pending::Pending;
use tree::{Tree, Watched, host_path};

/// For how long events are gathered, so that those of one file are one.
const GATHER: Duration = Duration::from_millis(20);
/// Events that are sent after each such time.
const BATCH: usize = 64;
/// How long the guest may take to tell one event before what was sent is given up.
const STALLED: Duration = Duration::from_secs(20);

/// What a watched directory said, taken out of the kernel's buffer.
struct Raw {
    watch: i32,
    flags: ReadFlags,
    cookie: u32,
    name: Vec<u8>,
}

/// A name that has gone, until it is known where to.
struct Leaving {
    cookie: u32,
    place: Place,
    kind: u32,
    own: bool,
}

/// The watcher.
pub struct Watcher {
    tree: Tree,
    shares: Vec<(usize, bool)>,
    pending: Pending,
    leaving: Vec<Leaving>,
    all: Arc<Announcements>,
    overflowed: bool,
    said_overflow: bool,
    said_left_out: bool,
    said_stalled: bool,
}

impl Watcher {
    /// Watches all that is to be watched: from now on nothing goes unseen.
    ///
    /// # Errors
    /// When a share can't be watched.
    pub fn new(shares: &[Share], all: Arc<Announcements>) -> Result<Watcher> {
        let shares = shares.iter().enumerate().filter(|(_, share)| share.notify);
        let shares: Vec<_> = shares.map(|(number, share)| (number, share.directory)).collect();
        let mut tree = Tree::new()?;
        for (number, directory) in &shares {
            tree.share(*number, *directory)?;
        }
        Ok(Watcher {
            tree,
            shares,
            pending: Pending::default(),
            leaving: Vec::new(),
            all,
            overflowed: false,
            said_overflow: false,
            said_left_out: false,
            said_stalled: false,
        })
    }

    /// Starts its thread; returns when that is confined.
    ///
    /// # Errors
    /// When it can't be.
    pub fn start(self) -> Result<()> {
        let (tell, confined) = mpsc::channel();
        let thread = std::thread::Builder::new().name("watcher".into());
        thread
            .spawn(move || {
                let filtered = filter::apply();
                let go = filtered.is_ok();
                let _ = tell.send(filtered);
                if go && let Err(error) = self.run() {
                    eprintln!("container-fileserver: notify: no more events: {error}");
                }
            })
            .map_err(at("start the watcher"))?;
        confined.recv().map_err(at("the watcher"))?
    }

    fn run(mut self) -> Result<()> {
        let mut due: Option<Instant> = None;
        let mut stalled: Option<Instant> = None;
        loop {
            let wake = [due, stalled].into_iter().flatten().min();
            self.wait(wake)?;
            self.round()?;
            let now = Instant::now();
            if self.pending.is_empty() && self.leaving.is_empty() {
                (due, stalled) = (None, None);
                continue;
            }
            if self.all.room() == 0 {
                due = None;
                let until = *stalled.get_or_insert(now + STALLED);
                if now < until {
                    continue;
                }
                self.give_up();
            }
            stalled = None;
            if *due.get_or_insert(now + GATHER) <= now {
                self.send()?;
                due = (!self.pending.is_empty()).then_some(now + GATHER);
            }
        }
    }

    /// Until there is something to read, the guest has told something, or that moment.
    fn wait(&self, until: Option<Instant>) -> Result<()> {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Rounded up: waking a little early would spin.
        let left = left.map(|left| Timespec {
            tv_sec: left.as_secs() as _,
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let progress = self.all.progress();
        let inotify = self.tree.inotify();
        let mut fds = [&inotify, &progress].map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN));
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(format!("wait: {error}")),
        }
        let _ = rustix::io::read(progress, &mut [0; 8]);
        Ok(())
    }

    /// Reads all that there is.
    fn round(&mut self) -> Result<()> {
        let all = self.all.clone();
        all.own.round_begins();
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        loop {
            let mut events = Vec::new();
            {
                let mut reader = Reader::new(self.tree.inotify(), &mut buffer);
                loop {
                    match reader.next() {
                        Ok(event) => events.push(Raw {
                            watch: event.wd(),
                            flags: event.events(),
                            cookie: event.cookie(),
                            name: event.file_name().map_or(Vec::new(), |n| n.to_bytes().to_vec()),
                        }),
                        Err(Errno::AGAIN | Errno::INTR) => break,
                        Err(error) => return Err(format!("read: {error}")),
                    }
                    if reader.is_buffer_empty() {
                        break;
                    }
                }
            }
            if events.is_empty() {
                break;
            }
            events.iter().for_each(|event| self.happened(event));
        }
        if std::mem::take(&mut self.overflowed) {
            self.look_again();
        }
        all.own.round_ends();
        Ok(())
    }

    fn happened(&mut self, raw: &Raw) {
        if raw.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.overflowed = true;
            return;
        }
        let moved_to = raw.flags.contains(ReadFlags::MOVED_TO);
        for watched in self.tree.of(raw.watch) {
            // What happens to a directory itself is told by the one that it is in.
            if raw.name.is_empty() && !watched.is_share() {
                continue;
            }
            let directory = raw.flags.contains(ReadFlags::ISDIR);
            let kind = if directory { libc::S_IFDIR } else { libc::S_IFREG };
            let place = watched.place(&raw.name);
            let own = || self.all.own.has(&Key::Name(watched.inode, raw.name.clone()));
            if raw.flags.contains(ReadFlags::MOVED_FROM) {
                let own = own();
                self.leaving.push(Leaving { cookie: raw.cookie, place, kind, own });
            } else if moved_to {
                let own = own();
                self.arrived(raw.cookie, place, kind, own);
            } else if raw.flags.contains(ReadFlags::CREATE) {
                let own = own();
                self.created(place, directory, own);
            } else if raw.flags.contains(ReadFlags::DELETE) {
                if !own() {
                    self.pending.deleted(place, kind);
                }
            } else {
                self.touched(&watched, place, raw.flags);
            }
        }
        if moved_to {
            self.leaving.retain(|leaving| leaving.cookie != raw.cookie);
        }
        if raw.flags.contains(ReadFlags::IGNORED) {
            self.tree.ended(raw.watch);
        }
    }

    fn touched(&mut self, watched: &Watched, place: Place, flags: ReadFlags) {
        let mut changes = 0;
        for (flag, bit) in [
            (ReadFlags::MODIFY, change::MODIFIED),
            (ReadFlags::CLOSE_WRITE, change::CLOSED),
            (ReadFlags::ATTRIB, change::ATTRIBUTES),
        ] {
            changes |= if flags.contains(flag) { bit } else { 0 };
        }
        let Ok(found) = fs::symlink_metadata(host_path(&place.path)) else { return };
        // A share that is a file has no name, and may have been replaced.
        let inode = if place.parent == 0 { watched.inode } else { found.ino() };
        if changes != 0 && !self.all.own.has(&Key::Inode(inode)) {
            self.pending.changed(place, found.mode() & libc::S_IFMT, changes);
        }
    }

    fn created(&mut self, place: Place, directory: bool, own: bool) {
        if directory {
            if !own {
                self.pending.changed(place.clone(), libc::S_IFDIR, change::CREATED);
            }
            let pending = &mut self.pending;
            // What is in it already was made before it was watched.
            self.tree.add(&place.path, &mut |place, kind| {
                let written = change::MODIFIED | change::CLOSED;
                let more = if kind == libc::S_IFREG { written } else { 0 };
                if !own {
                    pending.changed(place, kind, change::CREATED | more);
                }
            });
        } else if !own {
            let found = fs::symlink_metadata(host_path(&place.path));
            let kind = found.map_or(libc::S_IFREG, |found| found.mode() & libc::S_IFMT);
            self.pending.changed(place, kind, change::CREATED);
        }
    }

    /// A name has come: from where another one of the same share has gone, if there is one.
    fn arrived(&mut self, cookie: u32, to: Place, mut kind: u32, own: bool) {
        let directory = kind == libc::S_IFDIR;
        if let Ok(found) = fs::symlink_metadata(host_path(&to.path)) {
            kind = found.mode() & libc::S_IFMT;
        }
        let share =
            |place: &Place| place.path.split(|byte| *byte == b'/').next().map(<[u8]>::to_vec);
        let from = self
            .leaving
            .iter()
            .position(|leaving| leaving.cookie == cookie && share(&leaving.place) == share(&to));
        let from = from.map(|at| self.leaving.remove(at));
        if directory {
            match &from {
                Some(from) => self.tree.moved(&from.place.path, &to.path),
                None => self.tree.add(&to.path, &mut |_, _| {}),
            }
        }
        match from {
            _ if own => {}
            Some(from) if from.own => {}
            Some(from) => self.pending.moved(change::MOVED, kind, from.place, Some(to)),
            None => self.pending.moved(change::MOVED_IN, kind, to, None),
        }
    }

    /// Events were lost: at least all directories are to be watched.
    fn look_again(&mut self) {
        if !std::mem::replace(&mut self.said_overflow, true) {
            eprintln!(
                "container-fileserver: notify: the host changes more at once than its kernel \
                 queues (fs.inotify.max_queued_events): some changes raise no events"
            );
        }
        for (number, directory) in &self.shares {
            if *directory {
                self.tree.add(number.to_string().as_bytes(), &mut |_, _| {});
            }
        }
    }

    fn give_up(&mut self) {
        let lost = self.all.give_up();
        if !std::mem::replace(&mut self.said_stalled, true) {
            eprintln!(
                "container-fileserver: notify: the guest tells nothing for {} s: {lost} changes \
                 raise no events",
                STALLED.as_secs()
            );
        }
    }

    /// Sends as many events as there is room for.
    fn send(&mut self) -> Result<()> {
        for leaving in std::mem::take(&mut self.leaving) {
            if leaving.kind == libc::S_IFDIR {
                self.tree.gone(&leaving.place.path);
            }
            if !leaving.own {
                self.pending.moved(change::MOVED_OUT, leaving.kind, leaving.place, None);
            }
        }
        let left_out = self.pending.left_out();
        if left_out > 0 && !std::mem::replace(&mut self.said_left_out, true) {
            eprintln!(
                "container-fileserver: notify: the host changes more than {} files faster than \
                 the guest is told: some changes raise no events",
                pending::MOST
            );
        }
        let mut messages = Vec::new();
        for _ in 0..self.all.room().min(BATCH) {
            let Some(event) = self.pending.pop() else { break };
            let event = Event { token: token()?, ..event };
            event.encode(&mut messages);
            self.all.sent(event);
        }
        std::io::stdout().lock().write_all(&messages).map_err(at("send events"))?;
        std::io::stdout().flush().map_err(at("send events"))
    }
}

/// A number that nobody guesses, and that is a time.
fn token() -> Result<u64> {
    let mut bytes = [0; 8];
    let flags = rustix::rand::GetRandomFlags::empty();
    rustix::rand::getrandom(&mut bytes, flags).map_err(at("random numbers"))?;
    Ok(u64::from_ne_bytes(bytes) >> 2 | 1)
}
