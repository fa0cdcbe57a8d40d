//! The desktops for which there is no room: who goes first, and how often each says why. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::placement::request::DesktopKey;

/// Least time between two messages of one desktop that differ only in their counts.
const SAY_AGAIN: Duration = Duration::from_secs(10);
/// How long those of lower priority wait for those of higher to try again.
const COURTESY: Duration = Duration::from_secs(3);

/// The waiting desktops.
#[derive(Debug, Default)]
pub struct Waiting {
    desktops: BTreeMap<DesktopKey, Entry>,
    order: BTreeSet<(Reverse<i32>, i64, DesktopKey)>,
    epoch: u64,
    freed_at: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    priority: i32,
    created: i64,
    tried: u64,
    said_at: Option<Instant>,
}

impl Waiting {
    /// There is no room for a desktop. `created` is when its object was made: the older goes first.
    pub fn insert(&mut self, key: &DesktopKey, priority: i32, created: i64) {
        let said_at = self.remove(key).and_then(|entry| entry.said_at);
        self.order.insert((Reverse(priority), created, key.clone()));
        self.desktops.insert(key.clone(), Entry { priority, created, tried: self.epoch, said_at });
    }

    /// A desktop waits no longer.
    pub fn forget(&mut self, key: &DesktopKey) {
        self.remove(key);
    }

    fn remove(&mut self, key: &DesktopKey) -> Option<Entry> {
        let entry = self.desktops.remove(key)?;
        self.order.remove(&(Reverse(entry.priority), entry.created, key.clone()));
        Some(entry)
    }

    /// Something may fit that did not before: all are due.
    pub fn freed(&mut self, now: Instant) {
        self.epoch += 1;
        self.freed_at = Some(now);
    }

    /// All that wait, in the order in which they should try.
    pub fn in_order(&self) -> Vec<DesktopKey> {
        self.order.iter().map(|(_, _, key)| key.clone()).collect()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.desktops.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.desktops.is_empty()
    }

    /// Whether a desktop should let others try first: those of higher priority that have not tried
    /// since something was freed. Not for longer than a moment, whatever keeps them.
    pub fn must_yield(&self, key: &DesktopKey, priority: i32, now: Instant) -> bool {
        let recent = self.freed_at.is_some_and(|at| now.saturating_duration_since(at) < COURTESY);
        recent
            && self
                .order
                .iter()
                .take_while(|(Reverse(other), _, _)| *other > priority)
                .filter(|(_, _, other)| other != key)
                .any(|(_, _, other)| self.desktops.get(other).is_some_and(|entry| entry.tried < self.epoch))
    }

    /// How long a desktop must wait until it may change its message; zero when it may now, which
    /// counts as having said it.
    pub fn may_say(&mut self, key: &DesktopKey, now: Instant) -> Duration {
        let rest = self.rest(key, now);
        if rest.is_zero()
            && let Some(entry) = self.desktops.get_mut(key)
        {
            entry.said_at = Some(now);
        }
        rest
    }

    /// The same, without counting as having said it.
    pub fn rest(&self, key: &DesktopKey, now: Instant) -> Duration {
        let said_at = self.desktops.get(key).and_then(|entry| entry.said_at);
        said_at.map_or(Duration::ZERO, |at| SAY_AGAIN.saturating_sub(now.saturating_duration_since(at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> DesktopKey {
        DesktopKey::new("demo", name)
    }

    #[test]
    fn the_more_important_and_then_the_older_goes_first() {
        let mut waiting = Waiting::default();
        waiting.insert(&key("late"), 0, 20);
        waiting.insert(&key("early"), 0, 10);
        waiting.insert(&key("important"), 5, 30);
        assert_eq!(waiting.in_order(), [key("important"), key("early"), key("late")]);
        waiting.insert(&key("late"), 9, 20);
        assert_eq!(waiting.in_order()[0], key("late"));
        assert_eq!(waiting.len(), 3);
    }

    #[test]
    fn a_newcomer_lets_the_more_important_try_first_but_not_for_ever() {
        let now = Instant::now_for_tests();
        let mut waiting = Waiting::default();
        waiting.insert(&key("important"), 5, 1);
        assert!(!waiting.must_yield(&key("new"), 0, now), "nothing was freed since it tried");
        waiting.freed(now);
        assert!(waiting.must_yield(&key("new"), 0, now));
        assert!(!waiting.must_yield(&key("new"), 5, now), "equals do not wait for each other");
        assert!(!waiting.must_yield(&key("new"), 0, now + COURTESY));
        waiting.insert(&key("important"), 5, 1);
        assert!(!waiting.must_yield(&key("new"), 0, now), "it has tried");
    }

    #[test]
    fn a_changed_message_waits_its_time() {
        let now = Instant::now_for_tests();
        let mut waiting = Waiting::default();
        waiting.insert(&key("a"), 0, 1);
        assert_eq!(waiting.may_say(&key("a"), now), Duration::ZERO);
        waiting.insert(&key("a"), 0, 1);
        assert_eq!(waiting.may_say(&key("a"), now + Duration::from_secs(4)), Duration::from_secs(6));
        assert_eq!(waiting.may_say(&key("a"), now + Duration::from_secs(10)), Duration::ZERO);
    }

    trait Clock {
        fn now_for_tests() -> Self;
    }
    impl Clock for Instant {
        #[expect(clippy::disallowed_methods, reason = "there is no other way to make an Instant")]
        fn now_for_tests() -> Self {
            Instant::now()
        }
    }
}
