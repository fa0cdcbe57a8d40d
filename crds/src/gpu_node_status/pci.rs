//! Facts of a PCI function that are the same for cards, network cards and drives.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::types::PciAddress;

/// An IOMMU group: what can only be given away together.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IommuGroup {
    /// Number of the group.
    pub id: i32,
    /// The other functions in it, lowest address first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["pciAddress".into()]))]
    pub members: Vec<GroupMember>,
    /// Whether the group can be given to a desktop: no other function in it is needed by the host.
    #[serde(default)]
    pub viable: bool,
    /// Why not, in one sentence that names the function in the way and what would help; or which
    /// other cards go along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
}

/// Another function in an IOMMU group.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupMember {
    /// PCI address.
    pub pci_address: PciAddress,
    /// Class and subclass, four hexadecimal digits: `0403` is a sound device, `0604` a bridge.
    /// Absent when it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    pub class: Option<String>,
    /// Kernel driver bound; absent when none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub driver: Option<String>,
}

/// Another function of the same card, which goes where the card goes: its sound, its USB-C controller.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Companion {
    /// PCI address.
    pub pci_address: PciAddress,
    /// Class and subclass, four hexadecimal digits: `0403` sound, `0c03` USB, `0c80` USB-C.
    #[schemars(length(max = 8))]
    pub class: String,
    /// Vendor id, four hexadecimal digits.
    #[schemars(length(max = 8))]
    pub vendor_id: String,
    /// Device id, four hexadecimal digits.
    #[schemars(length(max = 8))]
    pub device_id: String,
    /// Kernel driver bound; absent when none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub driver: Option<String>,
}

/// One memory region.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bar {
    /// Number of the region, 0 to 5.
    #[schemars(range(min = 0, max = 5))]
    pub index: i32,
    /// Size in bytes; 0 when the region is unassigned and its size cannot be told.
    #[schemars(range(min = 0))]
    pub size_bytes: i64,
    /// True when the firmware and the kernel found no address for it, so that the card does not work.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unassigned: bool,
}

/// A memory region whose size can be changed (Resizable BAR): the largest of a card, where several can.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResizableBar {
    /// Number of the region, as in `bars`.
    #[schemars(range(min = 0, max = 5))]
    pub index: i32,
    /// The sizes that it can have, in MiB, smallest first.
    #[serde(rename = "sizesMiB")]
    #[schemars(length(max = 26))]
    pub sizes_mib: Vec<i64>,
}

/// The PCIe link of a card. A width or speed below the largest may be a slot, or power saving.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PcieLink {
    /// Lanes in use when last read; a change of this figure alone writes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 64))]
    pub width: Option<i32>,
    /// Lanes that the card has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 64))]
    pub max_width: Option<i32>,
    /// Megatransfers per second and lane when last read; a change of this figure alone writes nothing.
    #[serde(rename = "speedMTps", default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub speed_mtps: Option<i32>,
    /// Megatransfers per second and lane that the card can do: 16000 is PCIe 4.
    #[serde(rename = "maxSpeedMTps", default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub max_speed_mtps: Option<i32>,
}

/// What a physical function says of its virtual functions. A capacity it is not: the driver of the card
/// decides how many shares there are.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sriov {
    /// Virtual functions that can be switched on.
    #[schemars(range(min = 0, max = 65_535))]
    pub total_vfs: i32,
    /// Virtual functions that are switched on.
    #[schemars(range(min = 0, max = 65_535))]
    pub num_vfs: i32,
}
