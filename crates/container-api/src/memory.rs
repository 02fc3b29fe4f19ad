//! Memory that a process holds for itself.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;

/// Anonymous memory of a process in bytes, in RAM or swapped out (`smaps_rollup` of `proc(5)`).
///
/// # Errors
/// When it can't be read or is not what the kernel writes.
pub fn own(pid: i32) -> io::Result<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    anonymous(&rollup).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "smaps_rollup"))
}

/// Bytes of memory that a process holds and no other does: its anonymous memory, in RAM or swapped
/// out, and its memfds. Of a file that it maps copy-on-write the copied pages count.
///
/// # Errors
/// When it can't be read.
pub fn own_with_memfds(pid: i32) -> io::Result<u64> {
    let mut bytes = own(pid)?;
    let mut seen = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        // Descriptors come and go meanwhile; a file may have several.
        let Ok(path) = entry.map(|entry| entry.path()) else { continue };
        let is_memfd = std::fs::read_link(&path)
            .is_ok_and(|to| to.as_os_str().as_encoded_bytes().starts_with(b"/memfd:"));
        if is_memfd
            && let Ok(meta) = std::fs::metadata(&path)
            && seen.insert((meta.dev(), meta.ino()))
        {
            bytes += meta.blocks() * 512;
        }
    }
    Ok(bytes)
}

fn anonymous(rollup: &str) -> Option<u64> {
    let field = |name: &str| -> Option<u64> {
        let value = rollup.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib << 10)
    };
    Some(field("Anonymous:")? + field("Swap:")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_memory_and_swap_count() {
        let rollup = "0-1 ---p 0 00:00 0 [rollup]\nRss: 90 kB\nAnonymous:         40 kB\n\
                      AnonHugePages: 0 kB\nSwap:               2 kB\nSwapPss: 2 kB\n";
        assert_eq!(anonymous(rollup), Some(42 << 10));
        assert_eq!(anonymous("Rss: 90 kB\n"), None);
        assert!(own(std::process::id() as i32).unwrap() > 0);
        own(0).unwrap_err();
        let pid = std::process::id() as i32;
        assert!(own_with_memfds(pid).unwrap() > 0);
        own_with_memfds(-1).unwrap_err();
    }
}
