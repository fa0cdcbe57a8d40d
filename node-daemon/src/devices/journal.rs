//! What gpudesk made on the cards of this machine, what it is making, and what it changed with the value before. Pure;
//! `store` keeps it.

use std::collections::BTreeMap;

use gpudesk_crds::{
    gpu_node_drives::DriveErase,
    gpu_node_status::{Device, ResetCheck},
    types::{PciAddress, ShareMode},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    fabric::Noted,
    handed::Adopted,
    host_devices::Erasure,
    live::LiveCard,
    notices::Notice,
    plan::settings::Wish,
    step::{Setting, Step},
};
use crate::{
    host::gpu_driver::{GpuInstance, Handle, InstanceKey, Setup, WantedInstance, WantedPartition, What},
    partition::Share,
};

/// The form of the file.
pub const VERSION: u32 = 1;

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Journal {
    /// The form of the file.
    pub version: u32,
    /// The boot of the host in which it was written.
    pub boot: String,
    /// The cards of which something is or was changed.
    #[serde(default)]
    pub cards: BTreeMap<PciAddress, Card>,
    /// The shares.
    #[serde(default)]
    pub shares: Vec<Entry>,
    /// What was taken over of what the admin names now. Each name counts once: a thing that is made by hand later is
    /// not meant, though it has the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handed: Vec<String>,
    /// Partitions of the NVLink fabric.
    #[serde(default, skip_serializing_if = "Noted::is_nothing")]
    pub fabric: Noted,
    /// What is still to be told to the API.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<Notice>,
}

/// A card.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Card {
    /// Vendor and device id: `10de:26b9`.
    pub ids: String,
    /// UUID, as its driver told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Memory in MiB: a driver that gives it to guests tells none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<i64>,
    /// Number of the card on its board, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module_id: Option<i32>,
    /// What was changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// GPU instances made by gpudesk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu_instances: Vec<OurInstance>,
    /// How its owner wants it while desktops have vGPUs of it, as it was when one was made last.
    #[serde(default, skip_serializing_if = "Wish::is_none")]
    pub wish: Wish,
    /// The clocks between which gpudesk keeps it, in MHz: the driver does not tell them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clocks: Option<(u32, u32)>,
    /// What was made by hand and handed over: it is unmade once nobody has it open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adopted: Vec<Adopted>,
    /// What the registers of its functions told before their first user; nothing where they could not be read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub registers: BTreeMap<PciAddress, Option<u32>>,
    /// The last reset between users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reset: Option<Reset>,
    /// How a drive is to be erased since a desktop had it: from before it is taken from the host's driver, until it is
    /// done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erase: Option<DriveErase>,
    /// What erasing came to the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_erase: Option<Erasure>,
    /// Functions whose reset failed after their last user: nobody gets the card before one succeeds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unclean: Vec<PciAddress>,
    /// Why nobody gets it before it is seen healthy again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<String>,
}

/// A setting that gpudesk changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Change {
    /// What.
    pub setting: Setting,
    /// The value before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// The share that needed it; the whole card without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<InstanceKey>,
}

/// A GPU instance that gpudesk made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OurInstance {
    /// Number of its profile.
    pub profile: u32,
    /// Its start.
    pub start: i32,
}

/// A reset between users. It promises no more than what was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reset {
    /// The first of the kernel's methods.
    pub method: String,
    /// When.
    pub at: Timestamp,
    /// What was seen to answer afterwards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verified: Vec<ResetCheck>,
    /// Why the card is not back; absent when all answered afterwards that did before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// A share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Entry {
    /// Its identity.
    pub key: InstanceKey,
    /// The decision that it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocation: Option<String>,
    /// The desktop, as `namespace/name`.
    pub owner: String,
    /// The card.
    pub card: PciAddress,
    /// What it is.
    pub share: Share,
    /// How its vGPU is set up.
    #[serde(default, skip_serializing_if = "Setup::is_none")]
    pub setup: Setup,
    /// What of the host it is.
    #[serde(default, skip_serializing_if = "What::is_card")]
    pub what: What,
    /// How a drive is erased after it, as its owner said when it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erase: Option<DriveErase>,
    /// Number of the MIG profile under it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<u32>,
    /// How far it is.
    pub state: State,
    /// The device that carries it, from before that is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// The function that carried it before a reboot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefer: Option<PciAddress>,
    /// The step under way, from before it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underway: Option<Underway>,
    /// Other functions that go to the guest with the card.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub companions: Vec<PciAddress>,
    /// The partition of the NVLink fabric that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<WantedPartition>,
    /// The GPU instance under it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_instance: Option<i32>,
    /// Size in MiB that the card's memory region was given for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bar_mib: Option<i64>,
    /// UUID of its MIG device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig_uuid: Option<String>,
    /// Its functions that were reset after their last user.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cleaned: Vec<PciAddress>,
}

/// How far a share is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It is to be there.
    Wanted,
    /// It is there.
    Made,
    /// It is to be gone.
    Undoing,
}

/// The device that carries a share: what is compared before it is unmade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Claim {
    /// The card itself.
    Card,
    /// A virtual function.
    Function(PciAddress),
    /// A vGPU of this type on a virtual function.
    Vgpu {
        /// The function.
        function: PciAddress,
        /// Number of the type.
        id: u32,
    },
    /// A mediated device.
    Mdev {
        /// Its UUID.
        uuid: String,
        /// The function that carries it.
        parent: PciAddress,
        /// The driver's name of its type.
        type_id: String,
    },
}

impl Claim {
    /// The virtual function that it is or stands on.
    pub fn function(&self) -> Option<PciAddress> {
        match self {
            Self::Card => None,
            Self::Function(function) | Self::Vgpu { function, .. } => Some(*function),
            Self::Mdev { parent, .. } => Some(*parent),
        }
    }

    /// What a step makes, when it makes the device of a share of mode `entry`.
    fn of(step: &Step, entry: &Entry) -> Option<Self> {
        match step {
            Step::VgpuType { function, id } => Some(Self::Vgpu { function: *function, id: *id }),
            Step::MdevCreate { parent, type_id, uuid } => {
                Some(Self::Mdev { uuid: uuid.clone(), parent: *parent, type_id: type_id.clone() })
            }
            Step::Override { function, .. } if entry.share.mode == ShareMode::VirtualFunctions => {
                Some(Self::Function(*function))
            }
            _ => None,
        }
    }
}

/// A step that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Underway {
    /// The step.
    pub what: Step,
    /// What was there before it.
    pub before: String,
}

impl Entry {
    /// One that was just asked for.
    pub fn new(wanted: &WantedInstance, profile: Option<u32>) -> Self {
        Self {
            key: wanted.key.clone(),
            allocation: wanted.allocation.map(|id| id.to_string()),
            owner: wanted.owner.clone(),
            card: wanted.card,
            share: wanted.share.clone(),
            setup: wanted.setup.clone(),
            what: wanted.what.clone(),
            erase: None,
            profile,
            state: State::Wanted,
            claim: (wanted.share.mode == ShareMode::Passthrough).then_some(Claim::Card),
            prefer: None,
            underway: None,
            companions: vec![],
            partition: wanted.partition.clone(),
            gpu_instance: None,
            bar_mib: None,
            mig_uuid: None,
            cleaned: vec![],
        }
    }

    /// As the rest of the daemon knows it.
    pub fn instance(&self) -> GpuInstance {
        GpuInstance {
            key: self.key.clone(),
            owner: self.owner.clone(),
            card: self.card,
            mode: self.share.mode,
            type_name: self.share.type_name.clone(),
            vgpu_type: self.share.vgpu_type.clone(),
            start: self.share.start,
            mig_uuid: self.mig_uuid.clone(),
            gpu_instance: self.gpu_instance,
            bar_mib: self.bar_mib,
            handle: match &self.claim {
                None => Handle::NotYet,
                Some(Claim::Card) => Handle::Function(self.card),
                Some(Claim::Function(function) | Claim::Vgpu { function, .. }) => Handle::Function(*function),
                Some(Claim::Mdev { uuid, .. }) => Handle::Mdev(uuid.clone()),
            },
            companions: self.companions.clone(),
            pending: self.state != State::Made,
        }
    }
}

impl Journal {
    /// An empty one.
    pub fn new(boot: &str) -> Self {
        Self {
            version: VERSION,
            boot: boot.into(),
            cards: BTreeMap::new(),
            shares: vec![],
            handed: vec![],
            fabric: Noted::default(),
            notices: vec![],
        }
    }

    /// Without when resets and erasures were: one that fails again and again changes nothing.
    pub(super) fn lasting(mut self) -> Self {
        for card in self.cards.values_mut() {
            if let Some(reset) = &mut card.last_reset {
                reset.at = Timestamp::UNIX_EPOCH;
            }
            if let Some(erase) = &mut card.last_erase {
                erase.at = Timestamp::UNIX_EPOCH;
            }
        }
        self
    }

    /// Notes how its owner wants a card: for as long as there are shares of it, or something that was set for them is not yet
    /// put back, as it was for the first of them.
    pub(super) fn wish(&mut self, card: PciAddress, wish: Wish) {
        let none = self.on(card).next().is_none();
        let known = self.cards.entry(card).or_default();
        let is_set = |change: &Change| {
            matches!(change.setting, Setting::Scheduler | Setting::PowerLimit | Setting::Clocks)
        };
        if none && !known.changes.iter().any(is_set) {
            known.wish = wish;
        }
    }

    /// After a reboot nothing of what was made is there, nor is any setting but MIG mode, which some cards keep: shares
    /// are to be made anew, and what was being unmade is gone.
    #[must_use]
    pub fn after_reboot(mut self, boot: &str) -> Self {
        if self.boot == boot {
            return self;
        }
        self.boot = boot.into();
        // And what is active by now is somebody else's.
        self.fabric = Noted::default();
        self.shares.retain(|entry| entry.state != State::Undoing);
        for entry in &mut self.shares {
            entry.state = State::Wanted;
            entry.prefer = entry.claim.take().and_then(|claim| claim.function()).or(entry.prefer);
            entry.claim = Entry::whole(entry).then_some(Claim::Card);
            (entry.underway, entry.cleaned) = (None, vec![]);
            (entry.gpu_instance, entry.mig_uuid) = (None, None);
        }
        for card in self.cards.values_mut() {
            card.changes.retain(|change| change.setting == Setting::MigMode);
            card.gpu_instances.clear();
            card.adopted.clear();
            card.clocks = None;
            card.unclean.clear();
            card.registers.clear();
        }
        self.tidy();
        self
    }

    /// The share of this identity.
    pub fn entry(&self, key: &InstanceKey) -> Option<&Entry> {
        self.shares.iter().find(|entry| entry.key == *key)
    }

    /// The same, to be changed.
    pub fn entry_mut(&mut self, key: &InstanceKey) -> Option<&mut Entry> {
        self.shares.iter_mut().find(|entry| entry.key == *key)
    }

    /// The shares of a card.
    pub fn on(&self, card: PciAddress) -> impl Iterator<Item = &Entry> {
        self.shares.iter().filter(move |entry| entry.card == card)
    }

    /// The changes of a card that are those of `of`.
    pub fn changes(&self, card: PciAddress, of: Option<&InstanceKey>) -> Vec<&Change> {
        let changes = self.cards.get(&card).into_iter().flat_map(|card| &card.changes);
        changes.filter(|change| change.of.as_ref() == of).collect()
    }

    /// Whether gpudesk changed it.
    pub fn has_changed(&self, card: PciAddress, setting: Setting) -> bool {
        let card = self.cards.get(&card);
        card.is_some_and(|card| card.changes.iter().any(|change| change.setting == setting))
    }

    /// Remembers which card stands at an address.
    pub fn know(&mut self, seen: &Device) {
        let card = self.cards.entry(seen.pci_address).or_default();
        let ids = format!("{}:{}", seen.vendor_id, seen.device_id);
        if card.ids != ids {
            card.registers.clear();
        }
        card.ids = ids;
        card.uuid = seen.uuid.clone().or(card.uuid.take());
        card.serial = seen.serial.clone().or(card.serial.take());
        card.memory_mib = seen.memory_mib.or(card.memory_mib);
        card.module_id = seen.module_id.or(card.module_id);
    }

    /// Notes a step before it is done; on the way to a share also what it claims and changes.
    pub fn begin(
        &mut self,
        card: PciAddress,
        key: Option<&InstanceKey>,
        step: &Step,
        live: &LiveCard,
        making: bool,
    ) {
        // Who shares a card changes its functions for all.
        let alone = [ShareMode::Passthrough, ShareMode::VirtualFunctions];
        let of =
            key.filter(|key| self.entry(key).is_some_and(|entry| alone.contains(&entry.share.mode))).cloned();
        let erase = key.and_then(|key| self.entry(key)?.erase);
        let noted = self.cards.entry(card).or_default();
        if noted.ids.is_empty() {
            noted.ids = format!("{}:{}", live.function.vendor, live.function.device);
        }
        if making {
            if let Some((setting, before)) = step.changes(live)
                && !noted.changes.iter().any(|change| change.setting == setting)
            {
                noted.changes.push(Change {
                    setting,
                    before,
                    of: of.filter(|_| setting.function().is_some()),
                });
            }
            if matches!(step, Step::Unbind { function, .. } if *function == card) {
                noted.erase = erase.or(noted.erase);
            }
            if let Step::GpuInstance { profile, start, .. } = step {
                let ours = OurInstance { profile: *profile, start: *start };
                if !noted.gpu_instances.contains(&ours) {
                    noted.gpu_instances.push(ours);
                }
            }
        }
        if let Some(entry) = key.and_then(|key| self.entry_mut(key)) {
            if making && let Some(claim) = Claim::of(step, entry) {
                entry.claim = Some(claim);
            }
            entry.underway = Some(Underway { what: step.clone(), before: step.before(live) });
        }
    }
}

impl Entry {
    fn whole(entry: &Self) -> bool {
        entry.share.mode == gpudesk_crds::types::ShareMode::Passthrough
    }
}
