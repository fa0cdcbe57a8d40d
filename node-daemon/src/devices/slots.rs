//! One piece of work per card at a time, each on a thread of its own: the kernel may wait without end in a write, and then
//! it is said what is waited for, and nothing else stands still.
#![expect(clippy::disallowed_methods, reason = "adapter: notes since when a card is worked on")]

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use gpudesk_crds::types::PciAddress;
use jiff::Timestamp;

use super::step::Step;

/// What is being done on a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Doing {
    /// In words.
    pub(super) what: String,
    /// Since when.
    pub(super) since: Timestamp,
    /// The step, once it is known.
    pub(super) step: Option<Step>,
}

impl Doing {
    fn begun(what: &str) -> Self {
        Self { what: what.into(), since: Timestamp::now(), step: None }
    }
}

/// The cards that are worked on.
#[derive(Debug, Default)]
pub(super) struct Slots {
    busy: Mutex<BTreeMap<PciAddress, Doing>>,
    free: Condvar,
}

/// Why work gave nothing.
#[derive(Debug)]
pub(super) enum NotDone {
    /// It goes on; or other work on the card does, and this was not begun.
    Waiting(Doing),
    /// There was no thread for it, or it failed in this program.
    Failed(io::Error),
}

/// A card that is worked on, until it is dropped.
pub(super) struct Slot {
    slots: Arc<Slots>,
    card: PciAddress,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.busy().remove(&self.card);
        self.slots.free.notify_all();
    }
}

impl Slot {
    /// Says what is done now.
    pub(super) fn say(&self, step: &Step) {
        let doing = Doing { step: Some(step.clone()), ..Doing::begun(&step.to_string()) };
        self.slots.busy().insert(self.card, doing);
    }
}

impl Slots {
    fn busy(&self) -> MutexGuard<'_, BTreeMap<PciAddress, Doing>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has been going on for longer than `patience`.
    pub(super) fn waiting(&self, patience: Duration) -> BTreeMap<PciAddress, Doing> {
        let busy = self.busy();
        let now = Timestamp::now();
        let is_long = |doing: &Doing| {
            Duration::try_from(now.duration_since(doing.since)).is_ok_and(|long| long >= patience)
        };
        busy.iter().filter(|(_, doing)| is_long(doing)).map(|(card, doing)| (*card, doing.clone())).collect()
    }

    fn take(self: &Arc<Self>, card: PciAddress, what: &str, until: Instant) -> Result<Slot, Doing> {
        let mut busy = self.busy();
        loop {
            let Some(doing) = busy.get(&card).cloned() else {
                busy.insert(card, Doing::begun(what));
                return Ok(Slot { slots: Arc::clone(self), card });
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(doing);
            }
            busy = self.free.wait_timeout(busy, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Does `work` on a card, and waits for it so long. Work that takes longer goes on, and the card has no other before
    /// it ends.
    pub(super) fn run<T: Send + 'static>(
        self: &Arc<Self>,
        card: PciAddress,
        what: &str,
        patience: Duration,
        work: impl FnOnce(&Slot) -> T + Send + 'static,
    ) -> Result<T, NotDone> {
        let until = Instant::now() + patience;
        let slot = self.take(card, what, until).map_err(NotDone::Waiting)?;
        let (sender, receiver) = mpsc::sync_channel(1);
        let begun = thread::Builder::new().name(format!("card {card}")).spawn(move || {
            let done = work(&slot);
            drop(slot);
            let _ = sender.send(done);
        });
        begun.map_err(NotDone::Failed)?;
        // Its end counts, however little time was left.
        match receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(done) => Ok(done),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let doing = self.busy().get(&card).cloned();
                let done = || Doing::begun(what);
                receiver.try_recv().map_err(|_| NotDone::Waiting(doing.unwrap_or_else(done)))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(NotDone::Failed(io::Error::other("it failed in this program")))
            }
        }
    }

    /// Begins `work` on a card that nobody works on; whether it did.
    pub(super) fn begin(
        self: &Arc<Self>,
        card: PciAddress,
        what: &str,
        work: impl FnOnce(&Slot) + Send + 'static,
    ) -> bool {
        let Ok(slot) = self.take(card, what, Instant::now()) else { return false };
        let begun = thread::Builder::new().name(format!("card {card}")).spawn(move || work(&slot));
        if let Err(error) = &begun {
            tracing::warn!(%card, %error, "no thread for the upkeep of a card");
        }
        begun.is_ok()
    }
}
