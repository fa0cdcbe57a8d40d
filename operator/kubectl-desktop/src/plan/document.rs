//! A plan as a document: what `-o yaml` and `-o json` print. Fields are only added within one version.

use std::collections::BTreeMap;

use gpudesk_crds::{Compute, DecisionRecord, GpuAllocation, HostDeviceAllocation, types::PciAddress};
use serde::{Deserialize, Serialize};

/// What would become of an estate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DesktopPlan {
    /// `gpudesk.dev/v1alpha1`.
    pub api_version: String,
    /// `DesktopPlan`.
    pub kind: String,
    /// Counts.
    pub summary: Summary,
    /// The desktops in the order in which they were decided; those that hold a place already first.
    pub desktops: Vec<PlannedDesktop>,
    /// With `--defragment`: pending desktops that would fit after others moved. Each counts on those
    /// before it. Nothing else in this document counts on any of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub defragmentation: Vec<Defragmentation>,
    /// The machines by name, with what is taken once all this is done.
    pub nodes: Vec<NodeUsage>,
    /// How many more would fit then.
    pub room: Vec<Room>,
    /// How few cards would do for all desktops here that should run, packed as tightly as can be. CPUs,
    /// memory and which node a card is in do not count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fewest_cards: Vec<FewestCards>,
    /// What a reader should know: what was left out or taken as read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl DesktopPlan {
    /// A note for each field that is planned for and not done yet, with how many desktops have it.
    pub fn refusals(&self) -> Vec<String> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for field in self.desktops.iter().flat_map(|desktop| &desktop.not_yet_supported) {
            *counts.entry(field).or_default() += 1;
        }
        let note = |(field, count): (&str, usize)| {
            if field.ends_with("spec.powerState: Suspended") {
                return format!(
                    "{field} is not yet supported: a machine that runs goes on, one that does not is not started"
                );
            }
            let desktops = if count == 1 { "desktop" } else { "desktops" };
            format!(
                "{field} is not yet supported: planned for, but a cluster leaves {count} {desktops} pending for it"
            )
        };
        counts.into_iter().map(note).collect()
    }
}

/// How many desktops are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// All of them.
    pub desktops: usize,
    /// Held a place before.
    pub held: usize,
    /// Got a place.
    pub placed: usize,
    /// Found none.
    pub pending: usize,
    /// Should not run.
    pub stopped: usize,
}

/// What becomes of a desktop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum State {
    /// It holds its place already.
    Held,
    /// It gets a place.
    Placed,
    /// There is none for it, or it cannot be made; `message` says why.
    Pending,
    /// It should not run, and is not planned for without `--all`.
    Stopped,
}

/// A desktop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedDesktop {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// What becomes of it.
    pub state: State,
    /// Its priority.
    pub priority: i32,
    /// The node; absent when it gets none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// CPUs and memory, as in `status.allocation` of a Desktop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<Compute>,
    /// Shares of GPUs, as in `status.allocation`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuAllocation>,
    /// Functions of network cards, and drives, as in `status.allocation`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_devices: Vec<HostDeviceAllocation>,
    /// Partition of the NVLink fabric, as in `status.allocation`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fabric_partition: Option<i32>,
    /// How it was decided, as in `status.allocation`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<DecisionRecord>,
    /// Fields that are planned for and that this version does not do yet, each with its object: for
    /// them the cluster leaves the desktop pending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_yet_supported: Vec<String>,
    /// Why it is pending, as the reason of the condition `Allocated`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why it is pending, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl PlannedDesktop {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A pending desktop and what would have to move for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Defragmentation {
    /// Which, `namespace/name`.
    pub desktop: String,
    /// The moves, in this order.
    pub moves: Vec<PlannedMove>,
    /// The node that it gets then.
    pub node: String,
    /// The shares that it gets there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuAllocation>,
}

/// A desktop that would move: it is stopped, and started again in another place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedMove {
    /// Which, `namespace/name`.
    pub desktop: String,
    /// The node that it leaves; it may be the one that it goes to.
    pub from: String,
    /// The shares that it leaves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from_gpus: Vec<GpuAllocation>,
    /// The node that it goes to.
    pub to: String,
    /// The shares that it gets there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to_gpus: Vec<GpuAllocation>,
}

/// A machine and what is taken on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeUsage {
    /// Name.
    pub name: String,
    /// Desktops that hold something there.
    pub desktops: usize,
    /// Cards that desktops can have something of.
    pub gpus: usize,
    /// Those of them of which nothing is taken.
    pub free_gpus: usize,
    /// Placement units of these cards that are taken.
    pub slices_used: i64,
    /// All of them.
    pub slices_total: i64,
    /// CPUs that desktops have for themselves.
    pub dedicated_cpus: i64,
    /// vCPUs that share the other CPUs.
    pub shared_vcpus: i64,
    /// CPUs of the machine.
    pub cpus: i64,
    /// Memory of the desktops in MiB.
    #[serde(rename = "memoryUsedMiB")]
    pub memory_used_mib: i64,
    /// Memory of the machine in MiB, what the host keeps included.
    #[serde(rename = "memoryTotalMiB")]
    pub memory_total_mib: i64,
    /// The cards by address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cards: Vec<CardUsage>,
}

/// A card and what is taken of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CardUsage {
    /// PCI address.
    pub address: PciAddress,
    /// Product name.
    pub product: String,
    /// Placement units that are taken.
    pub slices_used: i64,
    /// All of them.
    pub slices_total: i64,
    /// Types of the shares on it, with their start positions where they have one: `1g.24gb@0`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<String>,
    /// Of the free units, how many in a thousand the desktops defined here cannot use: the mean over
    /// what they ask for of such cards.
    pub stranded_permille: i32,
    /// Why no desktop can have the card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<String>,
}

/// How few cards of a product would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FewestCards {
    /// The product.
    pub product: String,
    /// How many there are that desktops may have something of.
    pub cards: u32,
    /// How many would do.
    pub needed: u32,
}

/// How many more of something would fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Room {
    /// `GpuProfile`: its share alone, CPUs and memory aside. `DesktopTemplate`: the whole desktop.
    pub kind: String,
    /// Name; of a template `namespace/name`.
    pub name: String,
    /// How many more fit, if only these came.
    pub more: i64,
    /// How many more would fit if all desktops of the plan were placed anew, the largest first. Not
    /// less than `more`; a figure that can be reached, not the best that could be.
    pub more_when_repacked: i64,
    /// Whether counting ended at this figure and more would fit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_least: bool,
}
