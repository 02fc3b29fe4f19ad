//! Memory that an idle VM need not keep.
//!
//! ```text
//! busy ──next to nothing used for QUIET looks──► trim ──► at least `rest` looks, and busy again
//! ```
//! Under emulation most of what a VM holds beside its guest's RAM is translated code, which is made
//! again in a fraction of a second when it is needed. A program that wakes now and then pays that
//! at most once in a rest, and each rest is twice as long as the one before.

use std::time::Duration;

use crate::hypervisor::Vm;

/// Between two looks at the VM's CPU time.
const LOOK: Duration = Duration::from_secs(10);
/// An idle guest's clock and timers cost some 30 ms between two looks.
const IDLE: Duration = Duration::from_millis(100);
/// So many idle looks in a row come before a trim.
const QUIET: u32 = 2;
/// Looks between the first trim and the second.
const FIRST_REST: u32 = 6;
/// The most between two.
const LONGEST_REST: u32 = 96;

/// When to trim, from one look to the next.
#[derive(Debug)]
struct Watch {
    used: Duration,
    /// Something was translated since the last trim.
    busy: bool,
    quiet: u32,
    /// Looks until the next trim may be.
    rest: u32,
    next_rest: u32,
}

impl Watch {
    /// Of a VM that starts.
    fn new() -> Watch {
        Watch { used: Duration::ZERO, busy: true, quiet: 0, rest: 0, next_rest: FIRST_REST }
    }

    /// Whether it is time; `used` is the CPU time since the VM's start.
    fn look(&mut self, used: Duration) -> bool {
        let idle = used.saturating_sub(self.used) <= IDLE;
        self.used = used;
        self.quiet = if idle { self.quiet + 1 } else { 0 };
        self.busy |= !idle;
        self.rest = self.rest.saturating_sub(1);
        let now = self.busy && self.quiet >= QUIET && self.rest == 0;
        if now {
            self.busy = false;
            self.rest = self.next_rest;
            self.next_rest = LONGEST_REST.min(2 * self.rest);
        }
        now
    }
}

/// Trims `vm` when it is idle, for ever.
pub async fn trim<V: Vm>(vm: &V) {
    let mut watch = Watch::new();
    loop {
        tokio::time::sleep(LOOK).await;
        // A VM that has ended is its owner's matter.
        let Ok(used) = vm.cpu_time() else { continue };
        if watch.look(used) && !vm.trim() {
            return std::future::pending().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trims(uses: impl IntoIterator<Item = u64>) -> Vec<usize> {
        let mut watch = Watch::new();
        let mut used = 0;
        let mut times = Vec::new();
        for (time, use_ms) in uses.into_iter().enumerate() {
            used += use_ms;
            if watch.look(Duration::from_millis(used)) {
                times.push(time);
            }
        }
        times
    }

    #[test]
    fn an_idle_vm_is_trimmed_once() {
        assert_eq!(trims([900, 40, 50, 40, 40]), [2]);
        assert_eq!(trims([40; 70]), [1]);
    }

    #[test]
    fn one_that_was_busy_again_is_trimmed_again_but_ever_more_seldom() {
        assert_eq!(trims([900, 30, 30, 900, 30, 30, 30, 30, 30, 30]), [2, 8]);
        // Twenty seconds of work each minute, for two hours.
        let times = trims([900, 900, 30, 30, 30, 30].into_iter().cycle().take(720));
        let rests: Vec<usize> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(rests[..5], [6, 12, 24, 48, 96]);
        assert!(rests[5..].iter().all(|rest| *rest == 96), "{rests:?}");
    }

    #[test]
    fn a_busy_one_is_not() {
        assert_eq!(trims([3000, 40, 3000, 40, 3000, 201]), [0; 0]);
        assert_eq!(trims([]), [0; 0]);
    }
}
