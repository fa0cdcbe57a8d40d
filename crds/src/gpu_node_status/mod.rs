//! The status of a `GpuNode`: what its node daemon found on the machine.
//!
//! The geometry in it (types, sizes, start positions, counts) is what the driver of the host
//! reported, never a table of gpudesk; on a simulated host it is what the host file describes.

// The schema derive repeats a type with serde functions of its own inside a function, where nobody reads its
// fields; what is expected does not reach there.
#![allow(dead_code)]

mod card_state;
mod counts;
mod device;
mod fabric;
mod geometry;
mod health;
mod host;
mod host_device;
mod leftover;
mod models;
mod numa;
mod pci;
mod shares;
mod stray;
pub(crate) mod virtual_functions;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use card_state::{CardReset, CardWait, DriveErasure, ForeignDevice, ResetCheck, Restoring};
pub use counts::{NodeSummary, TypeCount};
pub use device::{Device, DeviceKind, MigMode, VgpuState};
pub use fabric::{CardFabric, Fabric, FabricPartition};
pub use health::{Ecc, Health, HealthState, RecoveryAction, RowRemapping, TemperatureThresholds, Xid};
pub use host::{Acceleration, Host, HostCpus};
pub use host_device::{HostDevice, HostDeviceKind};
pub use leftover::Leftover;
pub use models::{DeviceModel, VgpuDisplay};
pub use numa::{CacheDomain, Hugepages, NumaCell};
pub use pci::{Bar, Companion, GroupMember, IommuGroup, PcieLink, ResizableBar, Sriov};
pub use shares::{
    CardUnits, Framework, Instance, LayoutPlaces, MediaEngines, MigBackedType, ModeSupport, Placement,
};
pub use stray::{Stray, StrayStanding};
pub use virtual_functions::{VirtualFunction, VirtualFunctions};

/// What the node daemon found. Written by the daemon of this node when it changes; the conditions
/// `DaemonHeard` and `CardsUnpublished` alone are the operator's.
///
/// In memory each card says all; what several have in common is written once (`deviceModels`), and given back
/// to each as it is read.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct GpuNodeStatus {
    /// The machine and its software.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Host>,

    /// NUMA cells; a machine without NUMA has one, number 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub numa_cells: Vec<NumaCell>,

    /// What several cards have in common, keyed by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub device_models: Vec<DeviceModel>,

    /// Display controllers and accelerators, keyed by PCI address. A field that one with a `model` does not
    /// say is as in its entry of `deviceModels`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["pciAddress".into()]))]
    pub devices: Vec<Device>,

    /// Network cards and NVMe drives on PCI, keyed by PCI address. Those that a desktop may take
    /// say `usable`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "crate::lenient::items")]
    #[schemars(length(max = 128))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["pciAddress".into()]))]
    pub host_devices: Vec<HostDevice>,

    /// The NVLink fabric of a board with NVSwitches; absent without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fabric: Option<Fabric>,

    /// What could run here if nothing did: per type, how many of it alone fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "crate::lenient::items")]
    #[schemars(length(max = 512))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub capacity: Vec<TypeCount>,

    /// What is in use now, per type. A GPU instance that several vGPUs share counts once.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "crate::lenient::items")]
    #[schemars(length(max = 512))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub allocated: Vec<TypeCount>,

    /// Machines that run or are defined here and are not those of allocations to this node, keyed by the UID of the
    /// Desktop that each was made for. What they hold counts as taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["uid".into()]))]
    pub strays: Vec<Stray>,

    /// How many more such machines there are than `strays` has room for. While there are any, the node
    /// takes no new desktops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub more_strays: Option<i32>,

    /// Folders with disks of desktops that are this node's no more, keyed by name, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub leftovers: Vec<Leftover>,

    /// How many more such folders there are than `leftovers` has room for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub more_leftovers: Option<i32>,

    /// The figures that `kubectl get gpunodes` prints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<NodeSummary>,

    /// What could not be read or cannot be as it was read, one sentence each. The rest of the status is
    /// as found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 512)))]
    pub missing: Vec<String>,

    /// `Ready`, `HypervisorReady`, `KvmUsable`, `GuestNetworkFiltered`, `TopologyComplete`, `DevicesHealthy`,
    /// `LayoutApplied`, `IommuEnabled`, `IommuIsolating`, `VfioReady`, `BarsAssigned`, `SriovEnabled`,
    /// `HugepagesReserved`, `VgpuHostReady`, `FabricReady`, `AccessGranted`, `DiscoveryHookReady`,
    /// `DevicePluginsAbsent`, and of the running daemon `StraysCleared`, `LeftoversHandled`, `RemovalAllowed`, `SpecKept`,
    /// `StateKept`, `DevicesAdopted`.
    /// Each False says the cause and the fix in one sentence; what does not apply to this machine is
    /// True with the reason `NotNeeded`. The operator adds `DaemonHeard`: False when the daemon does not
    /// renew its lease, and then the others are what it said last; and `CardsUnpublished`: False when
    /// something else in the cluster offers managed cards to pods. Of the two about pods Unknown says that
    /// nobody could look.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Term of the operator that wrote its part last: UID of its leader Lease and how often that changed
    /// hands. An admission policy compares it with the Lease, so that an operator that leads no more
    /// can write nothing. No program reads it here.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::schema::not_read")]
    #[schemars(length(max = 80))]
    pub operator_term: Option<String>,
}

impl Serialize for GpuNodeStatus {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        Self::serialize(&models::compact(self), to)
    }
}

impl<'de> Deserialize<'de> for GpuNodeStatus {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::deserialize(from).map(models::expand)
    }
}

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}
