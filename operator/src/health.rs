//! `/metrics`, `/healthz` and `/readyz`.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// What the figures are written in.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether the process can do its work: it leads, knows all objects and may write, or stands by.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    ready: Arc<AtomicBool>,
    refused: Arc<AtomicBool>,
}

impl Readiness {
    /// Says so.
    pub fn set(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }
    /// Says whether the API server refuses for good what this process writes.
    pub fn set_refused(&self, refused: bool) {
        self.refused.store(refused, Ordering::Relaxed);
    }
    /// Whether it was said.
    pub fn get(&self) -> bool {
        self.ready.load(Ordering::Relaxed) && !self.refused.load(Ordering::Relaxed)
    }
}

/// Serves until `stop`.
///
/// # Errors
/// When serving ends by itself.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    ready: Readiness,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route(
            "/metrics",
            get(async |State((metrics, _)): State<(Metrics, Readiness)>| {
                ([(CONTENT_TYPE, OPEN_METRICS)], metrics.text())
            }),
        )
        .route("/healthz", get(async || "ok"))
        .route(
            "/readyz",
            get(async |State((_, ready)): State<(Metrics, Readiness)>| {
                if ready.get() {
                    (StatusCode::OK, "ok")
                } else {
                    (StatusCode::SERVICE_UNAVAILABLE, "not ready")
                }
            }),
        )
        .with_state((metrics, ready));
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}
