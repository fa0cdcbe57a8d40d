//! Partitions of an NVLink fabric: made active before the cards of a desktop leave their driver, and no more once all of them
//! are back. Only partitions that the fabric manager lists are used, and of those that are active only gpudesk's own are
//! ever made inactive: each is noted down before it is activated.
#![expect(clippy::disallowed_methods, reason = "adapter: notes since when something is waited for")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use gpudesk_crds::{
    gpu_node_status::{Device, Fabric, FabricPartition},
    types::PciAddress,
};
use gpudesk_inventory::topology::HostFacts;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    engine::{Devices, Engine, lock},
    journal::{Change, Entry, Journal, State},
    refusal::Refusal,
    step::Setting,
};
use crate::host::{
    fabric::{FabricError, FabricManager, NoFabric, Partition},
    gpu_driver::{GpuError, InstanceKey, WantedPartition},
};

/// What is known of the fabric.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Noted {
    /// Partitions that gpudesk activated, or was about to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own: Vec<Own>,
    /// The partitions that were last seen active, whosever they are: a manager that begins anew is told all.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub active: BTreeSet<u32>,
}

impl Noted {
    /// Whether nothing is.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// A partition that gpudesk activated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Own {
    /// Its number.
    pub id: u32,
    /// UID of the Desktop that has it.
    pub desktop_uid: String,
    /// Its cards.
    pub cards: Vec<PciAddress>,
}

impl Journal {
    /// Partitions of gpudesk that no desktop has any more.
    fn left_partitions(&self) -> impl Iterator<Item = &Own> {
        self.fabric.own.iter().filter(|own| {
            let is_its = |entry: &&Entry| entry.key.desktop_uid == own.desktop_uid && is_of(entry, own.id);
            !self.shares.iter().any(|entry| is_its(&entry))
        })
    }

    /// Whether a partition with the card is still to be made inactive.
    pub(super) fn is_in_left_partition(&self, card: PciAddress) -> bool {
        self.left_partitions().any(|own| own.cards.contains(&card))
    }
}

/// Whether a card is on a fabric, as its driver says.
pub(super) fn is_on_fabric(card: &Device) -> bool {
    card.fabric.as_ref().is_some_and(|fabric| fabric.state != "NotSupported")
}

/// The cards of a partition. The manager names them by PCI address or UUID; where it knows neither of any card at all, its own
/// numbers are the module numbers of NVML (HGX H100 and later: Fabric Manager User Guide, "GPU Module ID").
fn cards_of(partition: &Partition, all: &[Partition], cards: &[Device]) -> Result<Vec<PciAddress>, String> {
    let mut members = all.iter().flat_map(|one| &one.members);
    let by_number = members.all(|member| member.pci.is_none() && member.uuid.is_empty());
    let mut found = vec![];
    for member in &partition.members {
        let pci = member.pci.as_ref().and_then(|pci| pci.parse::<PciAddress>().ok());
        let mut fitting = cards.iter().filter(|card| {
            let by_pci = pci.map(|pci| pci == card.pci_address);
            let uuid = card.uuid.as_ref().filter(|_| !member.uuid.is_empty());
            let by_uuid = uuid.map(|uuid| uuid.eq_ignore_ascii_case(&member.uuid));
            if by_number {
                return card.module_id.and_then(|id| u32::try_from(id).ok()) == Some(member.physical_id);
            }
            // What contradicts itself is no card.
            by_pci != Some(false) && by_uuid != Some(false) && (by_pci.is_some() || by_uuid.is_some())
        });
        let (Some(card), None) = (fitting.next(), fitting.next()) else {
            let (id, number) = (partition.id, member.physical_id);
            return Err(format!("no card of the host is known to be card {number} of fabric partition {id}"));
        };
        found.push(card.pci_address);
    }
    Ok(found)
}

impl Devices {
    /// With somebody to ask for fabric partitions.
    #[must_use]
    pub fn with_fabric(self, fabric: Arc<dyn FabricManager>) -> Self {
        // Set once, before anybody could ask.
        let _ = self.engine.fabric.set(fabric);
        self
    }
}

impl Engine {
    fn manager(&self) -> &dyn FabricManager {
        &**self.fabric.get_or_init(|| Arc::new(NoFabric))
    }

    /// What the manager lists. One that began anew is told first what was active, if something of gpudesk was: whoever else
    /// uses the fabric has to tell it otherwise.
    fn partitions(&self) -> Result<Vec<Partition>, FabricError> {
        let noted = self.journal().map(|journal| journal.fabric).unwrap_or_default();
        let found = match self.manager().partitions() {
            Err(FabricError::NotConfigured) if !noted.own.is_empty() => {
                // What is of gpudesk is told whatever was seen last: a list may be older than the last activation.
                let own = noted.own.iter().map(|own| own.id);
                let active: BTreeSet<u32> = noted.active.iter().copied().chain(own).collect();
                self.manager().restore(&active.into_iter().collect::<Vec<_>>())?;
                self.manager().partitions()?
            }
            answer => answer?,
        };
        let active: BTreeSet<u32> = found.iter().filter(|one| one.active).map(|one| one.id).collect();
        if active != noted.active
            && let Err(error) = self.note(|journal| journal.fabric.active = active)
        {
            tracing::warn!(%error, "which fabric partitions are active is not noted down");
        }
        Ok(found)
    }

    /// Makes the partition of a share active that is still to be made.
    pub(super) fn join_for(&self, key: &InstanceKey) -> Result<(), GpuError> {
        let journal = self.journal()?;
        let entry = journal.entry(key).filter(|entry| entry.state == State::Wanted);
        let wanted = entry.and_then(|entry| Some((entry.card, entry.partition.as_ref()?)));
        wanted.map_or(Ok(()), |(card, partition)| self.join(card, key, partition))
    }

    /// Makes the partition of a desktop active, while its cards still have NVIDIA's driver.
    fn join(&self, card: PciAddress, key: &InstanceKey, wanted: &WantedPartition) -> Result<(), GpuError> {
        #[cfg(test)]
        self.fuse.point()?;
        let _turn = lock(&self.fabric_turn);
        if let Err(error) = self.part_left() {
            tracing::warn!(%card, %error, "a fabric partition is deactivated later");
        }
        let id = wanted.id;
        let unable = |why: String| GpuError::Unable { card, why };
        let all = self.partitions().map_err(|error| asked(card, error))?;
        let Some(found) = all.iter().find(|one| one.id == id) else {
            let listed: Vec<String> = all.iter().map(|one| one.id.to_string()).collect();
            let why = format!("the fabric manager has no partition {id}; it has {}", listed.join(", "));
            return Err(unable(why));
        };
        let journal = self.journal()?;
        if let Some(own) = journal.fabric.own.iter().find(|own| own.id == id) {
            if own.desktop_uid != key.desktop_uid {
                let source = Refusal::InUse(format!("fabric partition {id}"));
                return Err(GpuError::Unfit { card, source });
            }
            if found.active {
                return Ok(());
            }
        } else if found.active {
            let source = Refusal::Foreign { device: format!("fabric partition {id}"), what: "active".into() };
            return Err(GpuError::Unfit { card, source });
        }
        let cards = lock(&self.seen).cards.clone();
        let mut members = cards_of(found, &all, &cards).map_err(unable)?;
        members.sort();
        let mut asked_for = wanted.cards.clone();
        asked_for.sort();
        if members != asked_for {
            let list =
                |cards: &[PciAddress]| cards.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let (has, wants) = (list(&members), list(&asked_for));
            return Err(unable(format!("fabric partition {id} is of {has}, and the desktop has {wants}")));
        }
        self.free_of_others(card, id, &members, &all, &cards)?;
        let own = Own { id, desktop_uid: key.desktop_uid.clone(), cards: members };
        self.activate(card, own)
    }

    /// Whether no other partition that is active has one of the cards, and all of them still have NVIDIA's driver: what a
    /// guest has is not joined anew under it.
    fn free_of_others(
        &self,
        card: PciAddress,
        id: u32,
        members: &[PciAddress],
        all: &[Partition],
        cards: &[Device],
    ) -> Result<(), GpuError> {
        for other in all.iter().filter(|other| other.active && other.id != id) {
            // Of one whose cards are not known any may be meant.
            let shared = cards_of(other, all, cards)
                .map_or(true, |others| others.iter().any(|other| members.contains(other)));
            if shared {
                let what = format!(
                    "fabric partition {}, which is active and has cards of partition {id},",
                    other.id
                );
                return Err(GpuError::Unfit { card, source: Refusal::InUse(what) });
            }
        }
        let opened = self.opened()?;
        for member in members {
            let live = self.look(*member, &opened)?;
            let driver = live.and_then(|live| live.function.driver);
            if driver.as_deref() != Some("nvidia") {
                let driver = driver.unwrap_or_else(|| "none".into());
                let what = format!(
                    "fabric partition {id} is not active any more, and is activated while all its cards have the driver nvidia: \
                     {member} has {driver}"
                );
                return Err(GpuError::Waiting { card, what, since: Timestamp::now() });
            }
        }
        Ok(())
    }

    /// The step itself. The driver keeps cards that are in persistence mode, and with them their links.
    fn activate(&self, card: PciAddress, own: Own) -> Result<(), GpuError> {
        let id = own.id;
        let step =
            |why: String| GpuError::Step { card, step: format!("activating fabric partition {id}"), why };
        for member in &own.cards {
            let is_on = self.control.persistence(*member).map_err(|error| step(error.to_string()))?;
            if is_on == Some(true) {
                self.note(|journal| {
                    let changes = &mut journal.cards.entry(*member).or_default().changes;
                    if changes.iter().all(|change| change.setting != Setting::Persistence) {
                        let before = Some(true.to_string());
                        changes.push(Change { setting: Setting::Persistence, before, of: None });
                    }
                })?;
                self.control.set_persistence(*member, false).map_err(|error| step(error.to_string()))?;
            }
        }
        self.note(|journal| {
            journal.fabric.own.retain(|known| known.id != id);
            journal.fabric.own.push(own);
        })?;
        tracing::info!(%card, id, "activating a fabric partition");
        self.manager().activate(id).map_err(|error| step(error.to_string()))?;
        #[cfg(test)]
        self.fuse.point()?;
        let found = self.partitions().map_err(|error| step(error.to_string()))?;
        if found.iter().any(|one| one.id == id && one.active) {
            Ok(())
        } else {
            Err(step("the fabric manager took it, and does not list it as active".into()))
        }
    }

    /// Makes partitions of gpudesk inactive that no desktop has any more. Others wait meanwhile.
    pub(super) fn part(&self) -> Result<(), GpuError> {
        let _turn = lock(&self.fabric_turn);
        self.part_left()
    }

    fn part_left(&self) -> Result<(), GpuError> {
        #[cfg(test)]
        self.fuse.point()?;
        let journal = self.journal()?;
        for own in journal.left_partitions() {
            let Some(card) = own.cards.first().copied() else { continue };
            let all = self.partitions().map_err(|error| asked(card, error))?;
            if all.iter().any(|one| one.id == own.id && one.active) {
                let step = format!("deactivating fabric partition {}", own.id);
                tracing::info!(id = own.id, "{step}");
                let done = self.manager().deactivate(own.id);
                done.map_err(|error| GpuError::Step { card, step, why: error.to_string() })?;
                #[cfg(test)]
                self.fuse.point()?;
                self.partitions().map_err(|error| asked(card, error))?;
            }
            self.note(|journal| journal.fabric.own.retain(|known| known != own))?;
        }
        Ok(())
    }

    /// Tells of the partitions in the status, where the host has a fabric.
    pub(super) fn tell_partitions(&self, facts: &mut HostFacts) {
        if facts.nvswitches.is_empty() && !facts.cards.iter().any(is_on_fabric) {
            return;
        }
        let found = self.partitions();
        if let Ok(all) = &found {
            let fabric = facts.fabric.get_or_insert_with(Fabric::default);
            if fabric.partitions.is_empty() {
                for one in all {
                    match modules_of(one, all, &facts.cards) {
                        Ok(module_ids) => {
                            let active = Some(one.active);
                            let id = i32::try_from(one.id);
                            fabric.partitions.extend(id.map(|id| FabricPartition { id, module_ids, active }));
                        }
                        Err(why) => facts.odd.push(why),
                    }
                }
            }
        }
        lock(&self.seen).partitions = Some(found);
    }

    /// Why a card cannot be given whole: it is on a fabric of which nobody can be asked.
    pub(super) fn without_partition(&self, card: &Device) -> Option<String> {
        match lock(&self.seen).partitions.as_ref()? {
            Err(error) if is_on_fabric(card) => Some(format!(
                "{} is on an NVLink fabric, and goes to a guest whole only in a partition: {error}",
                card.pci_address
            )),
            _ => None,
        }
    }

    /// Cards that nobody gets because of a partition: somebody else's, or one that a desktop has and the manager lost.
    pub(super) fn withheld_by_partitions(&self, journal: &Journal) -> BTreeMap<PciAddress, String> {
        let seen = lock(&self.seen);
        let Some(Ok(all)) = &seen.partitions else { return BTreeMap::new() };
        let mut withheld = BTreeMap::new();
        for one in all {
            let own = journal.fabric.own.iter().find(|own| own.id == one.id);
            let id = one.id;
            let why = match own {
                None if one.active => format!(
                    "it is in fabric partition {id}, which is active, not by gpudesk: who activated it has to deactivate it"
                ),
                Some(own) if !one.active && journal.shares.iter().any(|entry| is_given(entry, own)) => {
                    format!(
                        "fabric partition {id}, which a desktop has, is not active any more: the fabric manager began anew \
                     without FABRIC_MODE_RESTART=1. Stop the desktop and start it again"
                    )
                }
                _ => continue,
            };
            for card in cards_of(one, all, &seen.cards).unwrap_or_default() {
                withheld.entry(card).or_insert_with(|| why.clone());
            }
        }
        withheld
    }
}

fn is_given(entry: &Entry, own: &Own) -> bool {
    is_of(entry, own.id) && entry.key.desktop_uid == own.desktop_uid && entry.state == State::Made
}

fn is_of(entry: &Entry, partition: u32) -> bool {
    entry.partition.as_ref().is_some_and(|wanted| wanted.id == partition)
}

/// The cards of a partition as the API names them.
fn modules_of(one: &Partition, all: &[Partition], cards: &[Device]) -> Result<Vec<i32>, String> {
    let module = |address: PciAddress| {
        let card = cards.iter().find(|card| card.pci_address == address);
        let id = card.and_then(|card| card.module_id);
        id.ok_or_else(|| format!("{address} is in fabric partition {}, and tells no module number", one.id))
    };
    cards_of(one, all, cards)?.into_iter().map(module).collect()
}

/// A manager that does not answer now is waited for; one that is not there refuses.
fn asked(card: PciAddress, error: FabricError) -> GpuError {
    match error {
        FabricError::Absent(why) => GpuError::Unable { card, why },
        FabricError::NotConfigured | FabricError::Refused(_) | FabricError::NoAnswer(_) => {
            GpuError::Waiting { card, what: error.to_string(), since: Timestamp::now() }
        }
    }
}
