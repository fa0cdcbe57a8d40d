//! The allocation: what the operator decided that a desktop gets, and where.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::types::{CpuSet, PageSize, PciAddress, ShareMode};

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
    /// Generation of the desktop that this was decided for.
    pub desktop_generation: i64,
    /// Generation of the template that this was decided for.
    pub template_generation: i64,
    /// Value of the restart annotation that this was decided for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub restarted_at: Option<String>,
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
    /// The profile that asked for it.
    #[schemars(length(min = 1, max = 63))]
    pub profile: String,
}
