//! `DesktopTemplate`: the shape of a machine.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{
    affinity::AffinityRule,
    desktop_template_devices::{CloudInit, Consoles, Disk, Filesystem, Network},
    types::PageSize,
};

/// The shape of a machine. A change applies to a desktop at its next start.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "gpudesk.dev",
    version = "v1alpha1",
    kind = "DesktopTemplate",
    plural = "desktoptemplates",
    shortname = "dtpl",
    category = "gpudesk",
    namespaced,
    status = "DesktopTemplateStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "The shape of a machine: CPUs, memory, shares of GPUs, disks, networks, consoles. Desktops of the same namespace are made from it. A template in use cannot be deleted.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("metadata.name must be at most 63 characters"),
    printcolumn(name = "Cores", type_ = "integer", json_path = ".spec.cpu.cores"),
    printcolumn(name = "Memory MiB", type_ = "integer", json_path = ".spec.memory.sizeMiB"),
    printcolumn(name = "GPU", type_ = "string", json_path = ".spec.gpus[0].profileRef.name", description = "Profile of the first GPU."),
    printcolumn(name = "Machine", type_ = "string", json_path = ".spec.machine.type"),
    printcolumn(name = "Desktops", type_ = "integer", json_path = ".status.desktops", description = "Desktops made from it."),
    printcolumn(name = "Valid", type_ = "string", json_path = ".status.conditions[?(@.type==\"Valid\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Valid\")].message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.machine.type != 'microvm' || !has(self.gpus) || self.gpus.size() == 0").message("a microvm has no PCI bus: remove gpus or use machine.type q35"),
    validation = Rule::new("self.machine.type != 'microvm' || self.machine.firmware == 'DirectKernel'").message("a microvm boots by machine.firmware DirectKernel only"),
    validation = Rule::new("self.memory.hugepages != '1Gi' || self.memory.sizeMiB % 1024 == 0").message("memory.sizeMiB must be a multiple of 1024 with memory.hugepages 1Gi"),
    validation = Rule::new("self.memory.hugepages != '2Mi' || self.memory.sizeMiB % 2 == 0").message("memory.sizeMiB must be even with memory.hugepages 2Mi"),
    validation = Rule::new("self.machine.firmware == 'DirectKernel' || has(self.disks) && self.disks.exists(d, has(d.image) || has(d.hostFile) || has(d.nfs) || has(d.nvme))").message("without machine.firmware DirectKernel a disk must hold a system: add a disk with image, hostFile, nfs or nvme")
)]
pub struct DesktopTemplateSpec {
    /// Processors.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self.cores * self.threadsPerCore <= 512").message("cores x threadsPerCore must be at most 512"))]
    pub cpu: Cpu,

    /// Memory.
    pub memory: Memory,

    /// Shares of GPUs, keyed by name. None by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub gpus: Vec<GpuRequest>,

    /// How closely CPUs, memory and GPU must be together: `Strict` on the GPU's NUMA cell (or the
    /// fewest cells that do) or not at all, `Preferred` where possible, `None` anywhere.
    /// Default: `Preferred`.
    #[serde(default)]
    pub numa: NumaPolicy,

    /// Machine type and firmware.
    #[serde(default)]
    pub machine: Machine,

    /// Disks, keyed by name, in boot order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub disks: Vec<Disk>,

    /// Folders of the host, shown in the guest by virtiofs and keyed by tag. Not yet supported: a
    /// template that sets it is reported as not valid, and its desktops stay pending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["tag".into()]))]
    pub filesystems: Vec<Filesystem>,

    /// Network interfaces, keyed by name. Without this field: one of kind `user`, which reaches out
    /// by address translation and is not reached from outside. An empty list: no network.
    #[serde(default = "crate::desktop_template_devices::default_networks")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub networks: Vec<Network>,

    /// Screens. Default: VNC.
    #[serde(default)]
    pub consoles: Consoles,

    /// First-boot configuration, given to the guest as a `NoCloud` seed disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,

    /// Whether the guest runs the QEMU guest agent. With it, a desktop is ready once the agent
    /// answers, and is shut down through it. Default: true.
    #[serde(default = "yes")]
    pub guest_agent: bool,

    /// What happens around the life of the machine.
    #[serde(default)]
    pub lifecycle: Lifecycle,

    /// Near or apart from which other desktops of the namespace, keyed by name. For every desktop of
    /// this template; a desktop may add rules of its own. At most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub affinity: Vec<AffinityRule>,

    /// What a desktop may override: `Cpu`, `Memory`, `Gpus`, `CloudInit`. Default: nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub allow_overrides: Vec<Override>,
}

pub(crate) fn yes() -> bool {
    true
}

/// Processors of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Cpu {
    /// Cores. 1 to 512. Default: 2.
    #[schemars(range(min = 1, max = 512))]
    pub cores: i32,
    /// Threads per core that the guest sees; 2 only where the host has them. 1 or 2. Default: 1.
    #[schemars(range(min = 1, max = 2))]
    pub threads_per_core: i32,
    /// CPU model: `host-passthrough`, or a name that libvirt knows, for example `EPYC-Milan`.
    /// Under plain emulation an emulated model stands in. Default: `host-passthrough`.
    #[schemars(
        length(min = 1, max = 64),
        extend("x-kubernetes-validations" = [{
            "rule": "self.matches('^[A-Za-z0-9][A-Za-z0-9._-]*$')",
            "message": "write host-passthrough or a CPU model that libvirt knows, like EPYC-Milan"
        }])
    )]
    pub model: String,
    /// `Dedicated` gives each vCPU a host CPU of its own, on cores that nobody else gets;
    /// `DedicatedThreads` gives it a hardware thread of its own, whose core's other thread may go to
    /// another desktop; `Shared` lets vCPUs float over what is left. With `threadsPerCore` 2, and on
    /// hosts with one thread per core, the first two are the same. Default: `Shared`.
    pub pinning: Pinning,
}

impl Default for Cpu {
    fn default() -> Self {
        Self { cores: 2, threads_per_core: 1, model: "host-passthrough".into(), pinning: Pinning::Shared }
    }
}

/// Whether vCPUs have host CPUs of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Pinning {
    /// vCPUs float over the host's CPUs.
    #[default]
    Shared,
    /// Each vCPU has a host CPU of its own, from cores that no other desktop gets.
    Dedicated,
    /// Each vCPU has a hardware thread of its own; the other thread of its core may go to another
    /// desktop. Twice as many fit, and each sees the other's load.
    DedicatedThreads,
}

/// Memory of the machine.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Size in MiB. 16 to 16777216.
    #[serde(rename = "sizeMiB")]
    #[schemars(range(min = 16, max = 16_777_216))]
    pub size_mib: i64,
    /// Pages behind it: `1Gi`, `2Mi` (reserved by the owner of the host) or `None`. Default: `None`.
    #[serde(default)]
    pub hugepages: PageSize,
    /// Whether ordinary pages may be used where the hugepages do not suffice. Default: false.
    #[serde(default)]
    pub allow_fallback: bool,
}

/// A request for shares of GPUs.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuRequest {
    /// A name for the request, unique in the list.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("write lower-case letters, digits and hyphens, with a letter or digit at both ends, like system-1"))]
    pub name: String,
    /// The profile.
    pub profile_ref: ProfileRef,
    /// How many, all on one node. 1 to 16. Default: 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 16))]
    pub count: i32,
}

fn one() -> i32 {
    1
}

/// Names a `GpuProfile`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileRef {
    /// Name of the `GpuProfile`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// How closely CPUs, memory and GPU must be together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
pub enum NumaPolicy {
    /// On one cell, or pending.
    Strict,
    /// On one cell where possible.
    #[default]
    Preferred,
    /// Anywhere.
    None,
}

/// Machine type and firmware.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.firmware == 'DirectKernel') == has(self.directKernel)").message("firmware DirectKernel and directKernel come together"),
    validation = Rule::new("!self.tpm || self.firmware != 'DirectKernel'").message("a TPM needs firmware Uefi, UefiSecureBoot or Bios")
)]
pub struct Machine {
    /// `q35`, or `microvm` for machines without PCI that start fast. Default: `q35`.
    #[serde(rename = "type", default)]
    pub machine_type: MachineType,
    /// `Uefi`, `UefiSecureBoot`, `Bios`, or `DirectKernel`. Default: `Uefi`.
    #[serde(default)]
    pub firmware: Firmware,
    /// Kernel that is started without firmware; with `DirectKernel` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_kernel: Option<DirectKernel>,
    /// Emulated TPM 2.0. Not yet supported: a template that sets it is reported as not valid, and
    /// its desktops stay pending. Default: false.
    #[serde(default)]
    pub tpm: bool,
    /// Hyper-V enlightenments, which Windows guests need to run well. Default: false.
    #[serde(default)]
    pub hyperv: bool,
}

/// Machine type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum MachineType {
    /// PCI Express machine.
    #[default]
    #[serde(rename = "q35")]
    Q35,
    /// Machine without PCI.
    #[serde(rename = "microvm")]
    Microvm,
}

/// What starts the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Firmware {
    /// UEFI without Secure Boot.
    #[default]
    Uefi,
    /// UEFI with Secure Boot.
    UefiSecureBoot,
    /// Legacy BIOS. Cards with large memory regions do not work with it.
    Bios,
    /// A kernel from the node's image folder, without firmware.
    DirectKernel,
}

/// A kernel that is started without firmware. The files stand in the node's image folders.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectKernel {
    /// File name of the kernel: a name, not a path.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9][A-Za-z0-9._+-]*$')").message("write a file name, not a path: letters, digits and . _ + - only, with a letter or digit first"))]
    pub kernel: String,
    /// File name of the initial RAM disk: a name, not a path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9][A-Za-z0-9._+-]*$')").message("write a file name, not a path: letters, digits and . _ + - only, with a letter or digit first"))]
    pub initrd: Option<String>,
    /// Kernel command line, printable ASCII.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self.matches('^[ -~]*$')").message("write printable ASCII characters only, in one line"))]
    pub command_line: Option<String>,
}

/// What happens around the life of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Lifecycle {
    /// Whether a stopped desktop gives its share of the GPU back. Not yet supported when false: a
    /// template that says false is reported as not valid. Default: true.
    pub release_gpu_on_stop: bool,
    /// Whether a machine that ended by itself is started again: `Always`, `OnFailure` (only after a
    /// crash) or `Never`. Default: `OnFailure`.
    pub restart_policy: RestartPolicy,
    /// Seconds that a guest has to shut down before it is powered off. 0 to 3600. Default: 60.
    #[schemars(range(min = 0, max = 3600))]
    pub shutdown_grace_seconds: i32,
    /// Minutes after which a running desktop is stopped. Not yet supported: a template that sets it
    /// is reported as not valid, and its desktops stay pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 525_600))]
    pub maximum_session_minutes: Option<i32>,
    /// Minutes without a user after which a running desktop is stopped. Not yet supported: a
    /// template that sets it is reported as not valid, and its desktops stay pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 525_600))]
    pub idle_stop_minutes: Option<i32>,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            release_gpu_on_stop: true,
            restart_policy: RestartPolicy::OnFailure,
            shutdown_grace_seconds: 60,
            maximum_session_minutes: None,
            idle_stop_minutes: None,
        }
    }
}

/// Whether a machine that ended by itself is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum RestartPolicy {
    /// After every end that nobody asked for.
    Always,
    /// After a crash only.
    #[default]
    OnFailure,
    /// Not at all.
    Never,
}

/// A part of a template that a desktop may override.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum Override {
    /// `spec.overrides.cpu`.
    Cpu,
    /// `spec.overrides.memory`.
    Memory,
    /// `spec.overrides.gpus`.
    Gpus,
    /// `spec.overrides.cloudInit`.
    CloudInit,
}

/// What the operator says of a template.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DesktopTemplateStatus {
    /// How many desktops are made from it.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub desktops: i32,
    /// The first of them by name, at most ten. While there is one, the template cannot be deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), inner(length(max = 63)))]
    pub users: Vec<String>,
    /// `Valid`: desktops can be made from it.
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
