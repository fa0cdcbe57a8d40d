//! The catalogue of known cards: names them and feeds simulated hosts.
//!
//! What a real card can do is never taken from here; that is what its driver says.

mod shares;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use gpudesk_crds::{
    gpu_node_status::{Framework, HostDeviceKind, Placement, TemperatureThresholds, VgpuState},
    types::{ShareMode, VgpuSeries},
};
use serde::Deserialize;
use thiserror::Error;

use shares::{Mig, MixedSize, Vgpu, VirtualFunctions};

/// Why the catalogue does not help.
#[derive(Debug, Error)]
pub enum CatalogueError {
    /// The file inside this program is broken; a test sees to it that it is not.
    #[error("the catalogue of cards cannot be read: {0}")]
    Unreadable(#[from] serde_yaml::Error),
    /// No such card.
    #[error("no card is called {model:?}; known are: {known}")]
    UnknownModel {
        /// The name asked for.
        model: String,
        /// Every name there is.
        known: String,
    },
    /// No such network card or drive.
    #[error("no {kind} is called {model:?}; known are: {known}")]
    UnknownHostDevice {
        /// What was asked for: `network card`, `drive`.
        kind: &'static str,
        /// The name asked for.
        model: String,
        /// Every name there is.
        known: String,
    },
    /// A card names a table that is not there.
    #[error("the card {model:?} names the table {table:?}, which is not in the catalogue")]
    UnknownTable {
        /// The card.
        model: String,
        /// The table.
        table: String,
    },
}

/// Every known card.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Catalogue {
    mixed_size_tables: BTreeMap<String, Vec<MixedSize>>,
    cards: Vec<CardModel>,
    host_devices: Vec<HostDeviceModel>,
}

/// One known card.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CardModel {
    /// Product name.
    pub model: String,
    /// `vendor:device`, four hexadecimal digits each.
    pub pci_id: String,
    /// Subsystem vendor and device id of the maker's own board.
    #[serde(default)]
    pub subsystem: Option<String>,
    /// PCI class and subclass, four hexadecimal digits.
    pub class: String,
    /// Memory of one GPU in MiB; 0 for graphics that use the host's memory.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: i64,
    /// The host driver that owns the card.
    pub driver: String,
    /// Sizes of the memory regions in MiB, by number.
    pub bars: BTreeMap<i32, i64>,
    /// Reset methods in the kernel's order.
    pub reset_methods: Vec<String>,
    /// The PCIe link that the card can have.
    #[serde(default)]
    pub link: Option<Link>,
    /// The other functions of the card, such as the sound of a consumer card.
    #[serde(default)]
    pub companions: Vec<CompanionModel>,
    /// Whether the host's own screen hangs on it.
    #[serde(default)]
    pub boot_vga: bool,
    /// GPUs on one board.
    #[serde(default = "one")]
    pub gpus_per_board: i32,
    /// The ways in which shares of it become devices, the usual one first; none when it has no shares.
    #[serde(default)]
    pub frameworks: Vec<Framework>,
    /// Whether vGPUs are made on the card itself rather than on virtual functions.
    #[serde(default)]
    pub types_on_card: bool,
    /// The NVSwitches on a board of eight such cards.
    #[serde(default)]
    pub nvswitch: Option<Nvswitch>,
    #[serde(default)]
    sriov: Option<i32>,
    #[serde(default)]
    temperatures: Option<Temperatures>,
    #[serde(default)]
    vgpu: Option<Vgpu>,
    #[serde(default)]
    mig: Option<Mig>,
    #[serde(default)]
    virtual_functions: Option<VirtualFunctions>,
}

/// A PCIe link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Lanes.
    pub lanes: i32,
    /// Generation of PCIe, 1 to 6.
    pub generation: i32,
}

impl Link {
    /// Megatransfers per second and lane.
    pub fn speed_mtps(self) -> i32 {
        match self.generation {
            ..=1 => 2500,
            2 => 5000,
            generation => 1000 << generation.min(6),
        }
    }
}

/// Another function of a card.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CompanionModel {
    /// PCI class and subclass.
    pub class: String,
    /// Device id; the vendor is that of the card.
    pub device_id: String,
    /// The host driver that owns it.
    pub driver: String,
}

/// NVSwitches.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Nvswitch {
    /// Device id of one.
    pub device_id: String,
    /// How many there are.
    pub count: i32,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Temperatures {
    shutdown: i32,
    slowdown: i32,
    max_operating: i32,
    #[serde(default)]
    memory_max_operating: Option<i32>,
}

/// A known network card or drive.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostDeviceModel {
    /// Product name.
    pub model: String,
    /// What it is.
    pub kind: HostDeviceKind,
    /// `vendor:device`, four hexadecimal digits each.
    pub pci_id: String,
    /// PCI class and subclass.
    pub class: String,
    /// The host driver that owns it.
    pub driver: String,
    /// Reset methods in the kernel's order.
    pub reset_methods: Vec<String>,
    /// The PCIe link that it can have.
    pub link: Link,
    /// Virtual functions that it can have.
    #[serde(default)]
    pub virtual_functions: i32,
    /// Size of a drive in MiB, one of those that it is sold with.
    #[serde(rename = "sizeMiB", default)]
    pub size_mib: Option<i64>,
}

fn one() -> i32 {
    1
}

/// Vendor id and device id of `vendor:device`.
pub(super) fn ids(pci_id: &str) -> (&str, &str) {
    pci_id.split_once(':').unwrap_or((pci_id, ""))
}

impl Catalogue {
    /// The catalogue inside this program.
    ///
    /// # Errors
    /// [`CatalogueError::Unreadable`], which a test excludes.
    pub fn embedded() -> Result<Self, CatalogueError> {
        Ok(serde_yaml::from_str(include_str!("../catalogue.yaml"))?)
    }

    /// The card called `model`, upper and lower case alike.
    ///
    /// # Errors
    /// [`CatalogueError::UnknownModel`], with every name that is known.
    pub fn card(&self, model: &str) -> Result<&CardModel, CatalogueError> {
        self.cards.iter().find(|card| card.model.eq_ignore_ascii_case(model)).ok_or_else(|| {
            CatalogueError::UnknownModel {
                model: model.chars().take(80).collect(),
                known: self.cards.iter().map(|card| card.model.as_str()).collect::<Vec<_>>().join(", "),
            }
        })
    }

    /// The network card or drive called `model`, upper and lower case alike.
    ///
    /// # Errors
    /// [`CatalogueError::UnknownHostDevice`], with every name that is known.
    pub fn host_device(&self, kind: HostDeviceKind, model: &str) -> Result<&HostDeviceModel, CatalogueError> {
        let of_kind = || self.host_devices.iter().filter(|device| device.kind == kind);
        of_kind().find(|device| device.model.eq_ignore_ascii_case(model)).ok_or_else(|| {
            CatalogueError::UnknownHostDevice {
                kind: match kind {
                    HostDeviceKind::NetworkCard => "network card",
                    HostDeviceKind::NvmeDrive => "drive",
                },
                model: model.chars().take(80).collect(),
                known: of_kind().map(|device| device.model.as_str()).collect::<Vec<_>>().join(", "),
            }
        })
    }

    /// Every card.
    pub fn cards(&self) -> &[CardModel] {
        &self.cards
    }

    /// Every share that `card` offers when its vGPUs are made by `framework`, with its size and legal
    /// positions: MIG profiles in the order of the driver, then vGPU types by series and size, then
    /// virtual functions.
    ///
    /// # Errors
    /// [`CatalogueError::UnknownTable`], which a test excludes.
    pub fn placements(
        &self,
        card: &CardModel,
        framework: Option<Framework>,
    ) -> Result<Vec<Placement>, CatalogueError> {
        let mut placements = vec![];
        if let Some(mig) = &card.mig {
            placements.extend(mig.placements(card.vgpu.as_ref()));
        }
        if let Some(vgpu) = &card.vgpu {
            placements.extend(vgpu.placements(self.mixed_sizes(card)?, framework));
        }
        placements.extend(card.virtual_functions.iter().flat_map(VirtualFunctions::placements));
        Ok(placements)
    }

    fn mixed_sizes(&self, card: &CardModel) -> Result<Option<&[MixedSize]>, CatalogueError> {
        let Some(name) = card.vgpu.as_ref().and_then(|vgpu| vgpu.mixed_size_table.as_ref()) else {
            return Ok(None);
        };
        match self.mixed_size_tables.get(name) {
            Some(table) => Ok(Some(table)),
            None => Err(CatalogueError::UnknownTable { model: card.model.clone(), table: name.clone() }),
        }
    }
}

impl CardModel {
    /// Vendor id and device id.
    pub fn ids(&self) -> (&str, &str) {
        ids(&self.pci_id)
    }

    /// Device id of its virtual functions, when they have one of their own.
    pub fn virtual_function_id(&self) -> Option<&str> {
        self.virtual_functions.as_ref().map(|functions| functions.device_id.as_str())
    }

    /// Whether it can be divided by MIG.
    pub fn has_mig(&self) -> bool {
        self.mig.is_some()
    }

    /// Virtual functions that the card can have, `placements` being what it offers; `None` for none.
    pub fn total_virtual_functions(&self, placements: &[Placement]) -> Option<i32> {
        if self.sriov.is_some() || self.frameworks.is_empty() || self.types_on_card {
            return self.sriov;
        }
        let most = |placement: &Placement| match placement.mode {
            ShareMode::Mig => {
                let most = placement.vgpu_types.iter().map(|kind| kind.max_per_instance).max();
                most.unwrap_or(0) * placement.max_count
            }
            _ => placement.max_count,
        };
        placements.iter().map(most).max().filter(|most| *most > 0)
    }

    /// How its driver sets vGPUs up at first, `placements` being what it offers; `None` when there are none for this card.
    pub fn vgpu_state(&self, placements: &[Placement]) -> Option<VgpuState> {
        let vgpu = self.vgpu.as_ref()?;
        let mixes = vgpu.mixed_size_table.is_some();
        let mut shared = placements.iter().flat_map(|placement| &placement.vgpu_types);
        Some(VgpuState {
            mixed_size_capable: if mixes { Some(true) } else { vgpu.mixed_size },
            // Positions are offered where they are known, and then the card stands in that mode.
            mixed_size: Some(mixes),
            scheduler: Some("BestEffort".into()),
            schedulers: ["BestEffort", "EqualShare", "FixedShare"].map(Into::into).into(),
            // Of cards on which several vGPUs share a GPU instance.
            on_instances: self.has_mig().then(|| shared.any(|kind| kind.max_per_instance > 1)),
        })
    }

    /// Temperatures that its driver acts on, where they are published.
    pub fn temperature_thresholds(&self) -> Option<TemperatureThresholds> {
        let Temperatures { shutdown, slowdown, max_operating, memory_max_operating } = self.temperatures?;
        Some(TemperatureThresholds {
            shutdown_celsius: Some(shutdown),
            slowdown_celsius: Some(slowdown),
            max_operating_celsius: Some(max_operating),
            memory_max_operating_celsius: memory_max_operating,
        })
    }
}

/// A series, as the catalogue writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
enum SeriesName {
    Q,
    B,
    A,
    C,
}

impl SeriesName {
    fn api(self) -> VgpuSeries {
        match self {
            Self::Q => VgpuSeries::Q,
            Self::B => VgpuSeries::B,
            Self::A => VgpuSeries::A,
            Self::C => VgpuSeries::C,
        }
    }
}
