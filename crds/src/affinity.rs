//! Where a desktop stands in relation to other desktops of its namespace.

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Near certain other desktops of the namespace, or apart from them. Decides where a desktop is
/// placed; a desktop that runs stays where it is, whatever comes beside it.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AffinityRule {
    /// A name for this rule, unique in the list.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("write lower-case letters, digits and hyphens, with a letter or digit at both ends, like system-1"))]
    pub name: String,
    /// `Together` in the same place as the others, or `Apart` from them in another. With nobody
    /// there yet, a desktop that has the labels of its own `Together` rule may go anywhere: the
    /// others follow it. One that has not waits if the rule is `required`.
    pub relation: Relation,
    /// Label of `GpuNode`s whose equal values make one place, for example `topology.kubernetes.io/zone`;
    /// a node without the label belongs to no place and is not chosen by a required `Together` rule.
    /// Absent: each node is a place of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 317))]
    #[x_kube(validation = Rule::new("self.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')").message("topologyKey must be the key of a label, like rack or topology.kubernetes.io/zone"))]
    pub topology_key: Option<String>,
    /// Labels that the others have, all of them: the rule is about every desktop of the same
    /// namespace that has them. 1 to 16.
    #[schemars(schema_with = "crate::schema::some_labels")]
    pub match_labels: BTreeMap<String, String>,
    /// Whether the desktop waits when the rule cannot be kept; otherwise the rule only counts when
    /// nodes are compared. A required `Apart` rule also keeps off those it names that come later.
    /// Default: false.
    #[serde(default)]
    pub required: bool,
}

/// Near or apart.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum Relation {
    /// In the same place.
    Together,
    /// In different places.
    Apart,
}
