//! The driver of real cards: plans, notes, does one step, and looks again.
#![expect(clippy::disallowed_methods, reason = "adapter: notes when a card was reset")]

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant},
};

use gpudesk_crds::{
    GpuNodeSpec,
    gpu_node::DevicePolicy,
    gpu_node_status::{Device, HostDevice},
    types::{PciAddress, ShareMode},
};
use gpudesk_inventory::{status::CardState, topology::HostFacts};
use jiff::Timestamp;
use tokio::sync::Notify;

use super::{
    control::DriverControl,
    fabric::is_on_fabric,
    handed::ForeignName,
    host_devices::unknown_owner,
    journal::{Entry, Journal, State},
    journal_ends::Identity,
    kernel::{Kernel, line},
    live::LiveCard,
    notices::Notice,
    observe::{Opened, observe},
    perform::{Failure, Outcome, perform},
    plan::{Wanted, params, plan, settings::Wish},
    refusal::Refusal,
    slots::{NotDone, Slot, Slots},
    step::Step,
    store::Store,
    told::describe,
};
use crate::{
    crash_point,
    foreign_domains::ForeignDomains,
    host::{
        fabric::{FabricError, FabricManager, Partition},
        gpu_driver::{CardFigures, GpuDriver, GpuError, GpuInstance, InstanceKey, WantedInstance},
    },
    partition::{self, Share},
};

/// How long somebody waits for work on a card, before it is said what is waited for.
const PATIENCE: Duration = Duration::from_secs(8);
/// How soon a card is looked after again that could not be put back; ever later while nothing changes.
const PAUSE: Duration = Duration::from_secs(2);
/// More steps than any share takes.
const MOST_STEPS: usize = 512;

/// What gives real cards to desktops. Clones share it.
#[derive(Clone)]
pub struct Devices {
    pub(super) engine: Arc<Engine>,
}

/// What was last seen of the host, and what its owner says.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) cards: Vec<Device>,
    pub(super) host_devices: Vec<HostDevice>,
    pub(super) spec: Option<GpuNodeSpec>,
    /// What the manager of its fabric lists, where it has one.
    pub(super) partitions: Option<Result<Vec<Partition>, FabricError>>,
}

pub(super) struct Engine {
    pub(super) kernel: Arc<dyn Kernel>,
    pub(super) control: Arc<dyn DriverControl>,
    pub(super) fabric: OnceLock<Arc<dyn FabricManager>>,
    /// One at a time changes partitions, for they are of several cards.
    pub(super) fabric_turn: Mutex<()>,
    pub(super) store: Store,
    /// As it is on disk, but for what is [`Engine::unsaved`]; or why that cannot be told.
    pub(super) journal: Mutex<Result<Journal, String>>,
    /// Whether something was noted that goes to the disk with the next note.
    pub(super) unsaved: AtomicBool,
    pub(super) seen: Mutex<Seen>,
    pub(super) slots: Arc<Slots>,
    /// Cards of which something is still to be put back: how many shares are, of how many.
    pub(super) restoring: Mutex<BTreeMap<PciAddress, (usize, usize)>>,
    pub(super) wake: Mutex<Option<Arc<Notify>>>,
    /// What work that is tried again waits for, and since when.
    pub(super) blocked: Mutex<BTreeMap<PciAddress, (String, Timestamp)>>,
    /// What became of each name that the admin hands over.
    pub(super) answers: Mutex<BTreeMap<ForeignName, Result<(), String>>>,
    /// Resets so far, by method and whether they succeeded.
    pub(super) resets: Mutex<BTreeMap<(String, bool), u64>>,
    pub(super) patience: Duration,
    /// When a card is looked after again that was as it should not be, and how long after that.
    pub(super) turns: Mutex<BTreeMap<PciAddress, (Instant, Duration)>>,
    /// The shortest time between two such looks.
    pub(super) pause: Duration,
    #[cfg(test)]
    pub(super) fuse: Arc<super::kill_tests::Fuse>,
}

/// What a card is brought to.
#[derive(Clone, Debug)]
pub(super) enum Goal {
    There(InstanceKey),
    Gone(InstanceKey),
    Home,
    Adopted,
    Host,
}

/// Why a card was not brought to it.
#[derive(Debug)]
pub(super) enum Stop {
    Error(GpuError),
    /// The card is not as it was before its user.
    Stranded(String),
}

impl From<GpuError> for Stop {
    fn from(error: GpuError) -> Self {
        Self::Error(error)
    }
}

/// What a thread that panicked leaves behind is still right: each change under these locks is one step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Devices {
    /// The cards of the host that `kernel` shows, with the journal below `state_dir`. Nothing is changed before
    /// [`GpuDriver::settle`].
    pub fn open(kernel: Arc<dyn Kernel>, control: Arc<dyn DriverControl>, state_dir: &Path) -> Self {
        let boot = line(&*kernel, "proc/sys/kernel/random/boot_id").ok().flatten().unwrap_or_default();
        let store = Store::below(state_dir);
        // Without it nobody can tell whether what was noted is of now.
        let journal = if boot.is_empty() {
            Err("the kernel does not tell which boot of the host this is (/proc/sys/kernel/random/boot_id)"
                .into())
        } else {
            store.load(&boot).map(|journal| journal.after_reboot(&boot))
        };
        match &journal {
            Ok(journal) => {
                for entry in &journal.shares {
                    let (key, card, underway) = (&entry.key, entry.card, &entry.underway);
                    tracing::info!(%key, %card, state = ?entry.state, ?underway, "a share that was noted down");
                }
            }
            Err(error) => tracing::error!(error, "no card is given or taken back"),
        }
        let mut restoring = BTreeMap::new();
        for entry in journal.iter().flat_map(|journal| &journal.shares) {
            restoring.entry(entry.card).or_insert((0, 0)).1 += 1;
        }
        let engine = Engine {
            kernel,
            control,
            fabric: OnceLock::new(),
            fabric_turn: Mutex::default(),
            store,
            journal: Mutex::new(journal),
            unsaved: AtomicBool::new(false),
            seen: Mutex::default(),
            slots: Arc::default(),
            restoring: Mutex::new(restoring),
            wake: Mutex::default(),
            blocked: Mutex::default(),
            answers: Mutex::default(),
            resets: Mutex::default(),
            patience: PATIENCE,
            turns: Mutex::default(),
            pause: if cfg!(test) { Duration::ZERO } else { PAUSE },
            #[cfg(test)]
            fuse: Arc::default(),
        };
        Self { engine: Arc::new(engine) }
    }

    /// Does `work` on a card, on a thread of its own.
    fn on_card<T: Send + 'static>(
        &self,
        card: PciAddress,
        what: &str,
        work: impl FnOnce(&Engine, &Slot) -> Result<T, GpuError> + Send + 'static,
    ) -> Result<T, GpuError> {
        let engine = Arc::clone(&self.engine);
        lock(&engine.turns).remove(&card);
        let done = self.engine.slots.run(card, what, self.engine.patience, move |slot| work(&engine, slot));
        match done {
            Ok(done) => done,
            Err(NotDone::Waiting(doing)) => {
                Err(GpuError::Waiting { card, what: doing.what, since: doing.since })
            }
            Err(NotDone::Failed(source)) => {
                Err(GpuError::State { what: format!("working on {card}"), source })
            }
        }
    }
}

impl Engine {
    pub(super) fn opened(&self) -> Result<Opened, GpuError> {
        self.kernel.open_devices().map_err(|source| GpuError::State {
            what: "looking who has devices of the host open".into(),
            source,
        })
    }

    pub(super) fn look(&self, card: PciAddress, opened: &Opened) -> Result<Option<LiveCard>, GpuError> {
        observe(&*self.kernel, &*self.control, opened, card)
            .map_err(|source| GpuError::State { what: format!("looking at {card}"), source })
    }

    fn perform(&self, card: PciAddress, step: &Step, journal: &Journal) -> Result<Outcome, Failure> {
        #[cfg(test)]
        self.fuse.point().map_err(|error| Failure::NotSo(error.to_string()))?;
        tracing::info!(%card, "{step}");
        let known = journal.cards.get(&card).map(|card| &card.registers);
        let registers = known.zip(step.function()).and_then(|(known, of)| *known.get(&of)?);
        let done = perform(&*self.kernel, &*self.control, step, registers, Timestamp::now());
        crash_point::done(crash_point::Step::CardChanged);
        #[cfg(test)]
        self.fuse.point().map_err(|error| Failure::NotSo(error.to_string()))?;
        done
    }

    /// Brings a card to a goal, step by step, and returns it as it then is; `None` when nothing is at its address.
    pub(super) fn bring(&self, card: PciAddress, goal: &Goal, slot: &Slot) -> Result<Option<LiveCard>, Stop> {
        let making = matches!(goal, Goal::There(_) | Goal::Host);
        let key = match goal {
            Goal::There(key) | Goal::Gone(key) => Some(key),
            Goal::Home | Goal::Adopted | Goal::Host => None,
        };
        let mut opened = self.opened()?;
        let mut is_fresh = true;
        for _ in 0..MOST_STEPS {
            let journal = self.journal()?;
            let entry = key.and_then(|key| journal.entry(key));
            let wanted = match (goal, entry) {
                (Goal::There(_), Some(entry)) => Wanted::There(entry),
                (Goal::Gone(_), Some(entry)) => Wanted::Gone(entry),
                (Goal::There(_) | Goal::Gone(_), None) => return Ok(None),
                (Goal::Home, _) => Wanted::Home,
                (Goal::Adopted, _) => Wanted::Adopted,
                (Goal::Host, _) => Wanted::Host,
            };
            let Some(live) = self.look(card, &opened)? else {
                return if matches!(goal, Goal::There(_)) {
                    Err(GpuError::NoSuchCard(card).into())
                } else {
                    Ok(None)
                };
            };
            let steps = plan(&live, &journal, wanted).map_err(|source| unfit(card, source))?;
            let Some(step) = steps.into_iter().next() else { return Ok(Some(live)) };
            if step.needs_it_closed() && !is_fresh {
                // Before the kernel may wait in it: who has it open now?
                (opened, is_fresh) = (self.opened()?, true);
                continue;
            }
            is_fresh = false;
            slot.say(&step);
            self.note(|journal| journal.begin(card, key, &step, &live, making))?;
            match self.perform(card, &step, &journal) {
                Ok(Outcome::Done) => {
                    if let Step::Clocks { .. } = step {
                        self.note(|journal| journal.done(card, &step))?;
                    }
                }
                Ok(Outcome::Erased(erasure)) => self.erased(card, erasure)?,
                Ok(Outcome::Registers(of, told)) => {
                    self.note(|journal| journal.note_registers(card, of, told))?;
                }
                Ok(Outcome::Reset(reset)) => {
                    let (fault, of) = (reset.fault.clone(), step.function());
                    self.count(&reset);
                    self.note(|journal| journal.note_reset(card, key, of, reset))?;
                    if let Some(fault) = fault {
                        return Err(Stop::Stranded(fault));
                    }
                }
                Err(Failure::Refused(source)) => return Err(GpuError::Unfit { card, source }.into()),
                // No driver of the host wants it, or the one for guests takes it again by its ids: it stays so.
                Err(failure @ Failure::NotSo(_))
                    if matches!((goal, &step), (Goal::Adopted, Step::Probe { .. })) =>
                {
                    tracing::warn!(%card, %failure, "what was handed over has no driver of the host");
                    let left = step.function();
                    self.note(|journal| left.into_iter().for_each(|left| journal.let_be(card, left)))?;
                }
                Err(failure) if !making && matches!(step, Step::BarSize { .. }) => {
                    tracing::warn!(%card, %failure, "{step}: it stays as it is until the host reboots");
                    self.note(|journal| journal.leave_size(card))?;
                }
                // A driver that does not take its card back, after a reset or a reboot of it.
                Err(failure @ Failure::NotSo(_)) if !making && matches!(step, Step::Probe { .. }) => {
                    return Err(Stop::Stranded(failure.to_string()));
                }
                Err(failure) => {
                    let (step, why) = (step.to_string(), failure.to_string());
                    return Err(GpuError::Step { card, step, why }.into());
                }
            }
        }
        let why = format!("it is not as wanted after {MOST_STEPS} steps");
        Err(GpuError::Step { card, step: "bringing it to what is wanted".into(), why }.into())
    }

    /// Why a card is given to nobody, whatever is on it.
    pub(super) fn closed(&self, card: PciAddress) -> Option<String> {
        if let Some(why) = self.kernel.unable() {
            return Some(why);
        }
        let seen = lock(&self.seen);
        let device = seen.cards.iter().find(|device| device.pci_address == card);
        let rule =
            seen.spec.as_ref().zip(device).and_then(|(spec, card)| spec.rule_for(card, seen.cards.iter()));
        let rule = rule.filter(gpudesk_crds::gpu_node_rules::CardRule::keeps);
        rule.map(|_| format!("the owner of this host keeps {card}"))
    }

    /// What the owner's rules say of a card.
    fn policy(&self, card: PciAddress) -> Option<DevicePolicy> {
        let seen = lock(&self.seen);
        let device = seen.cards.iter().find(|device| device.pci_address == card);
        let rule =
            seen.spec.as_ref().zip(device).and_then(|(spec, card)| spec.rule_for(card, seen.cards.iter()));
        rule.map(|rule| rule.policy)
    }

    fn make(&self, wanted: &WantedInstance, slot: &Slot) -> Result<GpuInstance, GpuError> {
        let (card, key) = (wanted.card, &wanted.key);
        if let Some(why) = self.closed(card) {
            return Err(GpuError::Unable { card, why });
        }
        if lock(&self.seen).spec.is_none() {
            return Err(unknown_owner(card));
        }
        let mut journal = self.journal()?;
        if let Some(entry) = journal.entry(key)
            && entry.state == State::Undoing
        {
            if entry.card != card {
                let what = format!("what the desktop had on {} is taken back", entry.card);
                return Err(GpuError::Waiting { card: entry.card, what, since: Timestamp::now() });
            }
            self.unmake(key, slot)?;
            journal = self.journal()?;
        }
        let fresh = match journal.entry(key) {
            Some(entry) if (entry.card, &entry.share, &entry.what) == (card, &wanted.share, &wanted.what) => {
                false
            }
            Some(entry) => {
                let existing = format!("{} on {}", entry.share.type_name, entry.card);
                return Err(GpuError::Differs { key: key.clone(), existing });
            }
            None => true,
        };
        if fresh {
            self.begin(wanted, &journal)?;
        }
        let goal = Goal::There(key.clone());
        let made = self.join_for(key).map_err(Stop::from).and_then(|()| self.bring(card, &goal, slot));
        match made {
            Ok(live) => self.made(key, live.as_ref()),
            Err(stop) => {
                if fresh && let Err(error) = self.unmake(key, slot) {
                    tracing::warn!(%key, %error, "what was begun is taken back later");
                }
                Err(match stop {
                    Stop::Error(error) => error,
                    Stop::Stranded(why) => GpuError::Unable { card, why },
                })
            }
        }
    }

    /// Notes a new share down, unless it is known that it cannot be.
    fn begin(&self, wanted: &WantedInstance, journal: &Journal) -> Result<(), GpuError> {
        let card = wanted.card;
        if let Some(why) = journal.cards.get(&card).and_then(|card| card.quarantine.clone()) {
            return Err(GpuError::Unable { card, why });
        }
        if let Some((done, all)) = lock(&self.restoring).get(&card) {
            let what = format!("{done} of {all} shares of before are put back");
            return Err(GpuError::Waiting { card, what, since: Timestamp::now() });
        }
        let erase = self.admit(wanted, journal)?;
        let drive = lock(&self.seen).host_devices.iter().find(|device| device.pci_address == card).cloned();
        let device = lock(&self.seen).cards.iter().find(|device| device.pci_address == card).cloned();
        let mut profile = None;
        if let Some(mut device) = device.clone() {
            // What is on it is looked at now, not as it was when the host was last looked at.
            device.supports.clear();
            let place = device
                .placements
                .iter()
                .find(|place| place.mode == ShareMode::Mig && place.type_name == wanted.share.type_name);
            profile = place.and_then(|place| place.driver_id.as_ref()?.parse().ok());
            let beside: Vec<Share> = journal.on(card).map(|entry| entry.share.clone()).collect();
            let lists = device.placements.iter().any(|place| place.mode == wanted.share.mode);
            if lists || !beside.is_empty() {
                partition::admit(&device, &beside, &wanted.share)
                    .map_err(|source| GpuError::Refused { card, source })?;
            }
        }
        if wanted.share.mode == ShareMode::Passthrough
            && wanted.partition.is_none()
            && device.as_ref().is_some_and(is_on_fabric)
        {
            let why = "it is on an NVLink fabric, and goes to a guest whole only in a partition of it".into();
            return Err(GpuError::Unable { card, why });
        }
        let mut entry = Entry::new(wanted, profile);
        entry.erase = erase;
        let live = self.look(card, &self.opened()?)?.ok_or(GpuError::NoSuchCard(card))?;
        if wanted.share.mode == ShareMode::Passthrough
            && let Some(why) = live.members.iter().find_map(|member| self.closed(member.address))
        {
            return Err(GpuError::Unable { card, why: format!("{why}, and it would go along") });
        }
        let rule = self.policy(card);
        let allowed = rule.as_ref().map_or(&[][..], |rule| &rule.vgpu_params);
        params::allow(card, &wanted.setup, allowed).map_err(|source| unfit(card, source))?;
        let mut wish = rule.as_ref().map(Wish::from).unwrap_or_default();
        if wanted.share.mode == ShareMode::Vgpu {
            wish.scheduler = wish.scheduler.or(wanted.setup.scheduler);
        }
        let identity = Identity::of(device.as_ref(), drive.as_ref());
        let mut trial = journal.clone();
        trial.forget_another(card, &identity);
        trial.wish(card, wish);
        trial.shares.push(entry.clone());
        plan(&live, &trial, Wanted::There(&entry)).map_err(|source| unfit(card, source))?;
        self.note_with_next(|journal| {
            journal.forget_another(card, &identity);
            if let Some(device) = &device {
                journal.know(device);
            }
            if let Some(drive) = &drive {
                journal.know_drive(drive);
            }
            journal.wish(card, wish);
            journal.shares.push(entry);
        })
    }

    /// Notes down that a share is there.
    pub(super) fn made(&self, key: &InstanceKey, live: Option<&LiveCard>) -> Result<GpuInstance, GpuError> {
        let instance = self.note(|journal| {
            let entry = journal.entry_mut(key)?;
            entry.state = State::Made;
            entry.underway = None;
            if let Some(live) = live {
                describe(entry, live);
            }
            Some(entry.instance())
        })?;
        instance.ok_or_else(|| GpuError::State {
            what: format!("the share {key}"),
            source: std::io::Error::other("it is not in the journal any more"),
        })
    }

    /// Takes a share back, and with the last one, where that can be, what was changed for its card.
    pub(super) fn unmake(&self, key: &InstanceKey, slot: &Slot) -> Result<(), GpuError> {
        let card = self.note_with_next(|journal| {
            let entry = journal.entry_mut(key)?;
            entry.state = State::Undoing;
            Some(entry.card)
        })?;
        let Some(card) = card else { return Ok(()) };
        match self.bring(card, &Goal::Gone(key.clone()), slot) {
            Ok(live) => {
                self.tell_of_others(key, live.as_ref());
                self.note(|journal| journal.forget(key, live.as_ref()))?;
                // The desktop is done. What was changed for all on the card goes back with the last, or later; a drive is
                // erased while nobody waits for it.
                let journal = self.journal()?;
                if journal.cards.get(&card).is_some_and(|known| known.erase.is_some()) {
                    self.tell();
                } else if journal.on(card).next().is_none()
                    && let Err(error) = self.bring_home(card, false, slot)
                {
                    tracing::warn!(%card, %error, "what was changed on the card is put back later");
                }
                if let Err(error) = self.part() {
                    tracing::warn!(%card, %error, "the fabric partition is deactivated later");
                }
                Ok(())
            }
            // Whatever stands there now was never given to this desktop.
            Err(Stop::Error(GpuError::Unfit { source: source @ Refusal::OtherCard { .. }, .. })) => {
                tracing::warn!(%key, %source, "the share is gone with its card");
                self.note(|journal| journal.forget(key, None))
            }
            // What waits goes on by itself, also after a restart.
            Err(Stop::Error(error)) => self.note(|_| ()).and(Err(error)),
            Err(Stop::Stranded(why)) => {
                tracing::error!(%key, %card, why, "nobody gets the card before it is seen healthy again");
                self.note(|journal| journal.strand(key, why, Timestamp::now()))
            }
        }
    }
}

/// Why a plan was refused; what the driver does not tell now is waited for.
fn unfit(card: PciAddress, source: Refusal) -> GpuError {
    match source {
        Refusal::NotTold { why, .. } => GpuError::Waiting { card, what: why, since: Timestamp::now() },
        source => GpuError::Unfit { card, source },
    }
}

impl GpuDriver for Devices {
    fn version(&self) -> Option<String> {
        None
    }

    fn instances(&self) -> Result<Vec<GpuInstance>, GpuError> {
        Ok(self.engine.journal()?.shares.iter().map(Entry::instance).collect())
    }

    fn create(&self, wanted: &WantedInstance) -> Result<GpuInstance, GpuError> {
        let wanted = wanted.clone();
        let what = format!("making {} for a desktop", wanted.share.type_name);
        self.on_card(wanted.card, &what, move |engine, slot| engine.make(&wanted, slot))
    }

    fn destroy(&self, key: &InstanceKey) -> Result<(), GpuError> {
        let journal = self.engine.journal()?;
        let Some(entry) = journal.entry(key) else { return Ok(()) };
        let card = entry.card;
        if let Some(why) = self.engine.kernel.unable() {
            return Err(GpuError::Unable { card, why });
        }
        let (what, key) = (format!("taking back {}", entry.share.type_name), key.clone());
        self.on_card(card, &what, move |engine, slot| {
            let done = engine.unmake(&key, slot);
            engine.note_wait(card, done.as_ref().err());
            done
        })
    }

    fn complete(&self, facts: &mut HostFacts) {
        self.engine.dress(facts);
    }

    fn withheld(&self, facts: &HostFacts) -> BTreeMap<PciAddress, String> {
        self.engine.withheld(facts)
    }

    fn states(&self, facts: &HostFacts, domains: &ForeignDomains) -> BTreeMap<PciAddress, CardState> {
        self.engine.states(facts, domains)
    }

    fn settle(&self, spec: &GpuNodeSpec) {
        Engine::settle(&self.engine, spec);
    }

    fn adopt(&self, annotation: Option<&str>, facts: &HostFacts, domains: &ForeignDomains) -> Vec<String> {
        Engine::adopt(&self.engine, annotation, facts, domains)
    }

    fn figures(&self) -> CardFigures {
        self.engine.figures()
    }

    fn notices(&self) -> Vec<Notice> {
        self.engine.journal().map(|journal| journal.notices).unwrap_or_default()
    }

    fn told(&self, told: &[Notice]) {
        if !told.is_empty()
            && let Err(error) =
                self.engine.note(|journal| journal.notices.retain(|notice| !told.contains(notice)))
        {
            tracing::warn!(%error, "what was told of cards is told again");
        }
    }

    fn wake(&self, changed: Arc<Notify>) {
        *lock(&self.engine.wake) = Some(changed);
    }
}
