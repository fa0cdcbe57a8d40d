//! Figures about this daemon for Prometheus, and whether it is well.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use gpudesk_crds::conditions::Reason;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use crate::host::gpu_driver::CardFigures;

/// What is written is `OpenMetrics`, and Prometheus reads it as such only when that is said.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Figures about this daemon. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    desktops: Gauge<i64, AtomicI64>,
    started: Counter,
    problems: Family<ProblemLabels, Counter>,
    node_writes: Counter,
    strays: Family<StrayLabels, Gauge<i64, AtomicI64>>,
    leftovers: Gauge<i64, AtomicI64>,
    leftover_bytes: Gauge<i64, AtomicI64>,
    leftovers_erased: Counter,
    renewals_failed: Family<CodeLabels, Counter>,
    card_resets: Family<ResetLabels, Counter>,
    cards_quarantined: Gauge<i64, AtomicI64>,
    lease_refused: Arc<AtomicBool>,
    hypervisor: Arc<AtomicBool>,
    watching: Arc<AtomicBool>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ProblemLabels {
    reason: &'static str,
}

/// What is on this host of a desktop that is not this node's by the API's own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stray {
    /// Allocated to another node: it is being taken down here.
    Elsewhere,
    /// Allocated to no node: left as it is.
    Unallocated,
    /// There is no such Desktop.
    NoDesktop,
    /// What is here is of a later decision than the one that holds, or of an unknown one.
    Newer,
    /// That cannot be told.
    Unclear,
}

impl Stray {
    const ALL: [Self; 5] = [Self::Elsewhere, Self::Unallocated, Self::NoDesktop, Self::Newer, Self::Unclear];

    fn name(self) -> &'static str {
        match self {
            Self::Elsewhere => "allocated-elsewhere",
            Self::Unallocated => "not-allocated",
            Self::NoDesktop => "no-such-desktop",
            Self::Newer => "newer-decision",
            Self::Unclear => "unclear",
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CodeLabels {
    code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResetLabels {
    method: String,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StrayLabels {
    state: &'static str,
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
        let strays = Family::<StrayLabels, Gauge<i64, AtomicI64>>::default();
        registry.register(
            "strays",
            "Desktops that something on this host is of and that are not this node's, by what the API says of them",
            strays.clone(),
        );
        let leftovers = Gauge::default();
        registry.register(
            "leftovers",
            "Folders with disks of desktops that are this node's no more",
            leftovers.clone(),
        );
        let leftover_bytes = Gauge::default();
        registry.register_with_unit(
            "leftovers",
            "What those folders take of the disk",
            Unit::Bytes,
            leftover_bytes.clone(),
        );
        let leftovers_erased = Counter::default();
        registry.register("leftovers_erased", "Such folders that were erased", leftovers_erased.clone());
        let renewals_failed = Family::default();
        registry.register(
            "lease_renewals_failed",
            "Renewals of this node's lease that failed, by the HTTP status of the answer; 0 without answer, 401 for a token that is not valid any more",
            renewals_failed.clone(),
        );
        let card_resets = Family::default();
        registry.register(
            "card_resets",
            "Resets of cards and of their functions between users, by the kernel's method and the result: succeeded or failed",
            card_resets.clone(),
        );
        let cards_quarantined = Gauge::default();
        registry.register(
            "cards_quarantined",
            "Cards that did not come back from a reset and are given to nobody before they do",
            cards_quarantined.clone(),
        );
        Self {
            registry: Arc::new(registry),
            desktops,
            started,
            problems,
            node_writes,
            strays,
            leftovers,
            leftover_bytes,
            leftovers_erased,
            renewals_failed,
            card_resets,
            cards_quarantined,
            lease_refused: Arc::default(),
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

    /// Desktops that something is here of and that are not this node's.
    pub fn set_strays(&self, strays: &HashMap<Stray, usize>) {
        for stray in Stray::ALL {
            let count = strays.get(&stray).copied().unwrap_or(0);
            let gauge = self.strays.get_or_create(&StrayLabels { state: stray.name() });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Folders of disks that are kept aside, and what they take of the disk.
    pub fn set_leftovers(&self, folders: usize, bytes: u64) {
        self.leftovers.set(i64::try_from(folders).unwrap_or(i64::MAX));
        self.leftover_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// One of them is erased.
    pub fn leftover_erased(&self) {
        self.leftovers_erased.inc();
    }

    /// A renewal of the lease failed with this HTTP status, or 0 without answer.
    pub fn lease_not_renewed(&self, code: u16) {
        self.renewals_failed.get_or_create(&CodeLabels { code }).inc();
        if [401, 403].contains(&code) {
            self.lease_refused.store(true, Ordering::Relaxed);
        }
    }

    /// The lease was renewed.
    pub fn lease_renewed(&self) {
        self.lease_refused.store(false, Ordering::Relaxed);
    }

    /// What is counted of cards since the daemon began.
    pub fn set_cards(&self, figures: &CardFigures) {
        for ((method, succeeded), count) in &figures.resets {
            let result = if *succeeded { "succeeded" } else { "failed" };
            let counter =
                self.card_resets.get_or_create_owned(&ResetLabels { method: method.clone(), result });
            counter.inc_by(count.saturating_sub(counter.get()));
        }
        self.cards_quarantined.set(i64::try_from(figures.quarantined).unwrap_or(i64::MAX));
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

    /// `/metrics`, `/healthz` (the process answers) and `/readyz` (libvirt answers, the API server does not
    /// refuse the renewal of the lease, and the desktops of this node are watched).
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
        } else if self.lease_refused.load(Ordering::Relaxed) {
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "the API server refuses the renewal of the lease of this node, which counts as silent: see the log, and the \
                 Roles, their bindings and the admission policies of the chart\n",
            )
        } else if self.watching.load(Ordering::Relaxed) {
            (StatusCode::OK, "ok\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "the desktops of this node are not watched yet\n")
        }
    }

    fn text(&self) -> impl IntoResponse + use<> {
        match self.encoded() {
            Ok(text) => (StatusCode::OK, [(CONTENT_TYPE, OPEN_METRICS)], text),
            Err(error) => {
                (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], error.to_string())
            }
        }
    }

    pub(crate) fn encoded(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::to_bytes;

    #[test]
    fn a_daemon_whose_lease_is_refused_is_not_ready_until_it_is_renewed() {
        let metrics = Metrics::default();
        metrics.set_hypervisor(true);
        metrics.set_watching(true);
        metrics.lease_not_renewed(0);
        assert_eq!(
            metrics.ready(),
            (StatusCode::OK, "ok\n"),
            "an API server that does not answer is no word"
        );
        for code in [401, 403] {
            metrics.lease_not_renewed(code);
            let (status, words) = metrics.ready();
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            assert!(words.contains("refuses the renewal of the lease"), "{words}");
            metrics.lease_renewed();
            assert_eq!(metrics.ready(), (StatusCode::OK, "ok\n"));
        }
    }

    #[tokio::test]
    async fn figures_are_said_to_be_what_they_are() {
        let metrics = Metrics::default();
        metrics.set_strays(&HashMap::from([(Stray::Elsewhere, 2)]));
        metrics.set_leftovers(3, 4096);
        metrics.leftover_erased();
        let resets = [(("flr".to_owned(), true), 3), (("bus".to_owned(), false), 1)];
        for count in [2, 3] {
            let resets = resets.iter().map(|(key, most)| (key.clone(), count.min(*most))).collect();
            metrics.set_cards(&CardFigures { resets, quarantined: 1 });
        }
        let answer = metrics.text().into_response();
        assert_eq!(answer.headers()[CONTENT_TYPE], OPEN_METRICS);
        let text = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        let text = String::from_utf8(text.to_vec()).unwrap();
        for line in [
            "gpudesk_node_strays{state=\"allocated-elsewhere\"} 2",
            "gpudesk_node_strays{state=\"no-such-desktop\"} 0",
            "gpudesk_node_leftovers 3",
            "gpudesk_node_leftovers_bytes 4096",
            "gpudesk_node_leftovers_erased_total 1",
            "gpudesk_node_card_resets_total{method=\"flr\",result=\"succeeded\"} 3",
            "gpudesk_node_card_resets_total{method=\"bus\",result=\"failed\"} 1",
            "gpudesk_node_cards_quarantined 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in {text}");
        }
    }
}
