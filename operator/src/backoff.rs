//! How long to wait after a failure: doubled each time, capped, spread by chance.
#![expect(clippy::disallowed_methods, reason = "an adapter: it looks at the clock")]

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(500);
const CAP: Duration = Duration::from_mins(2);
/// After this long without a failure an object is gone, or well: a round takes far less.
const FORGOTTEN: Duration = Duration::from_mins(10);

/// Failures in a row, per object.
#[derive(Debug)]
pub struct Backoff<K> {
    failures: Mutex<HashMap<K, Failures>>,
    chance: RandomState,
}

/// How often an object failed in a row, and when last.
#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    last: Instant,
}

impl<K> Default for Backoff<K> {
    fn default() -> Self {
        Self { failures: Mutex::default(), chance: RandomState::new() }
    }
}

impl<K: Hash + Eq> Backoff<K> {
    /// It succeeded, or is gone: the next failure is the first again.
    pub fn reset(&self, key: &K) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// It failed: how long to wait. Between half and all of the doubled time.
    pub fn failed(&self, key: K) -> Duration {
        let chance = self.chance.hash_one(&key);
        let now = Instant::now();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever is still there has tried again by now: the others are gone.
        failures.retain(|_, failures| now.saturating_duration_since(failures.last) < FORGOTTEN);
        let Failures { count, last } = failures.entry(key).or_insert(Failures { count: 0, last: now });
        *last = now;
        let full = CAP.min(FIRST.saturating_mul(1 << (*count).min(12)));
        *count = count.saturating_add(1);
        let part = u32::try_from((chance.rotate_left(*count)) % 512).unwrap_or(0);
        full / 2 + full * part / 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_start_over_after_success() {
        let backoff = Backoff::default();
        for count in 0..40u32 {
            let full = CAP.min(FIRST * (1 << count.min(12)));
            let wait = backoff.failed("a");
            assert!(wait >= full / 2 && wait <= full, "failure {count}: {wait:?}");
        }
        assert!(backoff.failed("b") <= FIRST);
        backoff.reset(&"a");
        assert!(backoff.failed("a") <= FIRST);
    }
}
