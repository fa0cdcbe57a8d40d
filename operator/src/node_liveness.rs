//! Which nodes are silent. Pure: judged by when *we* saw a lease change, by our own clock, so that
//! clocks of machines need not agree.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime};

/// Name of a node's lease, up to the name of the node.
const PREFIX: &str = "gpudesk-node-";
/// Duration of a lease that does not say.
const DEFAULT_SECONDS: i32 = 180;

/// The leases of the nodes, as seen.
#[derive(Clone, Debug, Default)]
pub struct Liveness {
    leases: BTreeMap<String, Beat>,
}

#[derive(Clone, Debug)]
struct Beat {
    renewed: Option<MicroTime>,
    duration: Duration,
    seen_at: Instant,
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
        let unchanged = self.leases.get(node).filter(|beat| beat.renewed == spec.renew_time);
        let seen_at = unchanged.map_or(now, |beat| beat.seen_at);
        self.leases.insert(node.to_owned(), Beat { renewed: spec.renew_time, duration, seen_at });
    }

    /// A lease is gone.
    pub fn gone(&mut self, lease: &Lease) {
        if let Some(node) = node_of(lease) {
            self.leases.remove(node);
        }
    }

    /// Those of `nodes` that have no lease, or one that was not renewed within its duration.
    pub fn silent<'a>(&self, nodes: impl Iterator<Item = &'a str>, now: Instant) -> BTreeSet<String> {
        let alive = |node: &str| {
            self.leases
                .get(node)
                .is_some_and(|beat| now.saturating_duration_since(beat.seen_at) <= beat.duration)
        };
        nodes.filter(|node| !alive(node)).map(ToOwned::to_owned).collect()
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
}
