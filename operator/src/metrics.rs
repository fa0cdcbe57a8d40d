//! Figures for Prometheus. Labels come from closed sets, or name a node while something is wrong with it:
//! their number is bounded.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// One label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: String,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Node {
    node: String,
}

/// What became of something.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: String,
}

/// Kind and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindOutcome {
    kind: String,
    outcome: String,
}

/// The operator's figures. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    malformed: Family<Kind, Counter>,
    odd: Family<Kind, Gauge>,
    watch_errors: Family<Kind, Counter>,
    reconciles: Family<KindOutcome, Counter>,
    placements: Family<Outcome, Counter>,
    writes: Family<KindOutcome, Counter>,
    waiting: Gauge,
    refused: Counter,
    unproven: Counter,
    silent: Family<Node, Gauge>,
    leading: Gauge,
    term_refused: Gauge,
    definitions_lack: Gauge,
    hindered: Family<Kind, Gauge>,
    /// What keeps this process from its work, in words, by the kind.
    hindrances: Arc<Mutex<BTreeMap<String, String>>>,
    decision_seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("gpudesk_operator");
        let malformed = Family::default();
        let odd = Family::default();
        let watch_errors = Family::default();
        let reconciles = Family::default();
        let placements = Family::default();
        let writes = Family::default();
        let waiting = Gauge::default();
        let refused = Counter::default();
        let unproven = Counter::default();
        let silent = Family::default();
        let leading = Gauge::default();
        let term_refused = Gauge::default();
        let definitions_lack = Gauge::default();
        let hindered = Family::default();
        let decision_seconds = Histogram::new(exponential_buckets(0.000_05, 4.0, 9));
        registry.register("malformed_objects", "Versions of objects that did not parse", malformed.clone());
        registry.register(
            "odd_objects",
            "Objects of which this version does not understand everything: they count, and nobody acts on them",
            odd.clone(),
        );
        registry.register("watch_errors", "Interruptions of watches", watch_errors.clone());
        registry.register("reconciles", "Rounds over an object, by outcome", reconciles.clone());
        registry.register("placements", "Decisions where a desktop runs, by outcome", placements.clone());
        registry.register("writes", "Writes to the API server, by outcome", writes.clone());
        registry.register("waiting_desktops", "Desktops for which there is no room", waiting.clone());
        registry.register("refused_decisions", "Decisions that their node refused", refused.clone());
        registry.register(
            "unproven_strays",
            "Machines that nodes report by ids that no operator of this cluster is known to have given",
            unproven.clone(),
        );
        registry.register(
            "node_silent",
            "1 for each node whose daemon has not renewed its lease",
            silent.clone(),
        );
        registry.register("leading", "1 while this process is the one that acts", leading.clone());
        registry.register(
            "term_refused",
            "1 while the API server refuses what this process writes though it leads: restart the API server",
            term_refused.clone(),
        );
        registry.register(
            "definitions_lack",
            "Fields and values that the definitions in the API lack for this version: while there are any it does not lead",
            definitions_lack.clone(),
        );
        registry.register(
            "hindered",
            "1 while the API server does not let this process read or write what its work needs: it is not ready then, and \
             /readyz says why",
            hindered.clone(),
        );
        registry.register("decision_seconds", "Time of one decision", decision_seconds.clone());
        Self {
            registry: Arc::new(registry),
            malformed,
            odd,
            watch_errors,
            reconciles,
            placements,
            writes,
            waiting,
            refused,
            unproven,
            silent,
            leading,
            term_refused,
            definitions_lack,
            hindered,
            hindrances: Arc::default(),
            decision_seconds,
        }
    }
}

impl Metrics {
    /// A version of an object did not parse.
    pub fn malformed(&self, kind: &str) {
        self.malformed.get_or_create(&Kind { kind: kind.into() }).inc();
    }
    /// How many objects of a kind are not understood whole.
    pub fn odd(&self, kind: &str, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.odd.get_or_create(&Kind { kind: kind.into() }).set(count);
    }
    /// A watch was interrupted.
    pub fn watch_errors(&self, kind: &str) {
        self.watch_errors.get_or_create(&Kind { kind: kind.into() }).inc();
    }
    /// A round over an object ended; `outcome` is `ok` or the name of an error.
    pub fn reconciled(&self, kind: &str, outcome: &str) {
        self.reconciles.get_or_create(&KindOutcome { kind: kind.into(), outcome: outcome.into() }).inc();
    }
    /// A placement was decided.
    pub fn placed(&self, outcome: &str) {
        self.placements.get_or_create(&Outcome { outcome: outcome.into() }).inc();
    }
    /// A write ended.
    pub fn wrote(&self, kind: &str, outcome: &str) {
        self.writes.get_or_create(&KindOutcome { kind: kind.into(), outcome: outcome.into() }).inc();
    }
    /// How many desktops wait.
    pub fn waiting(&self, count: usize) {
        self.waiting.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    /// A node refused a decision.
    pub fn refused(&self) {
        self.refused.inc();
    }
    /// A node reports a machine by an id that no operator is known to have given.
    pub fn unproven(&self) {
        self.unproven.inc();
    }
    /// Whether a node is silent.
    pub fn silent(&self, node: &str, silent: bool) {
        let node = Node { node: node.into() };
        if silent {
            self.silent.get_or_create(&node).set(1);
        } else {
            self.silent.remove(&node);
        }
    }
    /// Whether this process leads.
    pub fn leading(&self, leading: bool) {
        self.leading.set(i64::from(leading));
    }
    /// Whether the API server refuses what this process writes though it leads.
    pub fn term_refused(&self, refused: bool) {
        self.term_refused.set(i64::from(refused));
    }
    /// How much of what this version needs is not defined in the API.
    pub fn definitions_lack(&self, count: usize) {
        self.definitions_lack.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    /// Why this process cannot read or write a kind that its work needs; nothing once it can.
    pub fn hindered(&self, kind: &str, why: Option<String>) {
        self.hindered.get_or_create(&Kind { kind: kind.into() }).set(i64::from(why.is_some()));
        let mut all = self.hindrances.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => all.insert(kind.to_owned(), why),
            None => all.remove(kind),
        };
    }
    /// All that was said so and holds still.
    pub fn hindrances(&self) -> Vec<String> {
        self.hindrances.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
    /// How long a decision took.
    pub fn decided_in(&self, seconds: f64) {
        self.decision_seconds.observe(seconds);
    }
    /// The figures in the text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail; were it to, there would be fewer figures.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
