//! What a GPU driver answered, before anything is made of it.
//!
//! Numbers and names are those of the driver (NVML's `nvml.h`); only addresses and units are one form.
//! A field is absent when the driver does not offer the function, or says that the card has no such thing.

mod event;
mod health;
mod mig;
mod vgpu;

use gpudesk_crds::types::PciAddress;
use serde::{Deserialize, Serialize};

pub use event::{DriverEvent, EVENTS_PER_CARD, EventKind, remember};
pub use health::{EccReadings, RowRemappingReadings, TemperatureReadings, Thresholds};
pub use mig::{ComputeInstanceReading, GpuInstanceReading, MigPlacement, MigProfile, MigReadings};
pub use vgpu::{VgpuInstanceReading, VgpuPlacements, VgpuReadings, VgpuTypeReading};

/// Everything that a driver answered in one pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DriverReadings {
    /// Version of the driver: `580.95.05`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    /// Version of the library that was asked: `13.580.95.05`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library_version: Option<String>,
    /// Version of the vGPU host driver; absent when the driver is no vGPU host driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vgpu_manager_version: Option<String>,
    /// The cards, lowest address first.
    pub cards: Vec<CardReadings>,
    /// Errors that cards reported since somebody listens, newest of each kind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<DriverEvent>,
    /// What could not be read and belongs to no card, one sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// What a driver answered about one card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CardReadings {
    /// PCI address.
    pub address: PciAddress,
    /// Vendor and device id as PCI has them: `10de:2bb5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
    /// Why the rest was not read, or is that of an earlier time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<CardFault>,
    /// Functions that failed in a way that is not "not supported": `nvmlDeviceGetSerial: In use`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed_calls: Vec<String>,
    /// Product name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// UUID: `GPU-…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Serial number of the board.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Memory in MiB, as the driver counts it.
    #[serde(rename = "memoryMiB", default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<i64>,
    /// Number of the card on its board.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module_id: Option<i32>,
    /// MIG; absent when the card has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig: Option<MigReadings>,
    /// vGPUs; absent when the driver is no vGPU host driver or the card takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vgpu: Option<VgpuReadings>,
    /// The links (`NVLink`) that are up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nvlinks: Vec<NvLink>,
    /// NVLink fabric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fabric: Option<FabricReading>,
    /// Temperatures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<TemperatureReadings>,
    /// Reasons for clocks below the highest, as a bit mask (`nvmlClocksEventReason…`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clocks_event_reasons: Option<u64>,
    /// Memory errors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecc: Option<EccReadings>,
    /// Rows of memory replaced by spare ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_remapping: Option<RowRemappingReadings>,
    /// What the driver wants done, by number (`NVML_GPU_RECOVERY_ACTION_…`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_action: Option<u32>,
}

impl CardReadings {
    /// A card of which only the address is known.
    pub fn new(address: PciAddress) -> Self {
        Self {
            address,
            pci_id: None,
            fault: None,
            failed_calls: vec![],
            product: None,
            uuid: None,
            serial: None,
            memory_mib: None,
            module_id: None,
            mig: None,
            vgpu: None,
            nvlinks: vec![],
            fabric: None,
            temperature: None,
            clocks_event_reasons: None,
            ecc: None,
            row_remapping: None,
            recovery_action: None,
        }
    }
}

/// Why a card was not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CardFault {
    /// Which kind.
    pub kind: FaultKind,
    /// What the driver said.
    pub message: String,
}

/// Kinds of fault of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultKind {
    /// It fell off the bus (`GPU_IS_LOST`).
    Lost,
    /// It needs a reset before it answers (`RESET_REQUIRED`).
    ResetRequired,
    /// The driver did not answer in time.
    NoAnswer,
    /// Something else.
    Other,
}

/// An NVLink that is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NvLink {
    /// Number of the link on the card.
    pub link: u32,
    /// What is at its other end; absent when the driver does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<PciAddress>,
}

/// A card's place in an NVLink fabric.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FabricReading {
    /// State of registering, by number (`NVML_GPU_FABRIC_STATE_…`).
    pub state: u32,
    /// How registering ended, as a return code of NVML.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u32>,
    /// UUID of the cluster, lower case with dashes; absent when it is all zeros.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_uuid: Option<String>,
    /// The clique within the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clique_id: Option<u32>,
}

impl DriverReadings {
    /// The card at `address`.
    pub fn card(&self, address: PciAddress) -> Option<&CardReadings> {
        self.cards.iter().find(|card| card.address == address)
    }

    /// Puts a card in the place of what was known of it.
    pub fn put_card(&mut self, card: CardReadings) {
        match self.cards.binary_search_by_key(&card.address, |card| card.address) {
            Ok(place) => self.cards[place] = card,
            Err(place) => self.cards.insert(place, card),
        }
    }
}
