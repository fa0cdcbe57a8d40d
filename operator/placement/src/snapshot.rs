//! The estate as placement sees it: kept by events, equal to one that is built from the objects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gpudesk_crds::{Allocation, Desktop, GpuNode};

use crate::{facts::NodeFacts, occupancy::NodeUse, request::DesktopKey};

/// Nodes, what is taken on them, and what was decided but not yet seen (*assumed*).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    nodes: BTreeMap<String, Arc<NodeState>>,
    desktops: BTreeMap<DesktopKey, Known>,
    silent: BTreeSet<String>,
}

/// One node: what it offers and what is taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeState {
    /// What it offers; absent when desktops hold something there and its object is gone.
    pub facts: Option<NodeFacts>,
    /// Who holds what there.
    pub held: BTreeMap<DesktopKey, Arc<Allocation>>,
    /// The sum of it.
    pub used: NodeUse,
}

/// The nodes at one moment, to look at without holding up events.
#[derive(Clone, Debug, Default)]
pub struct View {
    nodes: Vec<Arc<NodeState>>,
    silent: BTreeSet<String>,
}

impl View {
    /// The nodes that exist, by name.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeFacts, &NodeState)> + Clone {
        self.nodes.iter().filter_map(|state| Some((state.facts.as_ref()?, &**state)))
    }

    /// Whether a node has not renewed its lease.
    pub fn is_silent(&self, name: &str) -> bool {
        self.silent.contains(name)
    }
}

/// What is known of a desktop.
#[derive(Clone, Debug, Default, PartialEq)]
struct Known {
    /// Version of the object last seen.
    resource_version: String,
    /// What it holds by that version.
    seen: Option<Arc<Allocation>>,
    /// What was decided on top of that version.
    assumed: Option<Assumed>,
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
    /// A node was seen.
    pub fn node_seen(&mut self, node: &GpuNode) -> Change {
        let facts = NodeFacts::read(node);
        let name = facts.name.clone();
        if self.nodes.get(&name).is_some_and(|state| state.facts.as_ref() == Some(&facts)) {
            return Change::default();
        }
        self.change(&name, |state| state.facts = Some(facts));
        Change { freed: true, any: true }
    }

    /// A node's object is gone. What desktops hold there stays theirs until they are released.
    pub fn node_gone(&mut self, name: &str) -> Change {
        if self.nodes.get(name).is_none_or(|state| state.facts.is_none()) {
            return Change::default();
        }
        self.change(name, |state| state.facts = None);
        Change { freed: false, any: true }
    }

    /// Which nodes have not renewed their lease.
    pub fn set_silent(&mut self, silent: BTreeSet<String>) -> Change {
        let freed = self.silent.iter().any(|node| !silent.contains(node));
        let any = self.silent != silent;
        self.silent = silent;
        Change { freed, any }
    }

    /// A desktop was seen. A version other than the one that an assumption was made for ends the
    /// assumption: either the write succeeded and is in what is seen now, or another write came
    /// first and the guarded one can never succeed.
    pub fn desktop_seen(&mut self, desktop: &Desktop) -> Change {
        let key = key_of(desktop);
        let resource_version = desktop.metadata.resource_version.clone().unwrap_or_default();
        let seen = desktop
            .status
            .as_ref()
            .and_then(|status| status.allocation.as_ref())
            .filter(|allocation| allocation.compute.is_some())
            .map(|allocation| Arc::new(allocation.clone()));
        let old = self.desktops.get(&key).cloned().unwrap_or_default();
        let assumed = old.assumed.clone().filter(|_| old.resource_version == resource_version);
        let seen = match &old.seen {
            // Keeps one copy of what has not changed.
            Some(same) if seen.as_deref() == Some(&**same) => Some(same.clone()),
            _ => seen,
        };
        self.replace(&key, Some(Known { resource_version, seen, assumed }))
    }

    /// A desktop is gone.
    pub fn desktop_gone(&mut self, key: &DesktopKey) -> Change {
        self.replace(key, None)
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
            Some(known) if known.resource_version == resource_version => {
                let assumed = Assumed { allocation: allocation.clone(), written: false };
                let known = Known { assumed: Some(assumed), ..known.clone() };
                Ok(self.replace(key, Some(known)))
            }
            _ => Err(Stale),
        }
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

    /// The nodes as they are now.
    pub fn view(&self) -> View {
        View { nodes: self.nodes.values().cloned().collect(), silent: self.silent.clone() }
    }

    /// Names of the nodes that exist.
    pub fn node_names(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter(|(_, state)| state.facts.is_some()).map(|(name, _)| name.as_str())
    }

    /// A node by name, existing or not.
    pub fn node(&self, name: &str) -> Option<&NodeState> {
        self.nodes.get(name).map(|state| &**state)
    }

    /// Shares in use of a profile.
    pub fn in_use(&self, profile: &str) -> i32 {
        self.nodes.values().filter_map(|state| state.used.profiles.get(profile)).sum()
    }

    fn replace(&mut self, key: &DesktopKey, known: Option<Known>) -> Change {
        let after = known.as_ref().and_then(Known::counts).cloned();
        let old = match known {
            Some(known) => self.desktops.insert(key.clone(), known),
            None => self.desktops.remove(key),
        };
        let before = old.as_ref().and_then(Known::counts).cloned();
        if before == after {
            return Change::default();
        }
        if let Some(before) = &before {
            self.change(&before.node, |state| {
                state.held.remove(key);
            });
        }
        if let Some(after) = after {
            let node = after.node.clone();
            self.change(&node, |state| {
                state.held.insert(key.clone(), after);
            });
        }
        Change { freed: before.is_some(), any: true }
    }

    fn change(&mut self, node: &str, change: impl FnOnce(&mut NodeState)) {
        let state = self.nodes.entry(node.to_owned()).or_default();
        let state = Arc::make_mut(state);
        change(state);
        state.used = match &state.facts {
            Some(facts) => NodeUse::of(facts, &state.held, None),
            None => NodeUse::default(),
        };
        if state.facts.is_none() && state.held.is_empty() {
            self.nodes.remove(node);
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
