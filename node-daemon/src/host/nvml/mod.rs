//! NVIDIA's management library: asked, with patience that ends.
//!
//! ```text
//!   Nvml ─▶ one thread finds the cards ─▶ one thread reads each card ─▶ DriverReadings
//!     └───▶ one thread waits for events ─▶ DriverEvent
//! ```
//!
//! Calls into the driver can hang as long as the driver does. So each reading has a deadline, and a
//! thread that is late is left behind: what it should have read is what was read before, and nobody asks
//! the same again until it comes back. At most one thread per card and one more can hang.
//!
//! NVML keeps the cards open while somebody uses it. A reading ends its use when it is over; the events
//! end theirs when their receiver is dropped. Do that before a card is given to another driver.

mod card;
pub mod control;
mod events;
mod find;
mod gate;
mod library;
mod link;
mod mig;
mod vgpu;
mod watchdog;

pub use gate::Paused;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64, mpsc},
    time::Duration,
};

use gpudesk_crds::types::PciAddress;
use gpudesk_inventory::driver::{CardFault, CardReadings, DriverEvent, DriverReadings, FaultKind};
use thiserror::Error;

use self::{
    find::{Head, find},
    gate::Gate,
    library::{CallError, Library, Session},
    watchdog::{Busy, Deadline, Job},
};

/// How long a reading may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why nothing was read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NvmlError {
    /// The library is there and cannot be loaded.
    #[error("{} cannot be loaded as NVML: {message}", path.display())]
    Library {
        /// The file.
        path: PathBuf,
        /// What the loader says.
        message: String,
    },
    /// The kernel module is not loaded.
    #[error(
        "NVIDIA's kernel module is not loaded: load it (modprobe nvidia), or ignore this if no card should use it"
    )]
    DriverNotLoaded,
    /// Library and kernel module are of different releases.
    #[error("NVIDIA's library and kernel module are of different versions: reboot, or reload the module")]
    VersionMismatch,
    /// The driver does not let us.
    #[error("NVIDIA's driver refuses access: run as root, with /dev/nvidiactl and /dev/nvidia* in sight")]
    NoPermission,
    /// A call failed that nothing goes without.
    #[error("NVIDIA's driver: {0}")]
    Call(String),
    /// The driver did not answer in time.
    #[error("NVIDIA's driver did not answer in {0} s: look for errors of NVRM in the kernel's log")]
    NoAnswer(u64),
    /// The driver still has not answered an earlier question.
    #[error("NVIDIA's driver has not answered for {0} s: look for errors of NVRM in the kernel's log")]
    StillBusy(u64),
    /// Nobody may use it now.
    #[error("NVIDIA's driver is left alone while it gives a card away")]
    Paused,
    /// It is in use, and stays so.
    #[error("the node daemon's own use of NVIDIA's driver did not end in {0} s")]
    InUse(u64),
    /// No thread could be started.
    #[error("no thread can be started to ask NVIDIA's driver: {0}")]
    Thread(String),
}

/// NVIDIA's management library, loaded. Clones share it.
#[derive(Clone)]
pub struct Nvml {
    shared: Arc<Shared>,
}

/// NVML once it is open. Clones share it.
#[derive(Clone, Default)]
pub struct SharedNvml(Arc<Mutex<Option<Arc<Nvml>>>>);

impl SharedNvml {
    /// It; `None` where there is none, or nobody has looked yet.
    pub fn get(&self) -> Option<Arc<Nvml>> {
        lock(&self.0).clone()
    }

    /// It was looked for.
    pub fn set(&self, nvml: Option<Nvml>) {
        *lock(&self.0) = nvml.map(Arc::new);
    }
}

struct Shared {
    library: Arc<Library>,
    patience: Duration,
    /// One reading at a time: who is busy when another begins, hangs.
    reading: Mutex<()>,
    busy: Busy,
    /// Who uses the library, and so holds every card open.
    gate: Gate,
    /// What was last read of each card without a fault.
    last_good: Mutex<BTreeMap<PciAddress, CardReadings>>,
    /// Grows when the cards should be looked for anew.
    rescans: AtomicU64,
}

impl Nvml {
    /// Loads the library from `path`, or from where it usually is. `Ok(None)` when there is none: this
    /// host has no NVIDIA driver. The driver is not asked anything yet.
    ///
    /// # Errors
    /// [`NvmlError::Library`] when there is a file that cannot be loaded.
    pub fn open(path: Option<&Path>) -> Result<Option<Self>, NvmlError> {
        Self::open_with_patience(path, PATIENCE)
    }

    /// As [`Nvml::open`], with another deadline for readings.
    ///
    /// # Errors
    /// As [`Nvml::open`].
    pub fn open_with_patience(path: Option<&Path>, patience: Duration) -> Result<Option<Self>, NvmlError> {
        let Some(library) = Library::open(path)? else { return Ok(None) };
        let shared = Shared {
            library: Arc::new(library),
            patience,
            reading: Mutex::default(),
            busy: Busy::default(),
            gate: Gate::default(),
            last_good: Mutex::default(),
            rescans: AtomicU64::new(0),
        };
        Ok(Some(Self { shared: Arc::new(shared) }))
    }

    /// Reads everything. Blocks, at most as long as the deadline.
    ///
    /// A card that fails, or that is not read in time, is in the result with its fault and with what was
    /// last read of it; the others are as they are.
    ///
    /// # Errors
    /// When the driver as a whole gives no answer; then nothing is known to have changed.
    pub fn read(&self) -> Result<DriverReadings, NvmlError> {
        let _reading = lock(&self.shared.reading);
        let deadline = Deadline::after(self.shared.patience);
        let (session, head) = self.head(deadline)?;
        let Head { mut readings, addresses, unknown } = head;
        let mut known = addresses;
        readings.problems.extend(self.name_the_lost(&known, &unknown, &mut readings.cards));
        known.retain(|address| readings.card(*address).is_none());
        let cards = self.read_cards(&session, &known, deadline);
        readings.cards.extend(cards.into_iter().flatten());
        readings.cards.sort_by_key(|card| card.address);
        if readings.cards.iter().any(|card| card.vgpu.is_some()) {
            readings.vgpu_manager_version.clone_from(&readings.driver_version);
        }
        Ok(readings)
    }

    /// Reads one card; `Ok(None)` when the driver has none at this address. Blocks, as [`Nvml::read`].
    ///
    /// # Errors
    /// When the driver as a whole gives no answer.
    pub fn read_card(&self, address: PciAddress) -> Result<Option<CardReadings>, NvmlError> {
        let _reading = lock(&self.shared.reading);
        let deadline = Deadline::after(self.shared.patience);
        let library = Arc::clone(&self.shared.library);
        let gate = self.shared.gate.clone();
        let session =
            self.job(Job::Head, deadline, move || Session::begin(library, &gate).map(Arc::new))??;
        Ok(self.read_cards(&session, &BTreeSet::from([address]), deadline).pop().flatten())
    }

    /// Waits for what cards report of their own accord, on a thread of its own, until the receiver is
    /// dropped. A card that cannot be listened to is passed over.
    ///
    /// # Errors
    /// When listening cannot begin.
    pub fn events(&self) -> Result<tokio::sync::mpsc::Receiver<DriverEvent>, NvmlError> {
        events::listen(&self.shared)
    }

    /// One card, to be changed; `log` hears of each change. Blocks. A card that came to the driver while
    /// somebody used the library is found after [`Nvml::rescan`].
    ///
    /// # Errors
    /// When the driver does not answer, or has no such card.
    pub fn control(
        &self,
        card: PciAddress,
        log: Arc<dyn control::ChangeLog>,
    ) -> Result<control::Control, control::NvmlFault> {
        control::Control::open(Arc::clone(&self.shared.library), &self.shared.gate, card, log)
    }

    /// Ends every use of the library by this process, until what is returned is dropped: it holds all cards open. Blocks
    /// for some seconds at most.
    ///
    /// # Errors
    /// [`NvmlError::InUse`] when one does not end, as when a thread hangs in the driver; then all goes on.
    pub fn pause(&self) -> Result<Paused, NvmlError> {
        self.shared.gate.pause()
    }

    /// Looks for cards anew: NVML sees those that were there when its use began. Call it when the
    /// kernel binds a card to the driver, or unbinds one. Without a listener to events each reading
    /// does so by itself; with one it happens within about a second.
    pub fn rescan(&self) {
        self.shared.rescans.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// Does `work` on a thread of its own.
    fn job<T: Send + 'static>(
        &self,
        job: Job,
        deadline: Deadline,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NvmlError> {
        let busy = self.shared.busy.begin(job).map_err(|since| NvmlError::StillBusy(since.as_secs()))?;
        let answered = busy.spawn(work)?;
        answered
            .recv_timeout(deadline.left())
            .map_err(|_| NvmlError::NoAnswer(self.shared.patience.as_secs()))
    }

    fn head(&self, deadline: Deadline) -> Result<(Arc<Session>, Head), NvmlError> {
        let library = Arc::clone(&self.shared.library);
        let gate = self.shared.gate.clone();
        self.job(Job::Head, deadline, move || {
            let session = Arc::new(Session::begin(library, &gate)?);
            let head = find(&session)?;
            Ok((session, head))
        })?
    }

    /// One entry per address; `None` where the driver has no card.
    fn read_cards(
        &self,
        session: &Arc<Session>,
        addresses: &BTreeSet<PciAddress>,
        deadline: Deadline,
    ) -> Vec<Option<CardReadings>> {
        let begun: Vec<_> =
            addresses.iter().map(|address| (*address, self.begin_card(session, *address))).collect();
        let finished =
            begun.into_iter().map(|(address, begun)| {
                let answer = begun.and_then(|answered| {
                    answered
                        .recv_timeout(deadline.left())
                        .map_err(|_| NvmlError::NoAnswer(self.shared.patience.as_secs()))
                });
                match answer {
                    Ok(Some(found)) => Some(self.with_last_good(found)),
                    Ok(None) => None,
                    Err(error) => {
                        let fault = CardFault { kind: FaultKind::NoAnswer, message: error.to_string() };
                        Some(self.with_last_good(CardReadings {
                            fault: Some(fault),
                            ..CardReadings::new(address)
                        }))
                    }
                }
            });
        finished.collect()
    }

    fn begin_card(
        &self,
        session: &Arc<Session>,
        address: PciAddress,
    ) -> Result<mpsc::Receiver<Option<CardReadings>>, NvmlError> {
        let busy = self
            .shared
            .busy
            .begin(Job::Card(address))
            .map_err(|since| NvmlError::StillBusy(since.as_secs()))?;
        let session = Arc::clone(session);
        busy.spawn(move || card::read(session.functions(), address))
    }

    /// A card with a fault keeps what was last read of it; one without is remembered.
    fn with_last_good(&self, found: CardReadings) -> CardReadings {
        let mut last_good = lock(&self.shared.last_good);
        match &found.fault {
            None => {
                last_good.insert(found.address, found.clone());
                found
            }
            Some(_) => match last_good.get(&found.address) {
                Some(before) => CardReadings { fault: found.fault, ..before.clone() },
                None => found,
            },
        }
    }

    /// A card that is lost may not even tell its address. When exactly those are missing that were read
    /// before, they are the lost ones; otherwise all that can be said is how many there are.
    fn name_the_lost(
        &self,
        there: &BTreeSet<PciAddress>,
        unknown: &[CallError],
        cards: &mut Vec<CardReadings>,
    ) -> Vec<String> {
        let missing: Vec<PciAddress> = {
            let mut last_good = lock(&self.shared.last_good);
            if unknown.is_empty() {
                // Who is missing then was taken away, and is not looked for any more.
                last_good.retain(|address, _| there.contains(address));
            }
            last_good.keys().copied().filter(|address| !there.contains(address)).collect()
        };
        if !missing.is_empty() && missing.len() == unknown.len() {
            for (address, error) in missing.into_iter().zip(unknown) {
                let other = CardFault { kind: FaultKind::Other, message: error.to_string() };
                let fault = card::fault(*error).unwrap_or(other);
                cards.push(
                    self.with_last_good(CardReadings { fault: Some(fault), ..CardReadings::new(address) }),
                );
            }
            return vec![];
        }
        let sentence =
            |error: &CallError| format!("A card of NVIDIA's driver does not tell its address ({error}).");
        let sentences: BTreeSet<String> = unknown.iter().map(sentence).collect();
        sentences.into_iter().collect()
    }
}

/// What a thread that panicked leaves behind is still good: each change under these locks is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
