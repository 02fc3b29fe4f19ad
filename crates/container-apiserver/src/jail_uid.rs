//! Host user ids of jails, when this service is root: one for each VM, given back with it.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use container_api::paths::AppRoot;

/// First host user id of jails. Each app root has a block of 65536, each VM one id in it; far
/// above what accounts get, below 2³¹.
const FIRST: u32 = 1_000_000_000;
/// Ids in a block.
const BLOCK: u32 = 1 << 16;
/// Blocks.
const BLOCKS: u32 = 1 << 13;

/// The app root's ids.
#[derive(Debug)]
pub struct JailUids {
    first: u32,
    taken: Mutex<BTreeSet<u32>>,
}

/// An id that no other VM has until this is dropped.
#[derive(Debug)]
pub struct JailUid {
    uid: u32,
    of: Arc<JailUids>,
}

impl JailUids {
    /// The ids of `root`, all free.
    pub fn new(root: &AppRoot) -> Arc<JailUids> {
        let mut hasher = DefaultHasher::new();
        root.path().hash(&mut hasher);
        let block = (hasher.finish() % u64::from(BLOCKS)) as u32;
        Arc::new(JailUids { first: FIRST + block * BLOCK, taken: Mutex::default() })
    }

    /// All of them.
    pub fn range(&self) -> std::ops::Range<u32> {
        self.first..self.first + BLOCK
    }

    /// The lowest that is free.
    pub fn take(self: &Arc<Self>) -> JailUid {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ids = self.first..self.first + BLOCK;
        let uid = ids.find(|uid| !taken.contains(uid)).unwrap_or(self.first);
        taken.insert(uid);
        JailUid { uid, of: self.clone() }
    }

    /// One that a VM has which was there before this service.
    pub fn claim(self: &Arc<Self>, uid: u32) -> JailUid {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(uid);
        JailUid { uid, of: self.clone() }
    }
}

impl JailUid {
    /// The number.
    pub fn get(&self) -> u32 {
        self.uid
    }
}

impl Drop for JailUid {
    fn drop(&mut self) {
        self.of.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_given_once_until_it_is_back() {
        let uids = JailUids::new(&AppRoot::resolve(Some("/x".as_ref())).unwrap());
        let (a, b) = (uids.take(), uids.take());
        assert_eq!(b.get(), a.get() + 1);
        let claimed = uids.claim(a.get() + 2);
        assert_eq!(uids.take().get(), a.get() + 3);
        let first = a.get();
        drop(a);
        assert_eq!(uids.take().get(), first);
        assert_ne!(claimed.get(), first);
    }
}
