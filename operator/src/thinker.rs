//! What takes long to find out about the estate, found out on a copy of it: nobody waits for it with the
//! placement lock held.
//!
//! The copy follows by what the placement snapshot tells ([`Snapshot::news`]). It knows the desktops that hold
//! something and is judged by the same price list, so it answers as the original would.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::placement::{
    Limits, NoRoom, Snapshot,
    explain::{Explanation, Insight, MOST_MOVES},
    request::{Demand, DesktopKey, Request},
    snapshot::News,
};

/// Requests that are thought about in one round; the others keep what was thought before.
const AT_ONCE: usize = 8;
/// Rounds after which what nobody asked again is forgotten.
const FORGOTTEN_AFTER: u64 = 3600;

/// What desktops ask for that wait for the same, wherever their disks are.
type Topic = (Arc<Demand>, Option<String>);

/// Thinks.
#[derive(Debug)]
pub struct Thinker {
    copy: Mutex<Snapshot>,
    thoughts: Mutex<Thoughts>,
}

#[derive(Debug, Default)]
struct Thoughts {
    round: u64,
    of: HashMap<Topic, Thought>,
}

#[derive(Debug)]
struct Thought {
    insight: Arc<Insight>,
    /// In which round that was found; 0 when nothing was thought yet.
    found_in: u64,
    asked_in: u64,
    /// Who asked since, in the words of the last.
    asked: Option<Request>,
    askers: BTreeSet<DesktopKey>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thought that ended in the middle leaves what was known; the copy takes back what it lifted or is
    // behind, which costs a message its truth and nothing else.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Thinker {
    /// Knows nothing yet, as the snapshot that it follows.
    pub fn new(limits: Limits) -> Self {
        Self { copy: Mutex::new(Snapshot::new(limits)), thoughts: Mutex::default() }
    }

    /// Why there is no room, as far as it is known now: at once the counted reasons, with what was thought of
    /// requests like it. Has it thought about anew.
    pub fn explain(&self, request: &Request, no_room: &NoRoom) -> Explanation {
        let mut thoughts = locked(&self.thoughts);
        let asked_in = thoughts.round;
        let thought =
            thoughts.of.entry((request.demand.clone(), request.home.clone())).or_insert_with(|| {
                let insight = Arc::default();
                Thought { insight, found_in: 0, asked_in, asked: None, askers: BTreeSet::new() }
            });
        thought.asked_in = asked_in;
        thought.asked = Some(request.clone());
        thought.askers.insert(request.desktop.clone());
        let insight = thought.insight.clone();
        drop(thoughts);
        insight.explain(request, no_room)
    }

    /// One round, with what is new; says which desktops have something else to tell now.
    pub fn think(&self, news: impl FnOnce() -> News) -> BTreeSet<DesktopKey> {
        self.ask(news, |_| ());
        let due = {
            let mut thoughts = locked(&self.thoughts);
            thoughts.round += 1;
            let round = thoughts.round;
            thoughts.of.retain(|_, thought| thought.asked_in + FORGOTTEN_AFTER > round);
            let asked = thoughts.of.iter().filter_map(|(topic, thought)| {
                Some((thought.found_in, topic.clone(), thought.asked.clone()?))
            });
            let mut due: Vec<(u64, Topic, Request)> = asked.collect();
            due.sort_by(|(a, _, one), (b, _, other)| (a, &one.desktop).cmp(&(b, &other.desktop)));
            due.truncate(AT_ONCE);
            due
        };
        let mut woken = BTreeSet::new();
        for (_, topic, request) in due {
            let insight = {
                let mut copy = locked(&self.copy);
                // Where there is room by now, whoever asked hears of it as of any room.
                copy.place(&request).err().map(|no_room| copy.think(&request, &no_room, MOST_MOVES))
            };
            let mut thoughts = locked(&self.thoughts);
            let round = thoughts.round;
            let Some(thought) = thoughts.of.get_mut(&topic) else { continue };
            thought.found_in = round;
            thought.asked = None;
            let askers = std::mem::take(&mut thought.askers);
            if let Some(insight) = insight.filter(|insight| *insight != *thought.insight) {
                thought.insight = Arc::new(insight);
                woken.extend(askers);
            }
        }
        woken
    }

    /// Asks the copy something, with what is new, which is taken and told in one step: in its order.
    pub fn ask<R>(&self, news: impl FnOnce() -> News, question: impl FnOnce(&mut Snapshot) -> R) -> R {
        let mut copy = locked(&self.copy);
        copy.follow(news());
        question(&mut copy)
    }
}
