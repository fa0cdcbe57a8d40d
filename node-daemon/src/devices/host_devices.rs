//! Drives and functions of network cards: who may have them, and what the journal keeps of them beside what it keeps of
//! cards.
#![expect(clippy::disallowed_methods, reason = "adapter: notes since when something is waited for")]

use gpudesk_crds::{gpu_node_drives::DriveErase, gpu_node_status::HostDevice, types::PciAddress};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    engine::{Engine, Stop, lock},
    journal::{Card, Journal},
    network::NetworkWish,
};
use crate::host::gpu_driver::{GpuError, WantedInstance, What};

/// The erasing of a drive after its user. It promises no more than what the drive said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Erasure {
    /// How.
    pub method: DriveErase,
    /// When it ended.
    pub at: Timestamp,
    /// Why it is not erased, or not as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

impl Engine {
    /// Whether the owner of the host gives this away, and how a drive is erased after it. One that is still to be erased is
    /// waited for.
    pub(super) fn admit(
        &self,
        wanted: &WantedInstance,
        journal: &Journal,
    ) -> Result<Option<DriveErase>, GpuError> {
        let card = wanted.card;
        if let Some(method) = journal.cards.get(&card).and_then(|card| card.erase) {
            let what = format!("the drive is erased after its last user ({method})");
            return Err(GpuError::Waiting { card, what, since: Timestamp::now() });
        }
        match &wanted.what {
            What::Card => Ok(None),
            What::Drive => self.drive_erase(card, journal).map(Some),
            What::Network(NetworkWish { parent, .. }) => self.leads_somewhere(card, *parent).map(|()| None),
        }
    }

    /// Notes what erasing a drive came to.
    pub(super) fn erased(&self, card: PciAddress, erasure: Erasure) -> Result<(), Stop> {
        let fault = erasure.fault.clone();
        self.note(|journal| journal.note_erase(card, erasure))?;
        fault.map_or(Ok(()), |fault| Err(Stop::Stranded(fault)))
    }

    /// How a drive is erased between users, where its owner gives it to desktops.
    fn drive_erase(&self, drive: PciAddress, journal: &Journal) -> Result<DriveErase, GpuError> {
        let seen = lock(&self.seen);
        let device = seen.host_devices.iter().find(|device| device.pci_address == drive);
        let device = device.ok_or(GpuError::NoSuchCard(drive))?;
        let owes = |(at, known): (&PciAddress, &Card)| {
            *at != drive && known.erase.is_some() && known.serial.is_some() && known.serial == device.serial
        };
        if journal.cards.iter().any(owes) {
            let why = "it is still to be erased after its last user, who had it at another address: bring it back there, or erase \
                       it by hand and give it to the host"
                .into();
            return Err(GpuError::Unable { card: drive, why });
        }
        let spec = seen.spec.as_ref().ok_or_else(|| unknown_owner(drive))?;
        spec.drive_erase(device).map_err(|why| GpuError::Unable { card: drive, why })
    }

    /// Whether the owner of the host says where a network card leads.
    fn leads_somewhere(&self, card: PciAddress, parent: PciAddress) -> Result<(), GpuError> {
        if let Some(why) = self.kernel.no_network_functions() {
            return Err(GpuError::Unable { card, why });
        }
        let seen = lock(&self.seen);
        let spec = seen.spec.as_ref().ok_or_else(|| unknown_owner(card))?;
        if spec.physical_networks.iter().any(|network| network.devices.contains(&parent)) {
            return Ok(());
        }
        let why = format!("its network card {parent} is in no spec.physicalNetworks of the GpuNode");
        Err(GpuError::Unable { card, why })
    }
}

/// Nothing is given before its owner was heard.
pub(super) fn unknown_owner(card: PciAddress) -> GpuError {
    let what = "what the owner of the host says of its cards is not known yet".into();
    GpuError::Waiting { card, what, since: Timestamp::now() }
}

impl Journal {
    /// Remembers which drive stands at an address.
    pub fn know_drive(&mut self, seen: &HostDevice) {
        let card = self.cards.entry(seen.pci_address).or_default();
        card.ids = format!("{}:{}", seen.vendor_id, seen.device_id);
        card.serial = seen.serial.clone().or(card.serial.take());
        card.memory_mib = seen.size_mib.or(card.memory_mib);
    }

    /// Notes what erasing a drive came to.
    pub(super) fn note_erase(&mut self, card: PciAddress, erasure: Erasure) {
        let card = self.cards.entry(card).or_default();
        if erasure.fault.is_none() {
            card.erase = None;
        }
        card.last_erase = Some(erasure);
    }

    /// Forgets a card that is not there any more, unless its drive is still to be erased when it comes back.
    pub(super) fn lose(&mut self, card: PciAddress) {
        match self.cards.get_mut(&card) {
            Some(known) if known.erase.is_some() => known.changes.clear(),
            _ => drop(self.cards.remove(&card)),
        }
    }
}
