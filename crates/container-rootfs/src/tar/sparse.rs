//! Maps of sparse files.

use super::entry::Segment;
use super::fault::Fault;
use super::number;

/// Bytes of one segment in an old GNU header: two fields of twelve.
pub(super) const OLD_SEGMENT: usize = 24;

/// Collects segments and checks that they ascend inside a bounded map.
#[derive(Debug)]
pub(super) struct MapBuilder {
    segments: Vec<Segment>,
    end: u64,
    data: u64,
    max_segments: usize,
}

impl MapBuilder {
    pub(super) fn new(max_segments: usize) -> Self {
        Self { segments: Vec::new(), end: 0, data: 0, max_segments }
    }

    pub(super) fn push(&mut self, offset: u64, len: u64) -> Result<(), Fault> {
        let end = offset.checked_add(len).ok_or(Fault::SparseMap)?;
        if offset < self.end {
            return Err(Fault::SparseMap);
        }
        self.end = end;
        if len == 0 {
            // GNU tar marks the file's end so.
            return Ok(());
        }
        if self.segments.len() >= self.max_segments {
            return Err(Fault::limit("sparse segments", self.max_segments as u64));
        }
        self.data += len;
        match self.segments.last_mut() {
            Some(last) if last.offset + last.len == offset => last.len += len,
            _ => self.segments.push(Segment { offset, len }),
        }
        Ok(())
    }

    /// Adds the segments of an old GNU header; an empty field ends them.
    pub(super) fn push_old(&mut self, fields: &[u8]) -> Result<(), Fault> {
        for field in fields.chunks_exact(OLD_SEGMENT) {
            if field[0] == 0 {
                break;
            }
            let part = |bytes: &[u8]| {
                number::field(bytes).and_then(|n| u64::try_from(n).ok()).ok_or(Fault::SparseMap)
            };
            self.push(part(&field[..12])?, part(&field[12..])?)?;
        }
        Ok(())
    }

    /// The map, for a file of `size` bytes of which the archive stores `stored`.
    pub(super) fn finish(self, size: u64, stored: u64) -> Result<Vec<Segment>, Fault> {
        if self.end > size || self.data != stored {
            return Err(Fault::SparseMap);
        }
        Ok(self.segments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_neighbours_and_drops_empty_segments() {
        let mut map = MapBuilder::new(4);
        for (offset, len) in [(0, 0), (4, 4), (8, 2), (20, 1), (30, 0)] {
            map.push(offset, len).unwrap();
        }
        let expected = vec![Segment { offset: 4, len: 6 }, Segment { offset: 20, len: 1 }];
        assert_eq!(map.finish(30, 7), Ok(expected));
    }

    #[test]
    fn refuses_overlap_overflow_excess_and_misfit() {
        let mut map = MapBuilder::new(1);
        map.push(10, 10).unwrap();
        assert_eq!(map.push(19, 1), Err(Fault::SparseMap));
        assert_eq!(map.push(u64::MAX, 1), Err(Fault::SparseMap));
        assert_eq!(map.push(30, 1), Err(Fault::limit("sparse segments", 1)));
        let mut map = MapBuilder::new(1);
        map.push(10, 10).unwrap();
        assert_eq!(map.finish(19, 10), Err(Fault::SparseMap));
    }
}
