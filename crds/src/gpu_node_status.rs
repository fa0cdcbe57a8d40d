//! The status of a `GpuNode`: what its node daemon found on the machine.
//!
//! The geometry in it (types, sizes, start positions, counts) is what the driver of the host
//! reported, never a table of gpudesk; on a simulated host it is what the host file describes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::types::{CpuSet, PageSize, PciAddress, ShareMode, VgpuSeries};

/// What the node daemon found. Written by the daemon of this node alone, when it changes.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuNodeStatus {
    /// The machine and its software.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Host>,

    /// NUMA cells; a machine without NUMA has one, number 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub numa_cells: Vec<NumaCell>,

    /// Display controllers and accelerators, keyed by PCI address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["pciAddress".into()]))]
    pub devices: Vec<Device>,

    /// What could run here if nothing did: per type, how many of it alone fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub capacity: Vec<TypeCount>,

    /// What is in use now, per type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub allocated: Vec<TypeCount>,

    /// The figures that `kubectl get gpunodes` prints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<NodeSummary>,

    /// `Ready`, `IommuEnabled`, `HypervisorReady`, `DevicesHealthy`, `TopologyComplete`,
    /// `LayoutApplied`. Each False says the cause and the fix in one sentence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// The machine and its software. A version that could not be read is absent.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Host {
    /// True for a host that exists only as a description (`--simulate`): its cards are not there,
    /// and its desktops run on libvirt's test driver.
    #[serde(default)]
    pub simulated: bool,
    /// How guests run: `Kvm`, `Emulation` (plain QEMU, slow) or `Simulated`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional::<Acceleration>")]
    pub acceleration: Option<Acceleration>,
    /// Kernel release, as `uname -r` prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// CPU model name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
    /// Board or system product name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub board: Option<String>,
    /// Version of QEMU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu_version: Option<String>,
    /// Version of libvirt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libvirt_version: Option<String>,
    /// Version of the GPU host driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_driver_version: Option<String>,
    /// Version of the node daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daemon_version: Option<String>,
}

/// How guests run on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Acceleration {
    /// Hardware virtualization.
    Kvm,
    /// Plain emulation: correct, and ten to fifty times slower.
    Emulation,
    /// No guest runs at all.
    Simulated,
}

/// One NUMA cell.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NumaCell {
    /// Number of the cell.
    #[schemars(range(min = 0))]
    pub id: i32,
    /// The cores of the cell, each as the set of its online threads: `["0,64", "1,65"]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096))]
    pub cores: Vec<CpuSet>,
    /// Memory of the cell in MiB.
    #[serde(rename = "memoryMiB", default)]
    #[schemars(range(min = 0))]
    pub memory_mib: i64,
    /// Hugepages reserved on the cell, per size.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["size".into()]))]
    pub hugepages: Vec<Hugepages>,
    /// Distance to each cell in the order of their numbers; 10 is the cell itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub distances: Vec<i32>,
}

/// Hugepages of one size on one NUMA cell.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hugepages {
    /// Size of one page.
    pub size: PageSize,
    /// Pages reserved.
    #[schemars(range(min = 0))]
    pub total: i64,
    /// Pages free when the status was last written; a change of this figure alone writes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub free: Option<i64>,
}

/// One card.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// PCI address.
    pub pci_address: PciAddress,
    /// Vendor id, four hexadecimal digits.
    #[schemars(length(max = 8))]
    pub vendor_id: String,
    /// Device id, four hexadecimal digits.
    #[schemars(length(max = 8))]
    pub device_id: String,
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
    /// NUMA cell; absent when the firmware does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_cell: Option<i32>,
    /// The IOMMU group and who else is in it; absent without an IOMMU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iommu_group: Option<IommuGroup>,
    /// The bridges between the root and the card, root first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub pcie_path: Vec<PciAddress>,
    /// UUIDs of the cards reached by NVLink.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub nvlink_peers: Vec<String>,
    /// Kernel driver now bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub driver: Option<String>,
    /// Memory regions assigned to the card.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub bars: Vec<Bar>,
    /// Reset methods of the card, in the kernel's order: `flr`, `bus`, `pm`, `device_specific`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub reset_methods: Vec<String>,
    /// Memory of the card in MiB.
    #[serde(rename = "memoryMiB", default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub memory_mib: Option<i64>,
    /// Temperature in degrees Celsius when it was last read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<i32>,
    /// Whether the card can be trusted with a desktop.
    #[serde(default)]
    pub health: Health,
    /// How vGPUs are made on this card, as found on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional::<Framework>")]
    pub framework: Option<Framework>,
    /// Each mode, whether the card can be used in it, and if not, why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["mode".into()]))]
    pub supports: Vec<ModeSupport>,
    /// Units in which the card is divided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub units: Option<CardUnits>,
    /// Every share that the driver offers, with its size and its legal positions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub placements: Vec<Placement>,
    /// What exists on the card now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub instances: Vec<Instance>,
}

/// An IOMMU group: what can only be given away together.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IommuGroup {
    /// Number of the group.
    pub id: i32,
    /// The other functions in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub members: Vec<PciAddress>,
}

/// One memory region of a card.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bar {
    /// Number of the region, 0 to 5.
    #[schemars(range(min = 0, max = 5))]
    pub index: i32,
    /// Size in bytes.
    #[schemars(range(min = 0))]
    pub size_bytes: i64,
}

/// Health of a card.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// The judgement. Only `Healthy` and `Unknown` cards get new desktops.
    #[serde(default)]
    pub state: HealthState,
    /// Its cause, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
}

/// Judgement on a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum HealthState {
    /// Nothing speaks of health here (no driver that tells).
    #[default]
    Unknown,
    /// The driver sees no fault.
    Healthy,
    /// Out of capacity until it is seen healthy.
    Failed,
}

/// How shares of a card become devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Framework {
    /// Mediated devices.
    Mdev,
    /// Vendor-specific VFIO on SR-IOV functions.
    VendorVfio,
    /// Plain SR-IOV virtual functions.
    Sriov,
}

/// Whether a card can be used in a mode.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModeSupport {
    /// The mode.
    pub mode: ShareMode,
    /// Whether it works here.
    pub supported: bool,
    /// Why not, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub reason: Option<String>,
}

/// The units in which a card is divided.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CardUnits {
    /// MIG memory units; MIG starts and sizes count in them. 0 without MIG.
    #[serde(default)]
    #[schemars(range(min = 0, max = 256))]
    pub mig_memory: i32,
    /// MIG compute slices. 0 without MIG.
    #[serde(default)]
    #[schemars(range(min = 0, max = 256))]
    pub mig_compute: i32,
    /// Placement units of time-sliced vGPUs in mixed-size mode. 0 when the card cannot mix sizes.
    #[serde(default)]
    #[schemars(range(min = 0, max = 4096))]
    pub vgpu_region: i32,
}

/// A share that the driver offers on a card.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Name as the driver prints it: a MIG profile (`1g.24gb+gfx`), a vGPU type (`L40S-8Q`), or the
    /// kind of virtual function. Matched exactly.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 64))]
    pub type_name: String,
    /// The mode that the share belongs to.
    pub mode: ShareMode,
    /// Nominal framebuffer in MiB.
    #[serde(rename = "framebufferMiB")]
    #[schemars(range(min = 0))]
    pub framebuffer_mib: i64,
    /// Series of a vGPU type; absent for MIG profiles and virtual functions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional::<VgpuSeries>")]
    pub series: Option<VgpuSeries>,
    /// Length in units (`units.migMemory` or `units.vgpuRegion`). 0 when the share has no position.
    #[serde(default)]
    #[schemars(range(min = 0, max = 4096))]
    pub size: i32,
    /// Legal start positions in the same units: of a MIG profile always, of a vGPU type in
    /// mixed-size mode. Empty when the share has no position.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub starts: Vec<i32>,
    /// MIG compute slices that the share takes.
    #[serde(default)]
    #[schemars(range(min = 0, max = 256))]
    pub compute_slices: i32,
    /// How many of this type fit on an empty card (vGPU types: in equal-size mode).
    #[schemars(range(min = 0, max = 4096))]
    pub max_count: i32,
    /// vGPU types that can live on a GPU instance of this MIG profile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub vgpu_types: Vec<MigBackedType>,
}

/// A vGPU type on a MIG GPU instance.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MigBackedType {
    /// Name as the driver prints it, for example `DC-1-24Q`.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 64))]
    pub type_name: String,
    /// Series.
    pub series: VgpuSeries,
    /// Framebuffer in MiB.
    #[serde(rename = "framebufferMiB")]
    #[schemars(range(min = 0))]
    pub framebuffer_mib: i64,
    /// How many of it one GPU instance holds.
    #[schemars(range(min = 1, max = 256))]
    pub max_per_instance: i32,
}

/// A share that exists.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Identity: an mdev UUID, a MIG UUID or the PCI address of a virtual function.
    #[schemars(length(min = 1, max = 96))]
    pub id: String,
    /// Type, as in `placements`.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 64))]
    pub type_name: String,
    /// The mode that the share belongs to.
    pub mode: ShareMode,
    /// Start position, when it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<i32>,
    /// The desktop that holds it, as `namespace/name`; absent when nobody of ours does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 320))]
    pub owner: Option<String>,
}

/// How many of a type.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeCount {
    /// Type, as in `placements`; `Passthrough` for whole cards.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 64))]
    pub type_name: String,
    /// The mode that the share belongs to.
    pub mode: ShareMode,
    /// How many.
    #[schemars(range(min = 0))]
    pub count: i32,
}

/// The figures that `kubectl get gpunodes` prints.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSummary {
    /// Cards that gpudesk manages.
    #[schemars(range(min = 0))]
    pub gpus: i32,
    /// Cards of which nothing is in use.
    #[schemars(range(min = 0))]
    pub free_gpus: i32,
    /// `used/total` placement units: MIG memory units, vGPU units, or 1 for a card given only whole.
    #[schemars(length(max = 32))]
    pub slices: String,
    /// NUMA cells.
    #[schemars(range(min = 0))]
    pub numa_cells: i32,
}
