//! An admin's words about single machines and folders of a node, in `GpuNode.spec`.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::AllocationId;

/// The word that ends one machine of `status.strays`. It names exactly that machine: one that an
/// allocation holds, or may hold, is never touched, whatever is written here.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StrayWord {
    /// Which machine: its `uid` in `status.strays`.
    #[schemars(length(equal = 36))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$')").message("write the uid of an entry of status.strays, in lower case"))]
    pub uid: String,
    /// The decision that it was made for: `allocation.id` in `status.strays`. A machine of another
    /// decision is left alone. Absent: only one whose decision cannot be read is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 21))]
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,11}-[0-9a-f]{8}$')").message("write the allocation.id of an entry of status.strays, like 3-9f1c02ab"))]
    pub allocation_id: Option<AllocationId>,
    /// `ShutDown`: the guest is asked, and powered off after its grace. `PowerOff`: at once, and memory of it
    /// that was saved on the host is given up. Its disks
    /// become a leftover; where its Desktop is allocated to this node they stay for its next machine.
    pub action: StrayAction,
}

/// How a machine is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum StrayAction {
    /// The guest is asked to shut down, and powered off after its grace.
    ShutDown,
    /// The power is taken at once.
    PowerOff,
}

/// What becomes of one folder of `status.leftovers`. Exactly one of `action` and `attachTo`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.action) != has(self.attachTo)").message("write exactly one of action and attachTo")
)]
pub struct LeftoverWord {
    /// Which folder: its `name` in `status.leftovers`.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-zA-Z][0-9a-zA-Z.-]*$')").message("write the name of an entry of status.leftovers"))]
    pub name: String,
    /// `Erase`: its disks are erased now, and cannot be brought back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional::<LeftoverAction>")]
    pub action: Option<LeftoverAction>,
    /// Its disks become those of this desktop, which must be stopped and keep its disks on this node.
    /// Disks that the desktop has there become a leftover themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach_to: Option<AttachTo>,
}

/// What is done with a leftover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum LeftoverAction {
    /// Its disks are erased now.
    Erase,
}

/// A desktop that gets disks.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachTo {
    /// Namespace of the Desktop.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Name of the Desktop.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}
