//! Machines on a node that no allocation to it accounts for.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::Allocation;

/// A machine that is on this node, running or only defined, and is not that of an allocation which holds here.
///
/// What it holds counts as taken. One without `allocation` holds nobody knows what: the node takes no
/// new desktops until it has ended.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stray {
    /// UID of the Desktop that it was made for, which is the UUID of the libvirt domain too.
    #[schemars(length(equal = 36))]
    pub uid: String,
    /// Namespace of that Desktop.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Name of that Desktop.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// How it stands to what the API says of that Desktop.
    pub standing: StrayStanding,
    /// The decision that it was made for, as its metadata has it. Absent where that cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::lenient::part")]
    pub allocation: Option<Box<Allocation>>,
    /// When the daemon first saw it so.
    pub since: Time,
}

/// How a machine stands to what the API says of its Desktop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum StrayStanding {
    /// The desktop has moved on to a later decision: the guest is asked to shut down, then powered off.
    Older,
    /// The decision is later than the one that holds, or was never heard of, as after a restore from a
    /// backup: it is left running.
    Newer,
    /// The Desktop is allocated to no node: it is left running.
    Unallocated,
    /// There is no such Desktop: it is left running.
    NoDesktop,
    /// It does not run, libvirt knows it still, and it is of no Desktop or of another decision. It may be started
    /// on the host at any time, so what it was given counts as taken.
    Inactive,
    /// What the API says of it, or what it says of itself, is not understood: it is left running.
    #[serde(other)]
    Unclear,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_machine_whose_decision_is_not_understood_is_still_one() {
        let read = |allocation: serde_json::Value| -> Stray {
            let stray = json!({
                "uid": "7f1c2a58-3c1e-4f0e-9a53-0d4f6f5b9a01", "namespace": "school", "name": "anna",
                "standing": "ofLater", "since": "2026-01-05T08:00:00Z", "allocation": allocation,
            });
            serde_json::from_value(stray).unwrap()
        };
        let known = json!({
            "node": "node-a", "id": "1-00000001", "decidedAt": "2026-01-05T08:00:00Z", "desktopGeneration": 1,
            "templateGeneration": 1,
        });
        assert!(read(known).allocation.is_some());
        for odd in [json!(null), json!("much"), json!({"node": 7})] {
            let stray = read(odd);
            assert_eq!((stray.allocation, stray.standing), (None, StrayStanding::Unclear));
        }
    }
}
