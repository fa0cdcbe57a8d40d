//! Who gets which place, and in what order: the queue and the snapshot behind one lock, held for decisions
//! only and for a moment at a time.
#![expect(clippy::disallowed_methods, reason = "an adapter: it tells the time to pure parts")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use gpudesk_crds::{Allocation, AllocationId, Desktop};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{ResourceExt, runtime::reflector::ObjectRef};

use super::{Cluster, World, key_of};
use crate::{
    allocation_key::AllocationKey,
    desktop::{now, validate::Wanted},
    placement::{
        NoRoom, Placed,
        explain::Explanation,
        filters::Rejection,
        request::{DesktopKey, Request},
    },
    queue::Rank,
};

/// What is freed so close together is offered together.
const GATHER: Duration = Duration::from_millis(50);
/// Those who wait of whom it is found out again why, after something was freed: so many, so often.
const LOOKED_AT: (usize, Duration) = (32, Duration::from_secs(2));

/// Reservations that are thought of at a time, and how long one for which there is no node is left alone.
const PLANS: usize = 2;
const NOT_KEPT: Duration = Duration::from_mins(1);

/// A decision on one desktop.
#[derive(Debug)]
pub enum Decision {
    /// It has a place, which counts as taken from now on.
    Assumed {
        /// The place.
        allocation: Arc<Allocation>,
        /// Decided just now, so that no write of it can have reached the API server.
        fresh: bool,
    },
    /// It has a place, which is written: the watch will show it.
    Written,
    /// There is no room.
    NoRoom(Explanation),
    /// The desktop changed meanwhile: look again.
    Stale,
    /// Others go first: it is woken when it had its turn.
    Queued,
}

/// What a desktop in the queue asks for: all that a decision is made of.
#[derive(Debug)]
pub(super) struct Ask {
    /// As it was when it asked; the decision is written to this version.
    desktop: Arc<Desktop>,
    wanted: Arc<Wanted>,
    request: Request,
}

impl Ask {
    /// Whether a version of the desktop asks for the same: no more than its status is another, and that gives it
    /// nothing.
    pub(super) fn is_asked_by(&self, desktop: &Desktop) -> bool {
        let (before, now) = (&self.desktop.metadata, &desktop.metadata);
        before.uid == now.uid
            && before.generation == now.generation
            && before.annotations == now.annotations
            && before.labels == now.labels
            && now.deletion_timestamp.is_none()
            && desktop.allocation().is_none_or(|allocation| allocation.compute.is_none())
    }

    /// The same of a newer version of the desktop, where that asks for it.
    pub(super) fn of_version(&self, desktop: Arc<Desktop>) -> Option<Self> {
        let Self { desktop: _, wanted, request } = self;
        self.is_asked_by(&desktop).then(|| Self { desktop, wanted: wanted.clone(), request: request.clone() })
    }

    fn allocation(
        &self,
        placed: Placed,
        remembered: Option<AllocationId>,
        key: &AllocationKey,
        now: &Time,
    ) -> Allocation {
        Allocation {
            id: Some(key.mint(&self.desktop, remembered, &placed.node, now)),
            node: placed.node,
            desktop_generation: self.desktop.metadata.generation.unwrap_or_default(),
            template_generation: self.wanted.template_generation,
            restarted_at: self.wanted.restarted_at.clone(),
            stop_for: None,
            made_of: Some(self.wanted.made_of.clone()),
            decided_at: now.clone(),
            compute: Some(placed.compute),
            gpus: placed.gpus,
            host_devices: placed.host_devices,
            fabric_partition: placed.fabric_partition,
            decision: Some(placed.record),
        }
    }
}

/// What became of a turn.
enum Turn {
    Given(Arc<Allocation>),
    NoRoom(NoRoom),
    /// As little as for one before it that asked for the same.
    Hopeless,
    /// The desktop is not what it was when it asked.
    Stale,
}

impl World {
    /// Finds a place and counts it as taken, in one step that no other decision comes between. Those
    /// before it in the queue have their turn first.
    pub fn decide(&self, desktop: &Desktop, wanted: &Wanted, home: Option<String>, now: &Time) -> Decision {
        let key = key_of(desktop);
        let mut cluster = self.lock();
        let started = Instant::now();
        let stored = self.stores.desktops.get(&ObjectRef::from_obj(desktop));
        // Decided before, by its turn in the queue or in a round whose answer was lost: the same is written.
        match cluster.snapshot.assumed(&key) {
            Some(assumed) if assumed.written => return Decision::Written,
            Some(assumed) => {
                let fresh = cluster.queue.take_given(&key);
                return Decision::Assumed { allocation: assumed.allocation, fresh };
            }
            None => {}
        }
        let Some(desktop) = stored.filter(|stored| stored.resource_version() == desktop.resource_version())
        else {
            return Decision::Stale;
        };
        let request = Request { home, ..wanted.request.clone() };
        let rank = rank_of(&desktop, now);
        let ask = Arc::new(Ask { desktop, wanted: Arc::new(wanted.clone()), request });
        // Who holds a place asks for it again: it stands behind nobody.
        let holds = cluster.snapshot.holds(&key).is_some();
        let turn = if holds {
            Some(self.turn(&mut cluster, &ask, true, true, now))
        } else {
            cluster.queue.enter(rank, ask.clone(), started);
            self.give_turns(&mut cluster, now, started + self.at_once, Some(&key))
        };
        match turn {
            None => {
                cluster.queue.awaits(&key);
                Decision::Queued
            }
            Some(Turn::Given(allocation)) => Decision::Assumed { allocation, fresh: true },
            Some(Turn::Stale | Turn::Hopeless) => Decision::Stale,
            Some(Turn::NoRoom(no_room)) => {
                let kept = cluster.kept_for(&key);
                drop(cluster);
                let mut why = self.thinker.explain(&ask.request, &no_room);
                why.message += &kept.unwrap_or_default();
                self.metrics.placed(why.reason.as_str());
                Decision::NoRoom(why)
            }
        }
    }

    /// Gives those whose turn it is what fits, in their order, until `until`, or until `of` had its turn:
    /// then what became of it.
    fn give_turns(
        &self,
        cluster: &mut Cluster,
        now: &Time,
        until: Instant,
        of: Option<&DesktopKey>,
    ) -> Option<Turn> {
        let mut its = None;
        while let Some(key) = cluster.queue.next_turn() {
            let Some(ask) = cluster.queue.ask(&key).cloned() else { continue };
            let all = cluster.queue.goes_before_kept(&key);
            let its_own = of == Some(&key);
            let turn = self.turn(cluster, &ask, all, its_own, now);
            if its_own {
                if !matches!(turn, Turn::NoRoom(_)) {
                    cluster.queue.leave(&key);
                }
                its = Some(turn);
                break;
            }
            match turn {
                Turn::Given(_) => {
                    cluster.queue.give(&key);
                    self.wake(&key);
                }
                Turn::NoRoom(_) | Turn::Hopeless => {
                    if cluster.queue.is_awaited(&key) {
                        self.wake(&key);
                    }
                }
                // Its new version brings a round of its own.
                Turn::Stale => _ = cluster.queue.leave(&key),
            }
            if Instant::now() >= until {
                break;
            }
        }
        self.end_keeping(cluster);
        if !cluster.queue.is_settled() {
            self.turns.notify_one();
        }
        its
    }

    /// The turn of one. `all` says that room that is kept is free for it, `says` that it is to say why it
    /// waits, if it does.
    fn turn(&self, cluster: &mut Cluster, ask: &Ask, all: bool, says: bool, now: &Time) -> Turn {
        let started = Instant::now();
        let Cluster { snapshot, queue, .. } = &mut *cluster;
        let key = &ask.request.desktop;
        let of_others = !snapshot.has_own(key);
        if of_others && !says && queue.is_hopeless(&ask.request, all) {
            return Turn::Hopeless;
        }
        let placed = if all {
            snapshot.without_reservation(|snapshot| snapshot.place(&ask.request))
        } else {
            snapshot.place(&ask.request)
        };
        let placed = match placed {
            Ok(placed) => placed,
            Err(no_room) => {
                // Neighbours are its own matter.
                if of_others && !no_room.rejections.contains_key(&Rejection::Affinity) {
                    queue.found_none(&ask.request, all);
                }
                self.metrics.decided_in(started.elapsed().as_secs_f64());
                return Turn::NoRoom(no_room);
            }
        };
        let remembered = cluster.remembered(key, &ask.desktop.uid().unwrap_or_default());
        let allocation = Arc::new(ask.allocation(placed, remembered, &self.key, now));
        let version = ask.desktop.metadata.resource_version.as_deref().unwrap_or_default();
        let Ok(change) = cluster.snapshot.assume(key, version, &allocation) else { return Turn::Stale };
        self.changed(cluster, change);
        self.metrics.placed("placed");
        self.metrics.decided_in(started.elapsed().as_secs_f64());
        Turn::Given(allocation)
    }

    /// Offers what was freed to those who wait, and has some of them say anew why they do. Runs until
    /// dropped.
    pub async fn offer_freed(&self) {
        let (many, often) = LOOKED_AT;
        let mut looked_at = Instant::now();
        // Since when there is news of which not everybody was told.
        let mut news = None;
        loop {
            let woken = async {
                tokio::select! {
                    biased;
                    () = self.freed.notified() => true,
                    () = self.turns.notified() => false,
                }
            };
            let freed = match news {
                None => Some(woken.await),
                Some(_) => tokio::time::timeout(often, woken).await.ok(),
            };
            if let Some(freed) = freed {
                if freed {
                    news = Some(Instant::now());
                }
                tokio::time::sleep(GATHER).await;
                while !self.offer_some() {
                    tokio::task::yield_now().await;
                }
            }
            if let Some(since) = news.filter(|_| looked_at.elapsed() >= often) {
                looked_at = Instant::now();
                let (again, more) = self.lock().queue.to_look_at(since, looked_at, many);
                for key in &again {
                    self.wake(key);
                }
                news = news.filter(|_| more);
            }
        }
    }

    /// Offers for a moment; says whether everybody had a turn.
    fn offer_some(&self) -> bool {
        let mut cluster = self.lock();
        self.give_turns(&mut cluster, &now(), Instant::now() + self.at_once, None);
        cluster.queue.is_settled()
    }

    /// Keeps room for the first who has waited too long, and for nobody else. Thought out on the copy.
    pub(super) fn keep_room(&self) {
        let Some(after) = self.keep_after.and_then(|after| i64::try_from(after.as_secs()).ok()) else {
            return;
        };
        let since = now().0.as_second() - after;
        for _ in 0..PLANS {
            let Some(ask) = self.to_keep_room_for(since) else { return };
            let key = &ask.request.desktop;
            let plan =
                self.thinker.ask(|| self.lock().snapshot.news(), |copy| copy.plan_reservation(&ask.request));
            let mut cluster = self.lock();
            let Some(plan) = plan else {
                cluster.not_kept.insert(key.clone(), Instant::now() + NOT_KEPT);
                continue;
            };
            // It may have got its place meanwhile.
            if cluster.queue.ask(key).is_some() {
                tracing::info!(desktop = %key, node = plan.node, in_the_way = plan.in_the_way.len(), "room is kept for it");
                cluster.queue.favour(Some(key));
                let change = cluster.snapshot.reserve(Some(&plan));
                self.changed(&mut cluster, change);
                self.wake(key);
            }
            return;
        }
    }

    /// Who is to have room kept for it next; nobody where that is so already.
    fn to_keep_room_for(&self, since: i64) -> Option<Arc<Ask>> {
        let mut cluster = self.lock();
        let Cluster { queue, snapshot, not_kept, .. } = &mut *cluster;
        let now = Instant::now();
        not_kept.retain(|_, until| *until > now);
        let first = queue.long_waiting(since, |key, _| !not_kept.contains_key(key))?;
        let kept = snapshot.reserved().is_some_and(|kept| snapshot.takes(&kept.node));
        if kept && queue.favoured() == Some(&first) {
            return None;
        }
        queue.ask(&first).cloned()
    }

    /// Room is kept for nobody who is not in the queue.
    fn end_keeping(&self, cluster: &mut Cluster) {
        if cluster.queue.favoured().is_none() {
            let change = cluster.snapshot.reserve(None);
            self.changed(cluster, change);
        }
    }

    /// Whether a desktop would find a place now that its own is counted as free.
    ///
    /// # Errors
    /// Why it would not.
    pub fn would_fit(&self, wanted: &Wanted, home: Option<String>) -> Result<(), Explanation> {
        let request = Request { home, ..wanted.request.clone() };
        let placed = self.lock().snapshot.without_reservation(|snapshot| snapshot.place(&request));
        placed.map(|_| ()).map_err(|no_room| self.thinker.explain(&request, &no_room))
    }

    /// A decision was written. The watch may miss the version that shows it: it is noted.
    pub fn written(&self, desktop: &Desktop) {
        let key = key_of(desktop);
        let mut cluster = self.lock();
        cluster.snapshot.written(&key);
        let id = cluster.snapshot.assumed(&key).and_then(|assumed| assumed.allocation.id);
        cluster.note_held(&key, desktop, id);
    }

    /// A decision was not written, for certain: what it took is free again.
    pub fn forget(&self, key: &DesktopKey) {
        let mut cluster = self.lock();
        let change = cluster.snapshot.forget(key);
        self.changed(&mut cluster, change);
    }

    /// A desktop does not ask for a place any more. One that it was given and knows nothing of is free again.
    pub fn not_waiting(&self, key: &DesktopKey) {
        let mut cluster = self.lock();
        cluster.queue.leave(key);
        if cluster.queue.take_given(key) {
            let change = cluster.snapshot.forget(key);
            self.changed(&mut cluster, change);
        }
        self.end_keeping(&mut cluster);
    }

    /// How long a waiting desktop must wait until it may change its message.
    pub fn may_say(&self, key: &DesktopKey) -> Duration {
        self.lock().queue.may_say(key, Instant::now())
    }
}

impl Cluster {
    /// What to tell one for whom room is kept.
    fn kept_for(&self, key: &DesktopKey) -> Option<String> {
        let kept = self.snapshot.reserved().filter(|_| self.queue.favoured() == Some(key))?;
        let (node, count) = (&kept.node, kept.in_the_way.len());
        let desktops = if count == 1 { "desktop has" } else { "desktops have" };
        Some(format!(
            "; it has waited long: room is kept for it on {node}, where {count} {desktops} to end first"
        ))
    }
}

/// Where a desktop stands in the queue.
fn rank_of(desktop: &Desktop, now: &Time) -> Rank {
    let since = desktop.status.as_ref().and_then(|status| status.waiting_since.as_ref());
    // What was said by a clock that was ahead counts from now.
    let since = since.map_or(now.0, |since| since.0.min(now.0)).as_second();
    let created = desktop.creation_timestamp().map_or(0, |time| time.0.as_second());
    Rank::new(&key_of(desktop), desktop.spec.priority, since, created)
}
