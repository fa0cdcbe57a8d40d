//! Figures: how many of each type, and what people see first.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::types::ShareMode;

/// How many of a type.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeCount {
    /// Type, as in `placements`; `Passthrough` for whole cards.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 64))]
    pub type_name: String,
    /// The mode that the share belongs to.
    pub mode: ShareMode,
    /// How many.
    #[schemars(range(min = 0))]
    pub count: i32,
}

/// The figures that `kubectl get gpunodes` prints.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSummary {
    /// Cards that gpudesk manages; the one on which the host shows its own screen is not counted.
    #[schemars(range(min = 0))]
    pub gpus: i32,
    /// Cards of which nothing is in use.
    #[schemars(range(min = 0))]
    pub free_gpus: i32,
    /// `used/total` placement units: MIG memory units, vGPU units, or 1 for a card given only whole.
    #[schemars(length(max = 32))]
    pub slices: String,
    /// NUMA cells.
    #[schemars(range(min = 0))]
    pub numa_cells: i32,
}
