//! Network cards and NVMe drives.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{
    card_state::{CardReset, DriveErasure},
    pci::{IommuGroup, PcieLink, Sriov},
    virtual_functions::{VirtualFunction, VirtualFunctions},
};
use crate::types::PciAddress;

/// A network card or an NVMe drive on PCI.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostDevice {
    /// PCI address.
    pub pci_address: PciAddress,
    /// What it is.
    pub kind: HostDeviceKind,
    /// Class and subclass, four hexadecimal digits.
    #[schemars(length(max = 8))]
    pub class: String,
    /// Vendor id, four hexadecimal digits.
    #[schemars(length(max = 8))]
    pub vendor_id: String,
    /// Device id, four hexadecimal digits.
    #[schemars(length(max = 8))]
    pub device_id: String,
    /// Subsystem vendor and device id: `15d9:1b1e`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub subsystem: Option<String>,
    /// Product name; the ids when nothing better is known.
    #[schemars(length(max = 128))]
    pub product: String,
    /// Names that the host gives it: network interfaces, or namespaces of the drive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 64)))]
    pub names: Vec<String>,
    /// Serial number of a drive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub serial: Option<String>,
    /// Size of a drive in MiB, rounded down: the sum of its namespaces. Absent for network cards, and
    /// while the host's own driver does not have the drive.
    #[serde(rename = "sizeMiB", default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_073_741_824))]
    pub size_mib: Option<i64>,
    /// Whether a desktop may take it whole.
    #[serde(default)]
    pub usable: bool,
    /// Why not, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
    /// NUMA cell; absent when the firmware does not say, or names one that the host does not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_cell: Option<i32>,
    /// The NUMA cell that the firmware names although the host does not have it: the device's cell is then
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
    /// The bridges between the root and the device, root first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub pcie_path: Vec<PciAddress>,
    /// Width and speed of the PCIe link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<PcieLink>,
    /// Kernel driver now bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub driver: Option<String>,
    /// Reset methods, in the kernel's order; `default` where the kernel does not say how.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 32)))]
    pub reset_methods: Vec<String>,
    /// Virtual functions that it can have; absent when it can have none.
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
    /// The last reset between two users; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reset: Option<CardReset>,
    /// How a drive was erased after its last user; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_erase: Option<DriveErasure>,
}

/// What a host device is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum HostDeviceKind {
    /// A network card.
    NetworkCard,
    /// An NVMe drive.
    NvmeDrive,
}
