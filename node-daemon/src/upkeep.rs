//! What a running daemon adds to the status of its `GpuNode`: machines that stray, leftovers, and what is
//! answered to its admin's words. Pure.

use gpudesk_crds::{
    ADOPT_ANNOTATION, GpuNodeSpec, GpuNodeStatus,
    conditions::{self, ConditionType, Reason},
    gpu_node_status::{Leftover, Stray, StrayStanding},
};
use gpudesk_inventory::status;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::{brake::Held, cluster::Belongs};

/// The most entries of a list in the status, as the schema has it.
const MOST: usize = 64;
/// The most names in a sentence.
const NAMED: usize = 20;
/// The most files that are told with what to do about them.
const TOLD: usize = 8;

/// Whether desktops that are missed may be put aside.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Removal {
    /// It was not looked yet.
    #[default]
    Unseen,
    /// They are few, or none.
    Allowed,
    /// They are held back.
    Held(Held),
    /// It is not known which are missed, for this reason.
    Unclear(String),
}

/// What the last look found. What is `None` was not seen yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Machines that run here and are no allocation's.
    pub strays: Option<Vec<Stray>>,
    /// Folders of disks that are no desktop's.
    pub leftovers: Option<Vec<Leftover>>,
    /// What becomes of desktops that are missed.
    pub removal: Removal,
    /// Records on this host that cannot be understood, each with what to do.
    pub state: Option<Vec<String>>,
    /// Why the state folder cannot be written.
    pub unwritable: Option<String>,
    /// What is to be said of strays beside that, as of those whose memory was saved on the host.
    pub remarks: Vec<String>,
    /// What is answered to `spec.strays`.
    pub strays_said: Vec<String>,
    /// Why disks that are being erased are still here.
    pub unerased: Option<String>,
    /// What is answered to `spec.leftovers`; with whether it is a refusal.
    pub leftovers_said: Vec<(bool, String)>,
}

/// What the additions are made from.
pub struct Additions<'a> {
    /// What was found.
    pub seen: &'a Seen,
    /// Whose the host is.
    pub belongs: &'a Belongs,
    /// What was said before.
    pub before: Option<&'a GpuNodeStatus>,
    /// The admin's words.
    pub spec: &'a GpuNodeSpec,
    /// Generation of those.
    pub generation: Option<i64>,
    /// Whether they are all there, and kept on the host.
    pub kept: (bool, Reason, String),
    /// What of the annotation `gpudesk.dev/adopt` is not so, a sentence each; `None` while nobody looked.
    pub not_adopted: Option<Vec<String>>,
    /// Now.
    pub now: Timestamp,
}

impl Additions<'_> {
    /// Adds them to `status`. What was not seen yet stays as it was said before: that is not "none".
    pub fn add_to(&self, status: &mut GpuNodeStatus) {
        let before = self.before;
        if let Some(strays) = &self.seen.strays {
            (status.strays, status.more_strays) = cut(strays.iter().map(|stray| self.shown(stray)));
        } else {
            status.strays = before.map(|before| before.strays.clone()).unwrap_or_default();
            status.more_strays = before.and_then(|before| before.more_strays);
        }
        if let Some(leftovers) = &self.seen.leftovers {
            (status.leftovers, status.more_leftovers) = cut(leftovers.iter().map(shown_leftover));
        } else {
            status.leftovers = before.map(|before| before.leftovers.clone()).unwrap_or_default();
            status.more_leftovers = before.and_then(|before| before.more_leftovers);
        }
        let strays = self.strays_cleared(status);
        self.say(status, ConditionType::StraysCleared, strays);
        for (type_, said) in [
            (ConditionType::LeftoversHandled, self.leftovers_handled()),
            (ConditionType::RemovalAllowed, self.removal_allowed()),
            (ConditionType::StateKept, self.state_kept()),
        ] {
            let before = before.and_then(|before| conditions::find(&before.conditions, type_));
            match (said, before) {
                (Some(said), _) => self.say(status, type_, said),
                (None, Some(before)) => status.conditions.push(before.clone()),
                (None, None) => {
                    let words = "what is here of desktops was not compared with the API yet";
                    self.say(status, type_, (false, Reason::Unknown, words.into()));
                }
            }
        }
        self.say(status, ConditionType::SpecKept, self.kept.clone());
        match before.and_then(|before| conditions::find(&before.conditions, ConditionType::DevicesAdopted)) {
            Some(before) if self.not_adopted.is_none() => status.conditions.push(before.clone()),
            _ => self.say(status, ConditionType::DevicesAdopted, self.devices_adopted()),
        }
        if let Some(why) = self.not_ready() {
            self.say(status, ConditionType::Ready, why);
        } else if let Some(said) = &self.spec.adopt_from_cluster {
            let ready = status.conditions.iter_mut().find(|it| it.type_ == ConditionType::Ready.as_str());
            if let Some(ready) = ready {
                let before = std::mem::take(&mut ready.message);
                let between = if before.is_empty() { "" } else { "; " };
                ready.message = format!(
                    "{before}{between}spec.adoptFromCluster is {said} and does nothing, for the host belongs to this cluster: take it away"
                );
            }
        }
    }

    /// As the API takes it, with the time since when it is so.
    fn shown(&self, stray: &Stray) -> Stray {
        let id = |stray: &Stray| stray.allocation.as_ref().and_then(|allocation| allocation.id);
        let known = self.before.into_iter().flat_map(|before| &before.strays).find(|known| {
            known.uid == stray.uid && known.standing == stray.standing && id(known) == id(stray)
        });
        let mut stray = stray.clone();
        if let Some(known) = known {
            stray.since = known.since.clone();
        }
        let alone = GpuNodeStatus { strays: vec![stray.clone()], ..GpuNodeStatus::default() };
        if !status::faults(&alone).is_empty() {
            // An allocation that the API would refuse must not cost the whole status.
            stray.allocation = None;
        }
        stray
    }

    fn strays_cleared(&self, status: &GpuNodeStatus) -> (bool, Reason, String) {
        let count =
            status.strays.len() + status.more_strays.map_or(0, |more| usize::try_from(more).unwrap_or(0));
        let said: Vec<&str> =
            self.seen.remarks.iter().chain(&self.seen.strays_said).map(String::as_str).collect();
        let said = said.join("; ");
        if self.seen.strays.is_none() {
            return (false, Reason::Unknown, "what runs here was not compared with the API yet".into());
        }
        if count == 0 {
            return (true, Reason::AsExpected, said);
        }
        let name = |stray: &Stray| {
            let id = stray.allocation.as_ref().and_then(|allocation| allocation.id);
            let id = id.map_or_else(String::new, |id| format!(" of {id}"));
            format!("{}/{} ({}{id}, {:?})", stray.namespace, stray.name, stray.uid, stray.standing)
        };
        let names = named(status.strays.iter().map(name), count);
        let left = status.strays.iter().any(|stray| stray.standing != StrayStanding::Older);
        let off = status.strays.iter().any(|stray| stray.standing == StrayStanding::Inactive);
        let remedy = match (left, off) {
            (false, _) if self.seen.remarks.is_empty() => {
                "they are being shut down, for their desktops have moved on".to_owned()
            }
            (false, _) => "those that run are being shut down, for their desktops have moved on".to_owned(),
            (true, off) => format!(
                "bring back their Desktops, or end them by spec.strays: [{{uid: UID, allocationId: ID, action: ShutDown}}] \
                 (without allocationId where none is shown){}",
                if off {
                    "; those that are Inactive do not run, may be started on the host, and so keep what they were given: the \
                     same word removes them and keeps their disks as leftovers, as happens by itself after a while where \
                     their Desktop is gone (see RemovalAllowed)"
                } else {
                    ""
                }
            ),
        };
        let said = if said.is_empty() { said } else { format!("; {said}") };
        (
            false,
            Reason::StraysRunning,
            format!("{count} machines are here that are no allocation's: {names}: {remedy}{said}"),
        )
    }

    fn leftovers_handled(&self) -> Option<(bool, Reason, String)> {
        self.seen.leftovers.as_ref()?;
        let said = &self.seen.leftovers_said;
        let refused = said.iter().any(|(refused, _)| *refused);
        let unerased = self.seen.unerased.as_deref();
        let words: Vec<&str> = said.iter().map(|(_, words)| words.as_str()).chain(unerased).collect();
        let reason = match unerased {
            _ if refused => Reason::InvalidSpec,
            Some(_) => Reason::NotErased,
            None => Reason::AsExpected,
        };
        Some((reason == Reason::AsExpected, reason, words.join("; ")))
    }

    fn state_kept(&self) -> Option<(bool, Reason, String)> {
        let state = self.seen.state.as_ref()?;
        let all = self.seen.unwritable.iter().chain(state);
        let count = all.clone().count();
        if count == 0 {
            return Some((true, Reason::AsExpected, String::new()));
        }
        let mut words: Vec<String> = all.take(TOLD).cloned().collect();
        if count > words.len() {
            words.push(format!("and {} more, which the log of the daemon names", count - words.len()));
        }
        Some((false, Reason::StateNotKept, words.join(" | ")))
    }

    fn devices_adopted(&self) -> (bool, Reason, String) {
        let Some(not_adopted) = &self.not_adopted else {
            let words = format!("what the annotation {ADOPT_ANNOTATION} hands over was not looked at yet");
            return (false, Reason::Unknown, words);
        };
        let count = not_adopted.len();
        if count == 0 {
            return (true, Reason::AsExpected, String::new());
        }
        let words = named(not_adopted.iter().cloned(), count);
        (false, Reason::NotAdopted, format!("the annotation {ADOPT_ANNOTATION}: {words}"))
    }

    fn removal_allowed(&self) -> Option<(bool, Reason, String)> {
        Some(match &self.seen.removal {
            Removal::Unseen => return None,
            Removal::Allowed => (true, Reason::AsExpected, String::new()),
            Removal::Held(held) => {
                let count = held.names.len();
                let names = named(held.names.iter().cloned(), count);
                let running = match held.running {
                    0 => String::new(),
                    running => format!(", nor are {running} whose machines run"),
                };
                let before = match held.put_aside {
                    0 => String::new(),
                    before => format!(", and {before} were made leftovers shortly before"),
                };
                let words = format!(
                    "{count} desktops of which something is here are not in the API{running}{before}: more than the {} that \
                     may go at a time, so nothing of them is touched: {names}: bring back their Desktops, or set \
                     spec.removeOrphansBefore: {} to make leftovers of what is here of them",
                    held.limit, held.before
                );
                (false, Reason::RemovalHeld, words)
            }
            Removal::Unclear(why) => (false, Reason::Unknown, format!("nothing is removed: {why}")),
        })
    }

    /// Why no desktop may come here, whatever the machine can do.
    fn not_ready(&self) -> Option<(bool, Reason, String)> {
        match self.belongs {
            Belongs::Here if self.seen.strays.is_some() => self.seen.unwritable.as_ref().map(|why| {
                let words = format!("nothing can be started here, for nothing can be noted down: {why}");
                (false, Reason::StateNotKept, words)
            }),
            Belongs::Here => {
                Some((false, Reason::Unknown, "what runs here was not compared with the API yet".into()))
            }
            Belongs::Unknown(why) => {
                let why = why.as_ref().map_or_else(String::new, |why| format!(": {why}"));
                let words = format!("which cluster the host belongs to is not known yet{why}");
                Some((false, Reason::Unknown, words))
            }
            Belongs::Another { known, found } => {
                let other = self.spec.adopt_from_cluster.as_ref().filter(|said| *said != known);
                let other =
                    other.map(|said| format!("; spec.adoptFromCluster is {said}, which is another UID"));
                Some((
                    false,
                    Reason::ForeignCluster,
                    format!(
                        "this host belongs to the cluster whose namespace kube-system has the UID {known}, and not to \
                         this one ({found}): machines on it go on and nothing of desktops is touched; to take it \
                         over, set spec.adoptFromCluster: {known}{}",
                        other.unwrap_or_default()
                    ),
                ))
            }
        }
    }

    /// Sets a condition, in its place if it has one.
    fn say(&self, status: &mut GpuNodeStatus, type_: ConditionType, said: (bool, Reason, String)) {
        let (holds, reason, message) = said;
        // Whole seconds, as the API keeps them.
        let now = Time(Timestamp::from_second(self.now.as_second()).unwrap_or(self.now));
        let old = self.before.and_then(|before| conditions::find(&before.conditions, type_));
        let mut one: Vec<Condition> = old.cloned().into_iter().collect();
        conditions::set(&mut one, type_, holds, reason, message, self.generation, &now);
        for condition in one {
            match status.conditions.iter_mut().find(|known| known.type_ == condition.type_) {
                Some(known) => *known = condition,
                None => status.conditions.push(condition),
            }
        }
    }
}

/// The first ones, and how many more there are.
fn cut<T>(all: impl Iterator<Item = T>) -> (Vec<T>, Option<i32>) {
    let mut all: Vec<T> = all.collect();
    let more = all.len().saturating_sub(MOST);
    all.truncate(MOST);
    (all, i32::try_from(more).ok().filter(|more| *more > 0))
}

fn named(names: impl Iterator<Item = String>, count: usize) -> String {
    let mut words: Vec<String> = names.take(NAMED).collect();
    if count > words.len() {
        words.push(format!("and {} more", count - words.len()));
    }
    words.join(", ")
}

/// As the schema has it: names that came from files may be anything.
fn shown_leftover(leftover: &Leftover) -> Leftover {
    let cut = |text: &str, most: usize| {
        let text: String = text.chars().take(most).collect();
        if text.is_empty() { "unknown".to_owned() } else { text }
    };
    Leftover {
        name: cut(&leftover.name, 64),
        namespace: cut(&leftover.namespace, 63),
        desktop: cut(&leftover.desktop, 253),
        ..leftover.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const UID: &str = "7f1c2a58-3c1e-4f0e-9a53-0d4f6f5b9a01";

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn stray(index: u32, second: i64) -> Stray {
        let allocation = json!({
            "node": "node-a", "id": "2-00000002", "desktopGeneration": 1, "templateGeneration": 1,
            "decidedAt": "2026-01-05T08:00:00Z",
        });
        Stray {
            uid: format!("7f1c2a58-3c1e-4f0e-9a53-{index:012}"),
            namespace: "school".into(),
            name: format!("d-{index}"),
            standing: StrayStanding::NoDesktop,
            allocation: Some(serde_json::from_value(allocation).unwrap()),
            since: at(second),
        }
    }

    fn node(belongs: &Belongs, seen: &Seen, before: Option<&GpuNodeStatus>, second: i64) -> GpuNodeStatus {
        let spec = GpuNodeSpec { adopt_from_cluster: Some("three".into()), ..GpuNodeSpec::default() };
        let now = Timestamp::from_second(second).unwrap();
        let mut status = GpuNodeStatus::default();
        conditions::set(
            &mut status.conditions,
            ConditionType::Ready,
            true,
            Reason::AsExpected,
            "",
            Some(1),
            &at(second),
        );
        let kept = (true, Reason::AsExpected, String::new());
        let not_adopted = Some(vec![]);
        Additions { seen, belongs, before, spec: &spec, generation: Some(1), kept, not_adopted, now }
            .add_to(&mut status);
        status
    }

    fn condition(status: &GpuNodeStatus, type_: ConditionType) -> (String, String, String) {
        let it = conditions::find(&status.conditions, type_).unwrap();
        (it.status.clone(), it.reason.clone(), it.message.clone())
    }

    #[test]
    fn what_was_not_seen_yet_is_as_it_was_and_since_when_is_kept() {
        let all = Seen { strays: Some((0..70).map(|n| stray(n, 100)).collect()), ..Seen::default() };
        let first = node(&Belongs::Here, &all, None, 100);
        assert_eq!((first.strays.len(), first.more_strays), (64, Some(6)));
        let (status, reason, message) = condition(&first, ConditionType::StraysCleared);
        assert_eq!((status.as_str(), reason.as_str()), ("False", "StraysRunning"));
        assert!(message.contains("70 machines") && message.contains("and 50 more"), "{message}");
        assert!(message.contains("000000000000 of 2-00000002, NoDesktop"), "a word needs it: {message}");
        assert_eq!(status::faults(&first), Vec::<String>::new());
        // A daemon that begins has looked at nothing yet.
        let unseen = node(&Belongs::Here, &Seen::default(), Some(&first), 200);
        assert_eq!((&unseen.strays, unseen.more_strays), (&first.strays, Some(6)));
        assert_eq!(condition(&unseen, ConditionType::Ready).0, "False", "and offers nothing meanwhile");
        // What it then sees is since when it was.
        let mut again: Vec<Stray> = vec![stray(0, 300), stray(1, 300), stray(2, 300)];
        again[1].standing = StrayStanding::Unallocated;
        again[2].allocation = None;
        let seen = Seen { strays: Some(again), ..Seen::default() };
        let third = node(&Belongs::Here, &seen, Some(&unseen), 300);
        let since: Vec<Time> = third.strays.iter().map(|stray| stray.since.clone()).collect();
        assert_eq!(since, [at(100), at(300), at(300)]);
        let none = Seen { strays: Some(vec![]), ..Seen::default() };
        let fourth = node(&Belongs::Here, &none, Some(&third), 400);
        assert_eq!((fourth.strays.len(), fourth.more_strays), (0, None));
        assert_eq!(condition(&fourth, ConditionType::StraysCleared).0, "True");
        let (ready, _, said) = condition(&fourth, ConditionType::Ready);
        assert_eq!(ready, "True");
        assert!(said.starts_with("spec.adoptFromCluster is three and does nothing"), "{said}");
    }

    #[test]
    fn what_is_saved_is_not_said_to_be_shut_down() {
        let mut older = stray(0, 1);
        older.standing = StrayStanding::Older;
        let mut seen = Seen { strays: Some(vec![older]), ..Seen::default() };
        let said =
            |seen: &Seen| condition(&node(&Belongs::Here, seen, None, 1), ConditionType::StraysCleared).2;
        assert!(said(&seen).contains(": they are being shut down"), "{}", said(&seen));
        seen.remarks = vec!["the memory of it was saved".into()];
        assert!(said(&seen).contains(": those that run are being shut down"), "{}", said(&seen));
        assert!(said(&seen).ends_with("; the memory of it was saved"), "{}", said(&seen));
    }

    #[test]
    fn an_allocation_that_the_api_would_refuse_is_left_out() {
        let mut odd = stray(0, 1);
        odd.allocation.as_mut().unwrap().node = "x".repeat(300);
        let seen = Seen { strays: Some(vec![odd, stray(1, 1)]), ..Seen::default() };
        let status = node(&Belongs::Here, &seen, None, 1);
        let has: Vec<bool> = status.strays.iter().map(|stray| stray.allocation.is_some()).collect();
        assert_eq!(has, [false, true]);
    }

    #[test]
    fn a_host_of_another_cluster_offers_nothing_and_says_how_it_is_taken_over() {
        let belongs = Belongs::Another { known: "one".into(), found: "two".into() };
        let seen = Seen { strays: Some(vec![]), ..Seen::default() };
        let first = node(&belongs, &seen, None, 100);
        let (status, reason, message) = condition(&first, ConditionType::Ready);
        assert_eq!((status.as_str(), reason.as_str()), ("False", "ForeignCluster"));
        assert!(message.contains("spec.adoptFromCluster: one") && message.contains("is three"), "{message}");
        // It is said once: the time since when stays.
        let second = node(&belongs, &seen, Some(&first), 200);
        assert_eq!(first.conditions, second.conditions);
        let unknown = node(&Belongs::Unknown(Some("it is empty".into())), &seen, None, 1);
        let (status, _, message) = condition(&unknown, ConditionType::Ready);
        assert!(status == "False" && message.contains("not known yet: it is empty"), "{status} {message}");
    }

    #[test]
    fn what_is_held_back_is_listed_with_the_word_that_lets_it_go() {
        let held = Held {
            names: (0..30).map(|n| format!("school/d-{n}")).collect(),
            before: Timestamp::from_second(1000).unwrap(),
            limit: 3,
            running: 7,
            put_aside: 2,
        };
        let removal = Removal::Held(held);
        let mut seen = Seen { strays: Some(vec![]), leftovers: Some(vec![]), removal, ..Seen::default() };
        seen.leftovers_said = vec![(true, "a: it runs".into())];
        let first = node(&Belongs::Here, &seen, None, 1);
        let (status, reason, message) = condition(&first, ConditionType::RemovalAllowed);
        assert_eq!((status.as_str(), reason.as_str()), ("False", "RemovalHeld"));
        for part in [
            "30 desktops",
            "nor are 7 whose machines run, and 2 were made leftovers shortly before: more than the 3 that",
            "school/d-19, and 10 more",
            "removeOrphansBefore: 1970-01-01T00:16:40Z",
        ] {
            assert!(message.contains(part), "{message}");
        }
        // A daemon that begins has looked at nothing: what was said stands, and where nothing was it is not known.
        for type_ in [ConditionType::RemovalAllowed, ConditionType::LeftoversHandled] {
            let began = node(&Belongs::Here, &Seen::default(), Some(&first), 2);
            assert_eq!(condition(&began, type_), condition(&first, type_));
            assert_eq!(condition(&first, type_).0, "False");
            let new = node(&Belongs::Here, &Seen::default(), None, 2);
            assert_eq!(
                (condition(&new, type_).0.as_str(), condition(&new, type_).1.as_str()),
                ("False", "Unknown")
            );
        }
        seen.removal = Removal::Unclear("removals.json cannot be read".into());
        assert_eq!(
            condition(&node(&Belongs::Here, &seen, None, 1), ConditionType::RemovalAllowed).1,
            "Unknown"
        );
    }

    #[test]
    fn what_is_odd_or_cannot_be_written_is_told_with_what_to_do() {
        let mut seen = Seen { strays: Some(vec![]), ..Seen::default() };
        let said = |seen: &Seen, type_| condition(&node(&Belongs::Here, seen, None, 1), type_);
        assert_eq!(said(&seen, ConditionType::StateKept).1, "Unknown");
        seen.state = Some(vec![]);
        assert_eq!(said(&seen, ConditionType::StateKept).0, "True");
        seen.state = Some((0..10).map(|n| format!("{n}/owner.json: write it")).collect());
        let (status, reason, message) = said(&seen, ConditionType::StateKept);
        assert_eq!((status.as_str(), reason.as_str()), ("False", "StateNotKept"));
        assert!(message.contains("7/owner.json: write it | and 2 more"), "{message}");
        assert_eq!(said(&seen, ConditionType::Ready).0, "True", "the others can come all the same");
        seen.unwritable = Some("writing x: No space left; make room".into());
        for type_ in [ConditionType::StateKept, ConditionType::Ready] {
            let (status, reason, message) = said(&seen, type_);
            assert_eq!((status.as_str(), reason.as_str()), ("False", "StateNotKept"));
            assert!(message.contains("make room"), "{message}");
        }
    }

    #[test]
    fn what_is_handed_over_and_is_not_so_is_told_and_kept_until_somebody_looks() {
        let spec = GpuNodeSpec::default();
        let say = |not_adopted: Option<Vec<String>>, before: Option<&GpuNodeStatus>| {
            let seen = Seen { strays: Some(vec![]), ..Seen::default() };
            let (kept, now) = ((true, Reason::AsExpected, String::new()), Timestamp::UNIX_EPOCH);
            let belongs = &Belongs::Here;
            let mut status = GpuNodeStatus::default();
            Additions { seen: &seen, belongs, before, spec: &spec, generation: None, kept, not_adopted, now }
                .add_to(&mut status);
            status
        };
        let said = |status: &GpuNodeStatus| condition(status, ConditionType::DevicesAdopted);
        assert_eq!(said(&say(None, None)).1, "Unknown");
        assert_eq!(said(&say(Some(vec![]), None)).0, "True");
        let refused = say(Some((0..30).map(|n| format!("0000:41:00.{n}: it is in use")).collect()), None);
        let (status, reason, message) = said(&refused);
        assert_eq!((status.as_str(), reason.as_str()), ("False", "NotAdopted"));
        assert!(
            message.starts_with("the annotation gpudesk.dev/adopt: 0000:41:00.0: it is in use, "),
            "{message}"
        );
        assert!(message.ends_with("and 10 more"), "{message}");
        assert_eq!(said(&say(None, Some(&refused))), said(&refused));
        assert_eq!(said(&say(Some(vec![]), Some(&refused))).0, "True");
    }

    #[test]
    fn what_is_off_is_told_with_the_word_that_removes_it() {
        let mut off = stray(0, 1);
        off.standing = StrayStanding::Inactive;
        let seen = Seen { strays: Some(vec![off, stray(1, 1)]), ..Seen::default() };
        let status = node(&Belongs::Here, &seen, None, 1);
        assert_eq!(status::faults(&status), Vec::<String>::new());
        let (_, _, message) = condition(&status, ConditionType::StraysCleared);
        for part in
            ["000000000000 of 2-00000002, Inactive", "spec.strays", "those that are Inactive do not run"]
        {
            assert!(message.contains(part), "{part}: {message}");
        }
    }

    #[test]
    fn leftovers_are_listed_and_each_word_is_answered() {
        let leftover = |n: i64| Leftover {
            name: format!("{UID}.{n}"),
            namespace: "school".into(),
            desktop: "anna".into(),
            uid: UID.into(),
            size_mib: n,
            since: at(n),
            erased_after: Some(at(n + 1)),
        };
        let mut seen = Seen {
            leftovers: Some((0..65).map(leftover).collect()),
            leftovers_said: vec![(false, "b: no such leftover is here".into())],
            ..Seen::default()
        };
        let status = node(&Belongs::Here, &seen, None, 1);
        assert_eq!((status.leftovers.len(), status.more_leftovers), (64, Some(1)));
        assert_eq!(status::faults(&status), Vec::<String>::new());
        assert_eq!(condition(&status, ConditionType::LeftoversHandled).0, "True");
        seen.unerased = Some("erasing x: busy".into());
        let (status, reason, message) =
            condition(&node(&Belongs::Here, &seen, None, 1), ConditionType::LeftoversHandled);
        assert_eq!((status.as_str(), reason.as_str()), ("False", "NotErased"));
        assert_eq!(message, "b: no such leftover is here; erasing x: busy");
        seen.unerased = None;
        seen.leftovers_said.push((true, "a: it runs".into()));
        let (status, reason, message) =
            condition(&node(&Belongs::Here, &seen, None, 1), ConditionType::LeftoversHandled);
        assert_eq!((status.as_str(), reason.as_str()), ("False", "InvalidSpec"));
        assert_eq!(message, "b: no such leftover is here; a: it runs");
    }
}
