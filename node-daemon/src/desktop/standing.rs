//! What the API itself says of a desktop that something on this host is of. Pure.
//!
//! The watch shows only what is allocated to this node: a desktop that is missing there may be another
//! node's, may have lost its status, or may be gone. Only a direct read of the object tells these apart.

use kube::api::DynamicObject;
use serde_json::Value;
use uuid::Uuid;

/// Whose a desktop is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is allocated to this node.
    Here,
    /// It is allocated to another node, of this name: nothing of it may run here.
    Elsewhere(String),
    /// It exists and is allocated to no node: its status was lost, or nobody has decided yet. What runs
    /// of it may be the only copy.
    Unallocated,
    /// There is no Desktop of this name and UID.
    Gone,
    /// What the object says cannot be understood.
    Unclear,
}

/// What `live`, the answer to a read of the Desktop by its name, says of the one with this UID to `node`.
///
/// The object need not parse as a Desktop of this version: UID and node of the allocation are read alone.
pub fn standing(node: &str, uid: Uuid, live: Option<&DynamicObject>) -> Standing {
    let Some(object) = live else { return Standing::Gone };
    let live: Option<Uuid> = object.metadata.uid.as_deref().and_then(|uid| uid.parse().ok());
    if live != Some(uid) {
        return Standing::Gone;
    }
    match object.data.pointer("/status/allocation") {
        None | Some(Value::Null) => Standing::Unallocated,
        Some(allocation) => match allocation.get("node").and_then(Value::as_str) {
            Some(here) if here == node => Standing::Here,
            Some(other) if !other.is_empty() => Standing::Elsewhere(other.into()),
            Some(_) | None => Standing::Unclear,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const UID: Uuid = Uuid::from_u128(7);

    fn desktop(status: &Value) -> DynamicObject {
        let object = json!({
            "apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop",
            "metadata": { "name": "anna", "namespace": "school", "uid": UID },
            "spec": { "of": ["a", "later", "version"] }, "status": status,
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn only_another_nodes_name_makes_it_another_nodes() {
        let of = |status: Value| standing("node-a", UID, Some(&desktop(&status)));
        assert_eq!(of(json!({ "allocation": { "node": "node-a" } })), Standing::Here);
        assert_eq!(of(json!({ "allocation": { "node": "node-b" } })), Standing::Elsewhere("node-b".into()));
        for lost in [json!(null), json!({}), json!({ "allocation": null }), json!({ "phase": "Running" })] {
            assert_eq!(of(lost.clone()), Standing::Unallocated, "{lost}");
        }
        for odd in [json!({ "allocation": {} }), json!({ "allocation": { "node": "" } })] {
            assert_eq!(of(odd.clone()), Standing::Unclear, "{odd}");
        }
        for odd in [json!({ "allocation": 7 }), json!({ "allocation": { "node": ["node-b"] } })] {
            assert_eq!(of(odd.clone()), Standing::Unclear, "{odd}");
        }
    }

    #[test]
    fn the_uid_tells_one_desktop_from_the_next_of_its_name() {
        let next = desktop(&json!({ "allocation": { "node": "node-b" } }));
        assert_eq!(standing("node-a", Uuid::from_u128(8), Some(&next)), Standing::Gone);
        assert_eq!(standing("node-a", UID, None), Standing::Gone);
    }
}
