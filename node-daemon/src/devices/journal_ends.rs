//! What of the journal is forgotten, kept or left to the card once a share is gone. Pure.

use gpudesk_crds::{
    gpu_node_status::{Device, HostDevice},
    types::PciAddress,
};
use jiff::Timestamp;

use super::{
    journal::{Card, Change, Journal, OurInstance},
    live::LiveCard,
    notices::Happened,
    plan::{settings::Wish, sriov},
    step::Setting,
};
use crate::host::gpu_driver::InstanceKey;

/// What stands at an address, as far as it was seen.
#[derive(Debug, Default)]
pub(super) struct Identity {
    ids: Option<String>,
    uuid: Option<String>,
    serial: Option<String>,
}

impl Identity {
    /// Of a card, or of a drive.
    pub(super) fn of(card: Option<&Device>, drive: Option<&HostDevice>) -> Self {
        let ids = |vendor: &str, device: &str| Some(format!("{vendor}:{device}"));
        match (card, drive) {
            (Some(card), _) => Self {
                ids: ids(&card.vendor_id, &card.device_id),
                uuid: card.uuid.clone(),
                serial: card.serial.clone(),
            },
            (None, Some(drive)) => Self {
                ids: ids(&drive.vendor_id, &drive.device_id),
                uuid: None,
                serial: drive.serial.clone(),
            },
            (None, None) => Self::default(),
        }
    }

    /// Whether it is surely another than the one that is known.
    fn is_not(&self, known: &Card) -> bool {
        let differs = |seen: &Option<String>, known: Option<&String>| {
            seen.as_ref().zip(known).is_some_and(|(seen, known)| seen != known)
        };
        differs(&self.ids, Some(&known.ids).filter(|ids| !ids.is_empty()))
            || differs(&self.uuid, known.uuid.as_ref())
            || differs(&self.serial, known.serial.as_ref())
    }
}

impl Journal {
    /// Forgets the card that stood at an address before the one that is there now, if nobody has a share of it and nothing
    /// is left to do on it.
    pub(super) fn forget_another(&mut self, address: PciAddress, now: &Identity) {
        let Some(known) = self.cards.get(&address) else { return };
        if now.is_not(known)
            && !known.is_left()
            && known.adopted.is_empty()
            && self.on(address).next().is_none()
        {
            self.cards.remove(&address);
        }
    }

    /// A memory region that the kernel does not give its size back stays as it is: nobody is kept waiting for it.
    pub fn leave_size(&mut self, card: PciAddress) {
        if let Some(card) = self.cards.get_mut(&card) {
            card.changes.retain(|change| !matches!(change.setting, Setting::BarSize { .. }));
        }
    }

    /// Forgets a share that is gone, with what was changed for it; of a card that is gone itself, everything.
    pub fn forget(&mut self, key: &InstanceKey, live: Option<&LiveCard>) {
        let Some(card) = self.entry(key).map(|entry| entry.card) else { return };
        self.shares.retain(|entry| entry.key != *key);
        if let Some(card) = self.cards.get_mut(&card) {
            card.changes.retain(|change| live.is_some() && change.of.as_ref() != Some(key));
            card.keep_instances(live);
            // What could not be read is tried again with the next user.
            card.registers.retain(|_, told| told.is_some());
        }
        self.tidy();
    }

    /// Leaves what was changed for a share to the card: it is put back once the card is seen healthy.
    pub fn strand(&mut self, key: &InstanceKey, why: String, now: Timestamp) {
        let Some(address) = self.entry(key).map(|entry| entry.card) else { return };
        self.shares.retain(|entry| entry.key != *key);
        let card = self.cards.entry(address).or_default();
        for change in card.changes.iter_mut().filter(|change| change.of.as_ref() == Some(key)) {
            change.of = None;
        }
        self.quarantine(address, why, now);
    }

    /// The card is as it was found, but for what somebody else came to use.
    pub fn settle(&mut self, address: PciAddress, live: &LiveCard, now: Timestamp) {
        let mut returned = false;
        let taken = sriov::taken_by_hand(live, self);
        if let Some(driver) = &taken {
            tracing::warn!(card = %address, driver, "it was bound by hand: what was to be put back on it is left as it is");
        }
        if let Some(card) = self.cards.get_mut(&address) {
            let switched =
                card.changes.iter().any(|change| is_still(change, live) && change.setting == Setting::NumVfs);
            let own = live.function.address;
            // Whoever switches virtual functions back takes the card from its driver once more.
            let goes_along = |change: &Change| switched && change.setting.function() == Some(own);
            card.changes.retain(|change| {
                change.of.is_some() || taken.is_none() && (is_still(change, live) || goes_along(change))
            });
            card.keep_instances(Some(live));
            card.wish = Wish::default();
            if card.unclean.is_empty() && card.erase.is_none() {
                returned = card.quarantine.take().is_some();
            }
        }
        if returned {
            self.tell(address, Happened::CardReturned, "it was seen healthy again".into(), now);
        }
        self.tidy();
    }

    /// Cards of which nothing is left but a good reset are not kept.
    pub(super) fn tidy(&mut self) {
        let used: Vec<PciAddress> = self.shares.iter().map(|entry| entry.card).collect();
        self.cards.retain(|address, card| {
            used.contains(address)
                || !card.changes.is_empty()
                || !card.gpu_instances.is_empty()
                || !card.adopted.is_empty()
                || card.quarantine.is_some()
                || card.erase.is_some()
                || card.last_erase.is_some()
                || card.last_reset.is_some()
        });
    }
}

impl Card {
    /// Whether something of a card without shares is still to be put back.
    pub(super) fn is_left(&self) -> bool {
        self.quarantine.is_some()
            || self.erase.is_some()
            || !self.changes.is_empty()
            || !self.gpu_instances.is_empty()
    }

    /// Forgets GPU instances that are not there any more.
    pub(super) fn keep_instances(&mut self, live: Option<&LiveCard>) {
        if live.is_some_and(|live| live.control_fault.is_some()) {
            return;
        }
        let there = live.map_or(&[][..], |live| &live.control.gpu_instances);
        let place = |ours: &OurInstance| (ours.profile, ours.start);
        self.gpu_instances.retain(|ours| there.iter().any(|seen| (seen.profile, seen.start) == place(ours)));
    }
}

/// Whether a setting of the whole card could not be put back, for somebody else uses it.
fn is_still(change: &Change, live: &LiveCard) -> bool {
    let now = match change.setting {
        Setting::NumVfs => live.sriov.map(|sriov| sriov.on.to_string()),
        // What cannot be told is not as before.
        Setting::MigMode
        | Setting::MixedSize
        | Setting::Scheduler
        | Setting::PowerLimit
        | Setting::Clocks
            if live.control_fault.is_some() =>
        {
            return true;
        }
        // A mode that waits comes with the next reset.
        Setting::MigMode => live.control.mig.map(|mode| (mode.current || mode.pending).to_string()),
        Setting::MixedSize => live.control.mixed_size.map(|on| on.to_string()),
        // What vGPUs of others keep from changing, or nobody can be asked about now.
        Setting::Scheduler => {
            let Some(now) = live.control.scheduler else { return true };
            return live.vgpu().is_some() && Some(format!("{now:?}")) != change.before;
        }
        Setting::PowerLimit => return live.control.power.is_none(),
        Setting::Clocks => return live.control.persistence.is_none(),
        // Taken from one driver and not yet given to the other.
        Setting::Driver(function) => {
            return live.find(function).is_some_and(|function| function.driver.is_none())
                && change.before.is_some();
        }
        Setting::Autoprobe
        | Setting::Persistence
        | Setting::Override(_)
        | Setting::D3cold(_)
        | Setting::Power(_)
        | Setting::Quota(..)
        | Setting::Network(_)
        | Setting::BarSize { .. } => return false,
    };
    now.is_some() && now != change.before
}
