//! Desktops near each other, or apart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::{
    facts::NodeFacts,
    request::{AffinityRule, DesktopKey, Relation, Request},
};

/// Who runs where, by label; and who wants certain others apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    labelled: BTreeMap<(String, String, String), BTreeMap<DesktopKey, Arc<str>>>,
    wary: BTreeMap<DesktopKey, (Arc<str>, Vec<AffinityRule>)>,
}

/// What is known of a desktop that holds a place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manners {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its required rules that keep others apart.
    pub apart: Vec<AffinityRule>,
}

impl Manners {
    /// Those rules that hold for others, too.
    pub fn apart_of(rules: &[AffinityRule]) -> Vec<AffinityRule> {
        let apart = |rule: &&AffinityRule| rule.required && rule.relation == Relation::Apart;
        rules.iter().filter(apart).cloned().collect()
    }
}

impl Neighbours {
    /// A desktop has a place on a node.
    pub fn come(&mut self, key: &DesktopKey, node: &Arc<str>, manners: &Manners) {
        for (name, value) in &manners.labels {
            let label = (key.namespace.clone(), name.clone(), value.clone());
            self.labelled.entry(label).or_default().insert(key.clone(), node.clone());
        }
        if !manners.apart.is_empty() {
            self.wary.insert(key.clone(), (node.clone(), manners.apart.clone()));
        }
    }

    /// It has none any more.
    pub fn go(&mut self, key: &DesktopKey, manners: &Manners) {
        for (name, value) in &manners.labels {
            let label = (key.namespace.clone(), name.clone(), value.clone());
            if let Some(holders) = self.labelled.get_mut(&label) {
                holders.remove(key);
                if holders.is_empty() {
                    self.labelled.remove(&label);
                }
            }
        }
        self.wary.remove(key);
    }

    /// Nodes of the desktops of a namespace that have all these labels, without `except`.
    fn nodes_of(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        except: &DesktopKey,
    ) -> BTreeSet<Arc<str>> {
        let of_label = |(name, value): (&String, &String)| {
            self.labelled.get(&(namespace.to_owned(), name.clone(), value.clone()))
        };
        let mut sets = labels.iter().map(of_label);
        let Some(Some(first)) = sets.next() else { return BTreeSet::new() };
        let rest: Vec<_> = sets.collect();
        let has_all = |key: &DesktopKey| rest.iter().all(|set| set.is_some_and(|set| set.contains_key(key)));
        first.iter().filter(|(key, _)| *key != except && has_all(key)).map(|(_, node)| node.clone()).collect()
    }

    /// What affinity says of this request on the nodes of the estate; nothing when it says nothing.
    pub fn ruling<'a>(
        &self,
        request: &Request,
        facts_of: impl Fn(&str) -> Option<&'a NodeFacts>,
    ) -> Option<Ruling> {
        let namespace = &request.desktop.namespace;
        let place = |node: &Arc<str>, key: Option<&String>| place_of(facts_of(node)?, key);
        let mut clauses = vec![];
        for rule in &request.affinity {
            let nodes = self.nodes_of(namespace, &rule.match_labels, &request.desktop);
            let own = rule.match_labels.iter().all(|(name, value)| request.labels.get(name) == Some(value));
            if rule.relation == Relation::Together && nodes.is_empty() && own {
                continue;
            }
            let places: BTreeSet<String> =
                nodes.iter().filter_map(|node| place(node, rule.topology_key.as_ref())).collect();
            if rule.relation == Relation::Apart && places.is_empty() {
                continue;
            }
            clauses.push(Clause {
                topology_key: rule.topology_key.clone(),
                together: rule.relation == Relation::Together,
                required: rule.required,
                places,
            });
        }
        let mut barred: BTreeMap<Option<String>, BTreeSet<String>> = BTreeMap::new();
        let wary = self.wary.range(DesktopKey::new(namespace, "")..);
        // A rule whose place does not exist keeps nobody away, however many of them others have.
        for (other, (node, rules)) in wary.take_while(|(other, _)| other.namespace == *namespace) {
            let concerned = |rule: &&AffinityRule| {
                rule.match_labels.iter().all(|(name, value)| request.labels.get(name) == Some(value))
            };
            for rule in rules.iter().filter(concerned).filter(|_| *other != request.desktop) {
                if let Some(place) = place(node, rule.topology_key.as_ref()) {
                    barred.entry(rule.topology_key.clone()).or_default().insert(place);
                }
            }
        }
        clauses.extend(barred.into_iter().map(|(topology_key, places)| Clause {
            topology_key,
            together: false,
            required: true,
            places,
        }));
        (!clauses.is_empty()).then_some(Ruling { clauses })
    }
}

/// What affinity says of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    clauses: Vec<Clause>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Clause {
    topology_key: Option<String>,
    together: bool,
    required: bool,
    places: BTreeSet<String>,
}

/// The place that a node is in; none when it lacks the label.
fn place_of(facts: &NodeFacts, key: Option<&String>) -> Option<String> {
    match key {
        None => Some(facts.name.to_string()),
        Some(key) => facts.labels.get(key).cloned(),
    }
}

impl Ruling {
    /// How many preferred rules a node breaks; `None` when it breaks a required one.
    pub fn penalty(&self, facts: &NodeFacts) -> Option<u16> {
        let mut broken = 0u16;
        for Clause { topology_key, together, required, places } in &self.clauses {
            let inside = place_of(facts, topology_key.as_ref()).is_some_and(|place| places.contains(&place));
            if inside == *together {
                continue;
            }
            if *required {
                return None;
            }
            broken = broken.saturating_add(1);
        }
        Some(broken)
    }
}
