//! Leader election by a Lease: one operator acts, others stand by.
//!
//! A lease counts as lapsed when *we* have not seen it change for its duration, by our own
//! monotonic clock; so clocks of machines need not agree.
#![expect(clippy::disallowed_methods, reason = "an adapter: it tells the time to the pure judgement")]

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, api::PostParams};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::cause;

/// How long giving the lease back may take; without it the next one waits until it lapses.
const PATIENCE: Duration = Duration::from_secs(2);

/// Which lease, who we are, and how long it holds.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Name of the lease.
    pub name: String,
    /// Who we are; no two processes have the same.
    pub identity: String,
    /// How long the lease holds without renewal. It is renewed three times as often.
    pub duration: Duration,
}

/// The lease was lost: somebody else may act now, so this process must not.
#[derive(Debug, Error)]
pub enum Lost {
    /// Another process holds it.
    #[error("the leader lease is held by {0}")]
    Taken(String),
    /// It could not be renewed in time.
    #[error("the leader lease could not be renewed in time: {}", cause::of_request(.0))]
    NotRenewed(#[source] Box<kube::Error>),
}

/// A lease as we saw it, and since when it is unchanged.
#[derive(Clone, Debug)]
struct Observation {
    version: Option<String>,
    since: Instant,
}

/// Whether a lease may be taken at `now`. Pure but for what it remembers in `seen`.
fn may_take(lease: &Lease, me: &str, seen: &mut Option<Observation>, now: Instant) -> bool {
    let spec = lease.spec.clone().unwrap_or_default();
    let version = lease.metadata.resource_version.clone();
    let since = match seen {
        Some(old) if old.version == version => old.since,
        _ => {
            *seen = Some(Observation { version, since: now });
            now
        }
    };
    let holder = spec.holder_identity.unwrap_or_default();
    let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
    holder.is_empty() || holder == me || now.saturating_duration_since(since) > Duration::from_secs(seconds)
}

impl Candidate {
    /// Waits until the lease is ours. `None` when `stop` came first.
    pub async fn acquire(&self, api: &Api<Lease>, stop: &CancellationToken) -> Option<Lease> {
        let mut seen = None;
        let mut said = false;
        loop {
            match self.try_acquire(api, &mut seen).await {
                Ok(Some(lease)) => return Some(lease),
                Ok(None) if !said => {
                    said = true;
                    tracing::info!(lease = %self.name, "another operator leads; standing by");
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(error = %cause::of_request(&error), lease = %self.name, "cannot read or take the leader lease");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(self.duration / 6) => {}
            }
        }
    }

    async fn try_acquire(
        &self,
        api: &Api<Lease>,
        seen: &mut Option<Observation>,
    ) -> kube::Result<Option<Lease>> {
        let Some(lease) = api.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(self.spec(None)),
            };
            return unless_conflict(api.create(&PostParams::default(), &lease).await);
        };
        if !may_take(&lease, &self.identity, seen, Instant::now()) {
            return Ok(None);
        }
        let lease = Lease { spec: Some(self.spec(lease.spec.as_ref())), metadata: lease.metadata };
        unless_conflict(api.replace(&self.name, &PostParams::default(), &lease).await)
    }

    /// Renews the lease until `stop`, then gives it back.
    ///
    /// # Errors
    /// When the lease is lost. The process must end then.
    pub async fn keep(
        &self,
        api: &Api<Lease>,
        mut lease: Lease,
        stop: &CancellationToken,
    ) -> Result<(), Lost> {
        let mut renewed = Instant::now();
        let mut wait = self.duration / 3;
        loop {
            tokio::select! {
                () = stop.cancelled() => {
                    self.release(api, lease).await;
                    return Ok(());
                }
                () = tokio::time::sleep(wait) => {}
            }
            let next = Lease { spec: Some(self.spec(lease.spec.as_ref())), metadata: lease.metadata.clone() };
            let sent = Instant::now();
            match api.replace(&self.name, &PostParams::default(), &next).await {
                Ok(now) => {
                    lease = now;
                    renewed = sent;
                    wait = self.duration / 3;
                }
                Err(error) => {
                    // Our own renewal may have arrived though its answer did not.
                    if let Ok(now) = api.get(&self.name).await {
                        let holder = now.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
                        if holder.as_deref() != Some(&*self.identity) {
                            return Err(Lost::Taken(holder.unwrap_or_default()));
                        }
                        lease = now;
                    }
                    // We stop before anybody else may start.
                    if renewed.elapsed() > self.duration * 2 / 3 {
                        return Err(Lost::NotRenewed(Box::new(error)));
                    }
                    tracing::warn!(error = %cause::of_request(&error), "the leader lease was not renewed; trying again");
                    wait = self.duration / 15;
                }
            }
        }
    }

    /// Lets the next one start at once. Failure only means that it starts later.
    async fn release(&self, api: &Api<Lease>, lease: Lease) {
        let spec = lease.spec.unwrap_or_default();
        let lease = Lease {
            spec: Some(LeaseSpec { holder_identity: None, lease_duration_seconds: Some(1), ..spec }),
            metadata: lease.metadata,
        };
        let params = PostParams::default();
        let release = api.replace(&self.name, &params, &lease);
        match tokio::time::timeout(PATIENCE, release).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %cause::of_request(&error), "the leader lease was not given back");
            }
            Err(_) => tracing::warn!("the leader lease was not given back: the API server does not answer"),
        }
    }

    fn spec(&self, old: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let ours = old.filter(|old| old.holder_identity.as_deref() == Some(&*self.identity));
        let transitions = old.and_then(|old| old.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.duration.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: ours.and_then(|old| old.acquire_time.clone()).or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if ours.is_some() { transitions } else { transitions.saturating_add(1) }),
            ..LeaseSpec::default()
        }
    }
}

fn unless_conflict(result: kube::Result<Lease>) -> kube::Result<Option<Lease>> {
    match result {
        Ok(lease) => Ok(Some(lease)),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: Option<&str>, version: &str) -> Lease {
        Lease {
            metadata: ObjectMeta { resource_version: Some(version.into()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: holder.map(Into::into),
                lease_duration_seconds: Some(30),
                // Long past by the clock of whoever wrote it, which proves nothing.
                renew_time: Some(MicroTime(Timestamp::from_second(1).unwrap())),
                ..LeaseSpec::default()
            }),
        }
    }

    #[test]
    fn a_lease_is_taken_only_when_we_saw_it_unchanged_for_its_duration() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut seen = None;
        assert!(!may_take(&lease(Some("other"), "1"), "me", &mut seen, start));
        assert!(!may_take(&lease(Some("other"), "1"), "me", &mut seen, after(30)));
        assert!(!may_take(&lease(Some("other"), "2"), "me", &mut seen, after(31)), "it was renewed");
        assert!(!may_take(&lease(Some("other"), "2"), "me", &mut seen, after(61)));
        assert!(may_take(&lease(Some("other"), "2"), "me", &mut seen, after(62)));
    }

    #[test]
    fn a_lease_given_back_or_our_own_is_taken_at_once() {
        let now = Instant::now();
        assert!(may_take(&lease(None, "1"), "me", &mut None, now));
        assert!(may_take(&lease(Some(""), "1"), "me", &mut None, now));
        assert!(may_take(&lease(Some("me"), "1"), "me", &mut None, now));
    }
}
