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
            get(async |State((metrics, ready)): State<(Metrics, Readiness)>| readyz(&metrics, &ready)),
        )
        .with_state((metrics, ready));
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Whether the process is ready; when not, what hinders it.
fn readyz(metrics: &Metrics, ready: &Readiness) -> (StatusCode, String) {
    let hindrances = metrics.hindrances();
    if !hindrances.is_empty() {
        (StatusCode::SERVICE_UNAVAILABLE, hindrances.join("\n"))
    } else if ready.get() {
        (StatusCode::OK, "ok".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_hindered_is_not_ready_and_says_why() {
        let (metrics, ready) = (Metrics::default(), Readiness::default());
        assert_eq!(readyz(&metrics, &ready).0, StatusCode::SERVICE_UNAVAILABLE);
        ready.set(true);
        assert_eq!(readyz(&metrics, &ready), (StatusCode::OK, "ok".to_owned()));
        metrics.hindered("Desktop", Some("Desktops may not be watched".to_owned()));
        let said = (StatusCode::SERVICE_UNAVAILABLE, "Desktops may not be watched".to_owned());
        assert_eq!(readyz(&metrics, &ready), said);
        let line = "gpudesk_operator_hindered{kind=\"Desktop\"} 1";
        assert!(metrics.text().lines().any(|it| it == line), "{}", metrics.text());
        metrics.hindered("Desktop", None);
        assert_eq!(readyz(&metrics, &ready).0, StatusCode::OK);
    }
}
