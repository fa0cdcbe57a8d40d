//! The desktops that want a place and have none: who is asked next, and how often each says why it waits.
//! Pure.
//!
//! ```text
//!   priority, then how long it waits, then age ─▶ order
//!   something was freed     ─▶ all are asked once, from the first on
//!   a newcomer              ─▶ is asked in its turn; those before it had theirs
//!   freed during such a walk ─▶ it begins again, a few times; then once more after its end
//! ```
//!
//! Whoever fits is given its place in its turn, so a place that comes free is offered once and in order. One
//! that does not fit is passed by those after it, until it has waited so long that room is kept for it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::placement::request::{Demand, DesktopKey, Request};

/// Least time between two messages of one desktop that differ only in their counts, and the same for each that waits:
/// what two thousand of them may write is little beside what is to start.
const SAY_AGAIN: Duration = Duration::from_secs(10);
const SAY_AGAIN_EACH: Duration = Duration::from_millis(100);
const SAY_AGAIN_MOST: Duration = Duration::from_mins(5);
/// How often a walk begins again when something is freed during it; then it is ended first, so that the
/// last have their turn, too.
const BEGINS_AGAIN: u32 = 4;

/// A place in the order: the least is first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    priority: Reverse<i32>,
    /// Seconds since 1970 at which it began to wait.
    since: i64,
    /// Seconds since 1970 at which its object was made.
    created: i64,
    key: DesktopKey,
}

impl Rank {
    /// The place of a desktop. Times are seconds since 1970.
    pub fn new(key: &DesktopKey, priority: i32, since: i64, created: i64) -> Self {
        Self { priority: Reverse(priority), since, created, key: key.clone() }
    }
}

/// The waiting desktops, each with what it asks for.
#[derive(Debug)]
pub struct Queue<T> {
    waiting: BTreeMap<DesktopKey, Entry<T>>,
    order: BTreeSet<Rank>,
    /// Who came or changed since its turn.
    newcomers: BTreeSet<Rank>,
    walk: Option<Walk>,
    /// Something was freed that the walk under way does not offer from the first on.
    again: bool,
    /// What found no room since something was freed last, and whether room that is kept counted as free.
    hopeless: HashMap<Hope, bool>,
    /// Who was given a place that its round does not know of yet, and what was asked for.
    given: BTreeMap<DesktopKey, T>,
    /// For whom room is kept.
    favoured: Option<Rank>,
    /// Nobody is to be looked at before.
    looked_over: Option<Instant>,
}

/// Of requests that are alike in this, none finds room where one did not.
type Hope = (Arc<Demand>, Option<String>);

/// All are asked, in their order.
#[derive(Debug, Default)]
struct Walk {
    /// The last who was.
    after: Option<Rank>,
    begun: u32,
}

#[derive(Debug)]
struct Entry<T> {
    rank: Rank,
    ask: T,
    said_at: Option<Instant>,
    /// When it was last found out why it waits.
    looked_at: Instant,
    /// Its round waits for its turn.
    awaited: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            order: BTreeSet::new(),
            newcomers: BTreeSet::new(),
            walk: None,
            again: false,
            hopeless: HashMap::new(),
            given: BTreeMap::new(),
            favoured: None,
            looked_over: None,
        }
    }
}

impl<T> Queue<T> {
    /// A desktop asks for a place, or asks again.
    pub fn enter(&mut self, rank: Rank, ask: T, now: Instant) {
        let said_at = self.remove(&rank.key).and_then(|entry| entry.said_at);
        self.order.insert(rank.clone());
        self.newcomers.insert(rank.clone());
        if self.favoured.as_ref().is_some_and(|favoured| favoured.key == rank.key) {
            self.favoured = Some(rank.clone());
        }
        let entry = Entry { rank: rank.clone(), ask, said_at, looked_at: now, awaited: false };
        self.waiting.insert(rank.key, entry);
    }

    /// A desktop asks for a place no more; returns what it asked for.
    pub fn leave(&mut self, key: &DesktopKey) -> Option<T> {
        if self.favoured.as_ref().is_some_and(|rank| rank.key == *key) {
            self.favoured = None;
        }
        self.remove(key).map(|entry| entry.ask)
    }

    fn remove(&mut self, key: &DesktopKey) -> Option<Entry<T>> {
        let entry = self.waiting.remove(key)?;
        self.order.remove(&entry.rank);
        self.newcomers.remove(&entry.rank);
        Some(entry)
    }

    /// Something may fit that did not before: it is offered to all, from the first on.
    pub fn freed(&mut self) {
        self.hopeless.clear();
        match &mut self.walk {
            None => self.walk = Some(Walk::default()),
            Some(walk) if walk.begun < BEGINS_AGAIN => {
                walk.begun += 1;
                walk.after = None;
            }
            Some(_) => self.again = true,
        }
    }

    /// Whose turn it is; nothing when all had theirs.
    pub fn next_turn(&mut self) -> Option<DesktopKey> {
        loop {
            let on_walk = self.walk.as_ref().and_then(|walk| match &walk.after {
                None => self.order.first(),
                Some(after) => self.order.range((Bound::Excluded(after.clone()), Bound::Unbounded)).next(),
            });
            let newcomer = self.newcomers.first();
            let rank = match (on_walk, newcomer) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
            if let Some(rank) = rank.cloned() {
                self.newcomers.remove(&rank);
                if let Some(walk) = &mut self.walk
                    && walk.after.as_ref().is_none_or(|after| *after < rank)
                {
                    walk.after = Some(rank.clone());
                }
                return Some(rank.key);
            }
            self.walk = std::mem::take(&mut self.again).then(Walk::default);
            self.walk.as_ref()?;
        }
    }

    /// Whether everybody had a turn since something was freed.
    pub fn is_settled(&self) -> bool {
        self.walk.is_none() && self.newcomers.is_empty()
    }

    /// What a desktop asks for.
    pub fn ask(&self, key: &DesktopKey) -> Option<&T> {
        self.waiting.get(key).map(|entry| &entry.ask)
    }

    /// A desktop asks for the same in other words: it keeps its place and its turn.
    pub fn ask_anew(&mut self, key: &DesktopKey, ask: T) {
        if let Some(entry) = self.waiting.get_mut(key) {
            entry.ask = ask;
        }
    }

    /// The round of a desktop waits for its turn.
    pub fn awaits(&mut self, key: &DesktopKey) {
        if let Some(entry) = self.waiting.get_mut(key) {
            entry.awaited = true;
        }
    }

    /// Whether the round of a desktop waited for its turn, which it does no more.
    pub fn is_awaited(&mut self, key: &DesktopKey) -> bool {
        self.waiting.get_mut(key).is_some_and(|entry| std::mem::take(&mut entry.awaited))
    }

    /// Whether it is known that a request finds no room. `all` says that room that is kept counts as free
    /// for it.
    pub fn is_hopeless(&self, request: &Request, all: bool) -> bool {
        let known = self.hopeless.get(&(request.demand.clone(), request.home.clone()));
        known.is_some_and(|known| *known || !all)
    }

    /// A request found no room, and not for its neighbours or what is its own.
    pub fn found_none(&mut self, request: &Request, all: bool) {
        *self.hopeless.entry((request.demand.clone(), request.home.clone())).or_default() |= all;
    }

    /// A desktop was given a place that its round is still to take.
    pub fn give(&mut self, key: &DesktopKey) {
        if let Some(ask) = self.leave(key) {
            self.given.insert(key.clone(), ask);
        }
    }

    /// What a desktop asked for that was given a place which its round has not taken.
    pub fn given(&self, key: &DesktopKey) -> Option<&T> {
        self.given.get(key)
    }

    /// Takes the place that was given to a desktop, if one was.
    pub fn take_given(&mut self, key: &DesktopKey) -> bool {
        self.given.remove(key).is_some()
    }

    /// The first who has waited since before `since`, in seconds since 1970, and of whom `may` says so.
    pub fn long_waiting(&self, since: i64, may: impl Fn(&DesktopKey, &T) -> bool) -> Option<DesktopKey> {
        let long = self.order.iter().filter(|rank| rank.since <= since);
        let mut long = long.filter(|rank| self.ask(&rank.key).is_some_and(|ask| may(&rank.key, ask)));
        long.next().map(|rank| rank.key.clone())
    }

    /// Room is kept for a desktop that waits.
    pub fn favour(&mut self, key: Option<&DesktopKey>) {
        self.favoured = key.and_then(|key| self.waiting.get(key)).map(|entry| entry.rank.clone());
    }

    /// For whom room is kept.
    pub fn favoured(&self) -> Option<&DesktopKey> {
        self.favoured.as_ref().map(|rank| &rank.key)
    }

    /// Whether room that is kept is free for a desktop: it is kept for it, or for one after it.
    pub fn goes_before_kept(&self, key: &DesktopKey) -> bool {
        let Some(favoured) = &self.favoured else { return true };
        self.waiting.get(key).is_some_and(|entry| entry.rank <= *favoured)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Those of whom it was not found out since `freed` why they wait, in their order, at most so many and none sooner
    /// than it may change its message; they count as looked at. And whether there are more.
    pub fn to_look_at(&mut self, freed: Instant, now: Instant, most: usize) -> (Vec<DesktopKey>, bool) {
        if self.looked_over.is_some_and(|until| now < until) {
            return (vec![], true);
        }
        let again = self.say_again();
        let Self { order, waiting, looked_over, .. } = self;
        let (mut found, mut more) = (vec![], false);
        *looked_over = None;
        let mut first: Option<Instant> = None;
        for rank in order.iter() {
            let Some(entry) = waiting.get_mut(&rank.key).filter(|entry| entry.looked_at < freed) else {
                continue;
            };
            if found.len() == most {
                return (found, true);
            }
            if now.saturating_duration_since(entry.looked_at) < again {
                more = true;
                let due = entry.looked_at + again;
                first = Some(first.map_or(due, |first| first.min(due)));
                continue;
            }
            entry.looked_at = now;
            found.push(rank.key.clone());
        }
        *looked_over = first.filter(|_| found.is_empty());
        (found, more)
    }

    /// How long a desktop must wait until it may change its message; zero when it may now, which
    /// counts as having said it.
    pub fn may_say(&mut self, key: &DesktopKey, now: Instant) -> Duration {
        let rest = self.rest(key, now);
        if rest.is_zero()
            && let Some(entry) = self.waiting.get_mut(key)
        {
            entry.said_at = Some(now);
        }
        rest
    }

    /// The same, without counting as having said it.
    fn rest(&self, key: &DesktopKey, now: Instant) -> Duration {
        let said_at = self.waiting.get(key).and_then(|entry| entry.said_at);
        said_at
            .map_or(Duration::ZERO, |at| self.say_again().saturating_sub(now.saturating_duration_since(at)))
    }

    fn say_again(&self) -> Duration {
        let all = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        SAY_AGAIN_EACH.saturating_mul(all).clamp(SAY_AGAIN, SAY_AGAIN_MOST)
    }
}

#[cfg(test)]
mod tests;
