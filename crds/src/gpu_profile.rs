//! `GpuProfile`: a share of a GPU that a desktop may ask for.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{
    gpu_node::VgpuScheduler,
    types::{Isolation, ShareMode, VgpuSeries},
};

/// A share of a GPU: alternatives in order of preference, on the cards that qualify.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "gpudesk.dev",
    version = "v1alpha1",
    kind = "GpuProfile",
    plural = "gpuprofiles",
    shortname = "gp",
    category = "gpudesk",
    status = "GpuProfileStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A share of a GPU that a desktop may ask for by name: a whole card, a vGPU, a vGPU on a MIG slice or a virtual function.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("metadata.name must be at most 63 characters"),
    printcolumn(name = "Share", type_ = "string", json_path = ".status.summary.share", description = "What the first alternative is."),
    printcolumn(name = "Memory", type_ = "string", json_path = ".status.summary.memory", description = "Framebuffer of the first alternative."),
    printcolumn(name = "Isolation", type_ = "string", json_path = ".status.summary.isolation", description = "Isolation of the weakest alternative that qualifies."),
    printcolumn(name = "Total", type_ = "integer", json_path = ".status.total", description = "How many fit on all nodes when nothing else runs."),
    printcolumn(name = "Used", type_ = "integer", json_path = ".status.inUse", description = "How many are in use."),
    printcolumn(name = "Placeable", type_ = "integer", json_path = ".status.placeable", description = "How many more fit now."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Valid", type_ = "string", json_path = ".status.conditions[?(@.type==\"Valid\")].status", priority = 1),
    printcolumn(name = "Satisfiable", type_ = "string", json_path = ".status.conditions[?(@.type==\"Satisfiable\")].message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct GpuProfileSpec {
    /// Ways to satisfy the profile, best first. The first one that fits somewhere is taken.
    #[schemars(length(min = 1, max = 16))]
    pub alternatives: Vec<Alternative>,

    /// Which cards qualify. Default: all that offer the share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<DeviceRequirements>,

    /// The weakest isolation accepted: `TimeSliced`, `HardwarePartition` (a MIG GPU instance that is
    /// not shared) or `Exclusive` (the whole card). An alternative below it is never chosen. Default:
    /// `TimeSliced`.
    #[serde(default)]
    pub minimum_isolation: Isolation,

    /// `Pack` fills a card before it takes the next; `Spread` takes the emptiest card first.
    /// Default: `Pack`.
    #[serde(default)]
    pub placement: Spreading,

    /// The vGPU scheduler that the share needs. Of a card whose owner set another one (`GpuNode.spec.devices[].vgpuScheduler`)
    /// it gets nothing. A card without such a rule is given it for the first vGPU and keeps it until the last one is
    /// gone; meanwhile vGPUs that want another one go elsewhere, and those of profiles without a wish fit beside them. A
    /// vGPU on MIG has it on its GPU instance, where the driver has one there (`status.devices[].vgpu.onInstances` of the
    /// GpuNode). Whole cards and virtual functions have no vGPU scheduler: alternatives of these are chosen whatever
    /// stands here, and a profile of nothing else is not valid. `FixedShare` needs vGPUs of equal size. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional::<VgpuScheduler>")]
    pub vgpu_scheduler: Option<VgpuScheduler>,

    /// What the share must be able to display, as the driver tells it of vGPU types
    /// (`status.devices[].placements[].heads` of the GpuNode). What is not told counts as not to
    /// be had: of whole cards, virtual functions and vGPUs on MIG nothing is told, so alternatives of these are not
    /// chosen while this is set, and a profile of nothing else is not valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display: Option<Display>,
}

/// One way to satisfy a profile. Exactly one of the four.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.passthrough), has(self.vgpu), has(self.mig), has(self.virtualFunction)].filter(x, x).size() == 1").message("an alternative is exactly one of passthrough, vgpu, mig and virtualFunction")
)]
pub struct Alternative {
    /// The whole card, by vfio-pci.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passthrough: Option<PassthroughShare>,
    /// A time-sliced vGPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vgpu: Option<VgpuShare>,
    /// A MIG GPU instance with a vGPU on it. (A bare MIG instance is no PCI function and cannot be
    /// given to a virtual machine.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig: Option<MigShare>,
    /// An SR-IOV virtual function of an AMD or Intel card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_function: Option<VirtualFunctionShare>,
}

/// The whole card; write `passthrough: {}`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassthroughShare {}

/// A time-sliced vGPU, by its type name or by size and series.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.type), has(self.framebufferMiB), has(self.framebufferRangeMiB)].filter(x, x).size() == 1").message("a vgpu names exactly one of type, framebufferMiB and framebufferRangeMiB"),
    validation = Rule::new("!has(self.type) || !has(self.series)").message("type already names the series: leave series out")
)]
pub struct VgpuShare {
    /// vGPU type exactly as the driver prints it, for example `L40S-8Q`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9]+-[A-Za-z0-9-]+$')").message("write a vGPU type as the driver prints it, without the card's brand, like L40S-8Q"))]
    pub type_name: Option<String>,
    /// Series: `Q` workstation, `B` business, `A` applications, `C` compute. Default: `Q`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional::<VgpuSeries>")]
    pub series: Option<VgpuSeries>,
    /// Exact framebuffer in MiB. 256 to 1048576.
    #[serde(rename = "framebufferMiB", default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 256, max = 1_048_576))]
    pub framebuffer_mib: Option<i64>,
    /// Framebuffer between two bounds; the smallest legal size within them is taken.
    #[serde(rename = "framebufferRangeMiB", default, skip_serializing_if = "Option::is_none")]
    pub framebuffer_range_mib: Option<FramebufferRange>,
    /// Parameters of the vGPU in the driver's own words, written to its `vgpu_params` after it is made and before the
    /// guest starts: `{frame_rate_limiter: "0"}`. Only what the owner of a card allows
    /// (`GpuNode.spec.devices[].vgpuParams`) is given there. Keys and values are letters, digits and `_ . -`, 64 at
    /// most; 16 entries at most. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::vgpu_params")]
    pub params: BTreeMap<String, String>,
}

/// Whether `text` can be a key or a value of a vGPU's parameters: nothing that a list of them gives a meaning to.
pub fn is_vgpu_param(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// The parameters that `allowed` (`key` or `key=value` each) does not allow, as `key=value`. The place of a vGPU is
/// never among those allowed.
pub fn params_not_allowed(params: &BTreeMap<String, String>, allowed: &[String]) -> Vec<String> {
    let is_allowed = |key: &str, value: &str| {
        let names = |entry: &String| match entry.split_once('=') {
            Some((of, only)) => (of, only) == (key, value),
            None => entry == key,
        };
        let may_be = is_vgpu_param(key) && is_vgpu_param(value) && key != PLACEMENT_PARAM;
        may_be && allowed.iter().any(names)
    };
    let refused = params.iter().filter(|(key, value)| !is_allowed(key, value));
    refused.map(|(key, value)| format!("{key}={value}")).collect()
}

/// The driver's parameter for the place of a vGPU.
pub const PLACEMENT_PARAM: &str = "vgpu-placement-id";

/// Bounds of a framebuffer, both included.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.min <= self.max").message("min must not be above max")
)]
pub struct FramebufferRange {
    /// Smallest framebuffer accepted, in MiB. 256 to 1048576.
    #[schemars(range(min = 256, max = 1_048_576))]
    pub min: i64,
    /// Largest framebuffer accepted, in MiB. 256 to 1048576.
    #[schemars(range(min = 256, max = 1_048_576))]
    pub max: i64,
}

/// A vGPU on a MIG GPU instance: one that takes all of it, or one of several that share it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MigShare {
    /// MIG profile as the driver prints it, without `+gfx`: `1g.24gb`, `3g.40gb`, `1g.10gb+me`.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]*g[.][1-9][0-9]*gb([+-][a-z.]+)?$')").message("write a MIG profile as the driver prints it, like 1g.24gb"))]
    pub profile: String,
    /// Series of the vGPU on it. Default: `Q` with graphics, `C` without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional::<VgpuSeries>")]
    pub series: Option<VgpuSeries>,
    /// Framebuffer of the vGPU in MiB, exactly that of a type that the driver offers on a GPU
    /// instance of the profile; where it offers none, the alternative fits nowhere. As many desktops
    /// share a GPU instance as the driver says, all with this framebuffer. They share its engines in
    /// time, so the alternative counts as `TimeSliced`, also when only one fits. Default: the vGPU
    /// that fills the GPU instance, which counts as `HardwarePartition`. 256 to 1048576.
    #[serde(rename = "framebufferMiB", default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 256, max = 1_048_576))]
    pub framebuffer_mib: Option<i64>,
    /// Whether the share must do graphics; takes the `+gfx` profile. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub graphics: bool,
}

/// An SR-IOV virtual function.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualFunctionShare {
    /// Least framebuffer in MiB. 0 takes any. 0 to 1048576. Default: 0.
    #[serde(rename = "framebufferMiB", default)]
    #[schemars(range(min = 0, max = 1_048_576))]
    pub framebuffer_mib: i64,
}

impl Alternative {
    /// The mode of the share; `None` for an alternative that names none or several (which the
    /// validation rule refuses).
    pub fn mode(&self) -> Option<ShareMode> {
        match self {
            Self { passthrough: Some(_), vgpu: None, mig: None, virtual_function: None } => {
                Some(ShareMode::Passthrough)
            }
            Self { passthrough: None, vgpu: Some(_), mig: None, virtual_function: None } => {
                Some(ShareMode::Vgpu)
            }
            Self { passthrough: None, vgpu: None, mig: Some(_), virtual_function: None } => {
                Some(ShareMode::Mig)
            }
            Self { passthrough: None, vgpu: None, mig: None, virtual_function: Some(_) } => {
                Some(ShareMode::VirtualFunctions)
            }
            _ => None,
        }
    }
}

/// Which cards qualify. Everything that is named must hold.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceRequirements {
    /// Vendor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional::<Vendor>")]
    pub vendor: Option<Vendor>,
    /// PCI ids, `vendor:device`; one of them must match: `["10de:2bb5"]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 32)))]
    #[x_kube(validation = Rule::new("self.all(id, id.matches('^[0-9a-f]{4}:[0-9a-f]{4}$'))").message("write vendor:device in lower-case hexadecimal, like 10de:2bb5"))]
    pub pci_ids: Vec<String>,
    /// Product names with `*` for any text; one of them must match, upper and lower case alike:
    /// `["*L40S*"]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 128)))]
    pub products: Vec<String>,
    /// Least memory of the card in MiB. 0 to 16777216.
    #[serde(rename = "minimumMemoryMiB", default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 16_777_216))]
    pub minimum_memory_mib: Option<i64>,
    /// Modes that the card must support, beside the one of the alternative.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub capabilities: Vec<ShareMode>,
}

/// Vendor of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Vendor {
    /// NVIDIA, PCI vendor 10de.
    #[serde(rename = "NVIDIA")]
    Nvidia,
    /// AMD, PCI vendor 1002.
    #[serde(rename = "AMD")]
    Amd,
    /// Intel, PCI vendor 8086.
    Intel,
}

impl Vendor {
    /// PCI vendor id, four hexadecimal digits.
    pub fn pci_id(self) -> &'static str {
        match self {
            Self::Nvidia => "10de",
            Self::Amd => "1002",
            Self::Intel => "8086",
        }
    }
}

/// Which card is taken first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Spreading {
    /// Fill a card before the next is taken.
    #[default]
    Pack,
    /// The emptiest card first.
    Spread,
}

/// What a share must be able to display.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Display {
    /// Least number of heads. 1 to 16. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub heads: Option<i32>,
}

/// What the estate offers of a profile. Written by the operator.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuProfileStatus {
    /// How many fit on all nodes when nothing else runs.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub total: i32,
    /// How many are in use.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub in_use: i32,
    /// How many more fit now, beside what runs.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub placeable: i32,
    /// The same per alternative, in the order of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["index".into()]))]
    pub alternatives: Vec<AlternativeStatus>,
    /// The words that `kubectl get gpuprofiles` prints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<ProfileSummary>,
    /// `Valid`: the profile says something that can be. `Satisfiable`: at least one more fits now;
    /// the message names the nearest reason when none does.
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

/// What the estate offers of one alternative.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AlternativeStatus {
    /// Position in `spec.alternatives`, from 0.
    #[schemars(range(min = 0))]
    pub index: i32,
    /// How many fit on all nodes when nothing else runs.
    #[schemars(range(min = 0))]
    pub total: i32,
    /// How many more fit now.
    #[schemars(range(min = 0))]
    pub placeable: i32,
}

/// The words that `kubectl get gpuprofiles` prints.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProfileSummary {
    /// What the first alternative is: `vGPU Q`, `MIG 1g.24gb`, `Passthrough`.
    #[schemars(length(max = 64))]
    pub share: String,
    /// Framebuffer of the first alternative: `8 GiB`, `4-8 GiB`, `whole card`.
    #[schemars(length(max = 32))]
    pub memory: String,
    /// Isolation of the weakest alternative that may be chosen.
    #[schemars(length(max = 32))]
    pub isolation: String,
}
