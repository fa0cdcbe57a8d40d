//! What the API itself says of a desktop that something on this host is of. Pure.
//!
//! The watch shows only what is allocated to this node: a desktop that is missing there may be another
//! node's, may have lost its status, or may be gone. Only a direct read of the object tells these apart.

use gpudesk_crds::{Allocation, AllocationId, handover::Standing as Made};
use kube::api::DynamicObject;
use serde_json::Value;
use uuid::Uuid;

use super::decision;

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

/// Which decision something on this host was made for.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum MadeFor {
    /// Nothing says it.
    #[default]
    Unsaid,
    /// The allocation in the domain's metadata.
    Allocation(Box<Allocation>),
    /// The decision in the folder.
    Decision(AllocationId),
    /// It is said and cannot be read.
    Unreadable,
}

impl MadeFor {
    /// The id of the decision.
    pub fn id(&self) -> Option<AllocationId> {
        match self {
            Self::Allocation(allocation) => allocation.id,
            Self::Decision(id) => Some(*id),
            Self::Unsaid | Self::Unreadable => None,
        }
    }
}

/// How what is here of a desktop stands to what the API says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is allocated here, and what is here is for the decision that holds.
    Current,
    /// It is allocated here, and what is here is of an earlier decision.
    OlderHere,
    /// It is allocated to the node of this name, by a later decision.
    MovedOn(String),
    /// What is here is of a later decision than the one that holds, or of one that was never heard of.
    Newer {
        /// Whether the one that holds is for this node.
        here: bool,
    },
    /// It is allocated to no node.
    Unallocated,
    /// There is no such Desktop.
    NoDesktop,
    /// That cannot be told.
    Unclear {
        /// Whether it may be the machine of the allocation that holds.
        may_be_current: bool,
    },
}

/// Judges what is here of the desktop with this UID by `live`, the answer to a read of it.
pub fn verdict(node: &str, uid: Uuid, live: Option<&DynamicObject>, made_for: &MadeFor) -> Verdict {
    let allocation = live.and_then(|live| live.data.pointer("/status/allocation"));
    let id = allocation.and_then(|held| held.get("id")?.as_str()?.parse::<AllocationId>().ok());
    // `None`: it cannot be told.
    let made = match (made_for, id) {
        (MadeFor::Unsaid, _) => Some(Made::Older),
        (MadeFor::Unreadable, _) | (MadeFor::Decision(_), None) => None,
        (MadeFor::Decision(made_for), Some(current)) => Some(made_for.standing(current)),
        (MadeFor::Allocation(made_for), Some(current)) if made_for.id.is_some() => {
            made_for.id.map(|made_for| made_for.standing(current))
        }
        (MadeFor::Allocation(made_for), _) => allocation
            .and_then(|held| serde_json::from_value::<Allocation>(held.clone()).ok())
            .map(|current| decision::compare(made_for, &current)),
    };
    match (standing(node, uid, live), made) {
        (Standing::Gone, _) => Verdict::NoDesktop,
        (Standing::Unallocated, _) => Verdict::Unallocated,
        (Standing::Here, Some(Made::Current)) => Verdict::Current,
        (Standing::Here, Some(Made::Older)) if *made_for == MadeFor::Unsaid => Verdict::Current,
        (Standing::Here, Some(Made::Older)) => Verdict::OlderHere,
        (Standing::Here, Some(Made::Unknown)) => Verdict::Newer { here: true },
        (Standing::Elsewhere(other), Some(Made::Older)) => Verdict::MovedOn(other),
        (Standing::Elsewhere(_), Some(Made::Unknown)) => Verdict::Newer { here: false },
        // One decision is for one node.
        (Standing::Here, None) | (Standing::Elsewhere(_), Some(Made::Current)) => {
            Verdict::Unclear { may_be_current: true }
        }
        (Standing::Elsewhere(_), None) => Verdict::Unclear { may_be_current: false },
        (Standing::Unclear, made) => {
            Verdict::Unclear { may_be_current: made.is_none_or(|made| made == Made::Current) }
        }
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

    #[test]
    fn what_is_here_is_judged_by_the_decision_that_it_was_made_for() {
        let made = |id: &str| {
            let allocation = json!({
                "node": "node-a", "id": id, "desktopGeneration": 1, "templateGeneration": 1,
                "decidedAt": "2026-01-05T08:00:00Z",
            });
            MadeFor::Allocation(serde_json::from_value(allocation).unwrap())
        };
        let noted = |id: &str| MadeFor::Decision(id.parse().unwrap());
        let of =
            |status: Value, made_for: &MadeFor| verdict("node-a", UID, Some(&desktop(&status)), made_for);
        // The rest of the allocation need not be understood.
        let here = json!({ "allocation": { "node": "node-a", "id": "2-00000002", "compute": "much" } });
        let elsewhere = json!({ "allocation": { "node": "node-b", "id": "2-00000002" } });
        let unclear = json!({ "allocation": { "node": 7, "id": "2-00000002" } });
        let may_be = |may_be_current| Verdict::Unclear { may_be_current };
        let moved = || Verdict::MovedOn("node-b".into());
        for (made_for, at_home, away, not_told) in [
            (MadeFor::Unsaid, Verdict::Current, moved(), may_be(false)),
            (made("2-00000002"), Verdict::Current, may_be(true), may_be(true)),
            (made("1-00000001"), Verdict::OlderHere, moved(), may_be(false)),
            (
                made("2-00000003"),
                Verdict::Newer { here: true },
                Verdict::Newer { here: false },
                may_be(false),
            ),
            (
                made("3-00000003"),
                Verdict::Newer { here: true },
                Verdict::Newer { here: false },
                may_be(false),
            ),
            (
                noted("3-00000003"),
                Verdict::Newer { here: true },
                Verdict::Newer { here: false },
                may_be(false),
            ),
            (noted("1-00000001"), Verdict::OlderHere, moved(), may_be(false)),
            (MadeFor::Unreadable, may_be(true), may_be(false), may_be(true)),
        ] {
            assert_eq!(of(here.clone(), &made_for), at_home, "{made_for:?}");
            assert_eq!(of(elsewhere.clone(), &made_for), away, "{made_for:?}");
            assert_eq!(of(unclear.clone(), &made_for), not_told, "{made_for:?}");
            assert_eq!(of(json!({}), &made_for), Verdict::Unallocated);
            assert_eq!(verdict("node-a", UID, None, &made_for), Verdict::NoDesktop);
        }
        // Versions without ids are told by the time of the decision, where it can be read.
        let timed = |second: &str| {
            let node = |node: &str| {
                json!({ "allocation": {
                "node": node, "desktopGeneration": 1, "templateGeneration": 1,
                "decidedAt": format!("2026-01-05T08:00:{second}Z"),
            } })
            };
            (of(node("node-a"), &made("1-00000001")), of(node("node-b"), &made("1-00000001")))
        };
        assert_eq!(timed("00"), (Verdict::Current, may_be(true)));
        assert_eq!(timed("01"), (Verdict::OlderHere, moved()));
        let unread = json!({ "allocation": { "node": "node-b" } });
        assert_eq!(of(unread, &made("1-00000001")), may_be(false));
    }
}
