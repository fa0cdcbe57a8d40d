//! Which nodes are silent. Pure: judged by when *we* saw a lease change, by our own clock, so that
//! clocks of machines need not agree. The operator writes its judgement into the condition
//! `DaemonHeard` of the `GpuNode`, and whoever else wants to know reads it there (`said_silent`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use gpudesk_crds::{
    GpuNode,
    conditions::{self, ConditionType, Reason},
};
use k8s_openapi::{
    api::coordination::v1::Lease,
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time},
};

/// Name of a node's lease, up to the name of the node.
const PREFIX: &str = "gpudesk-node-";
/// Duration of a lease that does not say.
const DEFAULT_SECONDS: i32 = 180;

/// The leases of the nodes, as seen.
#[derive(Clone, Debug, Default)]
pub struct Liveness {
    leases: BTreeMap<String, Beat>,
    /// The nodes, and whether we believe that they live only once we see them do so: those of which it
    /// was said before us that they are silent.
    nodes: BTreeMap<String, bool>,
}

#[derive(Clone, Debug)]
struct Beat {
    renewed: Option<MicroTime>,
    duration: Duration,
    seen_at: Instant,
}

/// Whether a node's daemon is heard, and when its lease was renewed last, by the daemon's own clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// It is.
    pub heard: bool,
    /// When it last was, where it ever was.
    pub last: Option<MicroTime>,
}

impl Heard {
    /// Of a silent node: `the node daemon of host-a is silent since 2026-11-29T12:00:00Z`.
    pub fn silence(&self, node: &str) -> String {
        let last = self.last.as_ref().map(|last| last.0.as_second());
        match last.and_then(|second| k8s_openapi::jiff::Timestamp::from_second(second).ok()) {
            Some(last) => format!("the node daemon of {node} is silent since {last}"),
            None => format!("the node daemon of {node} has not been heard"),
        }
    }
}

/// The condition `DaemonHeard` of a node of whose daemon this is known.
pub fn condition(node: &GpuNode, heard: &Heard, now: &Time) -> Condition {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let (reason, message) = if heard.heard {
        (Reason::AsExpected, String::new())
    } else {
        let rest = "nothing new is placed there, and what runs there is left alone; the other conditions are what it said last";
        (Reason::DaemonSilent, format!("{}: {rest}", heard.silence(name)))
    };
    let mut said: Vec<Condition> = said(node).cloned().into_iter().collect();
    let generation = node.metadata.generation;
    conditions::set(&mut said, ConditionType::DaemonHeard, heard.heard, reason, message, generation, now);
    said.remove(0)
}

/// What the operator says of a node's daemon, where it has said anything.
pub fn said(node: &GpuNode) -> Option<&Condition> {
    conditions::find(&node.status.as_ref()?.conditions, ConditionType::DaemonHeard)
}

/// Whether the operator says that a node is silent: the rule for all who do not see leases for themselves.
pub fn said_silent(node: &GpuNode) -> bool {
    said(node).is_some_and(|said| said.status == conditions::Truth::False.as_str())
}

/// The node of a lease; `None` for leases of others.
fn node_of(lease: &Lease) -> Option<&str> {
    lease.metadata.name.as_deref()?.strip_prefix(PREFIX)
}

impl Liveness {
    /// A lease was seen at `now`.
    pub fn seen(&mut self, lease: &Lease, now: Instant) {
        let Some(node) = node_of(lease) else { return };
        let spec = lease.spec.clone().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.unwrap_or(DEFAULT_SECONDS);
        let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let before = self.leases.get(node);
        if before.is_some_and(|beat| beat.renewed != spec.renew_time)
            && let Some(doubted) = self.nodes.get_mut(node)
        {
            *doubted = false;
        }
        let unchanged = before.filter(|beat| beat.renewed == spec.renew_time);
        let seen_at = unchanged.map_or(now, |beat| beat.seen_at);
        self.leases.insert(node.to_owned(), Beat { renewed: spec.renew_time, duration, seen_at });
    }

    /// A lease is gone.
    pub fn gone(&mut self, lease: &Lease) {
        if let Some(node) = node_of(lease) {
            self.leases.remove(node);
        }
    }

    /// A node was seen. Who was said to be silent when we first see it is so until its lease changes: an
    /// operator that has just begun has not waited for it yet.
    pub fn node_seen(&mut self, node: &GpuNode) {
        let name = node.metadata.name.clone().unwrap_or_default();
        self.nodes.entry(name).or_insert_with(|| said_silent(node));
    }

    /// A node is gone.
    pub fn node_gone(&mut self, node: &str) {
        self.nodes.remove(node);
    }

    /// What is to be said of a node that was judged to be `heard` or not.
    pub fn heard(&self, node: &str, heard: bool) -> Heard {
        Heard { heard, last: self.leases.get(node).and_then(|beat| beat.renewed.clone()) }
    }

    /// Whether a node's lease was renewed within its duration.
    pub fn is_alive(&self, node: &str, now: Instant) -> bool {
        let in_time = |beat: &Beat| now.saturating_duration_since(beat.seen_at) <= beat.duration;
        self.leases.get(node).is_some_and(in_time) && !self.nodes.get(node).copied().unwrap_or(false)
    }

    /// Those of `nodes` that have no lease, or one that was not renewed within its duration, or were
    /// silent before us and have not renewed theirs since.
    pub fn silent<'a>(&self, nodes: impl Iterator<Item = &'a str>, now: Instant) -> BTreeSet<String> {
        nodes.filter(|node| !self.is_alive(node, now)).map(ToOwned::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::{
        api::coordination::v1::LeaseSpec, apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp,
    };

    fn lease(node: &str, renewed: i64) -> Lease {
        Lease {
            metadata: ObjectMeta { name: Some(format!("gpudesk-node-{node}")), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
                lease_duration_seconds: Some(180),
                ..LeaseSpec::default()
            }),
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "there is no other way to make an Instant")]
    fn a_node_is_silent_when_its_lease_has_not_changed_for_its_duration() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut liveness = Liveness::default();
        // Its clock is years off; that does not matter.
        liveness.seen(&lease("a", 5), start);
        let silent = |liveness: &Liveness, now| liveness.silent(["a"].into_iter(), now).len();
        assert_eq!(silent(&liveness, after(180)), 0);
        assert_eq!(silent(&liveness, after(181)), 1);
        liveness.seen(&lease("a", 5), after(100));
        assert_eq!(silent(&liveness, after(181)), 1, "the same renewal said again is no renewal");
        liveness.seen(&lease("a", 6), after(181));
        assert_eq!(silent(&liveness, after(182)), 0);
        liveness.gone(&lease("a", 6));
        assert_eq!(silent(&liveness, after(182)), 1);
        assert_eq!(liveness.silent(["b"].into_iter(), start).len(), 1, "no lease was ever seen");
    }

    fn node(heard: Option<&str>) -> GpuNode {
        let conditions = heard.map(|status| {
            serde_json::json!({"type": "DaemonHeard", "status": status, "reason": "DaemonSilent", "message": "",
                               "lastTransitionTime": "2026-01-01T00:00:00Z"})
        });
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a"}, "spec": {}, "status": {"conditions": conditions.as_slice()},
        }))
        .unwrap()
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "there is no other way to make an Instant")]
    fn who_was_silent_before_the_operator_began_is_so_until_the_lease_changes() {
        let start = Instant::now();
        let silent = |liveness: &Liveness| !liveness.silent(["a"].into_iter(), start).is_empty();
        let mut liveness = Liveness::default();
        liveness.node_seen(&node(Some("False")));
        liveness.seen(&lease("a", 5), start);
        assert!(silent(&liveness), "the lease is there, and nobody renewed it");
        liveness.seen(&lease("a", 5), start);
        assert!(silent(&liveness));
        liveness.seen(&lease("a", 6), start);
        assert!(!silent(&liveness));
        // What we wrote ourselves, seen late, says nothing.
        liveness.node_seen(&node(Some("False")));
        assert!(!silent(&liveness));
        for heard in [None, Some("True")] {
            let mut liveness = Liveness::default();
            liveness.node_seen(&node(heard));
            liveness.seen(&lease("a", 5), start);
            assert!(!silent(&liveness), "{heard:?}");
        }
    }

    #[test]
    fn the_condition_says_since_when_and_keeps_its_time() {
        let at = |second| Time(Timestamp::from_second(second).unwrap());
        let silent = Heard { heard: false, last: Some(MicroTime(Timestamp::from_second(60).unwrap())) };
        let mut object = node(Some("False"));
        let said = condition(&object, &silent, &at(100));
        assert!(said.message.starts_with("the node daemon of a is silent since 1970-01-01T00:01:00Z: "));
        assert_eq!(said.last_transition_time.0.to_string(), "2026-01-01T00:00:00Z");
        object.status.as_mut().unwrap().conditions = vec![said];
        let heard = condition(&object, &Heard { heard: true, ..silent }, &at(200));
        assert_eq!((heard.status.as_str(), heard.last_transition_time), ("True", at(200)));
    }
}
