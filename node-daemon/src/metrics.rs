//! Figures about this daemon for Prometheus, and whether it is well.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, Ordering},
};

use axum::{Router, http::StatusCode, routing::get};
use gpudesk_crds::conditions::Reason;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Figures about this daemon. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    desktops: Gauge<i64, AtomicI64>,
    started: Counter,
    problems: Family<ProblemLabels, Counter>,
    node_writes: Counter,
    hypervisor: Arc<AtomicBool>,
    watching: Arc<AtomicBool>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ProblemLabels {
    reason: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("gpudesk_node");
        let desktops = Gauge::default();
        registry.register("desktops", "Domains of desktops that hold memory and devices", desktops.clone());
        let started = Counter::default();
        registry.register("desktops_started", "Desktops started", started.clone());
        let problems = Family::default();
        registry.register(
            "problems",
            "Rounds of a desktop that ended in a problem, by reason",
            problems.clone(),
        );
        let node_writes = Counter::default();
        registry.register("status_writes", "Writes of the GpuNode's status", node_writes.clone());
        Self {
            registry: Arc::new(registry),
            desktops,
            started,
            problems,
            node_writes,
            hypervisor: Arc::default(),
            watching: Arc::default(),
        }
    }
}

impl Metrics {
    /// A desktop was started.
    pub fn started(&self) {
        self.started.inc();
    }

    /// A round ended in a problem.
    pub fn problem(&self, reason: Reason) {
        self.problems.get_or_create(&ProblemLabels { reason: reason.as_str() }).inc();
    }

    /// The status of the `GpuNode` was written.
    pub fn node_written(&self) {
        self.node_writes.inc();
    }

    /// Desktops that hold memory and devices.
    pub fn set_desktops(&self, desktops: usize) {
        self.desktops.set(i64::try_from(desktops).unwrap_or(i64::MAX));
    }

    /// Whether libvirt answers.
    pub fn set_hypervisor(&self, answers: bool) {
        self.hypervisor.store(answers, Ordering::Relaxed);
    }

    /// Whether the desktops of this node are watched.
    pub fn set_watching(&self, watching: bool) {
        self.watching.store(watching, Ordering::Relaxed);
    }

    /// `/metrics`, `/healthz` (the process answers) and `/readyz` (libvirt answers, and the desktops
    /// of this node are watched).
    pub fn router(&self) -> Router {
        let (text, ready) = (self.clone(), self.clone());
        Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(move || async move { ready.ready() }))
            .route("/metrics", get(move || async move { text.text() }))
    }

    fn ready(&self) -> (StatusCode, &'static str) {
        if !self.hypervisor.load(Ordering::Relaxed) {
            (StatusCode::SERVICE_UNAVAILABLE, "libvirt does not answer\n")
        } else if self.watching.load(Ordering::Relaxed) {
            (StatusCode::OK, "ok\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "the desktops of this node are not watched yet\n")
        }
    }

    fn text(&self) -> (StatusCode, String) {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => (StatusCode::OK, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}
