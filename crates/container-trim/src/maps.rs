//! Where QEMU keeps translated code, from `/proc/self/maps` (proc(5)).

/// The cache begins with code that QEMU always needs, less than this.
const PROLOGUE: usize = 64 << 10;

/// Addresses, the second one past the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: usize,
    pub end: usize,
}

impl Range {
    /// In bytes.
    pub fn len(self) -> usize {
        self.end.saturating_sub(self.start)
    }
}

/// One line that may be of the cache: private memory without a file, writable and executable or,
/// between two parts, neither.
struct Part {
    range: Range,
    executable: bool,
}

/// The parts that hold translations of a cache of `len` bytes, without what must stay. Empty when
/// there is no such cache. QEMU cuts it into regions with a page between them that nobody may
/// touch; the whole is one piece of address space.
pub fn translated(maps: &str, len: usize) -> Vec<Range> {
    let mut pieces: Vec<Vec<Part>> = Vec::new();
    for part in maps.lines().filter_map(part) {
        match pieces.last_mut() {
            Some(piece) if piece.last().is_some_and(|p| p.range.end == part.range.start) => {
                piece.push(part);
            }
            _ => pieces.push(vec![part]),
        }
    }
    let whole = |piece: &Vec<Part>| {
        let executable = piece.iter().filter(|part| part.executable);
        executable.map(|part| part.range.len()).sum::<usize>()
    };
    // The last page or two may be nobody's; anything else is far smaller.
    let cache = pieces.iter().find(|piece| whole(piece) > len / 2 && whole(piece) <= len);
    let parts = cache.into_iter().flatten().filter(|part| part.executable);
    let mut ranges: Vec<Range> = parts.map(|part| part.range).collect();
    if let Some(first) = ranges.first_mut() {
        first.start = first.end.min(first.start.saturating_add(PROLOGUE));
    }
    ranges.retain(|range| range.len() > 0);
    ranges
}

fn part(line: &str) -> Option<Part> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let executable = match fields.next()? {
        "rwxp" => true,
        "---p" => false,
        _ => return None,
    };
    let inode = fields.nth(2)?;
    if inode != "0" || fields.next().is_some() {
        return None;
    }
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some(Part { range: Range { start: number(start)?, end: number(end)? }, executable })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_cache_is_found_among_others() {
        let maps = "\
5580-5590 r-xp 00000000 fe:00 12 /usr/bin/qemu-system-x86_64
7f0000000000-7f0000001000 rwxp 00000000 00:00 0
7f0001000000-7f0001080000 rwxp 00000000 00:00 0
7f0001080000-7f0001081000 ---p 00000000 00:00 0
7f0001081000-7f00010ff000 rwxp 00000000 00:00 0
7f00010ff000-7f0001100000 ---p 00000000 00:00 0
7f0001200000-7f0001300000 rwxp 00000000 00:00 0 [heap]
7f0001300000-7f0001400000 rw-p 00000000 00:00 0
";
        let range = |start, end| Range { start, end };
        let found = translated(maps, 1 << 20);
        let expected =
            [range(0x7f0001010000, 0x7f0001080000), range(0x7f0001081000, 0x7f00010ff000)];
        assert_eq!(found, expected);
        assert_eq!(translated(maps, 16 << 20), []);
    }

    #[test]
    fn a_cache_no_larger_than_its_beginning_stays() {
        assert_eq!(translated("1000-11000 rwxp 0 00:00 0\n", 64 << 10), []);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in ".{0,300}", len: usize) {
            translated(&text, len);
        }

        #[test]
        fn any_ranges_are_survived(lines in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<bool>()), 0..20), len: usize) {
            let lines = lines.iter().map(|(from, to, run)| {
                format!("{from:x}-{to:x} {} 0 00:00 0\n", if *run { "rwxp" } else { "---p" })
            });
            for range in translated(&lines.collect::<String>(), len) {
                prop_assert!(range.start < range.end);
            }
        }
    }
}
