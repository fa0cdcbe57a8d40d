//! Who else gives cards of gpudesk to pods: drivers of Dynamic Resource Allocation by `ResourceSlices`, device plugins by
//! the resources of a Node. The operator says so in the condition `CardsUnpublished` of the `GpuNode`, and taints published
//! devices where the cluster has `DeviceTaintRules`.
//!
//! ```text
//!  ResourceSlices ──▶ slices: node, driver, pool, device, PCI address ─┐
//!  Nodes, one by one every five minutes ──▶ resources of GPUs ─────────┼─▶ judge ─▶ condition
//!  GpuNode.status and rules of its owner: which cards are managed ─────┘      └───▶ rules ─▶ DeviceTaintRules
//! ```
//!
//! Of a slice nothing is kept but that, and only of devices with a PCI address: 100 bytes each. `slices` and `judge` are pure.
//!
//! A node's driver may write slices of its own node alone, but name in them any pool and any device. So only devices of pools
//! to which no other node belongs are tainted, and of each node only so many.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::core::ApiResource;
use tokio::time::Instant;

pub mod judge;
pub mod rules;
pub mod slices;
mod watch;

#[cfg(test)]
mod bounds_tests;
#[cfg(test)]
mod tests;

pub use watch::watch_all;

/// How long no rule of a node is made after rules of it were taken away because a pool was not its own any more; twice as long
/// each time that it is so again soon, for else another node could have them written all the time.
const PAUSE: Duration = Duration::from_mins(5);
/// The longest of them, after which the next is short again.
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// A device that a driver publishes on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Published {
    /// The driver.
    pub driver: String,
    /// Its pool.
    pub pool: String,
    /// The device in it.
    pub device: String,
    /// Its PCI address.
    pub address: gpudesk_crds::types::PciAddress,
}

/// How far something is seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sight {
    /// Nobody has looked yet.
    #[default]
    NotYet,
    /// The cluster has no such API.
    Unserved,
    /// It cannot be read; why.
    Unread(String),
    /// All of it.
    Whole,
}

/// What is known of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// How far slices are seen.
    pub slices: Sight,
    /// What is published there.
    pub published: Vec<Published>,
    /// How far the Node is seen.
    pub node: Sight,
    /// Its resources that stand for GPUs and are not 0, with their amounts as the Node has them.
    pub resources: BTreeMap<String, String>,
    /// Those pools of what is published there of which all slices are of this node.
    pub alone: BTreeSet<Pool>,
    /// The names of rules of this node that taint devices as they should; `None` while none are made, or not all are known.
    pub rules: Option<BTreeSet<String>>,
    /// The code with which the API server refused a rule of this node the last time.
    pub refused: Option<u16>,
    /// How long no rule of this node is made, counted from when rules of it were taken away; `None` when they are.
    pub pause: Option<Duration>,
}

/// While it lasts no rule of a node is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pause {
    until: Instant,
    length: Duration,
}

/// A rule of ours, as the watch shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    /// The `GpuNode` that it belongs to.
    node: String,
    /// It taints a device as we do, and is not about to go.
    sound: bool,
}

/// A driver and a pool of it.
pub type Pool = (String, String);

/// Devices by node.
type Devices = BTreeMap<String, Vec<Published>>;

/// What is known of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The pool that it is a part of.
    pub pool: Pool,
    /// The one node that all of it is of, where it says so.
    pub node: Option<String>,
    /// What it publishes.
    pub devices: Devices,
}

#[derive(Debug, Default)]
struct Inner {
    slices: Sight,
    /// By the name of the slice.
    published: BTreeMap<String, Slice>,
    /// By pool and node, the names of slices, whether or not they publish anything of which something is kept.
    pools: BTreeMap<Pool, BTreeMap<Option<String>, BTreeSet<String>>>,
    /// Names of slices by node.
    by_node: BTreeMap<String, BTreeSet<String>>,
    /// By node, how far it is seen and what it has.
    nodes: BTreeMap<String, (Sight, BTreeMap<String, String>)>,
    /// The API of the rules, once all that are there are known.
    rules_api: Option<ApiResource>,
    rules: BTreeMap<String, Rule>,
    /// Names of rules that are being made, or were and the watch has not shown them yet.
    made: BTreeSet<String>,
    /// The API server's last refusal of a rule, which is logged once.
    refused: Option<String>,
    /// By node, the code of the last refusal of a rule of it, until a round goes without one.
    refusals: BTreeMap<String, u16>,
    /// Nodes of which a refusal is new.
    news: BTreeSet<String>,
    /// The last pause of each node, until it is long over.
    pauses: BTreeMap<String, Pause>,
}

impl Inner {
    /// The node that all slices of a pool are of, where there is one.
    fn alone(&self, pool: &Pool) -> Option<&str> {
        let nodes = self.pools.get(pool)?;
        let node = nodes.keys().next().filter(|_| nodes.len() == 1)?;
        node.as_deref()
    }

    /// The same for several pools.
    fn each_alone(&self, pools: &BTreeSet<Pool>) -> Vec<Option<String>> {
        pools.iter().map(|pool| self.alone(pool).map(str::to_owned)).collect()
    }

    /// Whether no rule of a node is made now. `taken`: rules of it stand for a pool that is not its own any more.
    fn pauses(&mut self, node: &str, taken: bool, now: Instant) -> bool {
        self.pauses.retain(|_, pause| now < pause.until + LONGEST_PAUSE);
        let last = self.pauses.get(node).copied();
        if last.is_some_and(|last| now < last.until) {
            return true;
        }
        if taken {
            let length = last.map_or(PAUSE, |last| (last.length * 2).min(LONGEST_PAUSE));
            self.pauses.insert(node.to_owned(), Pause { until: now + length, length });
        }
        taken
    }

    fn join_pool(&mut self, name: &str, slice: &Slice) {
        let nodes = self.pools.entry(slice.pool.clone()).or_default();
        nodes.entry(slice.node.clone()).or_default().insert(name.to_owned());
    }

    fn leave_pool(&mut self, name: &str, slice: &Slice) {
        let Some(nodes) = self.pools.get_mut(&slice.pool) else { return };
        if let Some(names) = nodes.get_mut(&slice.node) {
            names.remove(name);
        }
        nodes.retain(|_, names| !names.is_empty());
        if nodes.is_empty() {
            self.pools.remove(&slice.pool);
        }
    }
}

/// What is known of all nodes.
#[derive(Debug)]
pub struct OtherOwners {
    /// Whether devices are to be tainted.
    taints: bool,
    inner: Mutex<Inner>,
}

impl OtherOwners {
    /// Nothing yet. `taints`: published devices are tainted where that can be.
    pub fn new(taints: bool) -> Self {
        Self { taints, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a node.
    pub fn known(&self, node: &str) -> Known {
        let inner = self.lock();
        let names = inner.by_node.get(node).into_iter().flatten();
        let slices: Vec<&Slice> = names.filter_map(|name| inner.published.get(name)).collect();
        let published = slices.iter().filter_map(|slice| slice.devices.get(node)).flatten();
        let alone = slices.iter().map(|slice| &slice.pool).filter(|pool| inner.alone(pool) == Some(node));
        let rules = inner.rules.iter().filter(|(_, rule)| rule.node == node && rule.sound);
        let (sight, resources) = inner.nodes.get(node).cloned().unwrap_or_default();
        Known {
            slices: inner.slices.clone(),
            published: published.cloned().collect(),
            node: sight,
            resources,
            alone: alone.cloned().collect(),
            rules: inner.rules_api.is_some().then(|| rules.map(|(name, _)| name.clone()).collect()),
            refused: inner.refusals.get(node).copied(),
            pause: inner
                .pauses
                .get(node)
                .filter(|pause| Instant::now() < pause.until)
                .map(|pause| pause.length),
        }
    }

    /// For how long no rule of a node is made, where that is so.
    pub fn pause_left(&self, node: &str) -> Option<Duration> {
        let until = self.lock().pauses.get(node)?.until;
        Some(until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }

    /// Sets how far slices are seen; says whether that is new.
    fn see_slices(&self, sight: Sight) -> bool {
        let mut inner = self.lock();
        let new = inner.slices != sight;
        inner.slices = sight;
        new
    }

    /// A slice publishes this, or is gone. Returns the nodes of which something else is known than before.
    fn slice(&self, name: &str, now: Option<Slice>) -> BTreeSet<String> {
        let mut inner = self.lock();
        let before = inner.published.remove(name);
        let pools: BTreeSet<Pool> = before.iter().chain(&now).map(|slice| slice.pool.clone()).collect();
        let alone = inner.each_alone(&pools);
        if let Some(slice) = &before {
            inner.leave_pool(name, slice);
        }
        if let Some(slice) = &now {
            inner.join_pool(name, slice);
        }
        let none = Devices::new();
        let was = before.as_ref().map_or(&none, |slice| &slice.devices);
        let is = now.as_ref().map_or(&none, |slice| &slice.devices);
        let differs = |node: &&String| was.get(*node) != is.get(*node);
        let mut changed: BTreeSet<String> = was.keys().chain(is.keys()).filter(differs).cloned().collect();
        for node in &changed {
            let slices = inner.by_node.entry(node.clone()).or_default();
            if is.contains_key(node) {
                slices.insert(name.to_owned());
            } else {
                slices.remove(name);
            }
            if slices.is_empty() {
                inner.by_node.remove(node);
            }
        }
        let pairs = alone.into_iter().zip(inner.each_alone(&pools));
        changed.extend(pairs.filter(|(was, is)| was != is).flat_map(|(was, is)| was.into_iter().chain(is)));
        if let Some(slice) = now {
            inner.published.insert(name.to_owned(), slice);
        }
        changed
    }

    /// Slices that are not among `listed` are gone.
    fn only_slices(&self, listed: &BTreeSet<String>) -> BTreeSet<String> {
        let gone: Vec<String> =
            self.lock().published.keys().filter(|name| !listed.contains(*name)).cloned().collect();
        gone.iter().flat_map(|name| self.slice(name, None)).collect()
    }

    /// What a Node has, or why that cannot be read; says whether that is new.
    fn node(&self, name: &str, read: Result<BTreeMap<String, String>, String>) -> bool {
        let mut inner = self.lock();
        let entry = inner.nodes.entry(name.to_owned()).or_default();
        let now = match read {
            Ok(resources) => (Sight::Whole, resources),
            Err(why) => (Sight::Unread(why), entry.1.clone()),
        };
        let new = *entry != now;
        *entry = now;
        new
    }

    /// Nodes that are not among `there` are forgotten.
    fn only_nodes(&self, there: &BTreeSet<String>) {
        let mut inner = self.lock();
        inner.nodes.retain(|name, _| there.contains(name));
        inner.refusals.retain(|name, _| there.contains(name));
    }

    /// Those nodes of which there is news that no watch shows.
    fn take_news(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.lock().news)
    }

    /// The rules are all known, or there are none to be known.
    fn rules_known(&self, api: Option<ApiResource>) -> bool {
        let mut inner = self.lock();
        let new = inner.rules_api != api;
        if api.is_none() {
            inner.rules.clear();
            inner.made.clear();
            inner.refusals.clear();
        }
        inner.rules_api = api;
        new
    }

    /// A rule is there or gone; returns the node that it belongs to, or belonged to.
    fn rule(&self, name: &str, now: Option<Rule>) -> Option<String> {
        let mut inner = self.lock();
        let made = inner.made.remove(name);
        let before = inner.rules.get(name).cloned();
        if before == now && !made {
            return None;
        }
        match now {
            Some(rule) => {
                let node = rule.node.clone();
                inner.rules.insert(name.to_owned(), rule);
                Some(node)
            }
            None => inner.rules.remove(name).map(|rule| rule.node),
        }
    }

    /// Rules that are not among `listed` are gone.
    fn only_rules(&self, listed: &BTreeSet<String>) {
        let mut inner = self.lock();
        inner.rules.retain(|name, _| listed.contains(name));
        inner.made.clear();
    }
}
