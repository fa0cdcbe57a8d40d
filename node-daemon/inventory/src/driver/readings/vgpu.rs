//! What a driver answers about vGPUs.

use serde::{Deserialize, Serialize};

/// vGPUs of a card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VgpuReadings {
    /// Whether vGPUs live on virtual functions; absent when the driver does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_virtual_functions: Option<bool>,
    /// Whether sizes can be mixed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mixed_size_capable: Option<bool>,
    /// Whether sizes are mixed now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mixed_size: Option<bool>,
    /// Scheduler now, by number (`NVML_VGPU_SCHEDULER_POLICY_…`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<u32>,
    /// Schedulers that the driver offers, by number.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schedulers: Vec<u32>,
    /// Whether a GPU instance has a scheduler of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_instances: Option<bool>,
    /// Types, in the order of the driver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<VgpuTypeReading>,
    /// vGPUs that exist, in the order of the driver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<VgpuInstanceReading>,
}

/// A vGPU type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VgpuTypeReading {
    /// Its number.
    pub id: u32,
    /// Its name: `NVIDIA L40S-8Q`.
    pub name: String,
    /// Its class: `Quadro`, `NVS`, `Compute`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Framebuffer in MiB.
    #[serde(rename = "framebufferMiB", skip_serializing_if = "Option::is_none")]
    pub framebuffer_mib: Option<i64>,
    /// Screens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<i32>,
    /// Width and height of the largest screen, in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_resolution: Option<(u32, u32)>,
    /// Frames per second of the frame limiter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frame_rate_limit: Option<i32>,
    /// The most on one card.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_instances: Option<i32>,
    /// The most in one virtual machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_instances_per_vm: Option<i32>,
    /// The MIG profile on whose instances it lives; absent for a time-sliced type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_instance_profile_id: Option<u32>,
    /// The most on one GPU instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_per_gpu_instance: Option<i32>,
    /// Whether one could be made now; absent when the driver was not able to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creatable: Option<bool>,
    /// Where it can be when sizes are mixed; absent when it has no positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mixed_placements: Option<VgpuPlacements>,
    /// Of those, the starts that are free now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creatable_starts: Option<Vec<i32>>,
}

/// Where a vGPU type can be when sizes are mixed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VgpuPlacements {
    /// Its length.
    pub size: i32,
    /// Its legal starts, in the order of the driver.
    pub starts: Vec<i32>,
}

/// A vGPU that exists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VgpuInstanceReading {
    /// The driver's own handle, good until the driver is loaded anew.
    pub handle: u32,
    /// UUID of the vGPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// UUID of its mediated device, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mdev_uuid: Option<String>,
    /// Number of its type.
    pub type_id: u32,
    /// The virtual machine: its UUID, or the hypervisor's number of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_id: Option<String>,
    /// Its start when sizes are mixed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement_id: Option<i32>,
    /// Number of the GPU instance under it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_instance: Option<u32>,
    /// Whether its guest holds a licence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub licensed: Option<bool>,
    /// State of that licence, by number (`NVML_GRID_LICENSE_STATE_…`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license_state: Option<u32>,
    /// Version of the driver in the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_driver_version: Option<String>,
}
