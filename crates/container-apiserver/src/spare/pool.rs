//! The spares there are, and those that should be.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use container_api::apiserver::SpareStatus;
use container_api::config::RuntimeConfig;
use container_api::types::UsageOf;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::vm::Spare;
use crate::backoff::Backoff;
use crate::kernel::Kernel;
use crate::priority;
use crate::process::Handle;
use crate::template::Shape;

/// Between a failure and the next attempt at a spare of the same shape; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// How long a start waits for the spare that is being made.
const JOIN_LIMIT: Duration = Duration::from_secs(10);

/// All spares.
#[derive(Debug)]
pub struct Spares {
    /// Spares of one shape; `None`: one of each in use.
    wish: Option<u32>,
    /// How long a shape is in use after a start.
    pub(super) idle: Duration,
    inner: Mutex<Inner>,
    pub(super) wake: Notify,
    /// One is to be restored at once.
    pub(super) hurry: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    ready: Vec<Spare>,
    making: Option<Making>,
    uses: BTreeMap<Kind, Use>,
    failures: BTreeMap<Kind, Backoff>,
    /// The service ends: none is made any more.
    closed: bool,
}

/// A spare that is being restored or made warm.
#[derive(Debug)]
struct Making {
    kind: Kind,
    /// Its process.
    handle: Option<Arc<Handle>>,
    /// The start that waits for it.
    joined: Option<Joined>,
}

#[derive(Debug)]
struct Joined {
    needs: Needs,
    gets: oneshot::Sender<Spare>,
}

/// What tells spares apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    /// The shape's key.
    pub key: String,
    /// Whether a file server can map their RAM.
    pub mappable: bool,
}

/// A spare that is to be made.
#[derive(Clone, Debug)]
pub struct Order {
    /// What it is made of.
    pub shape: Shape,
    /// Its kernel.
    pub kernel: Kernel,
    /// Whether a file server can map its RAM.
    pub mappable: bool,
}

impl Order {
    pub(super) fn kind(&self) -> Kind {
        Kind { key: self.shape.key.clone(), mappable: self.mappable }
    }
}

/// What containers use.
#[derive(Debug)]
struct Use {
    order: Order,
    last: Instant,
    /// A start has found none that was warm: the next one is restored at once, beside it.
    hurried: bool,
    /// So many spares whether it is used or not.
    kept: usize,
}

/// What a container needs of a spare.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// A NIC that can be put on a network.
    pub tap: bool,
    /// RAM that a file server can map. Who does not need it does not get it: it is a copy.
    pub mappable: bool,
}

impl Needs {
    fn are_met(self, spare: &Spare) -> bool {
        spare.is_mappable() == self.mappable && (!self.tap || spare.tap().is_some())
    }
}

impl Spares {
    /// None yet.
    pub fn new(config: &RuntimeConfig) -> Spares {
        Spares {
            wish: config.spare.filter(|_| config.template).or((!config.template).then_some(0)),
            idle: Duration::from_secs(config.spare_idle_seconds),
            inner: Mutex::default(),
            wake: Notify::new(),
            hurry: Notify::new(),
        }
    }

    /// Whether there may be any.
    pub fn enabled(&self) -> bool {
        self.wish != Some(0)
    }

    /// How many of the default shape are kept from the service's start on.
    pub fn kept(&self) -> usize {
        self.wish.unwrap_or(0) as usize
    }

    pub(super) fn look_later(&self) -> Duration {
        (self.idle / 4).clamp(Duration::from_millis(100), Duration::from_secs(5))
    }

    /// Has the keeper look whether something is to be done.
    pub fn look(&self) {
        self.wake.notify_one();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a container was started for which this would have been a spare; `kept` spares of
    /// its kind stay from now on.
    pub fn used(&self, order: Order, kept: usize) {
        if !self.enabled() {
            return;
        }
        let mut inner = self.inner();
        let entry = inner.uses.entry(order.kind());
        let entry =
            entry.or_insert_with(|| Use { order, last: Instant::now(), hurried: false, kept });
        entry.last = Instant::now();
        entry.kept = entry.kept.max(kept);
        drop(inner);
        self.look();
    }

    /// Takes a spare of this very shape, or waits for the one that is being made.
    pub async fn take(&self, shape: &Shape, needs: Needs) -> Option<Spare> {
        let kind = Kind { key: shape.key.clone(), mappable: needs.mappable };
        let taken = self.take_where(|spare| spare.kind() == kind && needs.are_met(spare));
        if !taken.as_ref().is_some_and(Spare::is_warm) {
            self.hurry(&kind);
        }
        match taken {
            Some(spare) => Some(spare),
            None => timeout(JOIN_LIMIT, self.join(&kind, needs)?).await.ok()?.ok(),
        }
    }

    /// Has the next spare of a kind in use restored at once.
    fn hurry(&self, kind: &Kind) {
        if let Some(entry) = self.inner().uses.get_mut(kind) {
            entry.hurried = true;
            self.hurry.notify_one();
            self.wake.notify_one();
        }
    }

    /// The spare that is being made, once it is, for the first who asks.
    fn join(&self, kind: &Kind, needs: Needs) -> Option<oneshot::Receiver<Spare>> {
        let mut inner = self.inner();
        let making = inner.making.as_mut()?;
        let waited_for = making.joined.as_ref().is_some_and(|joined| !joined.gets.is_closed());
        if making.kind != *kind || waited_for {
            return None;
        }
        if let Some(handle) = &making.handle {
            priority::undo(handle.identity().pid);
        }
        let (gets, spare) = oneshot::channel();
        making.joined = Some(Joined { needs, gets });
        Some(spare)
    }

    /// Takes a spare of the next larger shape.
    pub fn take_larger(&self, shape: &Shape, needs: Needs) -> Option<Spare> {
        let least = {
            let inner = self.inner();
            let fits = |spare: &&Spare| spare.shape.may_serve(shape) && needs.are_met(spare);
            let serving = inner.ready.iter().filter(fits);
            let least = serving.min_by_key(|spare| spare.shape.resources.memory_in_bytes);
            least.map(|spare| spare.shape.key.clone())?
        };
        self.take_where(|spare| spare.shape.key == least && needs.are_met(spare))
    }

    /// Puts back a spare that was taken and not touched.
    pub fn give_back(&self, spare: Spare) {
        self.inner().ready.push(spare);
        self.look();
    }

    /// Takes out those that have a tap, or those that have none.
    pub(super) fn take_tapped(&self, tapped: bool) -> Vec<Spare> {
        let mut inner = self.inner();
        let all = std::mem::take(&mut inner.ready);
        let (taken, left) = all.into_iter().partition(|spare| spare.tap().is_some() == tapped);
        inner.ready = left;
        taken
    }

    fn take_where(&self, fits: impl Fn(&Spare) -> bool) -> Option<Spare> {
        let mut inner = self.inner();
        let fitting = inner.ready.iter().enumerate();
        let fitting = fitting.filter(|(_, spare)| fits(spare) && !spare.has_ended());
        let (place, _) = fitting.max_by_key(|(_, spare)| spare.is_warm())?;
        Some(inner.ready.remove(place))
    }

    /// A spare that should be made, given which templates are ready, and whether at once.
    pub(super) fn missing(&self, is_ready: impl Fn(&str) -> bool) -> Option<(Order, bool)> {
        let inner = self.inner();
        let mut wanted = inner.uses.iter().filter(|(kind, entry)| {
            let there = inner.ready.iter().filter(|spare| spare.kind() == **kind).count();
            let failing = inner.failures.get(*kind).is_some_and(Backoff::lasts);
            there < entry.kept.max(1) && !failing && is_ready(&kind.key)
        });
        let hurried = wanted.clone().find(|(_, entry)| entry.hurried);
        let (_, entry) = hurried.or_else(|| wanted.next()).filter(|_| !inner.closed)?;
        Some((entry.order.clone(), entry.hurried))
    }

    /// A spare is being restored from now on.
    pub(super) fn restoring(&self, order: &Order) {
        let mut inner = self.inner();
        let kind = order.kind();
        if let Some(entry) = inner.uses.get_mut(&kind) {
            entry.hurried = false;
        }
        inner.making = Some(Making { kind, handle: None, joined: None });
    }

    /// Whether one could be made warm.
    pub(super) fn any_cold(&self) -> bool {
        self.inner().ready.iter().any(|spare| !spare.is_warm())
    }

    /// Takes one out that is made warm from now on.
    pub(super) fn warming(&self) -> Option<Spare> {
        let spare = self.take_where(|spare| !spare.is_warm())?;
        let handle = Some(spare.handle().clone());
        self.inner().making = Some(Making { kind: spare.kind(), handle, joined: None });
        Some(spare)
    }

    /// The process of the spare that is being made.
    pub(super) fn launched(&self, handle: Arc<Handle>) {
        let mut inner = self.inner();
        if inner.closed {
            handle.kill();
        }
        if let Some(making) = &mut inner.making {
            making.handle = Some(handle);
        }
    }

    /// A spare is restored, or warm: whoever waits for it gets it. Given back when nobody wants it
    /// any more.
    pub(super) fn made(&self, spare: Spare) -> Option<Spare> {
        let mut inner = self.inner();
        let joined = inner.making.take().and_then(|making| making.joined);
        inner.failures.remove(&spare.kind());
        let spare = match joined.filter(|joined| !inner.closed && joined.needs.are_met(&spare)) {
            Some(joined) => joined.gets.send(spare).err()?,
            None => spare,
        };
        match inner.closed || !inner.uses.contains_key(&spare.kind()) {
            true => Some(spare),
            false => {
                inner.ready.push(spare);
                None
            }
        }
    }

    /// A spare could not be made.
    pub(super) fn failed(&self, kind: Kind) {
        let mut inner = self.inner();
        inner.making = None;
        let before = inner.failures.get(&kind).copied();
        let backoff = Backoff::after(before, FIRST_PAUSE, LONGEST_PAUSE);
        inner.failures.insert(kind, backoff);
    }

    /// Forgets shapes that nobody has used for a while. Those with kept spares stay.
    pub(super) fn forget_idle(&self) {
        let idle = self.idle;
        self.inner().uses.retain(|_, entry| entry.kept > 0 || entry.last.elapsed() < idle);
    }

    /// Takes out spares that should end, each with the reason.
    pub(super) fn useless(
        &self,
        short: Option<&str>,
        is_ready: impl Fn(&str) -> bool,
    ) -> Vec<(Spare, String)> {
        let mut inner = self.inner();
        let mut useless = Vec::new();
        for spare in std::mem::take(&mut inner.ready) {
            let why = if spare.has_ended() {
                Some("it has ended")
            } else if !is_ready(&spare.shape.key) {
                Some("its template is gone")
            } else if !inner.uses.contains_key(&spare.kind()) {
                Some("its shape is not used any more")
            } else {
                short
            };
            match why {
                Some(why) => useless.push((spare, why.to_owned())),
                None => inner.ready.push(spare),
            }
        }
        useless
    }

    /// Takes all out; with `close` none is made any more.
    pub fn take_all(&self, close: bool) -> Vec<Spare> {
        let mut inner = self.inner();
        if close {
            inner.closed = true;
            if let Some(handle) = inner.making.as_ref().and_then(|making| making.handle.as_ref()) {
                handle.kill();
            }
        } else {
            // A prune means them all; the next start begins anew.
            inner.uses.retain(|_, entry| entry.kept > 0);
        }
        std::mem::take(&mut inner.ready)
    }

    /// Templates that spares come from.
    pub fn templates(&self) -> Vec<String> {
        self.inner().ready.iter().map(|spare| spare.shape.key.clone()).collect()
    }

    /// The processes of those that are ready, and of the one that is being made.
    pub fn processes(&self) -> Vec<i32> {
        let inner = self.inner();
        let ready = inner.ready.iter().map(|spare| spare.handle().identity().pid);
        let making =
            inner.making.iter().filter_map(|making| Some(making.handle.as_ref()?.identity().pid));
        ready.chain(making).collect()
    }

    /// The directories of those that are ready, and whether one is being made.
    pub fn directories(&self) -> (Vec<PathBuf>, bool) {
        let inner = self.inner();
        let ready = inner.ready.iter().map(|spare| spare.directory().to_owned());
        (ready.collect(), inner.making.is_some())
    }

    /// The processes of those that have ended by themselves.
    pub fn dead(&self) -> Vec<i32> {
        let inner = self.inner();
        let dead = inner.ready.iter().filter(|spare| spare.has_ended());
        dead.map(|spare| spare.handle().identity().pid).collect()
    }

    /// As `system status` shows them.
    pub fn statuses(&self) -> Vec<SpareStatus> {
        let inner = self.inner();
        let ready = inner.ready.iter().map(|spare| SpareStatus {
            template: spare.shape.key.clone(),
            mappable: spare.is_mappable(),
            state: if spare.is_warm() { "ready" } else { "restored" }.into(),
            memory_in_bytes: spare.memory(),
        });
        let making = inner.making.iter().map(|making| SpareStatus {
            template: making.kind.key.clone(),
            mappable: making.kind.mappable,
            state: "being made".into(),
            memory_in_bytes: 0,
        });
        ready.chain(making).collect()
    }

    /// As `system df` shows them.
    pub fn usage(&self) -> UsageOf {
        let inner = self.inner();
        let size_in_bytes = inner.ready.iter().map(Spare::disk).sum();
        UsageOf {
            total: inner.ready.len() as u64,
            active: 0,
            size_in_bytes,
            reclaimable: size_in_bytes,
            memory_in_bytes: inner.ready.iter().map(Spare::memory).sum(),
        }
    }
}
