//! What the operator knows of the cluster, kept by watches: objects in stores, the placement
//! snapshot and indexes behind one lock, and the queues that wake the loops.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::channel::mpsc::UnboundedSender;
use gpudesk_crds::{Allocation, AllocationId, Desktop, DesktopTemplate, GpuNode, GpuProfile, Refusal};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use tokio::sync::Notify;

use crate::{
    allocation_key::AllocationKey,
    desktop::decide::Presence,
    desktop::validate::{Wanted, secret_name},
    index::Index,
    metrics::Metrics,
    node_liveness::{Heard, Liveness},
    placement::{
        compute::Limits,
        explain::Explanation,
        fragments::Counts,
        request::{DesktopKey, Request, ShareRequest},
        snapshot::{Change, Snapshot, key_of},
    },
    queue::Queue,
    refusals::Refusals,
    secret_access::{self, Named, Pair},
    stores::Stores,
    thinker::Thinker,
    understood::{self, odd},
    watch::Seen,
};

mod away;
mod decider;
mod intake;

use decider::Ask;
pub use decider::Decision;

/// How long a `GpuNode` must be missing until its node counts as lost: its daemon makes it again at once when it
/// lives.
pub const NODE_LOST_AFTER: Duration = Duration::from_secs(10);

/// Where to put what should be looked at.
#[derive(Clone)]
pub struct Queues {
    /// Desktops.
    pub desktops: UnboundedSender<ObjectRef<Desktop>>,
    /// Templates.
    pub templates: UnboundedSender<ObjectRef<DesktopTemplate>>,
    /// Profiles.
    pub profiles: UnboundedSender<ObjectRef<GpuProfile>>,
    /// Nodes.
    pub nodes: UnboundedSender<ObjectRef<GpuNode>>,
    /// Which Secrets nodes may read.
    pub access: UnboundedSender<secret_access::Event>,
}

/// What the operator knows.
pub struct World {
    /// All objects.
    pub stores: Stores,
    /// The operator's figures.
    pub metrics: Metrics,
    queues: Queues,
    key: AllocationKey,
    cluster: Mutex<Cluster>,
    thinker: Thinker,
    freed: Notify,
    ask: Notify,
    counted: Notify,
    /// Whoever was to have a turn has not, for the lock was held for long enough.
    turns: Notify,
    /// All nodes, or all leases, are known.
    listed: Notify,
    /// For whom room is kept: for whoever has waited so long.
    keep_after: Option<Duration>,
    /// How long the lock is held for those whose turn it is, before others may have it.
    at_once: Duration,
}

/// Behind the one placement lock.
#[derive(Default)]
struct Cluster {
    snapshot: Snapshot,
    index: Index,
    queue: Queue<Arc<Ask>>,
    /// For whom no room can be kept, and until when that is believed.
    not_kept: BTreeMap<DesktopKey, Instant>,
    refusals: Refusals,
    liveness: Liveness,
    missing: BTreeMap<String, Instant>,
    /// What people say of nodes that are away.
    words: BTreeMap<String, away::Word>,
    /// Machines where no allocation says.
    reported: away::Reported,
    /// The last decision by which each desktop was seen to hold something, with its UID.
    held_last: BTreeMap<DesktopKey, (String, AllocationId)>,
    templates: BTreeSet<DesktopKey>,
    templates_seen: BTreeMap<DesktopKey, Spec>,
    profiles_seen: BTreeMap<String, Spec>,
    leases_known: bool,
    nodes_known: bool,
    /// Nothing is placed before nodes that were not heard just before us have said what they have.
    awaits_nodes: bool,
    silent: BTreeSet<String>,
    /// Nodes of which their administrators say that they are off.
    said_off: BTreeSet<String>,
    /// Nodes that are odd.
    odd_nodes: BTreeSet<String>,
    /// Desktops that hold something that cannot be read, and on which node, where that can be.
    unclear: BTreeMap<DesktopKey, Option<String>>,
    /// When what is gone was forgotten last.
    forgotten_at: Option<Instant>,
    /// Desktops of silent nodes of which that was said.
    told: BTreeMap<String, BTreeSet<DesktopKey>>,
}

/// Which spec of an object was seen: its UID and generation. Our own writes of the status do not
/// change it.
type Spec = (Option<String>, Option<i64>);

/// What the estate has of a profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supply {
    /// Shares in use.
    pub in_use: i32,
    /// How many fit.
    pub counts: Counts,
    /// Why not even one more fits, were it asked for by the smallest of machines.
    pub why_none: Option<Explanation>,
}

impl World {
    /// Knows nothing yet.
    pub fn new(stores: Stores, queues: Queues, limits: Limits, key: AllocationKey, metrics: Metrics) -> Self {
        let snapshot = Snapshot::new(limits).followed();
        let cluster = Mutex::new(Cluster { snapshot, ..Cluster::default() });
        Self {
            stores,
            metrics,
            queues,
            cluster,
            thinker: Thinker::new(limits),
            key,
            freed: Notify::new(),
            ask: Notify::new(),
            counted: Notify::new(),
            turns: Notify::new(),
            listed: Notify::new(),
            keep_after: None,
            at_once: Duration::from_millis(2),
        }
    }

    /// Keeps room for those who have waited so long from now on.
    pub fn set_keep_room_after(&mut self, after: Option<Duration>) {
        self.keep_after = after;
    }

    /// Gives everybody a turn at once, however busy the machine is.
    #[cfg(test)]
    pub fn take_time(&mut self) {
        self.at_once = Duration::from_hours(1);
    }

    fn lock(&self) -> MutexGuard<'_, Cluster> {
        // No step leaves the cluster half changed, so a panic elsewhere does not spoil it.
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, cluster: &mut Cluster, change: Change) {
        if change.freed {
            cluster.queue.freed();
            self.freed.notify_one();
        }
        if change.any {
            self.counted.notify_one();
        }
    }

    /// Waits until all nodes and their leases are known: nothing is decided before. For one who waits.
    pub async fn nodes_known(&self) {
        let known = |cluster: &Cluster| cluster.nodes_known && cluster.leases_known;
        while !known(&self.lock()) {
            self.listed.notified().await;
        }
    }

    /// Whether the daemon of a node is heard; `None` before the leases are known, and of a node that is
    /// not there.
    pub fn heard(&self, node: &str) -> Option<Heard> {
        let cluster = self.lock();
        let there = cluster.snapshot.node(node).is_some_and(|state| state.facts.is_some());
        (cluster.leases_known && there).then(|| cluster.liveness.heard(node, !cluster.silent.contains(node)))
    }

    /// Whether a desktop was told that its node is silent, since it is.
    pub fn is_told(&self, node: &str, key: &DesktopKey) -> bool {
        self.lock().told.get(node).is_some_and(|told| told.contains(key))
    }

    /// A desktop was told that its node is silent.
    pub fn tell(&self, node: &str, key: &DesktopKey) {
        self.lock().told.entry(node.to_owned()).or_default().insert(key.clone());
    }

    /// What the desktops of a namespace on these nodes name may be something else now.
    fn access_of(&self, namespace: &str, nodes: [Option<String>; 2]) {
        for node in BTreeSet::from(nodes).into_iter().flatten() {
            let pair = Pair { namespace: namespace.to_owned(), node };
            // A receiver that is gone means that the process ends.
            let _ = self.queues.access.unbounded_send(secret_access::Event::Desktops(pair));
        }
    }

    /// Puts a node into the queue.
    pub fn wake_node(&self, node: &str) {
        // A receiver that is gone means that the process ends.
        let _ = self.queues.nodes.unbounded_send(ObjectRef::new(node));
    }

    /// Puts a desktop into the queue.
    fn wake(&self, key: &DesktopKey) {
        // A receiver that is gone means that the process ends.
        let _ = self.queues.desktops.unbounded_send(ObjectRef::new(&key.name).within(&key.namespace));
    }

    /// Puts every desktop into the queue: what a list says is in the store only once it is complete.
    fn wake_all(&self) {
        self.stores.desktops.state().iter().for_each(|desktop| self.wake(&key_of(desktop)));
    }

    /// What a desktop is defined to ask for, running or not; nothing when it says nothing that can
    /// be. `home` is the node that its disks bind it to.
    pub fn wants(&self, key: &DesktopKey, wanted: Option<&Wanted>, home: Option<String>) {
        let request = wanted.map(|wanted| Request { home, ..wanted.request.clone() });
        self.lock().snapshot.wants(key, request.as_ref());
    }

    /// The Secrets that desktops of a namespace on a node name. One that is being deleted does not start
    /// again and needs none.
    pub fn secrets(&self, namespace: &str, node: &str) -> Named {
        let (held, unclear) = {
            let cluster = self.lock();
            let held = cluster.snapshot.node(node).into_iter().flat_map(|state| state.held.keys());
            let held: Vec<DesktopKey> = held.filter(|key| key.namespace == namespace).cloned().collect();
            let mut unclear = cluster.unclear.iter().filter(|(key, _)| key.namespace == namespace);
            (held, unclear.any(|(_, on)| on.as_deref().is_none_or(|on| on == node)))
        };
        let mut named = Named { secrets: BTreeSet::new(), maybe_more: unclear };
        let desktops = held
            .iter()
            .filter_map(|key| self.stores.desktops.get(&ObjectRef::new(&key.name).within(&key.namespace)))
            .filter(|desktop| desktop.metadata.deletion_timestamp.is_none());
        for desktop in desktops {
            let template = self.stores.template_of(&desktop);
            named.maybe_more |= odd(&*desktop).is_some()
                || template.as_deref().is_some_and(|template| odd(template).is_some());
            named.secrets.extend(secret_name(&desktop, template.as_deref()));
        }
        named
    }

    /// How many desktops name a template, and the first of them.
    pub fn users(&self, template: &DesktopKey, first: usize) -> (usize, Vec<String>) {
        self.lock().index.users(template, first)
    }

    /// What the estate has of a share, and why it has none left.
    pub fn supply(&self, share: &ShareRequest) -> Supply {
        self.thinker.ask(
            || self.lock().snapshot.news(),
            |copy| {
                let counts = copy.count(share);
                let why_none = (counts.placeable == 0).then(|| copy.explain(&Request::smallest(share)));
                Supply { in_use: copy.in_use(&share.profile), counts, why_none }
            },
        )
    }

    /// Shares in use of a profile.
    pub fn in_use(&self, profile: &str) -> i32 {
        self.lock().snapshot.in_use(profile)
    }

    /// Thinks once a second about what takes long. Runs until dropped.
    pub async fn think(self: Arc<Self>) {
        loop {
            let world = self.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || world.think_once()).await {
                tracing::error!(%error, "prices and explanations stay as they are for now");
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Works out prices, and what there is to say beyond counts to those that wait.
    pub(crate) fn think_once(&self) {
        let work = self.lock().snapshot.pricing_work();
        if let Some(list) = work.map(|work| Arc::new(work.solve())) {
            self.lock().snapshot.use_prices(&list);
        }
        self.thinker.think(|| self.lock().snapshot.news()).iter().for_each(|key| self.wake(key));
        self.keep_room();
    }

    /// Has counts of profiles and templates looked at, at most once a second. Runs until dropped.
    pub async fn wake_counts(&self) {
        loop {
            self.counted.notified().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            let templates = std::mem::take(&mut self.lock().templates);
            for key in templates {
                let _ =
                    self.queues.templates.unbounded_send(ObjectRef::new(&key.name).within(&key.namespace));
            }
            for profile in self.stores.profiles.state() {
                let _ = self.queues.profiles.unbounded_send(ObjectRef::from_obj(&*profile));
            }
        }
    }
}

/// The node on which a desktop holds CPUs, seen or decided.
fn node_held(cluster: &Cluster, key: &DesktopKey) -> Option<String> {
    cluster.snapshot.holds(key).map(|allocation| allocation.node.clone())
}

/// Notes what was seen of an object, and says whether its spec is another than before.
fn is_new<Q: Ord>(seen: &mut BTreeMap<Q, Spec>, key: Q, object: &impl ResourceExt, gone: bool) -> bool {
    if gone {
        seen.remove(&key);
        return true;
    }
    let spec = (object.uid(), object.meta().generation);
    seen.insert(key, spec.clone()) != Some(spec)
}
