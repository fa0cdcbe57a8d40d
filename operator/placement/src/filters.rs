//! What keeps a desktop off a node before anything is measured, in the order in which it is asked.

use crate::{
    facts::{NodeFacts, OwnerWord},
    fit::Misfit,
    request::{Demand, Toleration},
};

/// Why a node was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rejection {
    /// The desktop's disks are on another node.
    NotHome,
    /// Labels.
    Selector,
    /// A taint that is not tolerated.
    Taint,
    /// Its owner says that it is off.
    OutOfService,
    /// Its owner wants no new desktops there.
    Cordoned,
    /// The daemon says that desktops cannot run there.
    NotReady,
    /// The daemon has not renewed its lease.
    Silent,
    /// What it offers, or what is taken there, is not understood.
    Unclear,
    /// A machine runs there that no allocation accounts for, and it is not known what it holds.
    Stray,
    /// Required affinity.
    Affinity,
    /// It does not fit.
    Misfit(Misfit),
}

/// A rule that a node must pass.
pub struct Filter {
    /// What the rule is called, for who reads the list.
    pub name: &'static str,
    /// What a node that fails it is rejected for.
    pub rejection: Rejection,
    /// Whether it is about the node's state today, not about what the node is.
    pub passing: bool,
    passes: fn(&NodeFacts, &Demand, Option<Rejection>) -> bool,
}

/// The filters, first to last. Home and affinity are asked apart: they depend on who asks.
pub const FILTERS: [Filter; 8] = [
    Filter {
        name: "node-selector",
        rejection: Rejection::Selector,
        passing: false,
        passes: |facts, demand, _| selects(facts, demand),
    },
    Filter {
        name: "taints",
        rejection: Rejection::Taint,
        passing: false,
        passes: |facts, demand, _| tolerates(facts, demand),
    },
    Filter {
        name: "out-of-service",
        rejection: Rejection::OutOfService,
        passing: true,
        passes: |facts, _, _| facts.word != OwnerWord::OutOfService,
    },
    Filter {
        name: "cordon",
        rejection: Rejection::Cordoned,
        passing: true,
        passes: |facts, _, _| !facts.is_cordoned(),
    },
    Filter {
        name: "ready",
        rejection: Rejection::NotReady,
        passing: true,
        passes: |facts, _, _| facts.ready,
    },
    Filter {
        name: "lease",
        rejection: Rejection::Silent,
        passing: true,
        passes: |_, _, closed| closed != Some(Rejection::Silent),
    },
    Filter {
        name: "understood",
        rejection: Rejection::Unclear,
        passing: true,
        passes: |_, _, closed| closed != Some(Rejection::Unclear),
    },
    Filter {
        name: "strays",
        rejection: Rejection::Stray,
        passing: true,
        passes: |facts, _, _| !facts.unknown_strays,
    },
];

/// Whether a node passes all filters; with `ever`, only those that are about what the node is. `closed`: what
/// closes it that is not among its facts.
///
/// # Errors
/// The first that it fails.
pub fn pass(
    facts: &NodeFacts,
    demand: &Demand,
    closed: Option<Rejection>,
    ever: bool,
) -> Result<(), Rejection> {
    let failed = FILTERS
        .iter()
        .filter(|filter| !ever || !filter.passing)
        .find(|filter| !(filter.passes)(facts, demand, closed));
    failed.map_or(Ok(()), |filter| Err(filter.rejection))
}

fn selects(facts: &NodeFacts, demand: &Demand) -> bool {
    demand.node_selector.iter().all(|(key, value)| facts.labels.get(key) == Some(value))
}

fn tolerates(facts: &NodeFacts, demand: &Demand) -> bool {
    facts.taints.iter().all(|(key, value)| {
        let accepts = |Toleration { key: accepted, value: only }: &Toleration| {
            accepted == key && (only.is_none() || only == value)
        };
        demand.tolerations.iter().any(accepts)
    })
}
