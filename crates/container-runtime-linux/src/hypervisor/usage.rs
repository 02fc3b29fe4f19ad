//! What a VM costs its host.

use std::io;
use std::time::Duration;

/// User and system time of all its threads.
pub fn cpu_time(pid: i32) -> io::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // SAFETY: takes a number, returns a number.
    let ticks = unsafe { nix::libc::sysconf(nix::libc::_SC_CLK_TCK) };
    cpu_ticks(&stat)
        .and_then(|used| Some(Duration::from_millis(used * 1000 / u64::try_from(ticks).ok()?)))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "stat"))
}

/// The program's name may hold anything, so fields are counted from its end.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_tables() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 50 13 14";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("7 (a"), None);
    }

    #[test]
    fn a_process_has_time() {
        cpu_time(std::process::id() as i32).expect("time");
        assert!(cpu_time(-1).is_err());
    }
}
