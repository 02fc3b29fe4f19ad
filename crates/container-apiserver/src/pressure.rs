//! Whether the host is short of memory.

/// Part of the memory that must be available, as one over this.
const AVAILABLE_PART: u64 = 10;
/// Share of the last ten seconds, in percent, in which somebody waited for memory.
const MAX_STALLED: f64 = 10.0;

/// Part of the memory, as one over this, below which no VM is started any more.
const LEFT_PART: u64 = 32;
/// Share of the last ten seconds, in percent, in which everybody waited for memory.
const MAX_STANDING: f64 = 30.0;

/// Why no VM should be started; `None`: there is room.
pub fn out_of_memory() -> Option<String> {
    judge_now(LEFT_PART, ("full ", MAX_STANDING))
}

/// Why nothing should be kept in memory that only might be used; `None`: there is room.
pub fn short_of_memory() -> Option<String> {
    judge_now(AVAILABLE_PART, ("some ", MAX_STALLED))
}

fn judge_now(part: u64, stalled: (&str, f64)) -> Option<String> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    judge(&read("/proc/meminfo"), &read("/proc/pressure/memory"), part, stalled)
}

fn judge(meminfo: &str, pressure: &str, part: u64, (row, most): (&str, f64)) -> Option<String> {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line?.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    if let (Some(total), Some(available)) = (kib("MemTotal"), kib("MemAvailable"))
        && available < total / part
    {
        return Some(format!(
            "the host is short of memory: {} of {} MiB are available",
            available >> 10,
            total >> 10
        ));
    }
    let some = pressure.lines().find_map(|line| line.strip_prefix(row))?;
    let stalled = some.split(' ').find_map(|word| word.strip_prefix("avg10="))?;
    let stalled: f64 = stalled.parse().ok()?;
    (stalled > most).then(|| {
        format!("the host is short of memory: processes waited for it {stalled} % of the time")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_must_be_available_and_nobody_wait() {
        let meminfo = |available: u32| {
            format!("MemTotal:  1000000 kB\nMemFree: 1 kB\nMemAvailable: {available} kB\n")
        };
        let calm = "some avg10=0.50 avg60=90.00 avg300=0.00 total=0\nfull avg10=50.00 total=0\n";
        let some =
            |meminfo: &str, text| judge(meminfo, text, AVAILABLE_PART, ("some ", MAX_STALLED));
        assert_eq!(some(&meminfo(100_000), calm), None);
        assert_eq!(some("", ""), None);
        assert!(some(&meminfo(99_999), calm).unwrap().contains("97 of 976 MiB"));
        let stalled = "some avg10=12.50 avg60=0.00 avg300=0.00 total=0\n";
        assert!(some(&meminfo(500_000), stalled).unwrap().contains("12.5 %"));
        let full = |meminfo: &str, text| judge(meminfo, text, LEFT_PART, ("full ", MAX_STANDING));
        assert_eq!(full(&meminfo(40_000), stalled), None);
        assert!(full(&meminfo(30_000), stalled).is_some());
        assert!(full(&meminfo(500_000), calm).unwrap().contains("50 %"));
        out_of_memory();
        short_of_memory();
    }
}
