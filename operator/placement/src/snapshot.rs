//! The estate as placement sees it: kept by events, equal to one that is built from the objects.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use gpudesk_crds::{Allocation, Desktop, GpuNode, desktop::PowerState};

use crate::{
    affinity::{Manners, Neighbours},
    compute::Limits,
    estate::{Estate, NodeState},
    facts::NodeFacts,
    mix::Census,
    occupancy,
    prices::{PriceList, PricingWork, Waits},
    ranking::{NodeId, Ranking},
    request::{AffinityRule, Demand, DesktopKey, Request},
    reserve::Reservation,
    tables::WishId,
};

/// The prices of who waits are worked out again when more has changed than one in so many cards.
const CARDS_PER_CHANGE: u64 = 32;

/// Nodes, what is taken on them, and what was decided but not yet seen (*assumed*).
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub(crate) estate: Estate,
    pub(crate) rankings: Vec<Ranking>,
    pub(crate) ranking_of: HashMap<Arc<Demand>, usize>,
    pub(crate) neighbours: Neighbours,
    pub(crate) left_behind: BTreeMap<String, BTreeSet<NodeId>>,
    pub(crate) decisions: u64,
    /// Counts changes of what is offered, taken and asked for.
    pub(crate) revision: u64,
    desktops: BTreeMap<DesktopKey, Known>,
    demands: HashMap<Arc<Demand>, usize>,
    census: Census,
    /// Counts changes of what is defined.
    definitions: u64,
    /// What those ask for who are to run and have no place.
    waiting: Census,
    /// Places taken and given back, and desktops that began or ceased to wait, since work on the prices of
    /// who waits was given out.
    changes: u64,
    /// Versions of what was defined and offered when work on prices was last thought of.
    priced: (u64, u64),
    /// What has changed, for a copy that follows; nothing where none does.
    news: Option<Vec<Event>>,
    /// How many of certain wishes fit on empty nodes, by the version of the nodes.
    pub(crate) totals: HashMap<Box<[WishId]>, (u64, i32)>,
    in_use: BTreeMap<String, i32>,
    /// Room that is kept for one who has waited long.
    pub(crate) reserved: Option<Reservation>,
}

/// Equal when the same is offered, taken, assumed and asked for; what was worked out from it does not
/// count.
impl PartialEq for Snapshot {
    fn eq(&self, other: &Self) -> bool {
        self.estate.by_name().map(|(_, state)| state).eq(other.estate.by_name().map(|(_, state)| state))
            && self.estate.silent() == other.estate.silent()
            && self.estate.unclear() == other.estate.unclear()
            && self.desktops == other.desktops
            && self.neighbours == other.neighbours
            && self.census == other.census
            && self.waiting == other.waiting
            && self.in_use == other.in_use
            && self.owners_by_name() == other.owners_by_name()
    }
}

/// What a snapshot has to tell a copy that follows it. Desktops that hold nothing are left out.
#[derive(Clone, Debug, Default)]
pub struct News(Vec<Event>);

#[derive(Clone, Debug)]
enum Event {
    Offer(String, Option<Arc<NodeFacts>>),
    Silent(BTreeSet<String>),
    Unclear(BTreeSet<String>),
    Holds(DesktopKey, Option<Known>),
    Judge(Arc<PriceList>),
}

/// What is known of a desktop.
#[derive(Clone, Debug, Default, PartialEq)]
struct Known {
    /// Version of the object last seen; empty when only what it asks for is known.
    resource_version: String,
    /// What it holds by that version.
    seen: Option<Arc<Allocation>>,
    /// What was decided on top of that version.
    assumed: Option<Assumed>,
    /// It is to run.
    on: bool,
    /// Its labels.
    labels: BTreeMap<String, String>,
    /// What it is defined to ask for.
    wish: Option<Wish>,
}

/// What a desktop is defined to ask for.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// What it asks for.
    pub demand: Arc<Demand>,
    /// Near or apart from which others.
    pub affinity: Vec<AffinityRule>,
    /// The node that its disks bind it to.
    pub home: Option<String>,
}

/// A decision that the watch does not show yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Assumed {
    /// What was decided.
    pub allocation: Arc<Allocation>,
    /// It was written: the watch is bound to show it.
    pub written: bool,
}

impl Known {
    /// What counts: the assumption until the watch shows a newer version.
    fn counts(&self) -> Option<&Arc<Allocation>> {
        self.assumed.as_ref().map(|assumed| &assumed.allocation).or(self.seen.as_ref())
    }

    /// What it waits for.
    fn waits(&self) -> Option<&Arc<Demand>> {
        self.wish.as_ref().filter(|_| self.on && self.counts().is_none()).map(|wish| &wish.demand)
    }

    fn manners(&self) -> Manners {
        let apart = self.wish.as_ref().map(|wish| Manners::apart_of(&wish.affinity)).unwrap_or_default();
        Manners { labels: self.labels.clone(), apart }
    }
}

/// What an event changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Something may fit that did not before.
    pub freed: bool,
    /// Something else is taken or offered than before.
    pub any: bool,
}

/// The object is not the one that the decision was made for any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale;

impl Snapshot {
    /// Knows nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self { estate: Estate::new(limits), ..Self::default() }
    }

    /// A node was seen.
    pub fn node_seen(&mut self, node: &GpuNode) -> Change {
        let facts = NodeFacts::read(node);
        let name = facts.name.clone();
        self.offer(&name, Some(facts), true)
    }

    /// A node's object is gone. What desktops hold there stays theirs until they are released.
    pub fn node_gone(&mut self, name: &str) -> Change {
        self.offer(name, None, false)
    }

    fn offer(&mut self, name: &str, facts: Option<NodeFacts>, freed: bool) -> Change {
        let owners = |snapshot: &Self| -> BTreeSet<String> {
            let facts = snapshot.estate.facts_of(name);
            facts
                .map(|facts| occupancy::named_owners(facts).into_iter().map(str::to_owned).collect())
                .unwrap_or_default()
        };
        let before = owners(self);
        let Some(id) = self.estate.offer(name, facts) else { return Change::default() };
        if self.news.is_some() {
            let facts = self.estate.node(id).and_then(|state| state.facts.clone());
            self.tell(Event::Offer(name.to_owned(), facts));
        }
        let after = owners(self);
        for owner in before.difference(&after) {
            if let Some(nodes) = self.left_behind.get_mut(owner) {
                nodes.remove(&id);
                if nodes.is_empty() {
                    self.left_behind.remove(owner);
                }
            }
        }
        for owner in after {
            self.left_behind.entry(owner).or_default().insert(id);
        }
        self.revision += 1;
        Change { freed, any: true }
    }

    fn owners_by_name(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let name = |id: &NodeId| -> &str {
            self.estate.node(*id).and_then(|state| state.facts.as_ref()).map_or("", |facts| &facts.name)
        };
        self.left_behind
            .iter()
            .map(|(owner, nodes)| (owner.as_str(), nodes.iter().map(name).collect()))
            .collect()
    }

    /// Which nodes have not renewed their lease.
    pub fn set_silent(&mut self, silent: BTreeSet<String>) -> Change {
        let any = *self.estate.silent() != silent;
        if any {
            self.tell(Event::Silent(silent.clone()));
        }
        let before = self.estate.set_silent(silent);
        let freed = !before.is_subset(self.estate.silent());
        self.revision += u64::from(any);
        Change { freed, any }
    }

    /// Of which nodes it is not understood what they offer or what is taken there: nothing new goes there.
    pub fn set_unclear(&mut self, unclear: BTreeSet<String>) -> Change {
        let any = *self.estate.unclear() != unclear;
        if any {
            self.tell(Event::Unclear(unclear.clone()));
        }
        let before = self.estate.set_unclear(unclear);
        let freed = !before.is_subset(self.estate.unclear());
        self.revision += u64::from(any);
        Change { freed, any }
    }

    /// A desktop was seen. A version other than the one that an assumption was made for ends the
    /// assumption: either the write succeeded and is in what is seen now, or another write came
    /// first and the guarded one can never succeed.
    pub fn desktop_seen(&mut self, desktop: &Desktop) -> Change {
        let key = key_of(desktop);
        let resource_version = desktop.metadata.resource_version.clone().unwrap_or_default();
        let seen = desktop.allocation().filter(|allocation| allocation.compute.is_some());
        let old = self.desktops.get(&key).cloned().unwrap_or_default();
        let assumed = old.assumed.clone().filter(|_| old.resource_version == resource_version);
        let seen = match &old.seen {
            // Keeps one copy of what has not changed.
            Some(same) if seen == Some(&**same) => Some(same.clone()),
            _ => seen.map(|allocation| Arc::new(allocation.clone())),
        };
        let labels = desktop.metadata.labels.clone().unwrap_or_default();
        let on =
            desktop.spec.power_state == PowerState::Running && desktop.metadata.deletion_timestamp.is_none();
        self.replace(&key, Some(Known { resource_version, seen, assumed, on, labels, wish: old.wish }))
    }

    /// A desktop is gone.
    pub fn desktop_gone(&mut self, key: &DesktopKey) -> Change {
        self.wants(key, None);
        self.replace(key, None)
    }

    /// What a desktop is defined to ask for, running or not: look-ahead weighs by it.
    pub fn wants(&mut self, key: &DesktopKey, request: Option<&Request>) {
        let Some(known) = self.desktops.get(key) else { return };
        let same = match (&known.wish, request) {
            (None, None) => true,
            (Some(wish), Some(request)) => {
                wish.demand == request.demand
                    && wish.affinity == request.affinity
                    && wish.home == request.home
            }
            _ => false,
        };
        if same {
            return;
        }
        let mut known = known.clone();
        let wish = request.map(|request| Wish {
            demand: self.count_demand(&request.demand),
            affinity: request.affinity.clone(),
            home: request.home.clone(),
        });
        if let Some(old) = std::mem::replace(&mut known.wish, wish) {
            self.census.count(&old.demand, false);
            if let Some(count) = self.demands.get_mut(&old.demand) {
                *count -= 1;
                if *count == 0 {
                    self.demands.remove(&old.demand);
                }
            }
        }
        self.definitions += 1;
        self.replace(key, Some(known));
    }

    /// One copy of each demand is kept.
    fn count_demand(&mut self, demand: &Arc<Demand>) -> Arc<Demand> {
        let kept =
            self.demands.get_key_value(demand).map_or_else(|| demand.clone(), |(kept, _)| kept.clone());
        *self.demands.entry(kept.clone()).or_default() += 1;
        self.census.count(&kept, true);
        kept
    }

    /// Whether a desktop that is to run, and of which it is known what it asks for, has no place.
    pub fn waits_for_something(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// What a desktop is known to ask for.
    pub fn wish(&self, key: &DesktopKey) -> Option<&Wish> {
        self.desktops.get(key)?.wish.as_ref()
    }

    /// Labels of a desktop.
    pub fn labels(&self, key: &DesktopKey) -> BTreeMap<String, String> {
        self.desktops.get(key).map(|known| known.labels.clone()).unwrap_or_default()
    }

    /// Counts a decision that is about to be written with `resource_version` as its guard.
    ///
    /// # Errors
    /// [`Stale`] when another version has been seen meanwhile: decide again.
    pub fn assume(
        &mut self,
        key: &DesktopKey,
        resource_version: &str,
        allocation: &Arc<Allocation>,
    ) -> Result<Change, Stale> {
        match self.desktops.get(key) {
            Some(known) if known.resource_version == resource_version => Ok(self.take(key, allocation)),
            _ => Err(Stale),
        }
    }

    /// Counts a decision at once, whatever was seen: for plans that are never written.
    pub fn take(&mut self, key: &DesktopKey, allocation: &Arc<Allocation>) -> Change {
        let known = self.desktops.get(key).cloned().unwrap_or_default();
        let assumed = Assumed { allocation: allocation.clone(), written: false };
        self.replace(key, Some(Known { assumed: Some(assumed), ..known }))
    }

    /// The write succeeded. The assumption still counts until the watch shows what was written.
    pub fn written(&mut self, key: &DesktopKey) {
        if let Some(assumed) = self.desktops.get_mut(key).and_then(|known| known.assumed.as_mut()) {
            assumed.written = true;
        }
    }

    /// Nothing was written, for certain: what the watch showed counts again.
    ///
    /// Not for a conflict. That says that another version exists, and it may be the one that our own
    /// write made: the watch shows which, and until then the decision counts.
    pub fn forget(&mut self, key: &DesktopKey) -> Change {
        match self.desktops.get(key) {
            Some(known) if known.assumed.is_some() => {
                let known = Known { assumed: None, ..known.clone() };
                self.replace(key, Some(known))
            }
            _ => Change::default(),
        }
    }

    /// What is assumed of a desktop.
    pub fn assumed(&self, key: &DesktopKey) -> Option<Assumed> {
        self.desktops.get(key)?.assumed.clone()
    }

    /// What a desktop holds, assumed or seen.
    pub fn holds(&self, key: &DesktopKey) -> Option<&Arc<Allocation>> {
        self.desktops.get(key)?.counts()
    }

    /// Whether something that a desktop holds or left behind is not in its own way.
    pub fn has_own(&self, key: &DesktopKey) -> bool {
        self.holds(key).is_some() || self.left_behind.contains_key(&key.to_string())
    }

    /// Whether new desktops go to a node.
    pub fn takes(&self, node: &str) -> bool {
        let takes = |facts: &NodeFacts| facts.ready && !facts.is_cordoned();
        self.estate.facts_of(node).is_some_and(takes) && self.estate.closed(node).is_none()
    }

    /// Names of the nodes that exist.
    pub fn node_names(&self) -> impl Iterator<Item = &str> {
        self.estate.existing().map(|(_, facts)| &*facts.name)
    }

    /// A node by name, existing or not.
    pub fn node(&self, name: &str) -> Option<&NodeState> {
        self.estate.node(self.estate.id(name)?)
    }

    /// Shares in use of a profile.
    pub fn in_use(&self, profile: &str) -> i32 {
        self.in_use.get(profile).copied().unwrap_or(0)
    }

    fn replace(&mut self, key: &DesktopKey, known: Option<Known>) -> Change {
        self.revision += 1;
        let after = known.as_ref().and_then(Known::counts).cloned();
        let manners = known.as_ref().map(Known::manners).unwrap_or_default();
        let waits = known.as_ref().and_then(Known::waits).cloned();
        let old = match known {
            Some(known) => self.desktops.insert(key.clone(), known),
            None => self.desktops.remove(key),
        };
        let before = old.as_ref().and_then(Known::counts).cloned();
        if self.news.is_some() && (before.is_some() || after.is_some()) {
            let known = after.as_ref().and_then(|_| self.desktops.get(key).cloned());
            self.tell(Event::Holds(key.clone(), known));
        }
        let old_manners = old.as_ref().map(Known::manners).unwrap_or_default();
        self.count_waiting(old.as_ref().and_then(Known::waits).cloned(), waits);
        if before.is_some() && (before != after || manners != old_manners) {
            self.neighbours.go(key, &old_manners);
        }
        if before == after {
            if manners != old_manners
                && let Some(after) = &after
            {
                self.neighbours.come(key, &Arc::from(after.node.as_str()), &manners);
            }
            return Change::default();
        }
        self.changes += 1;
        if let Some(before) = &before {
            self.count_profiles(before, -1);
            self.estate.hold(&before.node, key, None);
        }
        if let Some(after) = &after {
            self.count_profiles(after, 1);
            self.estate.hold(&after.node, key, Some(after));
            self.neighbours.come(key, &Arc::from(after.node.as_str()), &manners);
        }
        Change { freed: before.is_some(), any: true }
    }

    fn count_waiting(&mut self, before: Option<Arc<Demand>>, after: Option<Arc<Demand>>) {
        if before == after {
            return;
        }
        self.changes += 1;
        if let Some(before) = before {
            self.waiting.count(&before, false);
        }
        if let Some(after) = after {
            self.waiting.count(&after, true);
        }
    }

    fn count_profiles(&mut self, allocation: &Allocation, more: i32) {
        for gpu in &allocation.gpus {
            let count = self.in_use.entry(gpu.profile.clone()).or_default();
            *count += more;
            if *count == 0 {
                self.in_use.remove(&gpu.profile);
            }
        }
    }

    /// Takes away what a desktop holds on a node, for a thought: [`Snapshot::put_down`] undoes it.
    pub(crate) fn lift(&mut self, key: &DesktopKey, node: &str) {
        let manners = self.desktops.get(key).map(Known::manners).unwrap_or_default();
        self.neighbours.go(key, &manners);
        self.estate.hold(node, key, None);
    }

    /// Puts a desktop on a node, for a thought or to end one.
    pub(crate) fn put_down(&mut self, key: &DesktopKey, allocation: &Arc<Allocation>) {
        let manners = self.desktops.get(key).map(Known::manners).unwrap_or_default();
        self.estate.hold(&allocation.node, key, Some(allocation));
        self.neighbours.come(key, &Arc::from(allocation.node.as_str()), &manners);
    }

    /// What the next price list is worked out from, when enough has changed since the last. Cheap: what
    /// takes long is [`PricingWork::solve`], which nobody waits for.
    pub fn pricing_work(&mut self) -> Option<PricingWork> {
        let before = self.estate.tables.list().clone();
        let versions = (self.definitions, self.estate.version);
        let mut defined = None;
        if std::mem::replace(&mut self.priced, versions) != versions {
            self.changes += 1;
            let now = (self.census.mix(), self.estate.supply());
            defined = Some(now).filter(|(mix, supply)| (mix, supply) != (&before.mix, &before.supply));
        }
        let waiting = if !self.waits_for_something() {
            if before.waiting.is_some() { Waits::Nobody } else { Waits::AsBefore }
        } else if self.changes > self.estate.cards() / CARDS_PER_CHANGE {
            self.changes = 0;
            Waits::For(self.estate.alike(), self.waiting.clone())
        } else {
            Waits::AsBefore
        };
        (defined.is_some() || !matches!(waiting, Waits::AsBefore)).then_some(PricingWork {
            before,
            defined,
            waiting,
        })
    }

    /// Judges by another list from now on.
    pub fn use_prices(&mut self, list: &Arc<PriceList>) {
        if !list.judges_like(self.estate.tables.list()) {
            self.revision += 1;
            self.estate.use_list(list);
            self.tell(Event::Judge(list.clone()));
        }
    }

    /// Works out new prices at once when they are due: for who has nothing else to do meanwhile.
    pub fn catch_up(&mut self) {
        if let Some(work) = self.pricing_work() {
            self.use_prices(&Arc::new(work.solve()));
        }
    }

    /// The same, keeping what a copy needs to follow: see [`Snapshot::news`].
    #[must_use]
    pub fn followed(self) -> Self {
        Self { news: Some(vec![]), ..self }
    }

    /// What has changed since it was asked last.
    pub fn news(&mut self) -> News {
        News(self.news.as_mut().map(std::mem::take).unwrap_or_default())
    }

    fn tell(&mut self, event: Event) {
        if let Some(news) = &mut self.news {
            news.push(event);
        }
    }

    /// Follows another snapshot, which was as empty as this one in the beginning.
    pub fn follow(&mut self, News(events): News) {
        for event in events {
            match event {
                Event::Offer(name, facts) => {
                    let freed = facts.is_some();
                    _ = self.offer(&name, facts.map(Arc::unwrap_or_clone), freed);
                }
                Event::Silent(silent) => _ = self.set_silent(silent),
                Event::Unclear(unclear) => _ = self.set_unclear(unclear),
                Event::Holds(key, known) => _ = self.replace(&key, known),
                Event::Judge(list) => self.use_prices(&list),
            }
        }
    }
}

/// The key of a desktop.
pub fn key_of(desktop: &Desktop) -> DesktopKey {
    DesktopKey {
        namespace: desktop.metadata.namespace.clone().unwrap_or_default(),
        name: desktop.metadata.name.clone().unwrap_or_default(),
    }
}
