//! NUMA cells.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::types::{CpuSet, PageSize};

/// One NUMA cell.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NumaCell {
    /// Number of the cell.
    #[schemars(range(min = 0))]
    pub id: i32,
    /// The cores of the cell, each as the set of its online threads: `["0,64", "1,65"]`. Empty for a
    /// cell of memory alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096))]
    pub cores: Vec<CpuSet>,
    /// Sockets to which these cores belong, as the kernel numbers them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub sockets: Vec<i32>,
    /// Last-level caches of these cores; a core complex of an AMD EPYC is one. Cores can have last-level
    /// caches of different levels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["cpus".into()]))]
    pub caches: Vec<CacheDomain>,
    /// Memory of the cell in MiB.
    #[serde(rename = "memoryMiB", default)]
    #[schemars(range(min = 0, max = 1_099_511_627_776_i64))]
    pub memory_mib: i64,
    /// True for a cell that is the memory of a device, such as the GPU of a Grace Hopper superchip: it is
    /// shown, and no desktop gets memory from it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub device_memory: bool,
    /// Hugepages reserved on the cell, per size.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["size".into()]))]
    pub hugepages: Vec<Hugepages>,
    /// Memory in MiB that is reserved in hugepages of other sizes, such as 16 GiB: no desktop gets it.
    /// Absent without.
    #[serde(rename = "otherHugepagesMiB", default, skip_serializing_if = "super::is_zero")]
    #[schemars(range(min = 0, max = 1_099_511_627_776_i64))]
    pub other_hugepages_mib: i64,
    /// Distance to each cell in the order of their numbers; 10 is the cell itself. Absent when the kernel
    /// does not tell one for each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub distances: Vec<i32>,
}

/// A cache that some CPUs share.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheDomain {
    /// Level of the cache: 3, or the highest there is.
    #[schemars(range(min = 1, max = 9))]
    pub level: i32,
    /// The online CPUs that share it.
    pub cpus: CpuSet,
    /// Its size in KiB; absent when the kernel does not say.
    #[serde(rename = "sizeKiB", default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub size_kib: Option<i64>,
}

/// Hugepages of one size on one NUMA cell.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hugepages {
    /// Size of one page.
    pub size: PageSize,
    /// Pages reserved.
    #[schemars(range(min = 0, max = 1_099_511_627_776_i64))]
    pub total: i64,
    /// Pages free when the status was last written; a change of this figure alone writes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_099_511_627_776_i64))]
    pub free: Option<i64>,
    /// Pages beyond the reserved ones that the kernel added on demand; absent when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_099_511_627_776_i64))]
    pub surplus: Option<i64>,
}
