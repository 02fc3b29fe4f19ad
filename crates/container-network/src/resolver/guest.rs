//! What one container has done, and how much it may.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::Semaphore;

/// Questions a second of one container, in the long run.
const RATE: f64 = 1000.0;
/// Questions that it may ask at once.
const BURST: f64 = 2000.0;
/// Questions of one container that are being asked for outside.
const OUTSTANDING: usize = 100;
/// TCP connections of one container.
const CONNECTIONS: usize = 16;
/// Refused names that are remembered.
const NAMES: usize = 16;
/// Refused names that are logged, at once and a second.
const LOGGED: (f64, f64) = (10.0, 1.0);

/// A container's share.
#[derive(Debug)]
pub struct Guest {
    questions: Mutex<Bucket>,
    /// Being asked for outside.
    pub outstanding: Arc<Semaphore>,
    /// TCP connections.
    pub connections: Arc<Semaphore>,
    refused: AtomicU64,
    names: Mutex<(VecDeque<String>, Bucket)>,
}

impl Default for Guest {
    fn default() -> Guest {
        Guest {
            questions: Mutex::new(Bucket::new(BURST, RATE)),
            outstanding: Arc::new(Semaphore::new(OUTSTANDING)),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            refused: AtomicU64::new(0),
            names: Mutex::new((VecDeque::new(), Bucket::new(LOGGED.0, LOGGED.1))),
        }
    }
}

impl Guest {
    /// Whether it may ask another question now.
    pub fn admit(&self) -> bool {
        super::locked(&self.questions).take(Instant::now())
    }

    /// Notes that it was not told what it asked for. True: worth a line in the log.
    pub fn refuse(&self, name: &str) -> bool {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let mut names = super::locked(&self.names);
        let (recent, bucket) = &mut *names;
        if recent.iter().any(|known| known == name) {
            return false;
        }
        if recent.len() == NAMES {
            recent.pop_front();
        }
        recent.push_back(name.to_owned());
        bucket.take(Instant::now())
    }

    /// How many it was not told, and the newest names of these.
    pub fn refused(&self) -> (u64, Vec<String>) {
        let names = super::locked(&self.names).0.iter().cloned().collect();
        (self.refused.load(Ordering::Relaxed), names)
    }
}

/// Lets `burst` through at once and `rate` a second in the long run.
#[derive(Debug)]
struct Bucket {
    burst: f64,
    rate: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    fn new(burst: f64, rate: f64) -> Bucket {
        Bucket { burst, rate, left: burst, at: Instant::now() }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.rate).min(self.burst);
        self.at = now;
        let admitted = self.left >= 1.0;
        if admitted {
            self.left -= 1.0;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_bucket_fills_with_time() {
        let start = Instant::now();
        let mut bucket = Bucket { at: start, ..Bucket::new(3.0, 2.0) };
        assert_eq!((0..5).filter(|_| bucket.take(start)).count(), 3);
        assert!(bucket.take(start + Duration::from_millis(500)));
        assert!(!bucket.take(start + Duration::from_millis(600)));
        let later = start + Duration::from_secs(60);
        assert_eq!((0..5).filter(|_| bucket.take(later)).count(), 3);
    }

    #[test]
    fn refused_names_are_remembered_and_bounded() {
        let guest = Guest::default();
        assert!(guest.refuse("a"));
        assert!(!guest.refuse("a"));
        let logged = (0..100).filter(|n| guest.refuse(&format!("n{n}"))).count();
        assert!(logged < 20, "{logged}");
        let (count, names) = guest.refused();
        assert_eq!((count, names.len()), (102, NAMES));
        assert_eq!(names.last().map(String::as_str), Some("n99"));
    }
}
