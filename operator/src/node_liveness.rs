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
    jiff::Timestamp,
};

/// Name of a node's lease, up to the name of the node.
const PREFIX: &str = "gpudesk-node-";
/// Duration of a lease that does not say.
const DEFAULT_SECONDS: i32 = 180;
/// Longer than a daemon that lives takes to renew its lease, whatever it says of its duration.
const PATIENCE: Duration = Duration::from_secs(90);
/// The longest duration of a lease that counts; what a daemon says beyond is cut.
const LONGEST: Duration = Duration::from_mins(10);

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
    /// Renewals to be seen before this node has told what it knows now.
    awaited: u8,
    /// The lease was deleted: what was seen of it counts for as long as it would have.
    gone: bool,
}

impl Beat {
    /// More than a daemon that lives takes to renew its lease.
    fn patience(&self) -> Duration {
        PATIENCE.min(self.duration / 2)
    }

    fn is_in_time(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.seen_at) <= self.duration
    }

    fn is_awaited(&self, now: Instant) -> bool {
        self.awaited > 0 && now.saturating_duration_since(self.seen_at) <= self.patience()
    }
}

/// Nodes of which it is not known yet whether what the API has of them is of now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unproven {
    /// The first of them.
    pub node: String,
    /// How many there are.
    pub count: usize,
    /// When those of them that are not heard are not waited for any more.
    pub until: Instant,
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
        // A node does not say for how long it is believed after its end.
        let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).min(LONGEST);
        let before = self.leases.get(node);
        if before.is_some_and(|beat| beat.renewed != spec.renew_time)
            && let Some(doubted) = self.nodes.get_mut(node)
        {
            *doubted = false;
        }
        let (seen_at, awaited) = match before {
            Some(beat) if beat.renewed == spec.renew_time => (beat.seen_at, beat.awaited),
            Some(beat) if !beat.is_awaited(now) => (now, 0),
            Some(beat) => (now, beat.awaited.saturating_sub(1)),
            None => (now, 0),
        };
        let beat = Beat { renewed: spec.renew_time, duration, seen_at, awaited, gone: false };
        self.leases.insert(node.to_owned(), beat);
    }

    /// A lease was there when the operator began, at `now` and, by its clock, at `time`. Where that was not renewed
    /// just now, the API may be a copy from before a restore: then its daemon finds that out by its next renewal, and
    /// reports what it has until the one after.
    pub fn listed(&mut self, lease: &Lease, now: Instant, time: Timestamp) {
        let is_new = node_of(lease).is_some_and(|node| !self.leases.contains_key(node));
        self.seen(lease, now);
        if let Some(beat) = node_of(lease).and_then(|node| self.leases.get_mut(node)).filter(|_| is_new) {
            let age = beat.renewed.as_ref().map(|renewed| time.duration_since(renewed.0).unsigned_abs());
            beat.awaited = if age.is_some_and(|age| age <= beat.patience()) { 0 } else { 2 };
        }
    }

    /// The nodes of which it is not known yet whether what the API has of them is of now. Those that miss a heartbeat
    /// are not waited for, and those that were silent before only once they are heard.
    pub fn unproven(&self, now: Instant) -> Option<Unproven> {
        let awaited = self.nodes.keys().filter(|node| self.is_alive(node, now));
        let awaited = awaited.filter_map(|node| Some((node, self.leases.get(node)?)));
        let all: Vec<_> = awaited.filter(|(_, beat)| beat.is_awaited(now)).collect();
        let until = all.iter().map(|(_, beat)| beat.seen_at + beat.patience()).max()?;
        Some(Unproven { node: all.first()?.0.clone(), count: all.len(), until })
    }

    /// Whether a node may yet be heard that is to be waited for then.
    pub fn may_be_unproven(&self, now: Instant) -> bool {
        self.nodes.keys().filter_map(|node| self.leases.get(node)).any(|beat| beat.is_awaited(now))
    }

    /// A lease is gone. Somebody deleted it: its daemon makes it again at its next heartbeat, and is silent when it does
    /// not.
    pub fn gone(&mut self, lease: &Lease) {
        if let Some(beat) = node_of(lease).and_then(|node| self.leases.get_mut(node)) {
            beat.gone = true;
        }
    }

    /// Forgets leases that are gone and would be over.
    pub fn forget_old(&mut self, now: Instant) {
        self.leases.retain(|_, beat| !beat.gone || beat.is_in_time(now));
    }

    /// The lease of a node is over.
    #[cfg(test)]
    pub fn let_lapse(&mut self, node: &str) {
        if let Some(beat) = self.leases.get_mut(node) {
            beat.duration = Duration::ZERO;
            beat.seen_at = beat.seen_at.checked_sub(Duration::from_millis(1)).unwrap_or(beat.seen_at);
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
        let beat = self.leases.get(node);
        beat.is_some_and(|beat| beat.is_in_time(now)) && !self.nodes.get(node).copied().unwrap_or(false)
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
    use k8s_openapi::{api::coordination::v1::LeaseSpec, apimachinery::pkg::apis::meta::v1::ObjectMeta};

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
        assert_eq!(silent(&liveness, after(182)), 0, "that somebody deletes it says nothing of its daemon");
        assert_eq!(silent(&liveness, after(362)), 1);
        liveness.forget_old(after(361));
        assert!(liveness.heard("a", true).last.is_some());
        liveness.forget_old(after(362));
        assert_eq!(liveness.heard("a", true).last, None);
        assert_eq!(liveness.silent(["b"].into_iter(), start).len(), 1, "no lease was ever seen");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "there is no other way to make an Instant")]
    fn a_lease_that_was_not_renewed_just_now_is_awaited_twice_and_not_for_ever() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let began = |renewed: i64, by_clock: i64| {
            let mut liveness = Liveness::default();
            liveness.node_seen(&node(None));
            liveness.listed(&lease("a", renewed), start, Timestamp::from_second(by_clock).unwrap());
            liveness
        };
        assert_eq!(began(1000, 1000 + 90).unproven(start), None, "renewed just now");
        assert_eq!(began(1000 + 90, 1000).unproven(start), None, "by a clock that is a bit ahead");
        for (renewed, by_clock) in [(1000, 1000 + 91), (1000 + 91, 1000)] {
            let mut liveness = began(renewed, by_clock);
            let unproven = Unproven { node: "a".into(), count: 1, until: after(90) };
            assert_eq!(liveness.unproven(start), Some(unproven), "as after a restore");
            liveness.listed(&lease("a", renewed), after(5), Timestamp::from_second(renewed).unwrap());
            assert!(liveness.unproven(after(5)).is_some(), "said again it is no newer");
            liveness.seen(&lease("a", 2000), after(30));
            assert!(liveness.unproven(after(30)).is_some(), "its daemon has just found out");
            liveness.seen(&lease("a", 2060), after(90));
            assert_eq!(liveness.unproven(after(90)), None);
        }
        let mut liveness = began(1000, 5000);
        assert_eq!(liveness.unproven(after(91)), None, "it missed a heartbeat");
        liveness.seen(&lease("a", 9000), after(500));
        assert_eq!(liveness.unproven(after(500)), None, "it comes back later");
        let mut liveness = Liveness::default();
        liveness.node_seen(&node(Some("False")));
        liveness.listed(&lease("a", 1000), start, Timestamp::from_second(5000).unwrap());
        assert_eq!(liveness.unproven(start), None, "it was silent before");
        assert!(liveness.may_be_unproven(after(90)), "and may be heard yet");
        assert!(!liveness.may_be_unproven(after(91)));
        liveness.seen(&lease("a", 6000), after(60));
        assert!(liveness.unproven(after(60)).is_some(), "as it is now, and has not reported yet");
        liveness.seen(&lease("a", 6060), after(120));
        assert_eq!((liveness.unproven(after(120)), liveness.may_be_unproven(after(120))), (None, false));
        let mut long = lease("b", 1000);
        long.spec.as_mut().unwrap().lease_duration_seconds = Some(600);
        let mut liveness = Liveness::default();
        liveness.node_seen(
            &serde_json::from_value(serde_json::json!({"metadata": {"name": "b"}, "spec": {}})).unwrap(),
        );
        liveness.listed(&long, start, Timestamp::from_second(5000).unwrap());
        assert_eq!(
            liveness.unproven(start).map(|unproven| unproven.until),
            Some(after(90)),
            "whatever it says"
        );
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
