//! The journal of a daemon that runs: read by all, changed on disk first.

use std::sync::atomic::Ordering;

use super::{
    engine::{Engine, lock},
    journal::Journal,
};
use crate::host::gpu_driver::GpuError;

impl Engine {
    pub(super) fn journal(&self) -> Result<Journal, GpuError> {
        let journal = lock(&self.journal);
        journal.clone().map_err(|error| GpuError::State {
            what: "the journal of devices".into(),
            source: std::io::Error::other(error),
        })
    }

    /// Changes the journal: on disk first.
    pub(super) fn note<T>(&self, change: impl FnOnce(&mut Journal) -> T) -> Result<T, GpuError> {
        #[cfg(test)]
        self.fuse.point()?;
        let mut kept = lock(&self.journal);
        let state = |source| GpuError::State { what: format!("writing {}", self.store.name()), source };
        let mut journal = match &*kept {
            Ok(journal) => journal.clone(),
            Err(error) => return Err(state(std::io::Error::other(error.clone()))),
        };
        let result = change(&mut journal);
        if kept.as_ref().ok() != Some(&journal) || self.unsaved.load(Ordering::Relaxed) {
            self.store.save(&journal).map_err(state)?;
            self.unsaved.store(false, Ordering::Relaxed);
            *kept = Ok(journal);
        }
        Ok(result)
    }

    /// Changes the journal where nothing is done before the next note, with which it goes to the disk: a daemon that ends
    /// before was not asked yet.
    pub(super) fn note_with_next<T>(&self, change: impl FnOnce(&mut Journal) -> T) -> Result<T, GpuError> {
        #[cfg(test)]
        self.fuse.point()?;
        let mut kept = lock(&self.journal);
        match &mut *kept {
            Ok(journal) => {
                self.unsaved.store(true, Ordering::Relaxed);
                Ok(change(journal))
            }
            Err(error) => Err(GpuError::State {
                what: "the journal of devices".into(),
                source: std::io::Error::other(error.clone()),
            }),
        }
    }
}
