//! The gpudesk API: four kinds of the group `gpudesk.dev`, version `v1alpha1`.
//!
//! ```text
//!   people, GitOps             operator                     node daemon
//!   ──────────────             ────────                     ───────────
//!   GpuNode.spec      ──────▶  reads            ◀────────   GpuNode.status
//!   GpuProfile.spec   ──────▶  GpuProfile.status
//!   DesktopTemplate   ──────▶  DesktopTemplate.status
//!   Desktop.spec      ──────▶  Desktop.status.allocation ─▶ Desktop.status.{domain,consoles,…}
//! ```
//!
//! This crate holds the types, their schema with its validation rules, and the parsers of the
//! values in them. It holds no client and no runtime: whoever speaks to gpudesk can depend on it.
//! The doc comments of the fields are what `kubectl explain` prints.
//!
//! The YAML beside this crate is generated: `make generate` writes it, and a test fails when it
//! differs from the types.
#![forbid(unsafe_code)]
#![expect(unreachable_pub, reason = "the schema derive repeats each type inside a function")]

pub mod affinity;
pub mod allocation;
pub mod conditions;
pub mod desktop;
pub mod desktop_template;
pub mod desktop_template_devices;
pub mod faults;
pub mod gpu_node;
pub mod gpu_node_drives;
pub mod gpu_node_rules;
pub mod gpu_node_status;
pub mod gpu_node_words;
pub mod gpu_profile;
pub mod handover;
mod lenient;
pub mod pods;
pub mod relay;
pub mod schema;
pub mod text;
pub mod types;
pub mod yaml;

pub use affinity::{AffinityRule, Relation};
pub use allocation::{
    AllocatedDeviceKind, Allocation, Compute, DecisionRecord, FilteredNodes, GpuAllocation, GuestCell,
    HostDeviceAllocation, LastGpu, LastPlacement, ScoredNode, VcpuPin,
};
pub use desktop::{Desktop, DesktopSpec, DesktopStatus};
pub use desktop_template::{DesktopTemplate, DesktopTemplateSpec, DesktopTemplateStatus};
pub use gpu_node::{GpuNode, GpuNodeSpec};
pub use gpu_node_status::GpuNodeStatus;
pub use gpu_profile::{GpuProfile, GpuProfileSpec, GpuProfileStatus};
pub use handover::{AllocationId, NodeReport, NodeState, Refusal};

/// API group of every kind here.
pub const GROUP: &str = "gpudesk.dev";
/// API version of every kind here.
pub const VERSION: &str = "v1alpha1";
/// The one finalizer: the operator puts it on a `Desktop` at first sight and takes it away when the
/// node has reported that everything the desktop held is released.
pub const RELEASE_FINALIZER: &str = "gpudesk.dev/release";
/// Annotation that asks for a restart, as `kubectl rollout restart` does: any new value asks once.
pub const RESTARTED_AT_ANNOTATION: &str = "gpudesk.dev/restartedAt";
/// Longest value of it, in characters.
pub const MAX_RESTARTED_AT: usize = 128;

/// What is wrong with a value of [`RESTARTED_AT_ANNOTATION`], in words: it goes into statuses and into the domain, so it is
/// of printable ASCII.
pub fn restart_problem(value: &str) -> Option<String> {
    let odd = value.chars().find(|c| !matches!(c, ' '..='~'));
    let length = value.chars().count();
    let found = match odd {
        Some(odd) => format!("has the character U+{:04X}", u32::from(odd)),
        None if length > MAX_RESTARTED_AT => format!("is {length} characters long"),
        None => return None,
    };
    Some(format!(
        "annotation {RESTARTED_AT_ANNOTATION} {found}; it takes at most {MAX_RESTARTED_AT} printable ASCII characters, like \
         2026-01-31T08:00:00Z"
    ))
}

/// Annotation by which a user gives up what a desktop has on a node that is away (its machine and its disks
/// there), or on disks that have vanished. Its value is the id of the allocation that is given up, and no other.
pub const ABANDON_DISKS_ANNOTATION: &str = "gpudesk.dev/abandon-disks";
/// Annotation of a `GpuNode` by which an admin hands over what was made by hand on its cards: names as in
/// `status.devices[].foreign[].device`, separated by commas.
pub const ADOPT_ANNOTATION: &str = "gpudesk.dev/adopt";
/// Server-side-apply field manager of the operator.
pub const OPERATOR_FIELD_MANAGER: &str = "gpudesk-operator";
/// Server-side-apply field manager of the node daemons.
pub const NODE_DAEMON_FIELD_MANAGER: &str = "gpudesk-node-daemon";
/// Namespace of the operator, the node daemons and their leases, unless told otherwise.
pub const DEFAULT_SYSTEM_NAMESPACE: &str = "gpudesk-system";

/// Name of what stands for one node in the system namespace: its liveness `Lease` and the service
/// account with which its daemon reads the Secrets of its desktops.
///
/// The name of a `GpuNode` is limited (by its validation rule) so that this always is a legal name.
pub fn node_identity(node: &str) -> String {
    format!("gpudesk-node-{node}")
}

/// The libvirt name of a desktop's domain: `<namespace>.<name>`.
///
/// Unambiguous, because a namespace has no dot.
pub fn domain_name(namespace: &str, name: &str) -> String {
    format!("{namespace}.{name}")
}
