//! Who names whom: kept by events, so that nobody searches all desktops.

use std::collections::{BTreeMap, BTreeSet};

use gpudesk_crds::Desktop;

use crate::placement::{request::DesktopKey, snapshot::key_of};

/// Desktops by what they name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    names: BTreeMap<DesktopKey, Names>,
    by_template: BTreeMap<DesktopKey, BTreeSet<String>>,
    by_profile: BTreeMap<String, BTreeSet<DesktopKey>>,
    nodes: BTreeMap<DesktopKey, String>,
    by_node: BTreeMap<String, BTreeSet<DesktopKey>>,
}

/// What one desktop names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Names {
    template: String,
    profiles: BTreeSet<String>,
}

impl Index {
    /// A desktop was seen. Says whether it is new or names something else than before.
    pub fn seen(&mut self, desktop: &Desktop) -> bool {
        let key = key_of(desktop);
        self.place(&key, desktop.allocation().map(|allocation| allocation.node.clone()));
        let own = desktop.spec.overrides.as_ref().and_then(|overrides| overrides.gpus.as_ref());
        let names = Names {
            template: desktop.spec.template_ref.name.clone(),
            profiles: own.into_iter().flatten().map(|gpu| gpu.profile_ref.name.clone()).collect(),
        };
        if self.names.get(&key) == Some(&names) {
            return false;
        }
        self.unname(&key);
        let template = DesktopKey::new(&key.namespace, &names.template);
        self.by_template.entry(template).or_default().insert(key.name.clone());
        for profile in &names.profiles {
            self.by_profile.entry(profile.clone()).or_default().insert(key.clone());
        }
        self.names.insert(key, names);
        true
    }

    /// A desktop is gone. Returns the template that it named.
    pub fn gone(&mut self, key: &DesktopKey) -> Option<DesktopKey> {
        self.place(key, None);
        self.unname(key)
    }

    fn place(&mut self, key: &DesktopKey, node: Option<String>) {
        if self.nodes.get(key) == node.as_ref() {
            return;
        }
        if let Some(before) = self.nodes.remove(key)
            && let Some(there) = self.by_node.get_mut(&before)
        {
            there.remove(key);
            if there.is_empty() {
                self.by_node.remove(&before);
            }
        }
        if let Some(node) = node {
            self.by_node.entry(node.clone()).or_default().insert(key.clone());
            self.nodes.insert(key.clone(), node);
        }
    }

    fn unname(&mut self, key: &DesktopKey) -> Option<DesktopKey> {
        let names = self.names.remove(key)?;
        let template = DesktopKey::new(&key.namespace, &names.template);
        if let Some(users) = self.by_template.get_mut(&template) {
            users.remove(&key.name);
            if users.is_empty() {
                self.by_template.remove(&template);
            }
        }
        for profile in &names.profiles {
            if let Some(users) = self.by_profile.get_mut(profile) {
                users.remove(key);
                if users.is_empty() {
                    self.by_profile.remove(profile);
                }
            }
        }
        Some(template)
    }

    /// How many desktops name a template, and the first of them by name.
    pub fn users(&self, template: &DesktopKey, first: usize) -> (usize, Vec<String>) {
        // Who names a template that cannot be read may name this one.
        let any = DesktopKey::new(&template.namespace, "");
        let users = [template, &any].map(|template| self.by_template.get(template));
        let names: Vec<&String> = users.into_iter().flatten().flatten().collect();
        (names.len(), names.into_iter().take(first).cloned().collect())
    }

    /// The desktops that have something on a node, be it only disks.
    pub fn on_node(&self, node: &str) -> impl Iterator<Item = &DesktopKey> {
        self.by_node.get(node).into_iter().flatten()
    }

    /// The desktops that name a template.
    pub fn of_template(&self, template: &DesktopKey) -> Vec<DesktopKey> {
        let users = self.by_template.get(template).into_iter().flatten();
        users.map(|name| DesktopKey::new(&template.namespace, name)).collect()
    }

    /// The desktops that name a profile themselves, in their overrides.
    pub fn of_profile(&self, profile: &str) -> Vec<DesktopKey> {
        self.by_profile.get(profile).into_iter().flatten().cloned().collect()
    }
}
