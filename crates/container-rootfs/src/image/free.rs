//! Blocks of the data area that are free again.

use std::collections::{BTreeMap, BTreeSet};

use crate::tree::Extent;

/// Free runs of blocks, neighbours merged, found by place or by length.
#[derive(Debug, Default)]
pub(super) struct FreeRuns {
    by_start: BTreeMap<u32, u32>,
    by_length: BTreeSet<(u32, u32)>,
}

impl FreeRuns {
    /// Adds a run that doesn't overlap a free one.
    pub(super) fn add(&mut self, extent: Extent) {
        let (mut start, mut blocks) = (extent.start, extent.blocks);
        if blocks == 0 {
            return;
        }
        if let Some((&before, &len)) = self.by_start.range(..start).next_back()
            && before + len == start
        {
            self.remove(before, len);
            start = before;
            blocks += len;
        }
        if let Some(&len) = self.by_start.get(&(start + blocks)) {
            self.remove(start + blocks, len);
            blocks += len;
        }
        self.by_start.insert(start, blocks);
        self.by_length.insert((blocks, start));
    }

    /// Takes `blocks` blocks out of the shortest run that is long enough.
    pub(super) fn take(&mut self, blocks: u32) -> Option<u32> {
        let &(len, start) = self.by_length.range((blocks, 0)..).next()?;
        self.remove(start, len);
        self.add(Extent { start: start + blocks, blocks: len - blocks });
        Some(start)
    }

    /// Takes the run that ends at block `end`; where it begins.
    pub(super) fn take_last(&mut self, end: u32) -> Option<u32> {
        let (&start, &len) = self.by_start.last_key_value()?;
        (start + len == end).then(|| {
            self.remove(start, len);
            start
        })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Extent> {
        self.by_start.iter().map(|(&start, &blocks)| Extent { start, blocks })
    }

    fn remove(&mut self, start: u32, len: u32) {
        self.by_start.remove(&start);
        self.by_length.remove(&(len, start));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn runs(free: &FreeRuns) -> Vec<(u32, u32)> {
        free.iter().map(|run| (run.start, run.blocks)).collect()
    }

    #[test]
    fn merges_and_fits_best() {
        let mut free = FreeRuns::default();
        for (start, blocks) in [(10, 5), (20, 2), (15, 5), (40, 3)] {
            free.add(Extent { start, blocks });
        }
        assert_eq!(runs(&free), [(10, 12), (40, 3)]);
        assert_eq!((free.take(3), free.take(4), free.take(9)), (Some(40), Some(10), None));
        assert_eq!(runs(&free), [(14, 8)]);
        assert_eq!((free.take_last(23), free.take_last(22)), (None, Some(14)));
    }

    proptest! {
        #[test]
        fn takes_are_disjoint(sizes in proptest::collection::vec(1u32..20, 1..40)) {
            let mut free = FreeRuns::default();
            free.add(Extent { start: 1, blocks: 200 });
            let mut taken: Vec<Extent> = Vec::new();
            for (index, blocks) in sizes.into_iter().enumerate() {
                if index % 3 == 2 && let Some(back) = taken.pop() {
                    free.add(back);
                } else if let Some(start) = free.take(blocks) {
                    taken.push(Extent { start, blocks });
                }
                let mut all: Vec<_> = taken.iter().copied().chain(free.iter()).collect();
                all.sort_by_key(|run| run.start);
                prop_assert!(all.windows(2).all(|w| w[0].start + w[0].blocks == w[1].start));
                prop_assert_eq!(all.iter().map(|run| run.blocks).sum::<u32>(), 200);
            }
        }
    }
}
