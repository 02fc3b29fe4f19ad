//! The spares there are, and those that should be.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use container_api::apiserver::SpareStatus;
use container_api::config::RuntimeConfig;
use container_api::types::UsageOf;
use tokio::sync::Notify;

use super::vm::Spare;
use crate::backoff::Backoff;
use crate::kernel::Kernel;
use crate::process::Handle;
use crate::template::Shape;

/// Between a failure and the next attempt at a spare of the same shape; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// All spares.
#[derive(Debug)]
pub struct Spares {
    /// Spares of one shape; `None`: one of each in use.
    wish: Option<u32>,
    /// How long a shape is in use after a start.
    pub(super) idle: Duration,
    inner: Mutex<Inner>,
    pub(super) wake: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    ready: Vec<Spare>,
    making: Option<(Kind, Option<Arc<Handle>>)>,
    uses: BTreeMap<Kind, Use>,
    failures: BTreeMap<Kind, Backoff>,
    /// The service ends: none is made any more.
    closed: bool,
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
    fn kind(&self) -> Kind {
        Kind { key: self.shape.key.clone(), mappable: self.mappable }
    }
}

/// What containers use.
#[derive(Debug)]
struct Use {
    order: Order,
    last: Instant,
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
        let entry = entry.or_insert_with(|| Use { order, last: Instant::now(), kept });
        entry.last = Instant::now();
        entry.kept = entry.kept.max(kept);
        drop(inner);
        self.look();
    }

    /// Takes a spare of this very shape.
    pub fn take(&self, shape: &Shape, needs: Needs) -> Option<Spare> {
        self.take_where(|spare| spare.shape.key == shape.key && needs.are_met(spare))
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
        let place = inner.ready.iter().position(|spare| fits(spare) && !spare.has_ended())?;
        Some(inner.ready.remove(place))
    }

    /// A spare that should be made now, given which templates are ready.
    pub(super) fn missing(&self, is_ready: impl Fn(&str) -> bool) -> Option<Order> {
        let mut inner = self.inner();
        let found = inner.uses.iter().find(|(kind, entry)| {
            let there = inner.ready.iter().filter(|spare| spare.kind() == **kind).count();
            let failing = inner.failures.get(*kind).is_some_and(Backoff::lasts);
            there < entry.kept.max(1) && !failing && is_ready(&kind.key)
        });
        let (kind, entry) = found.filter(|_| !inner.closed)?;
        let (kind, order) = (kind.clone(), entry.order.clone());
        inner.making = Some((kind, None));
        Some(order)
    }

    /// The process of the spare that is being made.
    pub(super) fn launched(&self, handle: Arc<Handle>) {
        let mut inner = self.inner();
        if inner.closed {
            handle.kill();
        }
        if let Some((_, making)) = &mut inner.making {
            *making = Some(handle);
        }
    }

    /// A spare is ready. Given back when nobody wants it any more.
    pub(super) fn made(&self, spare: Spare) -> Option<Spare> {
        let mut inner = self.inner();
        inner.making = None;
        inner.failures.remove(&spare.kind());
        match inner.closed || !inner.uses.contains_key(&spare.kind()) {
            true => Some(spare),
            false => {
                inner.ready.push(spare);
                None
            }
        }
    }

    /// A spare could not be made.
    pub(super) fn failed(&self, order: &Order) {
        let kind = order.kind();
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
            if let Some((_, Some(handle))) = &inner.making {
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
            inner.making.iter().filter_map(|(_, handle)| Some(handle.as_ref()?.identity().pid));
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
            state: "ready".into(),
            memory_in_bytes: spare.memory(),
        });
        let making = inner.making.iter().map(|(kind, _)| SpareStatus {
            template: kind.key.clone(),
            mappable: kind.mappable,
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
