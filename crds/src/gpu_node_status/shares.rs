//! Shares of a card: what its driver offers, and what exists.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::types::{PciAddress, ShareMode, VgpuSeries};

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
    #[schemars(range(min = 0, max = 32))]
    pub mig_memory: i32,
    /// MIG compute slices. 0 without MIG.
    #[serde(default)]
    #[schemars(range(min = 0, max = 32))]
    pub mig_compute: i32,
    /// Placement units of time-sliced vGPUs in mixed-size mode. 0 when the card cannot mix sizes.
    #[serde(default)]
    #[schemars(range(min = 0, max = 512))]
    pub vgpu_region: i32,
}

impl CardUnits {
    /// MIG memory units and compute slices that a card may have. Drivers list 8 and 7, of simulated cards 12.
    pub const MOST_MIG: i32 = 32;
    /// Placement units of vGPUs that a card may have. Drivers list one for each GiB and less.
    pub const MOST_VGPU: i32 = 512;
}

/// Media engines; those that are not named are none.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MediaEngines {
    /// Decoders (NVDEC).
    #[serde(default, skip_serializing_if = "super::is_zero")]
    #[schemars(range(min = 0, max = 255))]
    pub decoders: i32,
    /// Encoders (NVENC).
    #[serde(default, skip_serializing_if = "super::is_zero")]
    #[schemars(range(min = 0, max = 255))]
    pub encoders: i32,
    /// JPEG engines (NVJPG).
    #[serde(default, skip_serializing_if = "super::is_zero")]
    #[schemars(range(min = 0, max = 255))]
    pub jpeg: i32,
    /// Optical flow engines (OFA).
    #[serde(default, skip_serializing_if = "super::is_zero")]
    #[schemars(range(min = 0, max = 255))]
    pub optical_flow: i32,
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
    #[schemars(range(min = 0, max = 1_073_741_824))]
    pub framebuffer_mib: i64,
    /// Series of a vGPU type; absent for MIG profiles and virtual functions.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::lenient::word")]
    #[schemars(schema_with = "crate::schema::optional::<VgpuSeries>")]
    pub series: Option<VgpuSeries>,
    /// Length in units (`units.migMemory` or `units.vgpuRegion`). 0 when the share has no position.
    #[serde(default, skip_serializing_if = "super::is_zero")]
    #[schemars(range(min = 0, max = 4096))]
    pub size: i32,
    /// Legal start positions in the same units: of a MIG profile always, of a vGPU type in
    /// mixed-size mode. Empty when the share has no position.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub starts: Vec<i32>,
    /// MIG compute slices that the share takes.
    #[serde(default, skip_serializing_if = "super::is_zero")]
    #[schemars(range(min = 0, max = 256))]
    pub compute_slices: i32,
    /// Media engines that a MIG profile has for itself; absent when the driver does not tell them. Those of all
    /// GPU instances together are no more than those of the profile that takes the whole card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engines: Option<MediaEngines>,
    /// How many of this type fit on an empty card (vGPU types: in equal-size mode).
    #[schemars(range(min = 0, max = 4096))]
    pub max_count: i32,
    /// How many more could be created on the card when this was last read, as the driver says; a
    /// change of this figure alone writes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4096))]
    pub available: Option<i32>,
    /// The driver's own name of the type: an mdev type (`nvidia-222`), the number of a vGPU type
    /// (`1155`) or of a MIG profile (`47`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub driver_id: Option<String>,
    /// Screens that a vGPU of this type can drive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 64))]
    pub heads: Option<i32>,
    /// Largest resolution of a screen, as the driver writes it: `5120x2880`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub max_resolution: Option<String>,
    /// Frames per second to which the driver's frame limiter holds a vGPU of this type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub frame_rate_limit: Option<i32>,
    /// vGPU types that can live on a GPU instance of this MIG profile.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "crate::lenient::items")]
    #[schemars(length(max = 64))]
    pub vgpu_types: Vec<MigBackedType>,
}

impl Placement {
    /// A share without a position, of which as many as `max_count` fit on an empty card.
    pub fn new(type_name: impl Into<String>, mode: ShareMode, framebuffer_mib: i64, max_count: i32) -> Self {
        Self {
            type_name: type_name.into(),
            mode,
            framebuffer_mib,
            series: None,
            size: 0,
            starts: vec![],
            compute_slices: 0,
            engines: None,
            max_count,
            available: None,
            driver_id: None,
            heads: None,
            max_resolution: None,
            frame_rate_limit: None,
            vgpu_types: vec![],
        }
    }
}

/// The places of one type in the fixed layout of a card (`spec.devices[].layout`).
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayoutPlaces {
    /// Type, as in `placements`.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 64))]
    pub type_name: String,
    /// Where they start, ascending, in the units of `placements[].starts`. Empty for vGPUs of equal size.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub starts: Vec<i32>,
    /// How many there are of vGPUs of equal size, which have no position.
    #[serde(default, skip_serializing_if = "super::is_zero")]
    #[schemars(range(min = 0, max = 256))]
    pub count: i32,
}

impl LayoutPlaces {
    /// How many places they are.
    pub fn number(&self) -> i32 {
        i32::try_from(self.starts.len()).unwrap_or(i32::MAX).saturating_add(self.count.max(0))
    }
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
    #[schemars(range(min = 0, max = 1_073_741_824))]
    pub framebuffer_mib: i64,
    /// How many of it one GPU instance holds.
    #[schemars(range(min = 1, max = 256))]
    pub max_per_instance: i32,
}

/// A share that exists. Of a GPU instance that several vGPUs share, each vGPU is one.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Identity: an mdev UUID, the PCI address of a virtual function, the UUID of a vGPU, or of a
    /// GPU instance without a vGPU its MIG UUID.
    #[schemars(length(min = 1, max = 96))]
    pub id: String,
    /// Type, as in `placements`.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 64))]
    pub type_name: String,
    /// The mode that the share belongs to.
    #[serde(deserialize_with = "crate::lenient::mode_of_existing")]
    pub mode: ShareMode,
    /// The vGPU type on the GPU instance, in mode `Mig`. Absent when it is not known, and for a GPU
    /// instance without a vGPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub vgpu_type: Option<String>,
    /// Start position, when it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<i32>,
    /// The virtual function that carries it, where one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_function: Option<PciAddress>,
    /// Number of the GPU instance under it, the same for all vGPUs on it. The driver uses numbers
    /// again: it is no identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub gpu_instance: Option<i32>,
    /// The desktop that holds it, as `namespace/name`; absent when nobody of ours does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 320))]
    pub owner: Option<String>,
}
