//! Folders with disks that no desktop of the node has any more.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Disks of a desktop that is not this node's any more, put aside in a folder of their own.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leftover {
    /// Name of the folder: what `spec.leftovers` calls it.
    #[schemars(length(min = 1, max = 64))]
    pub name: String,
    /// Namespace of the Desktop whose it was.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Name of that Desktop.
    #[schemars(length(min = 1, max = 253))]
    pub desktop: String,
    /// UID of that Desktop.
    #[schemars(length(equal = 36))]
    pub uid: String,
    /// What erasing it would free, in MiB.
    #[serde(rename = "sizeMiB")]
    #[schemars(range(min = 0))]
    pub size_mib: i64,
    /// When it was put aside.
    pub since: Time,
    /// When it is erased by age; earlier where leftovers take more room than they may. Absent: never by
    /// age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erased_after: Option<Time>,
}
