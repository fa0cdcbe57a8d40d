//! One card.

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{
    card_state::{CardReset, CardWait, ForeignDevice, Restoring},
    fabric::CardFabric,
    health::{Health, TemperatureThresholds},
    pci::{Bar, Companion, IommuGroup, PcieLink, ResizableBar, Sriov},
    shares::{CardUnits, Framework, Instance, LayoutPlaces, ModeSupport, Placement},
    virtual_functions::{VirtualFunction, VirtualFunctions},
};
use crate::types::{PciAddress, ShareMode};

/// One card.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// PCI address.
    pub pci_address: PciAddress,
    /// Its entry in `deviceModels`: a field that is absent here is as said there. Absent when the card has
    /// nothing in common with others. In memory always absent: there each card says all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub model: Option<String>,
    /// Vendor id, four hexadecimal digits.
    #[schemars(length(max = 8))]
    pub vendor_id: String,
    /// Device id, four hexadecimal digits.
    #[schemars(length(max = 8))]
    pub device_id: String,
    /// Class and subclass, four hexadecimal digits: `0300` a VGA controller, `0302` a 3D controller,
    /// `0380` another display controller, `1200` a processing accelerator.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 8))]
    pub class: String,
    /// What it is: `Gpu`; `Display`, a display controller that is no GPU, as the screen of a management
    /// controller; or `Accelerator`, a processing accelerator that is no GPU, as an NPU. A profile takes
    /// what is no GPU only where it names it by `pciIds` or `products`. Default: `Gpu`.
    #[serde(default, skip_serializing_if = "DeviceKind::is_gpu")]
    pub kind: DeviceKind,
    /// Subsystem vendor and device id: `10de:1b1e`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub subsystem: Option<String>,
    /// Product name; the ids when nothing better is known.
    #[schemars(length(max = 128))]
    pub product: String,
    /// UUID as the driver prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 96))]
    pub uuid: Option<String>,
    /// Serial number of the board.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub serial: Option<String>,
    /// Why no desktop gets a share of this card now, in one sentence: a rule of the spec keeps it or asks for what
    /// it cannot do, somebody bound it by hand or gave it to a virtual machine that is not of gpudesk, the discovery
    /// hook said so, the node daemon may not change it or waits for the kernel, it did not come back from its last
    /// reset, what desktops had on it is being put back, or the host does not show it any more. It counts nowhere in
    /// `capacity` then. Absent when desktops can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub unavailable: Option<String>,
    /// What is on the card that gpudesk did not make, keyed by `device`: it counts as taken and stays as it is. The
    /// annotation `gpudesk.dev/adopt` of the `GpuNode` hands it over: a list of `device`, separated by commas; the
    /// condition `DevicesAdopted` says what became of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["device".into()]))]
    pub foreign: Vec<ForeignDevice>,
    /// The last reset between two users; absent when there was none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reset: Option<CardReset>,
    /// What a step on the card waits for; absent when nothing is waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<CardWait>,
    /// How far what desktops had on the card before the daemon or the host started anew is put back. Until that
    /// is done, and this is absent again, the card is `unavailable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restoring: Option<Restoring>,
    /// NUMA cell; absent when the firmware does not say, or names one that the host does not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_cell: Option<i32>,
    /// The NUMA cell that the firmware names although the host does not have it: the card's cell is then
    /// not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub absent_numa_cell: Option<i32>,
    /// The IOMMU group and who else is in it; absent without an IOMMU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iommu_group: Option<IommuGroup>,
    /// The host bridge at the root: `pci0000:40`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub root_complex: Option<String>,
    /// The bridges between the root and the card, root first: the root port, then those of switches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub pcie_path: Vec<PciAddress>,
    /// Width and speed of the PCIe link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<PcieLink>,
    /// The card's other functions: sound, USB-C.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 7))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["pciAddress".into()]))]
    pub companions: Vec<Companion>,
    /// True for the card on which the firmware shows the host's own screen.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub boot_vga: bool,
    /// Virtual functions that the card can have; absent when it can have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sriov: Option<Sriov>,
    /// Virtual functions that are switched on, those in a row as one entry.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        with = "crate::gpu_node_status::virtual_functions"
    )]
    #[schemars(with = "Vec<VirtualFunctions>", length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["pciAddress".into()]))]
    pub virtual_functions: Vec<VirtualFunction>,
    /// UUIDs of the cards reached by NVLink.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub nvlink_peers: Vec<String>,
    /// The card's place in an NVLink fabric; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fabric: Option<CardFabric>,
    /// Number of the card on its board, by which fabric partitions name it. Not the order on PCI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub module_id: Option<i32>,
    /// Kernel driver now bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub driver: Option<String>,
    /// Memory regions assigned to the card.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub bars: Vec<Bar>,
    /// The memory region whose size can be changed, with the sizes that it can have; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resizable_bar: Option<ResizableBar>,
    /// Reset methods of the card, in the kernel's order: `flr`, `bus`, `pm`, `device_specific`; or
    /// `default`, where the kernel can reset it and does not say how (before Linux 5.15).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub reset_methods: Vec<String>,
    /// Memory of the card in MiB.
    #[serde(rename = "memoryMiB", default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_073_741_824))]
    pub memory_mib: Option<i64>,
    /// Temperature in degrees Celsius when it was last read; a change of this figure alone writes
    /// nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<i32>,
    /// Temperatures that the driver itself acts on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_thresholds: Option<TemperatureThresholds>,
    /// Whether the card can be trusted with a desktop.
    #[serde(default)]
    pub health: Health,
    /// How vGPUs are made on this card, as found on the host.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::lenient::word")]
    #[schemars(schema_with = "crate::schema::optional::<Framework>")]
    pub framework: Option<Framework>,
    /// Each mode, whether the card can be used in it, and if not, why.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "crate::lenient::items")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["mode".into()]))]
    pub supports: Vec<ModeSupport>,
    /// MIG mode; absent when the card has no MIG or nobody could be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig: Option<MigMode>,
    /// Time-sliced vGPUs as the driver has set them; absent when nobody could be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vgpu: Option<VgpuState>,
    /// Units in which the card is divided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub units: Option<CardUnits>,
    /// Every share that the driver offers, with its size and its legal positions.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "crate::lenient::items")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub placements: Vec<Placement>,
    /// The places of the fixed layout that its owner gives the card, as they are planned: only these are given to
    /// desktops, and each partition is made when its desktop comes. Keyed by type. Absent without a layout, and
    /// while there is none that can be: the condition `LayoutApplied` says why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub layout: Vec<LayoutPlaces>,
    /// How many more of a type could be created when this was last read, where that is not as the model says:
    /// `placements[].available` of this card, by type. In memory always empty.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::counts")]
    pub available: BTreeMap<String, i32>,
    /// What exists on the card now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub instances: Vec<Instance>,
}

/// What a card is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
pub enum DeviceKind {
    /// A GPU.
    #[default]
    Gpu,
    /// A display controller that is no GPU.
    Display,
    /// A processing accelerator that is no GPU.
    Accelerator,
    /// What a newer version knows, read as no GPU.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

impl DeviceKind {
    /// Whether it is a GPU.
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
    pub fn is_gpu(&self) -> bool {
        *self == Self::Gpu
    }
}

/// MIG mode of a card.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MigMode {
    /// Whether MIG is on now.
    pub current: bool,
    /// Whether MIG will be on after the next reset of the card; differs from `current` when a reset
    /// is needed.
    pub pending: bool,
}

/// Time-sliced vGPUs of a card, as the driver has set them.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VgpuState {
    /// Whether the driver can put vGPUs of different sizes side by side on this card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixed_size_capable: Option<bool>,
    /// Whether that is switched on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixed_size: Option<bool>,
    /// How the card's time is divided now: `BestEffort`, `EqualShare`, `FixedShare`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub scheduler: Option<String>,
    /// The ways that the driver offers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 32)))]
    pub schedulers: Vec<String>,
    /// Whether each GPU instance of MIG has one of `schedulers` to itself; absent when the driver does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_instances: Option<bool>,
}

impl Device {
    /// Whether shares of a mode can be had of the card, when nothing is taken.
    pub fn offers(&self, mode: ShareMode) -> bool {
        self.supports.iter().any(|support| support.mode == mode && support.supported)
            && (mode == ShareMode::Passthrough
                || self.placements.iter().any(|placement| placement.mode == mode))
    }

    /// A card of which only address and ids are known, four hexadecimal digits each.
    pub fn new(pci_address: PciAddress, vendor_id: impl Into<String>, device_id: impl Into<String>) -> Self {
        let (vendor_id, device_id) = (vendor_id.into(), device_id.into());
        Self {
            pci_address,
            model: None,
            product: format!("{vendor_id}:{device_id}"),
            vendor_id,
            device_id,
            class: String::new(),
            kind: DeviceKind::Gpu,
            subsystem: None,
            uuid: None,
            serial: None,
            unavailable: None,
            foreign: vec![],
            last_reset: None,
            waiting_for: None,
            restoring: None,
            numa_cell: None,
            absent_numa_cell: None,
            iommu_group: None,
            root_complex: None,
            pcie_path: vec![],
            link: None,
            companions: vec![],
            boot_vga: false,
            sriov: None,
            virtual_functions: vec![],
            nvlink_peers: vec![],
            fabric: None,
            module_id: None,
            driver: None,
            bars: vec![],
            resizable_bar: None,
            reset_methods: vec![],
            memory_mib: None,
            temperature_celsius: None,
            temperature_thresholds: None,
            health: Health::default(),
            framework: None,
            supports: vec![],
            mig: None,
            vgpu: None,
            units: None,
            placements: vec![],
            layout: vec![],
            available: BTreeMap::new(),
            instances: vec![],
        }
    }
}
