//! Who uses NVML, and the pauses in which nobody does.
#![expect(clippy::disallowed_methods, reason = "adapter: measures how long a use takes to end")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::NvmlError;

/// How long uses may take to end: a wait for events takes a second, a reading of a card rarely more.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a use waits for a pause to end.
const WAIT: Duration = Duration::from_secs(15);

/// Counts uses and pauses. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<Shared>);

#[derive(Default)]
struct Shared {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Default)]
struct Counts {
    /// When each began.
    uses: BTreeMap<u64, Instant>,
    next: u64,
    pauses: usize,
}

/// A use, until it is dropped.
pub(super) struct Use(Gate, u64);

/// A pause, until it is dropped.
pub struct Paused(Gate);

impl Gate {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `is_so`, or for so long.
    fn wait(&self, limit: Duration, is_so: impl Fn(&Counts) -> bool) -> Option<MutexGuard<'_, Counts>> {
        let end = Instant::now() + limit;
        let mut counts = self.counts();
        while !is_so(&counts) {
            let left = end.checked_duration_since(Instant::now())?;
            let waited = self.0.changed.wait_timeout(counts, left);
            counts = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(counts)
    }

    /// Begins a use, once no pause is on.
    ///
    /// # Errors
    /// [`NvmlError::Paused`] when one does not end.
    pub(super) fn enter(&self) -> Result<Use, NvmlError> {
        let mut counts = self.wait(WAIT, |counts| counts.pauses == 0).ok_or(NvmlError::Paused)?;
        let number = counts.next;
        counts.next += 1;
        counts.uses.insert(number, Instant::now());
        Ok(Use(self.clone(), number))
    }

    /// Begins a pause: nobody enters any more, and those who are in leave.
    ///
    /// # Errors
    /// When they do not; at once where one is in a call that the driver does not come back from, for others go on.
    pub(super) fn pause(&self) -> Result<Paused, NvmlError> {
        let mut counts = self.counts();
        if counts.uses.values().any(|begun| begun.elapsed() > PATIENCE) {
            return Err(NvmlError::InUse(PATIENCE.as_secs()));
        }
        counts.pauses += 1;
        drop(counts);
        let paused = Paused(self.clone());
        match self.wait(PATIENCE, |counts| counts.uses.is_empty()) {
            Some(_) => Ok(paused),
            None => Err(NvmlError::InUse(PATIENCE.as_secs())),
        }
    }

    /// Whether a pause is on, or waited for.
    pub(super) fn is_closed(&self) -> bool {
        self.counts().pauses > 0
    }

    /// Waits until no pause is on, for some seconds.
    pub(super) fn wait_open(&self) {
        drop(self.wait(WAIT, |counts| counts.pauses == 0));
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.0.counts().uses.remove(&self.1);
        self.0.0.changed.notify_all();
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.0.counts().pauses -= 1;
        self.0.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_pause_waits_for_those_who_are_in_and_holds_up_those_who_come() {
        let gate = Gate::default();
        let first = gate.enter().unwrap();
        let pausing = thread::spawn({
            let gate = gate.clone();
            move || gate.pause().map(drop)
        });
        while !gate.is_closed() {
            thread::yield_now();
        }
        let second = thread::spawn({
            let gate = gate.clone();
            move || gate.enter().map(drop)
        });
        drop(first);
        pausing.join().unwrap().unwrap();
        second.join().unwrap().unwrap();
        assert!(!gate.is_closed());
        let counts = gate.counts();
        assert_eq!((counts.uses.len(), counts.pauses), (0, 0));
    }

    #[test]
    fn pauses_may_overlap() {
        let gate = Gate::default();
        let (one, two) = (gate.pause().unwrap(), gate.pause().unwrap());
        drop(one);
        assert!(gate.is_closed());
        drop(two);
        gate.enter().unwrap();
    }
}
