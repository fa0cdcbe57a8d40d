//! What is looked after without being asked: shares of before are put back, what was being taken back goes on, cards that
//! were lost are watched for their return, and a card that its owner keeps goes back to the host.
#![expect(clippy::disallowed_methods, reason = "adapter: notes when a card is due")]

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use gpudesk_crds::{
    ADOPT_ANNOTATION, GpuNodeSpec,
    gpu_node::{DeviceMode, Management},
    gpu_node_status::{Device, HostDeviceKind},
    types::PciAddress,
};
use gpudesk_inventory::topology::HostFacts;
use jiff::Timestamp;

use super::{
    VFIO,
    engine::{Engine, Goal, Stop, lock},
    foreign::is_own,
    journal::{Card, Claim, Entry, Journal, State},
    kernel::{function, link_name, maybe, number},
    observe::Opened,
    slots::Slot,
};
use crate::host::gpu_driver::GpuError;

/// How rarely a card is looked after that stays as it should not be.
const SELDOM: Duration = Duration::from_mins(5);

impl Engine {
    /// Looks after every card that needs it, each on a thread of its own that nobody waits for.
    pub(super) fn settle(this: &Arc<Self>, spec: &GpuNodeSpec) {
        lock(&this.seen).spec = Some(spec.clone());
        let Ok(journal) = this.journal() else { return };
        if this.kernel.unable().is_some() {
            return;
        }
        let mut cards: Vec<PciAddress> = journal.cards.keys().copied().collect();
        cards.extend(lock(&this.seen).cards.iter().map(|card| card.pci_address));
        cards.sort();
        cards.dedup();
        for card in cards {
            if this.needs_care(card, &journal) && this.is_its_turn(card) {
                let engine = Arc::clone(this);
                this.slots.begin(card, "putting back what desktops had", move |slot| engine.care(card, slot));
            } else if !this.needs_care(card, &journal) {
                lock(&this.restoring).remove(&card);
                lock(&this.blocked).remove(&card);
            }
        }
    }

    /// What its owner says of a card: whether it is never touched, and whether it is kept for the host.
    pub(super) fn rule(&self, card: PciAddress) -> (bool, bool) {
        let seen = lock(&self.seen);
        let device = seen.cards.iter().find(|device| device.pci_address == card);
        let rule =
            seen.spec.as_ref().zip(device).and_then(|(spec, card)| spec.rule_for(card, seen.cards.iter()));
        let Some(rule) = rule else { return (false, false) };
        // Rules that contradict each other, or may mean another card, leave it alone.
        let unmanaged = rule.policy.management == Some(Management::Unmanaged)
            || rule.keeps() && rule.policy.mode != Some(DeviceMode::Host)
            || rule.note.is_some();
        (unmanaged, !unmanaged && rule.policy.mode == Some(DeviceMode::Host))
    }

    fn needs_care(&self, card: PciAddress, journal: &Journal) -> bool {
        let (unmanaged, host) = self.rule(card);
        if unmanaged {
            return false;
        }
        let entries = journal.on(card).any(|entry| entry.state != State::Made || !self.is_there(entry));
        let none = journal.on(card).next().is_none();
        let known = journal.cards.get(&card);
        let left = known.is_some_and(Card::is_left);
        let bound = host && none && {
            let seen = lock(&self.seen);
            let device = seen.cards.iter().find(|device| device.pci_address == card);
            device.is_some_and(is_off_the_host)
        };
        let left = none && left || journal.is_in_left_partition(card);
        entries || !journal.adopted(card).is_empty() || left || bound
    }

    /// Whether the device of a share is there, by one look. What cannot be read is there.
    fn is_there(&self, entry: &Entry) -> bool {
        let kernel = &*self.kernel;
        let given = |address| {
            link_name(kernel, &format!("{}/driver", function(address)))
                .map_or(true, |driver| driver.as_deref() == Some(VFIO))
        };
        match &entry.claim {
            None => false,
            Some(Claim::Card) => given(entry.card),
            Some(Claim::Function(function)) => given(*function),
            Some(Claim::Vgpu { function: address, id }) => {
                let path = format!("{}/nvidia/current_vgpu_type", function(*address));
                number::<u32>(kernel, &path).map_or(true, |found| found == Some(*id))
            }
            Some(Claim::Mdev { uuid, .. }) => {
                let link = maybe(kernel.link(&format!("sys/bus/mdev/devices/{uuid}")));
                link.map_or(true, |link| link.is_some())
            }
        }
    }

    /// Whether a card is due: one that stays as it is is looked after ever more rarely, up to each five minutes.
    pub(super) fn is_its_turn(&self, card: PciAddress) -> bool {
        lock(&self.turns).get(&card).is_none_or(|(next, _)| Instant::now() >= *next)
    }

    fn care(&self, card: PciAddress, slot: &Slot) {
        let lasting = || self.journal().ok().map(Journal::lasting);
        let before = lasting();
        let done = self.care_for(card, slot).and(self.part());
        if let Err(error) = &done {
            tracing::warn!(%card, %error, "the card is looked after again later");
        }
        self.note_wait(card, done.as_ref().err());
        let restored = lock(&self.restoring).remove(&card).is_some();
        if restored {
            tracing::info!(%card, "what desktops had on the card was put back, as far as it can be");
        }
        self.was_looked_after(card, restored || lasting() != before);
    }

    /// Notes when a card is due again, and tells of it where something changed.
    pub(super) fn was_looked_after(&self, card: PciAddress, changed: bool) {
        let mut turns = lock(&self.turns);
        if changed {
            turns.remove(&card);
        } else {
            let pause = turns.get(&card).map_or(self.pause, |(_, pause)| (*pause * 2).min(SELDOM));
            turns.insert(card, (Instant::now() + pause, pause));
        }
        drop(turns);
        if changed {
            self.tell();
        }
    }

    pub(super) fn tell(&self) {
        if let Some(wake) = &*lock(&self.wake) {
            wake.notify_one();
        }
    }

    fn care_for(&self, card: PciAddress, slot: &Slot) -> Result<(), GpuError> {
        let mut first = self.unmake_adopted(card, slot).err();
        if let Some(error) = &first {
            tracing::warn!(%card, %error, "what was handed over is not unmade yet");
        }
        let journal = self.journal()?;
        for entry in journal.on(card) {
            let key = &entry.key;
            let done = if entry.state == State::Undoing {
                self.unmake(key, slot)
            } else {
                self.restore(entry, slot)
            };
            match done {
                Ok(()) => {
                    if let Some((done, _)) = lock(&self.restoring).get_mut(&card) {
                        *done += 1;
                    }
                    self.tell();
                }
                Err(error) => {
                    tracing::warn!(%key, %card, %error, "a share is not as its desktop needs it");
                    first = first.or(Some(error));
                }
            }
        }
        let journal = self.journal()?;
        if journal.on(card).next().is_some() {
            return first.map_or(Ok(()), Err);
        }
        if let Some(known) = journal.cards.get(&card)
            && known.is_left()
        {
            self.bring_home(card, known.quarantine.is_some(), slot)?;
        }
        if self.rule(card).1 {
            match self.bring(card, &Goal::Host, slot) {
                Ok(_) => {}
                Err(Stop::Error(error)) => return Err(error),
                Err(Stop::Stranded(why)) => return Err(GpuError::Unable { card, why }),
            }
        }
        first.map_or(Ok(()), Err)
    }

    fn restore(&self, entry: &Entry, slot: &Slot) -> Result<(), GpuError> {
        if entry.state == State::Made && self.is_there(entry) {
            return Ok(());
        }
        // Until it is back it is told to nobody as made.
        self.note(|journal| {
            if let Some(entry) = journal.entry_mut(&entry.key) {
                entry.state = State::Wanted;
            }
        })?;
        self.join_for(&entry.key)?;
        match self.bring(entry.card, &Goal::There(entry.key.clone()), slot) {
            Ok(live) => self.made(&entry.key, live.as_ref()).map(drop),
            Err(Stop::Error(error)) => Err(error),
            Err(Stop::Stranded(why)) => Err(GpuError::Unable { card: entry.card, why }),
        }
    }

    /// A card without shares, back to what it was before gpudesk; one that was lost only once it tells its ids.
    pub(super) fn bring_home(&self, card: PciAddress, lost: bool, slot: &Slot) -> Result<(), GpuError> {
        let live = self.look(card, &Opened::new())?;
        if lost && !live.is_some_and(|live| live.answers) {
            return Ok(());
        }
        match self.bring(card, &Goal::Home, slot) {
            Ok(Some(live)) => {
                if lost {
                    tracing::info!(%card, "the card is healthy again");
                }
                self.note(|journal| journal.settle(card, &live, Timestamp::now()))
            }
            // It is not on the bus any more, and neither is what was changed on it.
            Ok(None) => self.note(|journal| journal.lose(card)),
            Err(Stop::Error(error)) => Err(error),
            Err(Stop::Stranded(why)) => self.keep_apart(card, why),
        }
    }

    /// Nobody gets the card before it is seen healthy.
    pub(super) fn keep_apart(&self, card: PciAddress, why: String) -> Result<(), GpuError> {
        self.note(|journal| journal.quarantine(card, why, Timestamp::now()))
    }

    /// Fills in what a card does not tell while another driver has it, and remembers what was seen.
    pub(super) fn dress(&self, facts: &mut HostFacts) {
        if let Ok(journal) = self.journal() {
            for device in &mut facts.cards {
                let Some(known) = journal.cards.get(&device.pci_address) else { continue };
                if known.ids == format!("{}:{}", device.vendor_id, device.device_id) {
                    device.uuid = device.uuid.take().or_else(|| known.uuid.clone());
                    device.serial = device.serial.take().or_else(|| known.serial.clone());
                    device.memory_mib = device.memory_mib.or(known.memory_mib);
                    device.module_id = device.module_id.or(known.module_id);
                }
            }
        }
        self.tell_partitions(facts);
        if let Ok(journal) = self.journal() {
            for device in &mut facts.host_devices {
                let Some(known) = journal.cards.get(&device.pci_address) else { continue };
                if known.ids == format!("{}:{}", device.vendor_id, device.device_id) {
                    device.serial = device.serial.take().or_else(|| known.serial.clone());
                }
            }
        }
        let mut seen = lock(&self.seen);
        seen.cards.clone_from(&facts.cards);
        seen.host_devices.clone_from(&facts.host_devices);
    }

    /// Why cards are given to nobody now.
    pub(super) fn withheld(&self, facts: &HostFacts) -> BTreeMap<PciAddress, String> {
        let all = |why: &String| addresses(facts).map(|address| (address, why.clone())).collect();
        let journal = match self.journal() {
            Ok(journal) => journal,
            Err(error) => return all(&error.to_string()),
        };
        if let Some(why) = self.kernel.unable() {
            return all(&why);
        }
        let mut withheld = BTreeMap::new();
        for (card, doing) in self.slots.waiting(self.patience) {
            withheld.insert(card, format!("being waited for: {}, since {}", doing.what, doing.since));
        }
        for (card, (done, all)) in &*lock(&self.restoring) {
            let why = format!(
                "what desktops had on the card before gpudesk or the host started anew is put back first: {done} of \
                 {all} shares are put back"
            );
            withheld.entry(*card).or_insert(why);
        }
        for (card, known) in &journal.cards {
            if let Some(why) = &known.quarantine {
                let why = format!(
                    "{why}; it is given again once it is seen healthy, as after a reboot of the host"
                );
                withheld.entry(*card).or_insert(why);
            }
        }
        for (card, why) in self.withheld_by_partitions(&journal) {
            withheld.entry(card).or_insert(why);
        }
        for (card, known) in &journal.cards {
            if let Some(method) = known.erase.filter(|_| journal.on(*card).next().is_none()) {
                let waits = lock(&self.blocked).get(card).map(|(what, _)| format!(": {what}"));
                let why = format!("it is erased after its last user ({method}){}", waits.unwrap_or_default());
                withheld.entry(*card).or_insert(why);
            }
        }
        let nvme = facts.host_devices.iter().filter(|device| device.kind == HostDeviceKind::NvmeDrive);
        let nvme = nvme.map(|drive| (drive.pci_address, &drive.driver));
        let networks = facts.host_devices.iter().filter(|device| device.kind == HostDeviceKind::NetworkCard);
        let functions = networks.flat_map(|card| &card.virtual_functions);
        let functions: Vec<_> = functions.map(|function| (function.pci_address, &function.driver)).collect();
        if let Some(why) = self.kernel.no_network_functions() {
            for (address, _) in &functions {
                withheld.entry(*address).or_insert_with(|| why.clone());
            }
        }
        let cards = facts.cards.iter().map(|card| (card.pci_address, &card.driver));
        for (address, its) in cards.chain(nvme).chain(functions) {
            let bound = its.as_deref().filter(|driver| driver.contains("vfio"));
            let Some(driver) = bound.filter(|_| journal.on(address).next().is_none()) else { continue };
            let why = if !journal.adopted(address).is_empty() {
                format!(
                    "it is bound to {driver}, was handed over, and is taken from it once nobody has it open"
                )
            } else if is_own(&journal, address) {
                format!(
                    "it is bound to {driver} by gpudesk, with a card whose IOMMU group it shares or until it is put back"
                )
            } else if !facts.cards.iter().any(|card| card.pci_address == address) {
                format!(
                    "it is bound to {driver}, not by gpudesk: it is left as it is. To have it given to desktops, give it back \
                     to the host's own driver"
                )
            } else {
                format!(
                    "it is bound to {driver}, not by gpudesk: it is left as it is. To have it given to desktops, take it \
                     out of vfio-pci's ids or scripts, hand it over by the annotation {ADOPT_ANNOTATION}, or let a rule \
                     with mode Host take it back first"
                )
            };
            withheld.entry(address).or_insert(why);
        }
        withheld
    }
}

/// Everything that may be given away.
fn addresses(facts: &HostFacts) -> impl Iterator<Item = PciAddress> {
    let cards = facts.cards.iter().map(|card| card.pci_address);
    let functions = facts.host_devices.iter().flat_map(|device| &device.virtual_functions);
    let others = facts.host_devices.iter().map(|device| device.pci_address);
    cards.chain(others).chain(functions.map(|function| function.pci_address))
}

/// Whether a card or a companion of it is bound to a driver that keeps it from the host.
fn is_off_the_host(card: &Device) -> bool {
    let stubbed = |driver: Option<&String>| {
        driver.is_some_and(|driver| driver.contains("vfio") || driver == "pci-stub")
    };
    stubbed(card.driver.as_ref()) || card.companions.iter().any(|one| stubbed(one.driver.as_ref()))
}
