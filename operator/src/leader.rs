//! Leader election by a Lease: one operator acts, others stand by.
//!
//! A lease counts as lapsed when *we* have not seen it change for its duration, by our own
//! monotonic clock; so clocks of machines need not agree.
//!
//! Two guards keep a leader that was deposed from writing. Its own: no request of it is awaited past
//! two thirds of the lease's duration after the last renewal ([`Leadership::deadline`]). And the API
//! server's, for what was sent before and arrives late: each status carries the *term*, which an
//! admission policy compares with the Lease.
#![expect(clippy::disallowed_methods, reason = "an adapter: it tells the time to the pure judgement")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, api::PostParams};
use thiserror::Error;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::cause;

/// How long giving the lease back may take; without it the next one waits until it lapses.
const PATIENCE: Duration = Duration::from_secs(2);

/// On the leader Lease: for which of its transitions the holder has promised to write its term with each
/// status. An operator of a version that writes none leaves it as it is, and so promises nothing.
const TERM_ANNOTATION: &str = "gpudesk.dev/operator-term";
/// A Lease that is never made: by a trial of it a leader learns which terms the API server refuses.
const TERM_PROBE: &str = "gpudesk-operator-term";
/// Connections over which that is tried, each of which may end at another API server.
const PROBES: usize = 3;
/// What is said when API servers hold the Lease that we renew to be another one for longer than they need to
/// hear of it.
const STALE: &str = "the API server refuses the term of this operator although the Lease is its own: it compares with a Lease \
     of the past and never looks again. A kube-apiserver does so once the last ValidatingAdmissionPolicyBinding with a Lease \
     as parameter was deleted, such as operator-term.gpudesk.dev. Restart every kube-apiserver: until then nothing is \
     decided or written";

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

/// What a leader writes by.
#[derive(Clone, Debug)]
pub struct Leadership {
    /// UID of the Lease and how often it changed hands, as the admission policy writes it.
    pub term: Arc<str>,
    /// That of the leader before.
    pub before: String,
    /// When the last request must have ended. Moved on by each renewal.
    pub deadline: watch::Receiver<Instant>,
    /// Whether an API server refused our term, and has not taken it since: at each refusal the lease is asked
    /// whether it is still ours.
    pub doubted: watch::Sender<bool>,
    /// Whether our term is refused for good, though the lease is ours.
    pub stale: watch::Sender<bool>,
}

/// A lease that was taken, to be kept.
#[derive(Debug)]
pub struct Taken {
    lease: Lease,
    deadline: watch::Sender<Instant>,
    doubts: watch::Receiver<bool>,
    stale: watch::Sender<bool>,
}

/// What became of a trial of our term and of that before ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    /// Ours is taken and the other refused.
    Fenced,
    /// Both are taken: the policy is not in force.
    Open,
    /// Ours is refused.
    Refused,
    /// There was no answer that says so.
    Unclear,
}

/// The lease was lost: somebody else may act now, so this process must not.
#[derive(Debug, Error)]
pub enum Lost {
    /// Another process holds it, or ours under another term.
    #[error("the leader lease is held by {0}")]
    Taken(String),
    /// Somebody deleted it: another may hold a new one.
    #[error("the leader lease was deleted")]
    Deleted,
    /// It could not be renewed in time.
    #[error("the leader lease could not be renewed in time: {0}")]
    NotRenewed(String),
    /// The API server's store was restored: what was decided since the backup is unknown to it, and what is
    /// watched since before is never told what comes after.
    #[error(
        "the API server has gone back to an earlier state, as after a restore of its store from a backup \
         (resourceVersion {now} of the leader lease was read after {before}, and is of before): everything is to be read anew"
    )]
    Restored {
        /// The version of the lease before.
        before: String,
        /// And now.
        now: String,
    },
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
    /// Waits until the lease is ours. `None` when `stop` came first. `tell` hears why, once the lease could be neither read
    /// nor taken for its duration, and nothing once it can.
    pub async fn acquire(
        &self,
        api: &Api<Lease>,
        stop: &CancellationToken,
        tell: impl Fn(Option<String>),
    ) -> Option<(Taken, Leadership)> {
        let mut seen = None;
        let mut said = false;
        let mut failing: Option<Instant> = None;
        loop {
            let sent = Instant::now();
            let answer = self.try_acquire(api, &mut seen).await;
            if answer.is_ok() && failing.take().is_some() {
                tell(None);
            }
            match answer {
                Ok(Some(lease)) => {
                    let (deadline, followed) = watch::channel(self.deadline(sent));
                    let (doubted, doubts) = watch::channel(false);
                    let stale = watch::Sender::new(false);
                    let term = self::term(&lease, 0).into();
                    let before = self::term(&lease, 1);
                    let leadership =
                        Leadership { term, before, deadline: followed, doubted, stale: stale.clone() };
                    return Some((Taken { lease, deadline, doubts, stale }, leadership));
                }
                Ok(None) if !said => {
                    said = true;
                    tracing::info!(lease = %self.name, "another operator leads; standing by");
                }
                Ok(None) => {}
                Err(error) => {
                    let refused =
                        matches!(&error, kube::Error::Api(answer) if [401, 403].contains(&answer.code));
                    let remedy = if refused { ", see the Role gpudesk-operator and its binding" } else { "" };
                    let error = cause::of_request(&error).to_string();
                    tracing::warn!(error, lease = %self.name, "cannot read or take the leader lease");
                    if failing.get_or_insert_with(Instant::now).elapsed() >= self.duration {
                        tell(Some(format!(
                            "the leader lease {} can be neither read nor taken{remedy}: {error}",
                            self.name
                        )));
                    }
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
            let named = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = self.taken(Lease { metadata: named, spec: None });
            return unless_conflict(api.create(&PostParams::default(), &lease).await);
        };
        if !may_take(&lease, &self.identity, seen, Instant::now()) {
            return Ok(None);
        }
        unless_conflict(api.replace(&self.name, &PostParams::default(), &self.taken(lease)).await)
    }

    /// Renews the lease until `stop`, then gives it back.
    ///
    /// # Errors
    /// When the lease is lost. The process must end then.
    pub async fn keep(
        &self,
        api: &Api<Lease>,
        mut taken: Taken,
        stop: &CancellationToken,
    ) -> Result<(), Lost> {
        let mut wait = self.duration / 3;
        let mut why = "no answer".to_owned();
        let mut doubted_since = None;
        loop {
            let deadline = *taken.deadline.borrow();
            let mut doubts = taken.doubts.clone();
            let mut refused = false;
            tokio::select! {
                () = stop.cancelled() => {
                    self.release(api, taken.lease).await;
                    return Ok(());
                }
                // We stop before anybody else may start.
                () = tokio::time::sleep_until(deadline) => return Err(Lost::NotRenewed(why)),
                () = tokio::time::sleep(wait) => {}
                // Each refusal asks; the lease is not asked more often than this.
                () = async {
                    if doubts.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                    tokio::time::sleep(self.duration / 30).await;
                } => refused = *doubts.borrow(),
            }
            taken.doubts.mark_unchanged();
            match tokio::time::timeout_at(deadline, self.renew(api, &mut taken)).await {
                Err(_) => return Err(Lost::NotRenewed(why)),
                Ok(Ok(())) => {
                    wait = self.duration / 3;
                    if !*taken.doubts.borrow() {
                        if doubted_since.take().is_some() {
                            say_stale(&taken.stale, false);
                        }
                    } else if refused {
                        let since = *doubted_since.get_or_insert_with(Instant::now);
                        if since.elapsed() >= self.duration {
                            say_stale(&taken.stale, true);
                        }
                    }
                }
                Ok(Err(Some(lost))) => return Err(lost),
                Ok(Err(None)) => {
                    "the API server does not say that it was".clone_into(&mut why);
                    wait = self.duration / 15;
                }
            }
        }
    }

    /// One renewal. The error says that the lease is lost, or nothing: then it may be tried again.
    async fn renew(&self, api: &Api<Lease>, taken: &mut Taken) -> Result<(), Option<Lost>> {
        let next = renewed(taken.lease.clone());
        let sent = Instant::now();
        let error = match api.replace(&self.name, &PostParams::default(), &next).await {
            Ok(now) => {
                went_back(&taken.lease, &now)?;
                taken.lease = now;
                taken.deadline.send_replace(self.deadline(sent));
                return Ok(());
            }
            Err(error) => error,
        };
        tracing::warn!(error = %cause::of_request(&error), "the leader lease was not renewed; trying again");
        // Our own renewal may have arrived though its answer did not.
        match api.get_opt(&self.name).await {
            Ok(Some(now)) if term(&now, 0) == term(&taken.lease, 0) && holder(&now) == self.identity => {
                went_back(&taken.lease, &now)?;
                if is_from_before(&taken.lease, &now) {
                    return Err(Some(restored(&taken.lease, &now)));
                }
                taken.lease = now;
                Err(None)
            }
            Ok(Some(now)) => Err(Some(Lost::Taken(holder(&now).to_owned()))),
            Ok(None) => Err(Some(Lost::Deleted)),
            Err(_) => Err(None),
        }
    }

    /// When the requests of a leader that renewed its lease last at `renewed` must have ended: a third
    /// of the duration before anybody else may take it.
    fn deadline(&self, renewed: Instant) -> Instant {
        renewed + self.duration * 2 / 3
    }

    /// Waits until what a leader before us sent can do no harm any more. Where the API servers that we reach
    /// refuse the term before ours and take ours, that is at once. Else, as without the policy, it is when
    /// the lease of a leader that nobody could see leave has lapsed: says so and returns false. Where ours is
    /// refused nothing can be written: it waits for as long as that is so.
    ///
    /// `connect` makes a connection of its own each time.
    pub async fn fenced(&self, connect: impl Fn() -> Option<Api<Lease>>, leadership: &Leadership) -> bool {
        let Leadership { term, before, stale, .. } = leadership;
        let begun = Instant::now();
        let mut proven = 0;
        while proven < PROBES {
            let trial = async {
                let Some(api) = connect() else { return Trial::Unclear };
                match probe(&api, term).await {
                    Err(error) if is_refused(&error) => return Trial::Refused,
                    Err(_) => return Trial::Unclear,
                    Ok(_) => {}
                }
                match probe(&api, before).await {
                    Err(error) if is_refused(&error) => Trial::Fenced,
                    Err(_) => Trial::Unclear,
                    Ok(_) => Trial::Open,
                }
            };
            let left = self.duration.saturating_sub(begun.elapsed());
            let patience = if left.is_zero() { self.duration } else { left };
            let trial = tokio::time::timeout(patience, trial).await.unwrap_or(Trial::Unclear);
            if trial == Trial::Fenced {
                proven += 1;
                continue;
            }
            proven = 0;
            if begun.elapsed() >= self.duration {
                match trial {
                    Trial::Refused => say_stale(stale, true),
                    // It may be starting again, as it was asked to.
                    Trial::Unclear if *stale.borrow() => {}
                    _ => {
                        say_stale(stale, false);
                        return false;
                    }
                }
            }
            tokio::time::sleep(self.duration / 100).await;
        }
        say_stale(stale, false);
        true
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

    /// The lease as it is taken: a new term, also for whoever held it before under the same name.
    fn taken(&self, lease: Lease) -> Lease {
        let old = lease.spec.unwrap_or_default();
        let transitions = old.lease_transitions.unwrap_or(0).saturating_add(1);
        let mut metadata = lease.metadata;
        let promise = (TERM_ANNOTATION.to_owned(), transitions.to_string());
        metadata.annotations.get_or_insert_with(BTreeMap::new).extend([promise]);
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.duration.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: Some(MicroTime(Timestamp::now())),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        };
        renewed(Lease { metadata, spec: Some(spec) })
    }
}

/// Whether the API server went back to an earlier state: versions of a lease are numbers that grow.
fn went_back(before: &Lease, now: &Lease) -> Result<(), Option<Lost>> {
    let lower = version(before).parse::<u64>().ok().zip(version(now).parse::<u64>().ok());
    let lower = lower.is_some_and(|(before, now)| now < before);
    if lower { Err(Some(restored(before, now))) } else { Ok(()) }
}

/// Whether it did where the restore moved versions on: the lease that is there, and that nobody else has written, was
/// renewed before we last did.
fn is_from_before(before: &Lease, now: &Lease) -> bool {
    let renewed = |lease: &Lease| lease.spec.as_ref()?.renew_time.clone();
    renewed(now) < renewed(before)
}

fn restored(before: &Lease, now: &Lease) -> Lost {
    Lost::Restored { before: version(before), now: version(now) }
}

fn version(lease: &Lease) -> String {
    lease.metadata.resource_version.clone().unwrap_or_default()
}

/// The lease as it is renewed.
fn renewed(lease: Lease) -> Lease {
    let spec = lease.spec.map(|spec| LeaseSpec { renew_time: Some(MicroTime(Timestamp::now())), ..spec });
    Lease { spec, ..lease }
}

/// Says whether our term is refused for good, when that changes.
fn say_stale(told: &watch::Sender<bool>, stale: bool) {
    if told.send_if_modified(|before| std::mem::replace(before, stale) != stale) {
        if stale {
            tracing::error!("{STALE}");
        } else {
            tracing::info!("the API server takes the term of this operator again");
        }
    }
}

/// What would become of a write of this term.
async fn probe(api: &Api<Lease>, term: &str) -> kube::Result<Lease> {
    let annotations = Some(BTreeMap::from([(TERM_ANNOTATION.to_owned(), term.to_owned())]));
    let metadata = ObjectMeta { name: Some(TERM_PROBE.into()), annotations, ..ObjectMeta::default() };
    api.create(&PostParams { dry_run: true, ..PostParams::default() }, &Lease { metadata, spec: None }).await
}

/// Whether the admission policy refused a term.
pub fn is_refused(error: &kube::Error) -> bool {
    // The API server names the policy, and has no other word for it.
    matches!(error, kube::Error::Api(said) if said.code == 403 && said.message.contains("'operator-term.gpudesk.dev'"))
}

/// The term of whoever holds `lease`, or that of so many transitions before.
fn term(lease: &Lease, back: i32) -> String {
    let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0);
    format!("{}:{}", lease.metadata.uid.as_deref().unwrap_or_default(), transitions - back)
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

fn unless_conflict(result: kube::Result<Lease>) -> kube::Result<Option<Lease>> {
    match result {
        Ok(lease) => Ok(Some(lease)),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
