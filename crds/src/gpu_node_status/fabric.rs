//! NVLink fabrics.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::types::PciAddress;

/// The NVLink fabric of a board with NVSwitches.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fabric {
    /// The NVSwitches that the host sees on PCI; empty where the switches are no PCI functions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub switches: Vec<PciAddress>,
    /// The sets of cards that the fabric manager can give to one machine; no other sets work. Empty
    /// when nobody could be asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub partitions: Vec<FabricPartition>,
}

/// A set of cards that the fabric manager can give to one machine.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FabricPartition {
    /// Number of the partition.
    #[schemars(range(min = 0))]
    pub id: i32,
    /// The cards in it, by `devices[].moduleId`.
    #[schemars(length(max = 64))]
    pub module_ids: Vec<i32>,
    /// Whether it is active now; absent when nobody could be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<bool>,
}

/// A card's place in a fabric.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CardFabric {
    /// `NotSupported`, `NotStarted`, `InProgress` or `Completed`, as NVML says.
    #[schemars(length(max = 32))]
    pub state: String,
    /// How registering ended: `Success`, or the error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub status: Option<String>,
    /// UUID of the cluster of cards, where several machines share a fabric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub cluster_uuid: Option<String>,
    /// The clique of cards that reach each other within the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub clique_id: Option<i64>,
}
