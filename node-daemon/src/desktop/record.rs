//! What the daemon keeps about the runs of a desktop: when it was started, how it ended, whether it
//! was asked to shut down. A file in the desktop's folder, so that a daemon that starts again knows.

use gpudesk_crds::{Allocation, AllocationId, desktop_template::RestartPolicy};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// A run that lasted this long counts as good: the next end is the first in a row again.
const GOOD_RUN: SignedDuration = SignedDuration::from_mins(10);
/// Wait before the second restart in a row; each further one waits twice as long.
const FIRST_WAIT: SignedDuration = SignedDuration::from_secs(10);
/// The longest wait before a restart.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_mins(5);
/// So long after it was asked to shut down, a guest that goes down may be obeying a stop that was called off.
const OBEYING: SignedDuration = SignedDuration::from_mins(10);

/// The last run of a desktop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunRecord {
    /// When it was started.
    pub started_at: Timestamp,
    /// The boot of the host that it was started in.
    pub boot: String,
    /// The decision that it was started for; absent where that has no id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocation_id: Option<AllocationId>,
    /// When that was decided; absent in records of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_at: Option<Timestamp>,
    /// How it ended, when it did by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
    /// Ends by itself in a row, each soon after its start.
    #[serde(default)]
    pub ends_in_a_row: u32,
    /// When the guest was asked to shut down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown_sent_at: Option<Timestamp>,
    /// When it was last asked to by a stop that was called off since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub called_off: Option<Timestamp>,
    /// It was asked to because the desktop was being deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleting: bool,
}

/// An end that nobody asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// When it was noticed.
    pub at: Timestamp,
    /// Whether it crashed.
    pub crashed: bool,
    /// Whether somebody on the host took its power.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub powered_off: bool,
    /// Whether nobody saw how. None of these: it shut itself down.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unseen: bool,
}

/// How a machine ended that nobody asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its guest shut down.
    ShutDown,
    /// Somebody on the host took its power.
    PoweredOff,
    /// It crashed.
    Crashed,
    /// That was not seen.
    Unseen,
}

impl Ended {
    /// An end that is noticed at this time.
    pub fn new(at: Timestamp, how: End) -> Self {
        Self {
            at,
            crashed: how == End::Crashed,
            powered_off: how == End::PoweredOff,
            unseen: how == End::Unseen,
        }
    }
}

/// What follows from an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterEnd {
    /// It is started again, not before this time.
    RestartAt(Timestamp),
    /// It stays as it is.
    Stay,
}

impl RunRecord {
    /// The record of a run that begins `now`, after the one before it.
    pub fn started(now: Timestamp, boot: &str, before: Option<&Self>) -> Self {
        Self {
            started_at: now,
            boot: boot.into(),
            allocation_id: None,
            decided_at: None,
            ended: None,
            ends_in_a_row: before.map_or(0, |before| before.ends_in_a_row),
            shutdown_sent_at: None,
            called_off: None,
            deleting: false,
        }
    }

    /// The record of a run that is to go on although the guest was asked to shut down: the next stop asks
    /// it again.
    #[must_use]
    pub fn going_on(self) -> Self {
        Self { called_off: self.shutdown_sent_at, shutdown_sent_at: None, deleting: false, ..self }
    }

    /// When the end that is noticed `now` was asked for; `None` when it was not.
    pub fn asked(&self, now: Timestamp, crashed: bool) -> Option<Timestamp> {
        let obeys = |sent: &Timestamp| !crashed && now.duration_since(*sent) < OBEYING;
        self.shutdown_sent_at.or_else(|| self.called_off.filter(obeys))
    }

    /// The record of a run for this allocation.
    #[must_use]
    pub fn of(self, allocation: Option<&Allocation>) -> Self {
        let decided_at = allocation.map(|allocation| allocation.decided_at.0);
        Self { allocation_id: allocation.and_then(|allocation| allocation.id), decided_at, ..self }
    }

    /// Whether it is of another decision than this allocation.
    pub fn is_of_another(&self, allocation: &Allocation) -> bool {
        let decided_at = allocation.decided_at.0;
        match (self.allocation_id, allocation.id, self.decided_at) {
            (Some(of), Some(current), _) => of != current,
            (_, _, Some(at)) => at != decided_at,
            // Earlier versions did not note it: what ended before the decision was not its run.
            _ => self.ended.is_some_and(|end| end.at < decided_at),
        }
    }

    /// The record with the end noticed `now`.
    #[must_use]
    pub fn with_end(self, now: Timestamp, how: End) -> Self {
        let lasted = now.duration_since(self.started_at);
        let ends_in_a_row = if lasted >= GOOD_RUN { 1 } else { self.ends_in_a_row.saturating_add(1) };
        Self { ended: Some(Ended::new(now, how)), ends_in_a_row, ..self }
    }

    /// The end, unless the host itself was started anew since: then the guest did not end by itself.
    pub fn end_in(&self, boot: &str) -> Option<Ended> {
        self.ended.filter(|_| self.boot == boot)
    }

    /// Whether it ended by itself and stays so.
    pub fn stays(&self, boot: &str, policy: RestartPolicy) -> bool {
        self.end_in(boot).is_some_and(|end| self.after(end, policy) == AfterEnd::Stay)
    }

    /// What follows from `end`.
    pub fn after(&self, end: Ended, policy: RestartPolicy) -> AfterEnd {
        let restart = match policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => end.crashed,
            RestartPolicy::Never => false,
        };
        if !restart {
            return AfterEnd::Stay;
        }
        let wait = match self.ends_in_a_row {
            0 | 1 => SignedDuration::ZERO,
            n => FIRST_WAIT.saturating_mul(1 << (n - 2).min(16)).min(LONGEST_WAIT),
        };
        AfterEnd::RestartAt(end.at.checked_add(wait).unwrap_or(end.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn wait(record: &RunRecord) -> i64 {
        let end = record.ended.unwrap();
        match record.after(end, RestartPolicy::OnFailure) {
            AfterEnd::RestartAt(time) => time.duration_since(end.at).as_secs(),
            AfterEnd::Stay => panic!("it should be restarted"),
        }
    }

    #[test]
    fn each_crash_in_a_row_waits_longer_up_to_a_limit() {
        let mut record = RunRecord::started(at(0), "boot", None);
        let mut waits = vec![];
        for second in 1..9 {
            record = record.with_end(at(second), End::Crashed);
            waits.push(wait(&record));
            record = RunRecord::started(at(second), "boot", Some(&record));
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_good_run_begins_the_row_anew() {
        let record = RunRecord { ends_in_a_row: 5, ..RunRecord::started(at(0), "boot", None) };
        assert_eq!(wait(&record.with_end(at(700), End::Crashed)), 0);
    }

    #[test]
    fn a_stop_that_was_called_off_is_forgotten_but_may_still_be_obeyed() {
        let asked = RunRecord { shutdown_sent_at: Some(at(5)), ..RunRecord::started(at(0), "boot", None) };
        assert_eq!(asked.asked(at(100_000), true), Some(at(5)));
        let goes_on = asked.going_on();
        assert_eq!((goes_on.shutdown_sent_at, goes_on.called_off), (None, Some(at(5))));
        assert_eq!(goes_on.asked(at(604), false), Some(at(5)));
        assert_eq!(goes_on.asked(at(604), true), None, "nobody asks for a crash");
        assert_eq!(goes_on.asked(at(605), false), None, "by then it goes down for reasons of its own");
        let next = RunRecord::started(at(9), "boot", Some(&goes_on));
        assert_eq!(next.asked(at(10), false), None, "another run");
    }

    #[test]
    fn the_policy_decides_what_follows() {
        let record = RunRecord::started(at(0), "boot", None).with_end(at(5), End::ShutDown);
        let clean = record.ended.unwrap();
        let crash = Ended { crashed: true, ..clean };
        assert_eq!(record.after(clean, RestartPolicy::OnFailure), AfterEnd::Stay);
        assert_eq!(record.after(crash, RestartPolicy::Never), AfterEnd::Stay);
        assert_eq!(record.after(clean, RestartPolicy::Always), AfterEnd::RestartAt(at(5)));
        assert_eq!(record.end_in("another boot"), None);
    }
}
