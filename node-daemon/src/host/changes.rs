//! What changed on the host and was not read again yet.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use gpudesk_inventory::topology::uevent::Change;
use tokio::sync::Notify;

/// From how many changes on everything is read again at once.
const MANY: usize = 64;

/// A set of changes, and a bell. Changes that repeat are one; very many become [`Change::Whole`].
#[derive(Debug, Default)]
pub struct Changes {
    waiting: Mutex<BTreeSet<Change>>,
    bell: Notify,
}

impl Changes {
    /// Adds a change and wakes who waits.
    pub fn add(&self, change: Change) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MANY {
            waiting.clear();
            waiting.insert(Change::Whole);
        }
        if !waiting.contains(&Change::Whole) {
            waiting.insert(change);
        }
        drop(waiting);
        self.bell.notify_one();
    }

    /// Takes all that waits.
    pub fn take(&self) -> BTreeSet<Change> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = std::mem::take(&mut *waiting);
        if taken.contains(&Change::Whole) { BTreeSet::from([Change::Whole]) } else { taken }
    }

    /// Ends when something waits. For one waiter.
    pub async fn some(&self) {
        self.bell.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn very_many_changes_are_one_whole_pass() {
        let changes = Changes::default();
        for bus in 0..=255_u8 {
            changes.add(Change::Function(format!("0000:{bus:02x}:00.0").parse().unwrap()));
        }
        assert_eq!(changes.take(), BTreeSet::from([Change::Whole]));
        assert!(changes.take().is_empty());
    }

    #[tokio::test]
    async fn a_change_before_the_wait_is_not_lost() {
        let changes = Changes::default();
        changes.add(Change::Compute);
        changes.add(Change::Compute);
        changes.some().await;
        assert_eq!(changes.take(), BTreeSet::from([Change::Compute]));
    }
}
