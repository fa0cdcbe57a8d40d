//! `Desktop`: one user's machine.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{
    RELEASE_FINALIZER,
    affinity::AffinityRule,
    allocation::{Allocation, LastPlacement},
    desktop_template::{Cpu, GpuRequest, Memory},
    desktop_template_devices::CloudInit,
    gpu_node_status::Acceleration,
    handover::NodeReport,
    types::PciAddress,
};

/// One user's machine, made from a template.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "gpudesk.dev",
    version = "v1alpha1",
    kind = "Desktop",
    plural = "desktops",
    shortname = "dsk",
    category = "gpudesk",
    namespaced,
    status = "DesktopStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "One user's machine: a virtual machine on a node, with its share of a GPU and a screen.",
    selectable = ".status.allocation.node",
    selectable = ".spec.templateRef.name",
    validation = Rule::new("self.metadata.name.size() <= 63 && !self.metadata.name.contains('.')").message("metadata.name must be a DNS label of at most 63 characters: it becomes the guest's host name"),
    printcolumn(name = "Template", type_ = "string", json_path = ".spec.templateRef.name"),
    printcolumn(name = "GPU", type_ = "string", json_path = ".status.gpuSummary", description = "Shares of GPUs."),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.allocation.node"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "PCI", type_ = "string", json_path = ".status.allocation.gpus[0].device", priority = 1, description = "PCI address of the first card."),
    printcolumn(name = "NUMA", type_ = "string", json_path = ".status.allocation.compute.numaCells", priority = 1, description = "NUMA cells of CPUs and memory."),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.addresses[0]", priority = 1, description = "Address in the guest's network."),
    printcolumn(name = "Console", type_ = "string", json_path = ".status.consoles[0].type", priority = 1, description = "Protocol of the screen; `kubectl desktop view NAME` opens it."),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1, description = "Why, when not ready.")
)]
#[serde(rename_all = "camelCase")]
pub struct DesktopSpec {
    /// The template, of the same namespace. Cannot be changed: the disks are made from it.
    #[x_kube(validation = Rule::new("self == oldSelf").message("templateRef cannot be changed: create a new Desktop from the other template"))]
    pub template_ref: TemplateRef,

    /// `Running`, `Stopped`, or `Suspended` (not yet supported: reported as such; a machine
    /// that runs goes on, one that does not is not started). Default: `Running`.
    #[serde(default)]
    pub power_state: PowerState,

    /// Parts of the template that this desktop sets for itself, where the template permits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overrides: Option<Overrides>,

    /// Whose machine it is, for people and for reports. At most 253 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub owner: Option<String>,

    /// Labels that a `GpuNode` must have for this desktop to be placed there. At most 16.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::label_map")]
    pub node_selector: BTreeMap<String, String>,

    /// Taints of nodes (`GpuNode.spec.taints`) that this desktop accepts: it may be placed on a node
    /// all of whose taints it accepts. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub tolerations: Vec<Toleration>,

    /// Near or apart from which other desktops of the namespace, keyed by name; beside the rules of
    /// the template, which count as well. At most 8. A change applies at the next placement.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub affinity: Vec<AffinityRule>,

    /// Higher goes first when several wait. -1000000 to 1000000, and not above what the namespace
    /// allows: its label `gpudesk.dev/max-priority`, or what the cluster allows in all, which is 0
    /// unless its administrators chose otherwise. Default: 0.
    #[serde(default)]
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    pub priority: i32,
}

/// Names a `DesktopTemplate`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateRef {
    /// Name of the `DesktopTemplate`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// Whether the machine should run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum PowerState {
    /// It runs.
    #[default]
    Running,
    /// It is shut down; its disks stay.
    Stopped,
    /// It is suspended to disk. Not yet supported.
    Suspended,
}

/// Parts of the template that a desktop sets for itself. Each replaces the part of the template whole.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overrides {
    /// Processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.cores * self.threadsPerCore <= 512").message("cores x threadsPerCore must be at most 512"))]
    pub cpu: Option<Cpu>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Shares of GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub gpus: Option<Vec<GpuRequest>>,
    /// First-boot configuration; read when the desktop starts for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
}

/// A taint that a desktop accepts, as on pods.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Toleration {
    /// Key of the taint.
    #[schemars(length(min = 1, max = 317))]
    #[x_kube(validation = Rule::new("self.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')").message("key must be written like the key of a label: gpu or example.org/gpu"))]
    pub key: String,
    /// Value of the taint. Absent: the taint is accepted whatever its value, also without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub value: Option<String>,
}

impl Desktop {
    /// What the desktop has on a node, parked or not. Nothing once it was deleted and released: another's
    /// finalizer may keep the object for long.
    pub fn allocation(&self) -> Option<&Allocation> {
        let finalizers = self.metadata.finalizers.as_deref().unwrap_or_default();
        let released = self.metadata.deletion_timestamp.is_some()
            && !finalizers.iter().any(|finalizer| finalizer == RELEASE_FINALIZER);
        self.status.as_ref()?.allocation.as_ref().filter(|_| !released)
    }
}

/// What became of the desktop.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DesktopStatus {
    /// The state in one word, for people. No program should read it: the conditions say more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional::<Phase>")]
    pub phase: Option<Phase>,

    /// What the desktop holds and where. Written by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("!has(oldSelf.id) || has(self.id) && self.id != oldSelf.id || self.node == oldSelf.node").message("allocation.node belongs to the decision that allocation.id names and cannot be changed: the machine may run there"))]
    pub allocation: Option<Allocation>,

    /// How far the node of the allocation is with it. Written by the node daemon. Programs decide on this
    /// and not on the conditions, which are for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeReport>,

    /// Where the desktop ran last and with which cards, while it holds nothing: the next start takes
    /// the same again when all of it is free. Written by the operator when it takes an allocation's
    /// shares back; absent while the desktop holds its place, for then the allocation says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_placement: Option<LastPlacement>,

    /// Since when the desktop is to run and has no place. Of those with one priority, who waits longest goes
    /// first. Written by the operator; absent while it holds its place or is not to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_since: Option<Time>,

    /// The shares of GPUs in words: `1x RTX PRO 6000 16Q`. Written by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub gpu_summary: Option<String>,

    /// The libvirt domain. Written by the node daemon; absent while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<DomainStatus>,

    /// The devices made for the shares of GPUs, keyed by the name of the request. Written by the
    /// node daemon.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub gpus: Vec<PreparedGpu>,

    /// The screens of the machine that runs. They listen on no port: `kubectl desktop view NAME` opens
    /// one, for who may `patch` the desktop. Written by the node daemon.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub consoles: Vec<ConsoleStatus>,

    /// Addresses of the guest, as its agent reports them. Written by the node daemon.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 64)))]
    pub addresses: Vec<String>,

    /// Each tuning asked for, whether it took effect, and why not. Written by the node daemon.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub tuning: Vec<TuningResult>,

    /// `Allocated`, `Ready`, `RestartRequired` (operator); `DevicesPrepared`, `Running`,
    /// `GuestReady` (node daemon).
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

/// The state of a desktop in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Phase {
    /// Not placed yet, or not possible; the condition `Ready` says why.
    Pending,
    /// Placed; the node makes it.
    Starting,
    /// It runs.
    Running,
    /// It is being shut down.
    Stopping,
    /// It is shut down.
    Stopped,
    /// It does not run and nothing is tried until something changes.
    Failed,
    /// It is being deleted.
    Deleting,
    /// Nobody can tell: the daemon of its node, or the libvirt there, is silent. So is read what only a newer version knows.
    #[serde(other)]
    Unknown,
}

/// The libvirt domain of a desktop. Its UUID is the UID of the desktop.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DomainStatus {
    /// Name of the domain: `<namespace>.<name>`.
    #[schemars(length(max = 320))]
    pub name: String,
    /// How the guest runs: `Kvm`, `Emulation` or `Simulated`.
    pub acceleration: Acceleration,
    /// When the running machine was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// Generation of the template that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_generation: Option<i64>,
}

/// The device made for a share of a GPU.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreparedGpu {
    /// Name as in `allocation.gpus`.
    #[schemars(length(max = 68))]
    pub name: String,
    /// UUID of the mediated device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 36))]
    pub mdev_uuid: Option<String>,
    /// PCI address of the function that the guest got.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_address: Option<PciAddress>,
    /// UUID of the MIG instance. Desktops whose vGPUs share an
    /// instance have the same one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 96))]
    pub mig_uuid: Option<String>,
}

/// A screen, and where it is reached.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsoleStatus {
    /// Protocol.
    #[serde(rename = "type")]
    pub console_type: ConsoleType,
    /// `address:port` on the node where the screen is open to everybody who reaches it: of a machine that
    /// an earlier version of gpudesk started, until its next start. Empty: it stands on no port.
    // Always written: versions before this one cannot read a console without it.
    #[serde(default)]
    #[schemars(length(max = 300))]
    pub address: String,
    /// The relay of the node, through which `kubectl desktop view` reaches the screen. Absent where
    /// the node's owner has switched it off, and on simulated hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<ConsoleRelay>,
}

/// Where the daemon of the node passes a screen on to who may see it: TLS 1.3, and a ticket that is
/// good for one desktop, once, for a minute.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsoleRelay {
    /// `address:port`, as the node's owner announces it: reached from the network of the cluster.
    #[schemars(length(max = 300))]
    pub address: String,
    /// The key that the relay proves to have (RFC 7250): base64 of its `SubjectPublicKeyInfo`. Made anew
    /// at each start of the node daemon.
    #[schemars(length(max = 256))]
    pub public_key: String,
}

/// Protocol of a screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum ConsoleType {
    /// RFB, as VNC viewers speak it.
    #[serde(rename = "VNC")]
    Vnc,
    /// SPICE.
    #[serde(rename = "SPICE")]
    Spice,
    /// What a newer version knows.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// What became of one tuning.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TuningResult {
    /// Which: `CpuPinning`, `Hugepages`, `NumaMemory`, `GuestNuma`, `EmulatorPinning`, `CpuModel`,
    /// `HyperV`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Whether it is in effect.
    pub applied: bool,
    /// Why not, or with what figure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
}
