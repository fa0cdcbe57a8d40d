//! How many desktops without a Desktop may be put aside. Pure.
//!
//! ```text
//!   missed ──▶ waits for a window ──▶ put aside, where few are missed and were put aside within a window
//!     │                          └──▶ held, where they are more: all of them
//!     └──▶ it is there again, or runs: forgotten
//! ```
//!
//! Those that run are never put aside, but count among the missed.
//!
//! A lost or restored database shows as many Desktops that are gone at once. What is noted here outlives
//! the daemon, so that a restart does not begin the window anew.

use std::collections::{BTreeMap, HashSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::host::folder::Owner;

/// The settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Time from when one is missed until it is put aside, and in which those put aside are counted.
    pub window: SignedDuration,
    /// How many may go within a window.
    pub most: usize,
    /// The same, in percent of the node's desktops; the larger of the two holds.
    pub percent: usize,
}

/// What is noted down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Removals {
    /// Desktops that the API does not know and that do not run here.
    missed: BTreeMap<Uuid, Missed>,
    /// When others were put aside.
    put_aside: Vec<Timestamp>,
}

/// One that is missed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Missed {
    owner: Owner,
    since: Timestamp,
}

/// Those that the node holds back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Whose they are, as `namespace/name`.
    pub names: Vec<String>,
    /// A time by which all of them were missed, for the word that lets them go.
    pub before: Timestamp,
    /// How many may go within a window.
    pub limit: usize,
    /// How many that run are missed beside them.
    pub running: usize,
    /// How many were put aside within the window before.
    pub put_aside: usize,
}

/// What may be done now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruling {
    /// Those that are put aside.
    pub go: Vec<Uuid>,
    /// Those that are not, because they are too many.
    pub held: Option<Held>,
    /// When the next one is due.
    pub again: Option<Timestamp>,
}

impl Removals {
    /// Notes which ones are missed `now`; since when, for each.
    pub fn note(&mut self, missed: &[Owner], rules: &Rules, now: Timestamp) {
        let still: HashSet<Uuid> = missed.iter().map(|owner| owner.uid).collect();
        self.missed.retain(|uid, _| still.contains(uid));
        for owner in missed {
            let known = self.missed.entry(owner.uid);
            let known = known.or_insert_with(|| Missed { owner: owner.clone(), since: now });
            // A clock that was set back must not keep it for ever.
            known.since = known.since.min(now);
        }
        self.put_aside.retain(|at| now.duration_since(*at) < rules.window && *at <= now);
    }

    /// Since when one is missed.
    pub fn since(&self, uid: Uuid) -> Option<Timestamp> {
        self.missed.get(&uid).map(|missed| missed.since)
    }

    /// What may be done `now` with `orphans`, of which all are missed, on a node with so many desktops in
    /// all, of which so many are missed and run. Those missed before `let_go` are let go by an admin. Where
    /// it is not `certain` which ones are missed, nothing else goes.
    #[expect(clippy::too_many_arguments, reason = "each is a fact of its own")]
    pub fn rule(
        &self,
        orphans: &[Uuid],
        desktops: usize,
        running: usize,
        let_go: Option<Timestamp>,
        certain: bool,
        rules: &Rules,
        now: Timestamp,
    ) -> Ruling {
        let (freed, rest): (Vec<_>, Vec<_>) = orphans
            .iter()
            .filter_map(|uid| Some((*uid, self.missed.get(uid)?)))
            .partition(|(_, missed)| let_go.is_some_and(|before| missed.since < before));
        let mut ruling = Ruling { go: freed.iter().map(|(uid, _)| *uid).collect(), ..Ruling::default() };
        let limit = rules.most.max(desktops * rules.percent / 100);
        // One that runs is never put aside, and tells as well as the others that the database was lost.
        if !rest.is_empty() && rest.len() + running + self.put_aside.len() > limit {
            let mut names: Vec<String> =
                rest.iter().map(|(_, it)| format!("{}/{}", it.owner.namespace, it.owner.name)).collect();
            names.sort();
            let last = rest.iter().map(|(_, missed)| missed.since).max().unwrap_or(now);
            // A whole second, as people write it.
            let before = Timestamp::from_second(last.as_second() + 1).unwrap_or(last);
            ruling.held = Some(Held { names, before, limit, running, put_aside: self.put_aside.len() });
            // Those that went before count no more some time.
            let oldest = self.put_aside.iter().min();
            ruling.again = oldest.and_then(|at| at.checked_add(rules.window).ok());
            return ruling;
        }
        for (uid, missed) in rest {
            match missed.since.checked_add(rules.window) {
                Ok(due) if now < due => ruling.again = Some(ruling.again.map_or(due, |at| at.min(due))),
                _ if certain => ruling.go.push(uid),
                _ => {}
            }
        }
        ruling
    }

    /// Notes that one was put aside; one that an admin let go does not count.
    pub fn went(&mut self, uid: Uuid, let_go: Option<Timestamp>, now: Timestamp) {
        let Some(missed) = self.missed.remove(&uid) else { return };
        if let_go.is_none_or(|before| missed.since >= before) {
            self.put_aside.push(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { window: SignedDuration::from_secs(600), most: 3, percent: 10 };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn owners(numbers: std::ops::Range<u128>) -> Vec<Owner> {
        let owner = |n| Owner { namespace: "school".into(), name: format!("d-{n}"), uid: Uuid::from_u128(n) };
        numbers.map(owner).collect()
    }

    fn uids(owners: &[Owner]) -> Vec<Uuid> {
        owners.iter().map(|owner| owner.uid).collect()
    }

    /// Looks once and does what may be done.
    fn look(removals: &mut Removals, missed: &[Owner], desktops: usize, now: i64) -> Ruling {
        removals.note(missed, &RULES, at(now));
        let ruling = removals.rule(&uids(missed), desktops, 0, None, true, &RULES, at(now));
        for uid in &ruling.go {
            removals.went(*uid, None, at(now));
        }
        ruling
    }

    #[test]
    fn few_go_after_the_window_and_many_never() {
        let mut removals = Removals::default();
        let three = owners(0..3);
        assert_eq!(look(&mut removals, &three, 20, 1000).again, Some(at(1600)));
        assert!(look(&mut removals, &three, 20, 1599).go.is_empty());
        assert_eq!(look(&mut removals, &three, 20, 1600).go, uids(&three));
        // One more within the window of those is too many; later it is not.
        let more = owners(3..4);
        let held = look(&mut removals, &more, 20, 1700);
        assert_eq!(held.again, Some(at(2200)));
        let held = held.held.unwrap();
        assert_eq!((held.names, held.put_aside), (vec!["school/d-3".into()], 3));
        assert_eq!(look(&mut removals, &more, 20, 2299).held, None);
        assert_eq!(look(&mut removals, &more, 20, 2300).go, uids(&more));

        let mut removals = Removals::default();
        let four = owners(0..4);
        for now in [1000, 1600, 100_000] {
            let ruling = look(&mut removals, &four, 39, now);
            let held = ruling.held.unwrap();
            assert!(ruling.go.is_empty());
            assert_eq!((held.names.len(), held.limit, held.before), (4, 3, at(1001)));
        }
        assert_eq!(look(&mut removals, &four, 40, 100_001).go, uids(&four), "a tenth of forty is four");
    }

    #[test]
    fn one_by_one_they_are_counted_too() {
        let mut removals = Removals::default();
        let mut gone: Vec<Uuid> = vec![];
        let mut look_at = |n: u128, now: i64| {
            let here: Vec<Owner> =
                owners(0..n + 1).into_iter().filter(|owner| !gone.contains(&owner.uid)).collect();
            let ruling = look(&mut removals, &here, 30, now);
            gone.extend(ruling.go);
            (gone.len(), ruling.held.map(|held| held.names.len()))
        };
        // One each four minutes: three are missed when the first one goes, and from then on one too many.
        assert_eq!(look_at(0, 1000), (0, None));
        assert_eq!(look_at(1, 1240), (0, None));
        assert_eq!(look_at(2, 1600), (1, None));
        assert_eq!(look_at(3, 1840), (1, Some(3)), "with the one that went they are four");
        for (n, now) in (4..30).zip((1900..).step_by(240)) {
            assert_eq!(look_at(n, now).0, 1, "nothing goes while they are more");
        }
    }

    #[test]
    fn those_that_run_tell_that_many_are_missed() {
        let mut removals = Removals::default();
        let three = owners(0..3);
        removals.note(&three, &RULES, at(1000));
        let rule = |running| removals.rule(&uids(&three), 40, running, None, true, &RULES, at(1600));
        assert_eq!(rule(1).go, uids(&three), "a tenth of forty is four");
        let held = rule(2).held.unwrap();
        assert_eq!((held.names.len(), held.running, held.limit), (3, 2, 4));
        assert_eq!((rule(37).go, rule(37).held.map(|held| held.running)), (vec![], Some(37)));
        // Where nothing else is here there is nothing to hold.
        assert_eq!(removals.rule(&[], 40, 37, None, true, &RULES, at(1600)), Ruling::default());
        let word = Some(at(1001));
        assert_eq!(removals.rule(&uids(&three), 40, 37, word, true, &RULES, at(1600)).go, uids(&three));
    }

    #[test]
    fn what_is_there_again_begins_anew() {
        let mut removals = Removals::default();
        let one = owners(0..1);
        look(&mut removals, &one, 1, 1000);
        look(&mut removals, &[], 1, 1500);
        assert_eq!(look(&mut removals, &one, 1, 1599).again, Some(at(2199)));
    }

    #[test]
    fn a_restart_of_the_daemon_changes_nothing() {
        let mut removals = Removals::default();
        look(&mut removals, &owners(0..2), 1, 1000);
        look(&mut removals, &owners(0..2), 1, 1600);
        look(&mut removals, &owners(2..4), 1, 1700);
        let kept = serde_json::to_vec(&removals).unwrap();
        let mut again: Removals = serde_json::from_slice(&kept).unwrap();
        assert_eq!(again, removals);
        assert_eq!(look(&mut again, &owners(2..4), 1, 1701), look(&mut removals, &owners(2..4), 1, 1701));
        assert_eq!(removals.since(Uuid::from_u128(2)), Some(at(1700)));
    }

    #[test]
    fn a_word_lets_go_exactly_those_that_were_missed_by_then() {
        let mut removals = Removals::default();
        look(&mut removals, &owners(0..5), 5, 1000);
        removals.note(&owners(0..6), &RULES, at(1010));
        let word = Some(at(1001));
        let ruling = removals.rule(&uids(&owners(0..6)), 6, 0, word, true, &RULES, at(1010));
        assert_eq!((ruling.go.clone(), ruling.held), (uids(&owners(0..5)), None));
        for uid in ruling.go {
            removals.went(uid, word, at(1010));
        }
        // They were let go, and count for nobody else.
        removals.note(&owners(5..6), &RULES, at(1610));
        let ruling = removals.rule(&uids(&owners(5..6)), 6, 0, word, true, &RULES, at(1610));
        assert_eq!(ruling.go, uids(&owners(5..6)));
        let ruling = removals.rule(&uids(&owners(5..6)), 6, 0, word, false, &RULES, at(1610));
        assert!(ruling.go.is_empty(), "not while the API does not answer for others");
    }

    #[test]
    fn a_clock_that_is_set_back_holds_up_nothing_for_ever() {
        let mut removals = Removals::default();
        look(&mut removals, &owners(0..1), 1, 100_000);
        assert_eq!(look(&mut removals, &owners(0..1), 1, 1000).again, Some(at(1600)));
    }
}
