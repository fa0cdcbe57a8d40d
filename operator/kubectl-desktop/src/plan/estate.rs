//! What a plan is made for: machines, profiles, templates and desktops, from a cluster, from host files
//! and from manifests, laid over each other in this order. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use gpudesk_crds::{Desktop, DesktopTemplate, GpuNode, GpuProfile};
use gpudesk_inventory::layout;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    hosts::{self, PlannedHost},
    manifest::{Manifests, Object, Origin},
    order::held,
};
use crate::{
    desktop::validate::{Referenced, profile_names},
    node_liveness,
    placement::request::DesktopKey,
};

/// A desktop and where it was found.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The desktop.
    pub desktop: Arc<Desktop>,
    /// Its manifest; absent for one that only the cluster has.
    pub origin: Option<Origin>,
}

/// Everything that a plan looks at.
#[derive(Clone, Debug, Default)]
pub struct Estate {
    /// Machines by name.
    pub nodes: BTreeMap<String, GpuNode>,
    /// Profiles by name.
    pub profiles: BTreeMap<String, Arc<GpuProfile>>,
    /// Templates by namespace and name.
    pub templates: BTreeMap<DesktopKey, Arc<DesktopTemplate>>,
    /// Desktops in the order in which they appeared.
    pub desktops: Vec<Entry>,
    /// What a reader should know: what was left out or taken as read.
    pub notes: Vec<String>,
    hosts: BTreeMap<String, PlannedHost>,
    origins: BTreeMap<(&'static str, String), Origin>,
    places: BTreeMap<DesktopKey, usize>,
}

/// The key of an object that has a namespace.
fn key(metadata: &ObjectMeta) -> DesktopKey {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    DesktopKey { namespace: text(&metadata.namespace), name: text(&metadata.name) }
}

impl Estate {
    /// The estate that a cluster has. Desktops are in the order of their names.
    pub fn of_cluster(
        nodes: Vec<GpuNode>,
        profiles: Vec<GpuProfile>,
        templates: Vec<DesktopTemplate>,
        mut desktops: Vec<Desktop>,
    ) -> Self {
        desktops.sort_by_key(|desktop| key(&desktop.metadata));
        let name = |metadata: &ObjectMeta| metadata.name.clone().unwrap_or_default();
        let mut estate = Self {
            nodes: nodes.into_iter().map(|node| (name(&node.metadata), node)).collect(),
            profiles: profiles
                .into_iter()
                .map(|profile| (name(&profile.metadata), Arc::new(profile)))
                .collect(),
            templates: templates.into_iter().map(|t| (key(&t.metadata), Arc::new(t))).collect(),
            ..Self::default()
        };
        for desktop in desktops {
            estate.desktop(desktop, None);
        }
        estate
    }

    /// Adds a machine that a host file describes.
    ///
    /// # Errors
    /// When there is a machine of this name already.
    pub fn add_host(&mut self, file: &str, host: PlannedHost) -> Result<(), String> {
        if self.nodes.contains_key(&host.name) {
            return Err(format!(
                "{file}: there is a GpuNode {} already; a host file makes a new one: give the file another name",
                host.name
            ));
        }
        self.nodes.insert(host.name.clone(), hosts::node(&host, None));
        self.hosts.insert(host.name.clone(), host);
        Ok(())
    }

    /// Lays manifests over what is there: new objects beside it, changed ones in its place. What a
    /// manifest does not say of an object that is there (its status, say) stays.
    ///
    /// # Errors
    /// What is wrong with the manifests, a sentence each.
    pub fn lay(&mut self, manifests: Manifests) -> Result<(), Vec<String>> {
        let Manifests { objects, ignored, notes, mut faults } = manifests;
        self.notes.extend(notes);
        for (kind, count) in ignored {
            let what = if count == 1 { "object" } else { "objects" };
            self.notes.push(format!("{count} {what} of kind {kind} left out: no kind of gpudesk"));
        }
        for (origin, object) in objects {
            if let Err(fault) = self.lay_one(&origin, object) {
                faults.push(fault);
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    fn lay_one(&mut self, origin: &Origin, object: Object) -> Result<(), String> {
        let name = |metadata: &ObjectMeta| metadata.name.clone().unwrap_or_default();
        let (kind, full_name) = match &object {
            Object::Node(node) => ("GpuNode", name(&node.metadata)),
            Object::Profile(profile) => ("GpuProfile", name(&profile.metadata)),
            Object::Template(template) => ("DesktopTemplate", key(&template.metadata).to_string()),
            Object::Desktop(desktop) => ("Desktop", key(&desktop.metadata).to_string()),
        };
        match self.origins.get(&(kind, full_name.clone())) {
            // A file that was given twice.
            Some(earlier) if earlier == origin => return Ok(()),
            Some(earlier) => {
                return Err(format!(
                    "{origin} ({kind} {full_name}): the same object stands in {earlier}; leave one out"
                ));
            }
            None => self.origins.insert((kind, full_name), origin.clone()),
        };
        match object {
            Object::Node(node) => self.node(name(&node.metadata), *node),
            Object::Profile(profile) => {
                self.profiles.insert(name(&profile.metadata), Arc::from(profile));
            }
            Object::Template(template) => {
                let key = key(&template.metadata);
                let mut template = *template;
                if let Some(before) = self.templates.get(&key) {
                    template.metadata.generation =
                        template.metadata.generation.or(before.metadata.generation);
                    if before.spec != template.spec {
                        let note = "changed: desktops that run keep what they have until their next start";
                        self.notes.push(format!("DesktopTemplate {key} {note}"));
                    }
                }
                self.templates.insert(key, Arc::new(template));
            }
            Object::Desktop(desktop) => {
                let key = key(&desktop.metadata);
                let before = self.places.get(&key).and_then(|place| self.desktops.get(*place));
                let before = before.map(|entry| entry.desktop.clone());
                let desktop = match before {
                    Some(before) => {
                        if held(&before).is_some() && before.spec != desktop.spec {
                            let note = "changed: it keeps what it has until its next start";
                            self.notes.push(format!("Desktop {key} {note}"));
                        }
                        over(&before, *desktop, origin)?
                    }
                    None => *desktop,
                };
                self.desktop(desktop, Some(origin.clone()));
            }
        }
        Ok(())
    }

    fn node(&mut self, name: String, mut node: GpuNode) {
        if let Some(host) = self.hosts.get(&name) {
            node = hosts::node(host, Some(&node));
        } else if node.status.is_none() {
            let before = self.nodes.get(&name);
            node.status = before.and_then(|before| before.status.clone());
            lay_out(&mut node);
            if let Some(labels) = before.and_then(|before| before.metadata.labels.clone()) {
                let own = node.metadata.labels.take().unwrap_or_default();
                node.metadata.labels = Some(labels.into_iter().chain(own).collect());
            }
            if node.status.is_none() {
                return self.notes.push(format!(
                    "GpuNode {name} left out: it has no status, and no host file describes a machine of this name"
                ));
            }
        }
        let cards = node.status.iter().flat_map(|status| &status.devices);
        let without_places = cards.clone().filter(|card| card.layout.is_empty()).filter(|card| {
            node.spec.rule_for(card, cards.clone()).is_some_and(|rule| rule.policy.layout.is_some())
        });
        for card in without_places {
            let why = card.unavailable.as_deref().unwrap_or("its layout is not planned");
            self.notes.push(format!("GpuNode {name}: the card at {}: {why}", card.pci_address));
        }
        self.nodes.insert(name, node);
    }

    fn desktop(&mut self, desktop: Desktop, origin: Option<Origin>) {
        let key = key(&desktop.metadata);
        let entry = Entry { desktop: Arc::new(desktop), origin };
        if let Some(place) = self.places.get(&key).and_then(|place| self.desktops.get_mut(*place)) {
            *place = entry;
        } else {
            self.places.insert(key, self.desktops.len());
            self.desktops.push(entry);
        }
    }

    /// Nodes of which the operator says that their daemon is silent.
    pub fn silent(&self) -> BTreeSet<String> {
        let silent = self.nodes.iter().filter(|(_, node)| node_liveness::said_silent(node));
        silent.map(|(name, _)| name.clone()).collect()
    }

    /// The manifest of a profile.
    pub fn origin_of_profile(&self, name: &str) -> Option<&Origin> {
        self.origins.get(&("GpuProfile", name.to_owned()))
    }

    /// A desktop by name.
    pub fn find(&self, key: &DesktopKey) -> Option<&Entry> {
        self.desktops.get(*self.places.get(key)?)
    }

    /// What a desktop names, as far as it is there.
    pub fn referenced(&self, desktop: &Desktop) -> Referenced {
        let namespace = desktop.metadata.namespace.clone().unwrap_or_default();
        let template =
            self.templates.get(&DesktopKey::new(&namespace, &desktop.spec.template_ref.name)).cloned();
        let names = template.as_ref().map(|template| profile_names(desktop, template)).unwrap_or_default();
        let profiles = names
            .into_iter()
            .filter_map(|name| Some((name.clone(), self.profiles.get(&name)?.clone())))
            .collect();
        Referenced { template, profiles }
    }
}

/// Plans the layouts of its cards as its daemon would.
fn lay_out(node: &mut GpuNode) {
    let Some(status) = &mut node.status else { return };
    let before = status.devices.clone();
    for (card, said) in layout::plan_all(&node.spec, &mut status.devices, &before) {
        if let (Some(card), Err(why)) = (status.devices.get_mut(card), said) {
            card.unavailable = Some(why);
        }
    }
}

/// A desktop that is there, with what its manifest says of it.
fn over(before: &Desktop, manifest: Desktop, origin: &Origin) -> Result<Desktop, String> {
    let (old, new) = (&before.spec.template_ref.name, &manifest.spec.template_ref.name);
    if old != new {
        return Err(format!(
            "{origin} (Desktop {}): spec.templateRef.name is {new:?}, and {old:?} in the cluster; templateRef cannot \
             be changed: write {old:?}, or give the desktop another name",
            key(&before.metadata)
        ));
    }
    let merged = |old: &Option<BTreeMap<String, String>>, new: Option<BTreeMap<String, String>>| {
        let all = old.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).chain(new.into_iter().flatten());
        Some(all.collect::<BTreeMap<String, String>>()).filter(|all| !all.is_empty())
    };
    let mut metadata = before.metadata.clone();
    metadata.labels = merged(&before.metadata.labels, manifest.metadata.labels);
    metadata.annotations = merged(&before.metadata.annotations, manifest.metadata.annotations);
    Ok(Desktop { metadata, spec: manifest.spec, status: manifest.status.or_else(|| before.status.clone()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::schema::Schemas;

    fn manifests(text: &str) -> Manifests {
        let mut manifests = Manifests::default();
        manifests.read("room.yaml", text, "default", &Schemas::default());
        assert_eq!(manifests.faults, Vec::<String>::new());
        manifests
    }

    fn desktop(name: &str, rest: &str) -> String {
        format!(
            "---\napiVersion: gpudesk.dev/v1alpha1\nkind: Desktop\nmetadata: {{name: {name}}}\nspec: {{templateRef: {{name: office}}{rest}}}\n"
        )
    }

    fn laid(first: &str, second: &str) -> (Estate, Result<(), Vec<String>>) {
        let mut cluster = Estate::default();
        cluster.lay(manifests(first)).unwrap();
        let desktops = cluster.desktops.iter().map(|entry| (*entry.desktop).clone()).collect();
        let mut estate = Estate::of_cluster(cluster.nodes.into_values().collect(), vec![], vec![], desktops);
        let result = estate.lay(manifests(second));
        (estate, result)
    }

    #[test]
    fn a_changed_desktop_keeps_its_place_and_what_the_manifest_does_not_say() {
        let held = "status: {addresses: [10.0.0.9]}\n";
        let first = format!("{}{held}{}", desktop("anna", ""), desktop("ben", ""));
        let (estate, result) =
            laid(&first, &format!("{}{}", desktop("zoe", ""), desktop("anna", ", priority: 9")));
        result.unwrap();
        let names: Vec<_> = estate.desktops.iter().map(|entry| key(&entry.desktop.metadata).name).collect();
        assert_eq!(names, ["anna", "ben", "zoe"]);
        assert_eq!(estate.desktops[0].desktop.spec.priority, 9);
        assert_eq!(estate.desktops[0].desktop.status.as_ref().unwrap().addresses, ["10.0.0.9"]);
        assert!(estate.desktops[0].origin.is_some() && estate.desktops[1].origin.is_none());
        assert!(estate.notes.is_empty(), "it holds no place: {:?}", estate.notes);
    }

    #[test]
    fn another_template_for_a_desktop_that_is_there_is_refused() {
        let other = desktop("anna", "").replace("office", "cad");
        let faults = laid(&desktop("anna", ""), &other).1.unwrap_err();
        assert!(
            faults[0].contains("spec.templateRef.name is \"cad\", and \"office\" in the cluster"),
            "{faults:?}"
        );
    }

    #[test]
    fn one_object_in_two_manifests_is_refused_with_both_places() {
        let faults = laid("", &format!("{}{}", desktop("anna", ""), desktop("anna", ""))).1.unwrap_err();
        assert_eq!(
            faults,
            [
                "room.yaml, document 2 (Desktop default/anna): the same object stands in room.yaml, document 1; leave one out"
            ]
        );
    }

    #[test]
    fn a_layout_in_a_manifest_is_planned_as_the_machines_daemon_would() {
        let text = "coresPerSocket: 4\nmemoryMiB: 16384\ncards: [{model: L40S, count: 1}]\n";
        let host = hosts::hosts("gpu", text, None).unwrap().remove(0);
        let of_cluster = || Estate::of_cluster(vec![hosts::node(&host, None)], vec![], vec![], vec![]);
        let of_file = || {
            let mut estate = Estate::default();
            estate.add_host("gpu.yaml", host.clone()).unwrap();
            estate
        };
        for before in [&of_cluster as &dyn Fn() -> Estate, &of_file] {
            let with = |types: &str| {
                let node = format!(
                    "apiVersion: gpudesk.dev/v1alpha1\nkind: GpuNode\nmetadata: {{name: gpu}}\nspec: {{devices: [{{name: a, \
                     selector: {{pciAddress: '0000:08:00.0'}}, mode: Vgpu, layout: {{vgpu: [{types}]}}}}]}}\n"
                );
                let mut estate = before();
                estate.lay(manifests(&node)).unwrap();
                let layout = estate.nodes["gpu"].status.as_ref().unwrap().devices[0].layout.clone();
                (layout, estate.notes)
            };
            let (layout, notes) = with("L40S-8Q, L40S-8Q");
            assert_eq!((layout[0].count, notes.len()), (2, 0));
            let (layout, notes) = with("L40S-8Q, L40S-16Q");
            assert!(layout.is_empty(), "{layout:?}");
            let note =
                "GpuNode gpu: the card at 0000:08:00.0: devices[a].layout.vgpu [L40S-8Q, L40S-16Q] cannot be";
            assert!(notes.len() == 1 && notes[0].starts_with(note), "{notes:?}");
        }
    }

    #[test]
    fn a_node_manifest_gives_labels_and_rules_to_the_machine_of_a_host_file() {
        let mut estate = Estate::default();
        let text = "coresPerSocket: 4\nmemoryMiB: 16384\n";
        for host in hosts::hosts("gpu", text, None).unwrap() {
            estate.add_host("gpu.yaml", host.clone()).unwrap();
            assert!(
                estate.add_host("gpu.yaml", host).unwrap_err().contains("there is a GpuNode gpu already")
            );
        }
        let node = "apiVersion: gpudesk.dev/v1alpha1\nkind: GpuNode\nmetadata: {name: gpu, labels: {room: a}}\nspec: {cordoned: true}\n";
        estate.lay(manifests(node)).unwrap();
        assert!(estate.nodes["gpu"].spec.cordoned);
        assert_eq!(estate.nodes["gpu"].status.as_ref().unwrap().numa_cells.len(), 1);
        assert!(estate.notes.is_empty());
        estate.lay(manifests(&node.replace("name: gpu", "name: unknown"))).unwrap();
        assert!(
            estate.notes[0].starts_with("GpuNode unknown left out: it has no status"),
            "{:?}",
            estate.notes
        );
        assert!(!estate.nodes.contains_key("unknown"));
    }
}
