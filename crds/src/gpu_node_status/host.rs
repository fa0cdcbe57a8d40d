//! The machine and its software.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::types::CpuSet;

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
    #[schemars(length(max = 128))]
    pub kernel: Option<String>,
    /// CPU model name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub cpu_model: Option<String>,
    /// The host's CPUs that are not like the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<HostCpus>,
    /// Board or system product name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub board: Option<String>,
    /// The kind of IOMMU, as the kernel names its units: `dmar` (Intel), `ivhd` (AMD), `smmu3` (Arm),
    /// `virtio`. Absent when the kernel shows none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub iommu: Option<String>,
    /// Version of QEMU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub qemu_version: Option<String>,
    /// Version of libvirt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub libvirt_version: Option<String>,
    /// Version of the GPU host driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub gpu_driver_version: Option<String>,
    /// Version of the vGPU manager in the GPU host driver; absent when the driver makes no vGPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub vgpu_manager_version: Option<String>,
    /// Version of the node daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub daemon_version: Option<String>,
}

/// Sets of CPUs of the host. An empty set is absent.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostCpus {
    /// CPUs that run; those of `numaCells` together, unless `status.missing` says why not.
    #[serde(default, skip_serializing_if = "CpuSet::is_empty")]
    pub online: CpuSet,
    /// CPUs that are there and switched off.
    #[serde(default, skip_serializing_if = "CpuSet::is_empty")]
    pub offline: CpuSet,
    /// CPUs that the kernel's scheduler leaves alone (`isolcpus`, isolated partitions of cpusets). Only
    /// desktops with CPUs of their own run on them, and on them first.
    #[serde(default, skip_serializing_if = "CpuSet::is_empty")]
    pub isolated: CpuSet,
    /// CPUs that the kubelet reserves for the system: `reservedSystemCPUs` of its configuration with its
    /// drop-in files, or its flag `--reserved-cpus`.
    #[serde(default, skip_serializing_if = "CpuSet::is_empty")]
    pub kubelet_reserved: CpuSet,
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
    /// What a newer version knows.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}
