//! What a driver answers about MIG.

use gpudesk_crds::gpu_node_status::MediaEngines;
use serde::{Deserialize, Serialize};

/// MIG of a card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MigReadings {
    /// Whether MIG is on.
    pub current: bool,
    /// Whether MIG will be on after the next reset.
    pub pending: bool,
    /// Profiles of GPU instances, in the order in which the driver was asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<MigProfile>,
    /// GPU instances, in the order in which the driver lists them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<GpuInstanceReading>,
}

/// A profile of GPU instances.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MigProfile {
    /// Id of the profile, which makes an instance. Not the number by which it is asked for.
    pub id: u32,
    /// The number by which it is asked for (`NVML_GPU_INSTANCE_PROFILE_…`).
    pub index: u32,
    /// Name; older drivers give none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Compute slices.
    pub compute_slices: i32,
    /// Instances of it on an empty card.
    pub max_instances: i32,
    /// Memory in MiB that programs on it can use.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: i64,
    /// Media engines of its own; absent from captures that do not tell them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engines: Option<MediaEngines>,
    /// Where it can be, in the order of the driver; absent when it could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placements: Option<Vec<MigPlacement>>,
    /// How many more can be made now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining: Option<i32>,
}

/// A stretch of memory units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigPlacement {
    /// First unit.
    pub start: i32,
    /// Units.
    pub size: i32,
}

/// A GPU instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GpuInstanceReading {
    /// Its number, which is used again after it is gone.
    pub id: u32,
    /// Id of its profile.
    pub profile_id: u32,
    /// Where it is.
    pub placement: MigPlacement,
    /// Compute instances in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub compute_instances: Vec<ComputeInstanceReading>,
}

/// A compute instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ComputeInstanceReading {
    /// Its number within its GPU instance.
    pub id: u32,
    /// Id of its profile; absent when the driver does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile_id: Option<u32>,
    /// Its compute slices within the GPU instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<MigPlacement>,
    /// UUID of the MIG device that the two instances make: `MIG-…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
}
