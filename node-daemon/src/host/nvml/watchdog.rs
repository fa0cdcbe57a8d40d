//! Threads that may never come back, and who must not be asked again until they do.
#![expect(clippy::disallowed_methods, reason = "adapter: measures how long the driver takes")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use gpudesk_crds::types::PciAddress;

use super::{NvmlError, lock};

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Job {
    /// Begins the use of NVML and finds the cards.
    Head,
    /// Reads one card.
    Card(PciAddress),
    /// Waits for events.
    Events,
}

/// When an answer is late.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Instant);

impl Deadline {
    pub(super) fn after(patience: Duration) -> Self {
        Self(Instant::now() + patience)
    }

    pub(super) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// Who is busy, and since when.
#[derive(Clone, Default)]
pub(super) struct Busy(Arc<Mutex<BTreeMap<Job, Instant>>>);

/// One thread's place among the busy ones; free again when it is dropped.
pub(super) struct Place {
    busy: Busy,
    job: Job,
}

impl Busy {
    /// # Errors
    /// How long somebody has been at it already.
    pub(super) fn begin(&self, job: Job) -> Result<Place, Duration> {
        let mut jobs = lock(&self.0);
        if let Some(since) = jobs.get(&job) {
            return Err(since.elapsed());
        }
        jobs.insert(job, Instant::now());
        Ok(Place { busy: self.clone(), job })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.busy.0).remove(&self.job);
    }
}

impl Place {
    /// Does `work` on a thread that holds the place until it is done, and sends what comes of it.
    pub(super) fn spawn<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Receiver<T>, NvmlError> {
        let name = match self.job {
            Job::Head => "nvml".to_owned(),
            Job::Card(address) => format!("nvml {:02x}:{:02x}", address.bus, address.device),
            Job::Events => "nvml events".to_owned(),
        };
        let (answer, answered) = sync_channel(1);
        let spawned = thread::Builder::new().name(name).spawn(move || {
            let done = work();
            // Who gets the answer may ask again at once.
            drop(self);
            // Nobody waits any more when it comes late.
            let _ = answer.send(done);
        });
        spawned.map(|_| answered).map_err(|error| NvmlError::Thread(error.to_string()))
    }
}
