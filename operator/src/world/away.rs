//! Nodes that are away, and machines that run where no allocation says.
#![expect(clippy::disallowed_methods, reason = "an adapter: it tells the time to pure parts")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use gpudesk_crds::{Allocation, AllocationId, Desktop, GpuNode, gpu_node_status::StrayStanding};
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::{Api, Client, ResourceExt, runtime::reflector::ObjectRef};

use super::{Cluster, DesktopKey, Presence, World, key_of};
use crate::{
    cause,
    desktop::decide::{Around, Found, forgotten},
    understood::holds_unclear,
};

/// How often it is asked whether a Node is out of service, while desktops wait for that.
const ASK_EVERY: Duration = Duration::from_secs(10);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// A node that claimed so many machines by ids that no operator gave is believed no more: tags can be guessed.
const MOST_GUESSES: usize = 1000;

/// What is known of a node that is away and has something of desktops.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Word {
    /// Its Kubernetes node has the taint.
    off: bool,
    /// Its daemon renewed its lease not long ago.
    alive: bool,
    asked: Option<Instant>,
}

/// UID of a desktop, and the decision that a machine of it claims to be for.
type Claimed = (String, Option<AllocationId>);

/// What nodes report of machines that no allocation accounts for.
#[derive(Debug, Default)]
pub(super) struct Reported {
    /// Those that an operator decided, by UID of the desktop and node.
    found: BTreeMap<(String, String), (DesktopKey, Arc<Allocation>)>,
    /// By node, the claims of which that cannot be said, and how many there ever were.
    unproven: BTreeMap<String, (BTreeSet<Claimed>, usize)>,
}

impl World {
    /// What is known around a desktop.
    pub fn around(&self, desktop: &Desktop, keeps_disks: Option<bool>) -> Around {
        let mut around = Around::present(keeps_disks);
        if let Some(allocation) = desktop.allocation() {
            around.node = self.presence(&allocation.node);
            if around.node.is_away() {
                (around.off, around.alive, around.renewed) = self.word(&allocation.node);
            }
        }
        let (key, uid) = (key_of(desktop), desktop.uid().unwrap_or_default());
        let cluster = self.lock();
        around.found = cluster.reported.of(&uid);
        // What was just written is not lost: the watch is about to show it.
        if cluster.snapshot.assumed(&key).is_none() {
            around.remembered = cluster.remembered(&key, &uid);
        }
        around
    }

    /// Whether a node that is away was said to be off, whether its daemon lives all the same, and when that renewed its
    /// lease last. What is not known yet is asked for.
    fn word(&self, node: &str) -> (bool, bool, Option<MicroTime>) {
        let said = self.stores.nodes.get(&ObjectRef::new(node)).is_some_and(|node| node.spec.out_of_service);
        let mut cluster = self.lock();
        let alive = cluster.liveness.is_alive(node, Instant::now());
        let renewed = cluster.liveness.heard(node, alive).last;
        let word = cluster.words.entry(node.to_owned()).or_insert_with(|| {
            self.ask.notify_one();
            Word { alive, ..Word::default() }
        });
        (said || word.off, alive, renewed)
    }

    /// Asks for the Nodes of those that are away and have something of desktops, and wakes these when there is
    /// news. Runs until dropped.
    pub async fn ask_for_nodes(&self, client: Client) {
        loop {
            let _ = tokio::time::timeout(ASK_EVERY, self.ask.notified()).await;
            for node in self.to_ask() {
                let off = is_out_of_service(&client, &node).await;
                self.answered(&node, off);
            }
        }
    }

    fn to_ask(&self) -> Vec<String> {
        let mut cluster = self.lock();
        let now = Instant::now();
        let Cluster { words, index, missing, silent, .. } = &mut *cluster;
        words.retain(|node, _| {
            (missing.contains_key(node) || silent.contains(node)) && index.on_node(node).next().is_some()
        });
        let due =
            |word: &Word| word.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= ASK_EVERY);
        words.iter().filter(|(_, word)| due(word)).map(|(node, _)| node.clone()).collect()
    }

    /// It is known whether a Node is out of service.
    pub(crate) fn answered(&self, node: &str, off: bool) {
        let mut cluster = self.lock();
        let now = Instant::now();
        let alive = cluster.liveness.is_alive(node, now);
        let Cluster { words, index, .. } = &mut *cluster;
        let Some(word) = words.get_mut(node) else { return };
        let before = std::mem::replace(word, Word { off, alive, asked: Some(now) });
        if (before.off, before.alive) != (off, alive) {
            tracing::info!(node, out_of_service = off, heard = alive, "of a node that is away");
            index.on_node(node).for_each(|desktop| self.wake(desktop));
        }
    }

    /// Takes in what a node reports of machines that no allocation accounts for, or that it reports nothing more.
    pub(super) fn take_in_reports(&self, cluster: &mut Cluster, name: &str, node: Option<&GpuNode>) {
        let strays = node.and_then(|node| node.status.as_ref()).map(|status| status.strays.as_slice());
        let mut found = BTreeMap::new();
        let mut unproven = BTreeSet::new();
        for stray in strays.unwrap_or_default() {
            let Some(allocation) = stray.allocation.as_deref() else { continue };
            if !matches!(stray.standing, StrayStanding::Newer | StrayStanding::Unallocated) {
                continue;
            }
            let here = allocation.node == name && allocation.compute.is_some();
            if here && self.key.is_authentic(&stray.uid, allocation) {
                let key = DesktopKey::new(&stray.namespace, &stray.name);
                found.insert((stray.uid.clone(), name.to_owned()), (key, Arc::new(allocation.clone())));
            } else {
                unproven.insert((stray.uid.clone(), allocation.id));
            }
        }
        let reported = &mut cluster.reported;
        if node.is_some() {
            let (before, ever) = reported.unproven.entry(name.to_owned()).or_default();
            for (uid, id) in unproven.difference(before) {
                *ever += 1;
                self.metrics.unproven();
                let id = id.map_or_else(|| "none".to_owned(), |id| id.to_string());
                tracing::warn!(
                    node = name,
                    uid,
                    id,
                    "a machine of a desktop is reported by an id that no operator of this cluster is known to have given: it is left to the administrator of the node"
                );
            }
            *before = unproven;
            if *ever > MOST_GUESSES {
                found.clear();
            }
        }
        let of_node = |(_, node): &(String, String)| node == name;
        let before: BTreeMap<_, _> = reported
            .found
            .iter()
            .filter(|(at, _)| of_node(at))
            .map(|(at, what)| (at.clone(), what.clone()))
            .collect();
        if before == found {
            return;
        }
        reported.found.retain(|at, _| !of_node(at));
        before.values().chain(found.values()).for_each(|(desktop, _)| self.wake(desktop));
        reported.found.extend(found);
    }

    /// Counts what a desktop is given back, until the watch shows it; not where the desktop is another by now.
    pub fn give_back(&self, desktop: &Desktop, allocation: &Arc<Allocation>) -> bool {
        let key = key_of(desktop);
        let now = self.stores.desktops.get(&ObjectRef::new(&key.name).within(&key.namespace));
        if now.is_none_or(|now| now.metadata.resource_version != desktop.metadata.resource_version) {
            return false;
        }
        let mut cluster = self.lock();
        let change = cluster.snapshot.take(&key, allocation);
        self.changed(&mut cluster, change);
        true
    }
}

impl Reported {
    fn of(&self, uid: &str) -> Vec<Found> {
        let from = (uid.to_owned(), String::new());
        let of = self.found.range(from..).take_while(|((of, _), _)| of == uid);
        of.map(|((_, node), (_, allocation))| Found { node: node.clone(), allocation: allocation.clone() })
            .collect()
    }
}

impl Cluster {
    /// The decision by which a desktop was seen to hold something last.
    pub(super) fn remembered(&self, key: &DesktopKey, uid: &str) -> Option<AllocationId> {
        self.held_last.get(key).filter(|(of, _)| of == uid).map(|(_, id)| *id)
    }

    /// Notes by which decision a desktop holds something.
    pub(super) fn note_held(&mut self, key: &DesktopKey, desktop: &Desktop, id: Option<AllocationId>) {
        let uid = desktop.uid().unwrap_or_default();
        let remembered = self.remembered(key, &uid);
        if let Some(id) = id.filter(|id| Some(*id) > remembered) {
            self.held_last.insert(key.clone(), (uid, id));
        }
    }

    /// Notes by which decision a desktop holds something; says whether it still holds more than its status tells.
    pub(super) fn holds_untold(&mut self, key: &DesktopKey, desktop: &Desktop) -> bool {
        let uid = desktop.uid().unwrap_or_default();
        let remembered = self.remembered(key, &uid);
        let held = desktop.allocation().filter(|allocation| allocation.compute.is_some());
        self.note_held(key, desktop, held.and_then(|held| held.id));
        holds_unclear(desktop).is_none() && forgotten(desktop, remembered).is_some()
    }
}

async fn is_out_of_service(client: &Client, node: &str) -> bool {
    match Api::<Node>::all(client.clone()).get_opt(node).await {
        Ok(object) => {
            let taints = object.and_then(|node| node.spec?.taints).unwrap_or_default();
            taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
        }
        // No answer is no word.
        Err(error) => {
            tracing::warn!(node, error = %cause::of_request(&error), "whether the Node is out of service cannot be read");
            false
        }
    }
}

impl World {
    /// A node is missing since so long ago.
    #[cfg(test)]
    pub(crate) fn missing_for(&self, node: &str, time: Duration) {
        let since = Instant::now().checked_sub(time).unwrap();
        self.lock().missing.insert(node.to_owned(), since);
    }

    /// The lease of a node is over.
    #[cfg(test)]
    pub(crate) fn let_lapse(&self, node: &str) {
        self.lock().liveness.let_lapse(node);
        self.tick();
    }

    /// Whether a node is there.
    pub fn presence(&self, node: &str) -> Presence {
        if self.stores.nodes.get(&ObjectRef::new(node)).is_some() {
            let silent = self.heard(node).is_some_and(|heard| !heard.heard);
            return if silent { Presence::Silent } else { Presence::Present };
        }
        let now = Instant::now();
        let since = *self.lock().missing.entry(node.to_owned()).or_insert(now);
        if now.saturating_duration_since(since) >= super::NODE_LOST_AFTER {
            Presence::Lost
        } else {
            Presence::Missing
        }
    }
}
