//! `GpuNode`: what a machine has, and what its owner lets gpudesk do with it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{
    gpu_node_drives::NvmeDriveRule,
    gpu_node_status::{GpuNodeStatus, LayoutPlaces},
    gpu_node_words::{LeftoverWord, StrayWord},
    types::{PciAddress, ShareMode},
};

/// What the owner of the machine allows. Everything is optional: an empty spec means "use every GPU
/// that is safe to use and choose its mode on demand".
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "gpudesk.dev",
    version = "v1alpha1",
    kind = "GpuNode",
    plural = "gpunodes",
    shortname = "gn",
    category = "gpudesk",
    status = "GpuNodeStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A machine that runs desktops. Its name is the name of its Kubernetes node. The spec says what the owner of the machine allows; the status is what the node daemon found there.",
    validation = Rule::new("self.metadata.name != 'daemon'").message("metadata.name must not be daemon: gpudesk-node-daemon is the service account of all node daemons"),
    validation = Rule::new("self.metadata.name.size() <= 200").message("metadata.name must be at most 200 characters: objects of the node are named after it"),
    printcolumn(name = "GPUs", type_ = "integer", json_path = ".status.summary.gpus", description = "Cards that gpudesk manages, without that of the host's own screen."),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.summary.freeGpus", description = "Cards of which nothing is in use."),
    printcolumn(name = "Slices", type_ = "string", json_path = ".status.summary.slices", description = "Placement units in use, of all."),
    printcolumn(name = "NUMA", type_ = "integer", json_path = ".status.summary.numaCells", description = "NUMA cells."),
    printcolumn(name = "Driver", type_ = "string", json_path = ".status.host.gpuDriverVersion", description = "Version of the GPU host driver."),
    printcolumn(name = "Simulated", type_ = "boolean", json_path = ".status.host.simulated", description = "Whether the host exists only as a description."),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether desktops can run here."),
    printcolumn(name = "Heard", type_ = "string", json_path = ".status.conditions[?(@.type==\"DaemonHeard\")].status", description = "Whether the node daemon renews its lease; when not, the rest is what it said last."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1, description = "Why, when not ready."),
    printcolumn(name = "Silence", type_ = "string", json_path = ".status.conditions[?(@.type==\"DaemonHeard\")].message", priority = 1, description = "Since when the node daemon is silent, when it is: the rest is what it said last.")
)]
#[serde(rename_all = "camelCase")]
pub struct GpuNodeSpec {
    /// No new desktops are placed here; those that run stay. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cordoned: bool,

    /// The machine is off, or cut off from network, storage and power for good: nothing that ran there runs
    /// any more. The word of its admin, like the taint `node.kubernetes.io/out-of-service` of the Kubernetes
    /// node. While the node daemon is not heard, desktops that keep no disks there are placed elsewhere, and
    /// those that keep some once their users give them up. No new desktops are placed here meanwhile. It has no other effect while the
    /// daemon is heard. Never set it for a machine that may still run: its desktops would run twice.
    /// Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub out_of_service: bool,

    /// Stop or move the desktops of this node. Not yet supported: reported as such in the condition
    /// `Ready` of this node and otherwise without effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,

    /// Rules for single cards. A card that no rule selects is managed in mode `Auto`. Where several name
    /// one card, in whatever order, they hold together as far as they agree; where one keeps the card
    /// (`Unmanaged`, `Host`) that holds; and where they contradict each other the card is left alone. The
    /// condition `LayoutApplied` and `status.devices[].unavailable` name them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub devices: Vec<DevicePolicy>,

    /// Keeps desktops away: none without a matching toleration is placed here; those that run stay.
    /// Keyed by key; at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["key".into()]))]
    pub taints: Vec<Taint>,

    /// Which network cards lead to which physical network, keyed by name: what
    /// `networks[].sriov.physicalNetwork` of a template names. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub physical_networks: Vec<PhysicalNetwork>,

    /// NVMe drives that desktops may have whole (`disks[].nvme` of a template), and how each is erased between users,
    /// keyed by name. A drive that no rule names is given to nobody, and so is one of which two rules say different
    /// things: `status.hostDevices[].message` says so. At most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub nvme_drives: Vec<NvmeDriveRule>,

    /// What is kept for the host itself and for the emulator and I/O threads of the desktops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub housekeeping: Option<Housekeeping>,

    /// Ends single machines of `status.strays`, keyed by UID; at most 64. What became of it is said in the
    /// condition `StraysCleared`. A word stays in force until it is taken away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["uid".into()]))]
    pub strays: Vec<StrayWord>,

    /// Erases single folders of `status.leftovers` early, or gives them to a desktop, keyed by name; at
    /// most 64. What became of it is said in the condition `LeftoversHandled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub leftovers: Vec<LeftoverWord>,

    /// Folders and machines that are off whose Desktops are not in the API, and were first missed before
    /// this time, become leftovers although they are so many that the node holds them back (condition
    /// `RemovalAllowed`, which names the time). What is missed later is held back again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove_orphans_before: Option<Time>,

    /// UID of the namespace `kube-system` of the cluster that this host belonged to, as the condition
    /// `Ready` says it (reason `ForeignCluster`): the host belongs to this cluster from then on. Until then
    /// nothing of the desktops on it is touched and no desktop is placed here. Any other UID does nothing.
    /// Machines of the other cluster that run go on, and are listed in `status.strays`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9A-Za-z-]+$')").message("write the UID of kube-system that the condition Ready names"))]
    pub adopt_from_cluster: Option<String>,
}

/// A mark that keeps desktops away, as on nodes of Kubernetes. A toleration accepts it when it names
/// the key and either no value or the same value.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Taint {
    /// Key, unique in the list.
    #[schemars(length(min = 1, max = 317))]
    #[x_kube(validation = Rule::new("self.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')").message("key must be written like the key of a label: gpu or example.org/gpu"))]
    pub key: String,
    /// Value. A taint without one is accepted only by tolerations that name none either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub value: Option<String>,
}

/// A physical network and the cards that lead to it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PhysicalNetwork {
    /// Name of the network, unique in the list.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9][A-Za-z0-9._-]*$')").message("write letters, digits and . _ - only, with a letter or digit first"))]
    pub name: String,
    /// PCI addresses of the network cards (their physical functions) that lead to it. 1 to 16. An
    /// address at which the node has no network card counts for nothing.
    #[schemars(schema_with = "crate::schema::pci_addresses")]
    pub devices: Vec<PciAddress>,
}

/// A request to empty a node.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// Seconds after which desktops that still run are stopped. 0 to 604800 (a week).
    #[schemars(range(min = 0, max = 604_800))]
    pub deadline_seconds: i32,
}

/// What may be done with the cards that a selector names.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.vgpuScheduler) || self.vgpuScheduler != 'FixedShare' || !has(self.vgpuPlacement) || self.vgpuPlacement != 'MixedSize'").message("vgpuScheduler FixedShare does not work with vgpuPlacement MixedSize: choose BestEffort or EqualShare, or vgpuPlacement EqualSize"),
    validation = Rule::new("!has(self.layout) || (has(self.mode) && ((self.mode == 'Mig' && has(self.layout.mig)) || (self.mode == 'Vgpu' && has(self.layout.vgpu))))").message("a layout needs the mode it is for: mode Mig with layout.mig, or mode Vgpu with layout.vgpu")
)]
pub struct DevicePolicy {
    /// A name for this rule, unique in the list.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("write lower-case letters, digits and hyphens, with a letter or digit at both ends, like system-1"))]
    pub name: String,

    /// Which card is meant.
    pub selector: DeviceSelector,

    /// `Managed`: gpudesk may use the card. `Unmanaged`: shown, never touched. Default: `Managed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional::<Management>")]
    pub management: Option<Management>,

    /// How the card is used. `Auto` lets each request choose; `Host` keeps it for the host's own
    /// driver. A card that cannot be used so is used in no other way: the condition `LayoutApplied` and
    /// `status.devices[].unavailable` name the modes that it offers. Default: `Auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional::<DeviceMode>")]
    pub mode: Option<DeviceMode>,

    /// A fixed layout instead of carving on demand: the partitions that the card offers, and no others. Needs the mode
    /// that it is for. Where each stands is planned from the positions that the driver lists, the whole list at once
    /// (`status.devices[].layout`; `gpudesk-node-daemon layout` tells it beforehand). A partition is still made when
    /// its desktop comes and unmade after it. A layout that has no place on the card is refused in the condition
    /// `LayoutApplied`, and no desktop gets the card then. When it is changed, partitions in use stay where they
    /// are: the rest is planned around them, and those that the new layout lacks are waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,

    /// Whether all time-sliced vGPUs of the card have one size (`EqualSize`) or not (`MixedSize`,
    /// where the driver can). Default: `EqualSize`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional::<VgpuPlacement>")]
    pub vgpu_placement: Option<VgpuPlacement>,

    /// How the card's time is divided between time-sliced vGPUs. Set through NVML before the first of them is made and
    /// put back after the last one: the driver changes it only on a card without vGPUs. A card whose driver does not
    /// offer it goes to no desktop (`devices[].vgpu.schedulers` of the status). A `GpuProfile` that wants another one
    /// gets nothing of the card, also no vGPU on a GPU instance. Default: what the first vGPU's profile wants, or as
    /// the host has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional::<VgpuScheduler>")]
    pub vgpu_scheduler: Option<VgpuScheduler>,

    /// Which `vgpu.params` of a `GpuProfile` the card takes: a key of the driver (any value), or `key=value` (this
    /// one), of letters, digits and `_ . -`. Profiles with others get nothing of the card. At most 32. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 129)))]
    #[x_kube(
        validation = Rule::new("self.all(param, param.matches('^[A-Za-z0-9_.-]{1,64}(=[A-Za-z0-9_.-]{1,64})?$'))").message("write vgpuParams as key or key=value with letters, digits and . _ - only, like frame_rate_limiter=0"),
        validation = Rule::new("!self.exists(param, param == 'vgpu-placement-id' || param.startsWith('vgpu-placement-id='))").message("vgpuParams cannot have vgpu-placement-id, by which gpudesk places vGPUs")
    )]
    pub vgpu_params: Vec<String>,

    /// Temperature in degrees Celsius from which the card counts as unhealthy, instead of the
    /// driver's own threshold. 30 to 120. Not yet supported: reported as such in the condition
    /// `DevicesHealthy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 30, max = 120))]
    pub max_temperature_celsius: Option<i32>,

    /// Persistence mode of an NVIDIA card while desktops have vGPUs of it. Set for the first and put back after the
    /// last; a card that is given whole is its guest's to set. Needs `nodeDaemon.discovery.nvml`. Default: as the
    /// host has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistence_mode: Option<bool>,

    /// Watts that an NVIDIA card may draw while desktops have vGPUs of it. Set and put back like `persistenceMode`; a
    /// value outside of what the card takes makes no share of it, and says what it takes. 1 to 2000. Default: as the
    /// host has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2000))]
    pub power_limit_watts: Option<i32>,

    /// Size in MiB of the memory region of a card that can be resized (Resizable BAR), while a desktop has the card
    /// whole. Set while no driver has the card, and put back after the desktop; the sizes that the card takes are in
    /// `devices[].resizableBar` of the status, and with another one the card goes to no desktop. The kernel refuses where
    /// the bridge above the card has no room for it, or a neighbour of the card uses the same room: switch Above 4G
    /// decoding and Resizable BAR on in the firmware of the host. For the guest it takes a template with firmware `Uefi`,
    /// whose room for memory regions follows. 1 to 33554432. Default: as the host has it.
    #[serde(rename = "resizableBarMiB", default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 33_554_432))]
    pub resizable_bar_mib: Option<i64>,

    /// Clocks of an NVIDIA card while desktops have vGPUs of it, in MHz. Set like `persistenceMode`; after the last
    /// share clocks are locked no more, for the driver does not tell how they were. Default: as the host has them.
    #[serde(rename = "lockClocksMHz", default, skip_serializing_if = "Option::is_none")]
    pub lock_clocks_mhz: Option<ClockRange>,

    /// What each virtual function of an Intel card may take of the card's time while a desktop has it. Set when the
    /// function is given and put back when it is taken back, as the rule was for the first of them. Needs the driver xe
    /// of Linux 6.19 or later: older ones make no share of the card, and say so. Default: as the host has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_functions: Option<VirtualFunctionQuotas>,
}

/// What a virtual function may take of the time of its card (`sriov_admin` of the driver xe). The priority of single
/// functions cannot be set: the driver takes it for all of a card alone.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualFunctionQuotas {
    /// Milliseconds of a turn; 0 lets it take any. 0 to 100000. Default: as the host has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub exec_quantum_ms: Option<i32>,
    /// Microseconds after its turn until it is reset if it does not give way; 0 waits for ever. 0 to 100000000.
    /// Default: as the host has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000_000))]
    pub preempt_timeout_us: Option<i32>,
}

/// Clocks between which a card stays.
#[derive(KubeSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.min <= self.max").message("lockClocksMHz.min must not be above lockClocksMHz.max"))]
pub struct ClockRange {
    /// The lowest, in MHz. 1 to 10000.
    #[schemars(range(min = 1, max = 10_000))]
    pub min: i32,
    /// The highest, in MHz. 1 to 10000.
    #[schemars(range(min = 1, max = 10_000))]
    pub max: i32,
}

/// Selects a card. Exactly one of the three; prefer the UUID, for PCI addresses change when a card
/// is added.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.uuid), has(self.serial), has(self.pciAddress)].filter(x, x).size() == 1").message("a device selector names exactly one of uuid, serial and pciAddress")
)]
pub struct DeviceSelector {
    /// UUID as the driver prints it, for example `GPU-5a1b…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 96))]
    pub uuid: Option<String>,
    /// Serial number of the board.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub serial: Option<String>,
    /// PCI address, for example `0000:41:00.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::pci_address")]
    pub pci_address: Option<PciAddress>,
}

/// Whether gpudesk may use a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Management {
    /// gpudesk may use the card.
    #[default]
    Managed,
    /// The card is shown and never touched.
    Unmanaged,
}

/// What a card is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
pub enum DeviceMode {
    /// Each request chooses.
    #[default]
    Auto,
    /// Whole cards only.
    Passthrough,
    /// Time-sliced vGPUs only.
    Vgpu,
    /// MIG-backed vGPUs only.
    Mig,
    /// SR-IOV virtual functions only.
    VirtualFunctions,
    /// Kept for the host's own driver.
    Host,
}

impl DeviceMode {
    /// Whether a share of `mode` may be made on a card with this policy.
    pub fn allows(self, mode: ShareMode) -> bool {
        match self {
            Self::Auto => true,
            Self::Passthrough => mode == ShareMode::Passthrough,
            Self::Vgpu => mode == ShareMode::Vgpu,
            Self::Mig => mode == ShareMode::Mig,
            Self::VirtualFunctions => mode == ShareMode::VirtualFunctions,
            Self::Host => false,
        }
    }
}

/// Sizes of the vGPUs on one card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum VgpuPlacement {
    /// All of one size; the first one decides it.
    #[default]
    EqualSize,
    /// Different sizes side by side, at the start positions that the driver lists.
    MixedSize,
}

/// How time is divided between the vGPUs of one card.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum VgpuScheduler {
    /// Round robin; idle time goes to the others.
    BestEffort,
    /// Equal parts for those that run.
    EqualShare,
    /// Equal parts for as many as fit, running or not.
    FixedShare,
}

/// A fixed layout of a card. Exactly one of the two.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.mig), has(self.vgpu)].filter(x, x).size() == 1").message("a layout has exactly one of mig and vgpu")
)]
pub struct Layout {
    /// MIG profiles as the driver prints them, one entry per GPU instance: `[3g.40gb, 2g.20gb]`. Each must be one on
    /// which vGPUs can live: of some cards only those with `+gfx`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 32)))]
    #[x_kube(validation = Rule::new("self.all(name, name.matches('^[A-Za-z0-9]([A-Za-z0-9 ._+-]*[A-Za-z0-9])?$'))").message("write layout.mig as the driver prints it, with letters, digits, blanks inside and . _ + - only, like 3g.40gb"))]
    pub mig: Option<Vec<String>>,
    /// vGPU types as the driver prints them, one entry per vGPU: `[L40S-8Q, L40S-8Q]`. Types that differ in size need
    /// `vgpuPlacement: MixedSize`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 64)))]
    #[x_kube(validation = Rule::new("self.all(name, name.matches('^[A-Za-z0-9]([A-Za-z0-9 ._+-]*[A-Za-z0-9])?$'))").message("write layout.vgpu as the driver prints it, with letters, digits, blanks inside and . _ + - only, like L40S-8Q"))]
    pub vgpu: Option<Vec<String>>,
}

impl Layout {
    /// The mode that it divides the card in.
    pub fn mode(&self) -> ShareMode {
        if self.mig.is_some() { ShareMode::Mig } else { ShareMode::Vgpu }
    }

    /// The field that lists the types.
    pub fn field(&self) -> &'static str {
        if self.mig.is_some() { "layout.mig" } else { "layout.vgpu" }
    }

    /// One type for each place.
    pub fn types(&self) -> &[String] {
        self.mig.as_deref().or(self.vgpu.as_deref()).unwrap_or_default()
    }

    /// Whether these are its places: what was planned for another layout is none of it.
    pub fn is_planned_as(&self, places: &[LayoutPlaces]) -> bool {
        let mut counts: BTreeMap<&str, i32> = BTreeMap::new();
        for name in self.types() {
            *counts.entry(name).or_default() += 1;
        }
        for of in places {
            *counts.entry(&of.type_name).or_default() -= of.number();
        }
        !self.types().is_empty() && counts.values().all(|left| *left == 0)
    }
}

/// What the host keeps for itself, per NUMA cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Housekeeping {
    /// Cores per NUMA cell that no desktop is pinned to; emulator and I/O threads run there, beside
    /// the host. 0 to 256. Default: 1.
    #[schemars(range(min = 0, max = 256))]
    pub cores_per_numa_cell: i32,
    /// Memory per NUMA cell in MiB that no desktop gets. 0 to 1048576. Default: 1024.
    #[serde(rename = "memoryMiBPerNumaCell")]
    #[schemars(range(min = 0, max = 1_048_576))]
    pub memory_mib_per_numa_cell: i64,
}

impl Default for Housekeeping {
    fn default() -> Self {
        Self { cores_per_numa_cell: 1, memory_mib_per_numa_cell: 1024 }
    }
}
