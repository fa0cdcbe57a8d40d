//! Whether a desktop may ask for a place at all: what holds it back beside room. Quotas belong here. Pure.

use std::time::Instant;

use gpudesk_crds::{Desktop, conditions::Reason};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use crate::{invalid::Invalid, node_liveness::Unproven, refusals::Wait};

/// What is known of a desktop that asks for a place.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The desktop.
    pub desktop: &'a Desktop,
    /// Nodes that may run what the API does not tell of, of any desktop.
    pub unproven: Option<Unproven>,
    /// That nodes refused it too often.
    pub refused: Option<Wait>,
}

/// Whether it may ask.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// It stands in the queue, and is given a place in its turn.
    Admitted,
    /// It does not.
    Held {
        /// Why.
        why: Invalid,
        /// When to look again, if nothing happens before.
        until: Instant,
    },
}

/// Whether a desktop may ask for a place at `now`, which is `time` by the clock.
pub fn admit(facts: &Facts<'_>, now: Instant, time: &Time) -> Admission {
    if let Some(unproven) = &facts.unproven {
        return Admission::Held { why: not_heard(unproven), until: unproven.until };
    }
    match facts.refused.filter(|wait| wait.until > now) {
        Some(wait) => Admission::Held { why: refused(facts.desktop, wait, now, time), until: wait.until },
        None => Admission::Admitted,
    }
}

/// That nodes are waited for.
pub fn not_heard(Unproven { node, count, until: _ }: &Unproven) -> Invalid {
    let others = if *count > 1 { format!(" and {} others", count - 1) } else { String::new() };
    let message = format!(
        "the lease of node {node}{others} was not renewed shortly before this operator began, as when the API was restored from \
         a backup: nothing is placed or let go before each has said what runs there, or has missed a heartbeat"
    );
    Invalid::new(Reason::AwaitingNodes, message)
}

fn refused(desktop: &Desktop, Wait { until, times }: Wait, now: Instant, time: &Time) -> Invalid {
    let last = desktop.said_by_node().and_then(|said| Some(said.refusal.as_ref()?.message.as_str()));
    let last = last.map(|last| format!(", last: {last}")).unwrap_or_default();
    let who =
        if times == 1 { "a node refused it".to_owned() } else { format!("nodes refused it {times} times") };
    // The whole minute after it: said again it is the same.
    let wait = i64::try_from(until.saturating_duration_since(now).as_secs()).unwrap_or(i64::MAX);
    let minute = time.0.as_second().saturating_add(wait) / 60 + 1;
    let then = Timestamp::from_second(minute * 60).unwrap_or(time.0);
    let message = format!(
        "{who} although there was room by what they say of themselves{last}; it is tried again at {then}, or when one of \
         them says something new"
    );
    Invalid::new(Reason::RefusedByNode, message)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "there is no other way to make an Instant")]
    fn who_was_refused_too_often_is_held_until_its_time_is_over() {
        let now = Instant::now();
        let desktop: Desktop = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a"}, "spec": {"templateRef": {"name": "t"}},
            "status": {
                "allocation": {"node": "n", "id": "3-00000001", "desktopGeneration": 1, "templateGeneration": 1,
                               "decidedAt": "2026-01-01T00:00:00Z"},
                "node": {"allocationId": "3-00000001", "state": "Refused", "refusal": {"message": "the card is in use"}},
            },
        }))
        .unwrap();
        let refused = |times| Some(Wait { until: now + Duration::from_secs(90), times });
        let time = Time(Timestamp::from_second(3600).unwrap());
        let at = |refused, now| admit(&Facts { desktop: &desktop, unproven: None, refused }, now, &time);
        assert_eq!(at(None, now), Admission::Admitted);
        for (times, who) in [(1, "a node refused it"), (3, "nodes refused it 3 times")] {
            let Admission::Held { why, until } = at(refused(times), now) else { panic!("it is admitted") };
            assert_eq!((why.reason, until), (Reason::RefusedByNode, now + Duration::from_secs(90)));
            assert!(why.message.starts_with(who), "{}", why.message);
            assert!(
                why.message.contains("last: the card is in use; it is tried again at 1970-01-01T01:02:00Z"),
                "{}",
                why.message
            );
            assert_eq!(at(refused(times), until), Admission::Admitted);
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "there is no other way to make an Instant")]
    fn nobody_is_admitted_before_nodes_have_said_what_they_have() {
        let now = Instant::now();
        let desktop = Desktop::new("a", gpudesk_crds::DesktopSpec::default());
        let unproven =
            Some(Unproven { node: "node-a".into(), count: 3, until: now + Duration::from_mins(3) });
        let facts = Facts { desktop: &desktop, unproven, refused: None };
        let Admission::Held { why, until } = admit(&facts, now, &Time(Timestamp::UNIX_EPOCH)) else {
            panic!("it is admitted")
        };
        assert_eq!((why.reason, until), (Reason::AwaitingNodes, now + Duration::from_mins(3)));
        assert!(
            why.message.starts_with("the lease of node node-a and 2 others was not renewed"),
            "{}",
            why.message
        );
    }
}
