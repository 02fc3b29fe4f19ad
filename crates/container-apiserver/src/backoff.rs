//! Pauses between failures and the next attempts at the same thing.

use std::time::{Duration, Instant};

/// A failure, and for how long nothing is tried again.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    since: Instant,
    pause: Duration,
}

impl Backoff {
    /// A failure now: a pause of `first`, or twice the one before and at most `longest`.
    pub fn after(before: Option<Backoff>, first: Duration, longest: Duration) -> Backoff {
        let pause = before.map_or(first, |before| (before.pause * 2).min(longest));
        Backoff { since: Instant::now(), pause }
    }

    /// How long that is, from the failure on.
    pub fn pause(&self) -> Duration {
        self.pause
    }

    /// Whether nothing should be tried yet.
    pub fn lasts(&self) -> bool {
        self.since.elapsed() < self.pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let [first, longest] = [4, 10].map(Duration::from_secs);
        let mut backoff = None;
        for expected in [4, 8, 10, 10] {
            let next = Backoff::after(backoff, first, longest);
            assert_eq!(next.pause, Duration::from_secs(expected));
            assert!(next.lasts());
            backoff = Some(next);
        }
        assert!(!Backoff::after(None, Duration::ZERO, longest).lasts());
    }
}
