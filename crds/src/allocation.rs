//! The allocation: what the operator decided that a desktop gets, and where.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::{
    gpu_node::VgpuScheduler,
    handover::AllocationId,
    types::{CpuSet, PageSize, PciAddress, ShareMode},
};

/// What a desktop holds. The durable record of a decision: written by the operator under a
/// `resourceVersion` guard, copied by the node into the metadata of the libvirt domain.
///
/// With `compute` the desktop may run on the node. Without it the desktop is *parked*: it holds
/// nothing there but its disks, and its next start is decided for this node.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Allocation {
    /// The node. Desktops can be listed by it: `--field-selector status.allocation.node=NODE`.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// Which decision of the desktop this is: each start is a new one, and parking keeps it. Whatever runs
    /// on the node, and whatever the node says, names the decision it is for. Absent in what a version
    /// without ids decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<AllocationId>,
    /// Generation of the desktop that this was decided for.
    pub desktop_generation: i64,
    /// Generation of the template that this was decided for.
    pub template_generation: i64,
    /// Value of the restart annotation that this was decided for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub restarted_at: Option<String>,
    /// Value of the restart annotation for which the node may stop the machine: the operator has checked
    /// that the desktop can be started again. Absent while no restart is due. It is no part of what the
    /// desktop holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub stop_for: Option<String>,
    /// What the parts of template and desktop said when this was decided, as `name:digest` each with a
    /// space between: what has changed since is named in the condition `RestartRequired`. For the
    /// operator alone; no part of what the desktop holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub made_of: Option<String>,
    /// When it was decided.
    pub decided_at: Time,
    /// CPUs and memory; absent while the desktop is parked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<Compute>,
    /// Shares of GPUs, keyed by the name of the request; empty while the desktop is parked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub gpus: Vec<GpuAllocation>,
    /// Functions of network cards, and drives, keyed by kind and name; empty while the desktop is
    /// parked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 24))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["kind".into(), "name".into()]))]
    pub host_devices: Vec<HostDeviceAllocation>,
    /// Number of the NVLink fabric partition that the cards form, as in the node's
    /// `fabric.partitions`; absent when they form none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub fabric_partition: Option<i32>,
    /// How it was decided, for people: no program acts on it, and it is no part of what the desktop
    /// holds. Absent while the desktop is parked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<DecisionRecord>,
}

impl Allocation {
    /// What the decision is called where somebody has to name it: its id, or, where a version without ids
    /// decided, its time.
    pub fn decision(&self) -> String {
        self.id.map_or_else(|| self.decided_at.0.to_string(), |id| id.to_string())
    }

    /// What of it the desktop holds, without what only says how it was decided or what comes next.
    #[must_use]
    pub fn held(&self) -> Self {
        Self { decision: None, stop_for: None, made_of: None, ..self.clone() }
    }
}

/// CPUs and memory of a desktop.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Compute {
    /// Cores that the guest sees.
    #[schemars(range(min = 1, max = 512))]
    pub cores: i32,
    /// Threads per core that the guest sees.
    #[schemars(range(min = 1, max = 2))]
    pub threads_per_core: i32,
    /// NUMA cells of the host that CPUs and memory come from; empty when any may be used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub numa_cells: Vec<i32>,
    /// One entry per vCPU with the host CPUs it may run on; empty when the vCPUs float.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["vcpu".into()]))]
    pub vcpu_pins: Vec<VcpuPin>,
    /// Host CPUs for the emulator and I/O threads; absent when they float.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emulator_cpus: Option<CpuSet>,
    /// Memory in MiB.
    #[serde(rename = "memoryMiB")]
    #[schemars(range(min = 1))]
    pub memory_mib: i64,
    /// Size of the pages behind it.
    #[serde(default)]
    pub page_size: PageSize,
    /// Whether memory must come from `numaCells` (else it only should).
    #[serde(default)]
    pub numa_strict: bool,
    /// NUMA cells that the guest sees, each tied to one cell of the host, keyed by id. They hold each
    /// vCPU once and add up to `memoryMiB`. Empty: the guest sees one piece of memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub guest_cells: Vec<GuestCell>,
    /// Whether the CPUs in `vcpuPins` are single hardware threads: the other threads of their cores
    /// may serve other desktops. Else those cores are this desktop's alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub threads_only: bool,
}

/// A NUMA cell that the guest sees.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestCell {
    /// Number that the guest sees, from 0 without gaps.
    #[schemars(range(min = 0, max = 63))]
    pub id: i32,
    /// The cell of the host that its CPUs and memory come from.
    #[schemars(range(min = 0))]
    pub host_cell: i32,
    /// vCPUs in it.
    pub vcpus: CpuSet,
    /// Memory in MiB.
    #[serde(rename = "memoryMiB")]
    #[schemars(range(min = 1))]
    pub memory_mib: i64,
}

/// Where one vCPU runs.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VcpuPin {
    /// Number of the vCPU, from 0.
    #[schemars(range(min = 0, max = 1023))]
    pub vcpu: i32,
    /// Host CPUs it may run on.
    pub cpus: CpuSet,
}

/// A share of a GPU.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuAllocation {
    /// Name of the request; `NAME-0`, `NAME-1`… when it asks for several.
    #[schemars(length(min = 1, max = 68))]
    pub name: String,
    /// PCI address of the card.
    pub device: PciAddress,
    /// UUID of the card, when its driver has one: the identity that survives a reboot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 96))]
    pub device_uuid: Option<String>,
    /// Product name of the card, for people.
    #[schemars(length(max = 128))]
    pub product: String,
    /// The mode.
    pub mode: ShareMode,
    /// Type as in the node's `placements`; `Passthrough` for the whole card.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 64))]
    pub type_name: String,
    /// Nominal framebuffer in MiB.
    #[serde(rename = "framebufferMiB")]
    #[schemars(range(min = 0))]
    pub framebuffer_mib: i64,
    /// Start position, for shares that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<i32>,
    /// The vGPU type on the GPU instance, in mode `Mig`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub vgpu_type: Option<String>,
    /// The vGPU scheduler that the card, or in mode `Mig` the GPU instance, has from the first vGPU to the last;
    /// absent when no profile of those on it wants one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional::<VgpuScheduler>")]
    pub vgpu_scheduler: Option<VgpuScheduler>,
    /// Parameters of the vGPU in the driver's words, from the profile.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::allocated_params")]
    pub vgpu_params: BTreeMap<String, String>,
    /// The profile that asked for it.
    #[schemars(length(min = 1, max = 63))]
    pub profile: String,
}

/// A function of a network card, or a drive.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostDeviceAllocation {
    /// Name of the network interface or the disk in the template.
    #[schemars(length(min = 1, max = 32))]
    pub name: String,
    /// What it is.
    pub kind: AllocatedDeviceKind,
    /// PCI address of what the desktop gets: the virtual function, or the drive.
    pub device: PciAddress,
    /// PCI address of the network card that the virtual function belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<PciAddress>,
}

/// What a desktop holds of a host besides shares of GPUs.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum AllocatedDeviceKind {
    /// A virtual function of a network card.
    NetworkFunction,
    /// A whole NVMe drive.
    NvmeDrive,
}

/// How a desktop was placed, for people.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionRecord {
    /// How many nodes were looked at.
    #[schemars(range(min = 0))]
    pub nodes: i32,
    /// Nodes that were left out, counted by the reason; the most frequent reasons first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["reason".into()]))]
    pub filtered: Vec<FilteredNodes>,
    /// The best of those that were left; the first of them was taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["node".into()]))]
    pub best: Vec<ScoredNode>,
}

/// Nodes that were left out for one reason.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FilteredNodes {
    /// The reason, in the words that a waiting desktop says.
    #[schemars(length(min = 1, max = 128))]
    pub reason: String,
    /// How many nodes.
    #[schemars(range(min = 1))]
    pub nodes: i32,
}

/// A node on which the desktop would have fitted.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScoredNode {
    /// Name of the node.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// What spoke for it, in words and figures; not for programs.
    #[schemars(length(max = 256))]
    pub score: String,
}

/// Where a desktop ran last.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastPlacement {
    /// The node.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// The decision; the next one gets a higher number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocation_id: Option<AllocationId>,
    /// The cards of its shares of GPUs, keyed by the name of the share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub gpus: Vec<LastGpu>,
}

/// The card of a share that a desktop had.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastGpu {
    /// Name of the share, as in `allocation.gpus`.
    #[schemars(length(min = 1, max = 68))]
    pub name: String,
    /// PCI address of the card.
    pub device: PciAddress,
    /// UUID of the card, when its driver has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 96))]
    pub device_uuid: Option<String>,
}
