//! The sign of life: a Lease, renewed each minute. A node that is silent for three gets no new
//! desktops; those that run are left alone.
#![expect(clippy::disallowed_methods, reason = "adapter: a lease tells the time of its renewal")]

use std::time::{Duration, Instant};

use gpudesk_crds::{NODE_DAEMON_FIELD_MANAGER, node_identity};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::watch;

/// Time between renewals.
const RENEWAL: Duration = Duration::from_mins(1);
/// Time after which the node counts as silent.
const DURATION: Duration = Duration::from_mins(3);
/// Wait after a renewal that failed.
const RETRY: Duration = Duration::from_secs(10);

/// When this node was last heard. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Heard(watch::Receiver<Option<Instant>>);

impl Heard {
    /// Never renewed yet, and where renewals are noted down.
    pub fn new() -> (watch::Sender<Option<Instant>>, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self(receiver))
    }

    /// Whether the cluster counts this node as one that lives, as far as this node can know.
    pub fn is_heard(&self) -> bool {
        self.0.borrow().is_some_and(|renewed| renewed.elapsed() < DURATION)
    }

    /// Waits until the node is heard again after it was not.
    pub async fn heard_again(&mut self) {
        loop {
            let before = *self.0.borrow_and_update();
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let now = *self.0.borrow();
            let silence = before.zip(now).map(|(before, now)| now.duration_since(before));
            if now.is_some() && silence.is_none_or(|silence| silence >= DURATION) {
                return;
            }
        }
    }
}

/// Renews the lease of `node` for as long as it is awaited, and notes each renewal down.
pub async fn renew(client: Client, namespace: String, node: String, renewed: watch::Sender<Option<Instant>>) {
    let leases: Api<Lease> = Api::namespaced(client, &namespace);
    let name = node_identity(&node);
    loop {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": name, "namespace": namespace, "labels": { "gpudesk.dev/node": node } },
            "spec": {
                "holderIdentity": node,
                "leaseDurationSeconds": DURATION.as_secs(),
                "renewTime": format!("{:.6}", Timestamp::now()),
            },
        });
        let params = PatchParams::apply(NODE_DAEMON_FIELD_MANAGER).force();
        let asked = Instant::now();
        let patch = Patch::Apply(&lease);
        // A connection that hangs must not hide that the next one would work.
        let wait = match tokio::time::timeout(RENEWAL, leases.patch(&name, &params, &patch)).await {
            Ok(Ok(_)) => {
                renewed.send_replace(Some(asked));
                RENEWAL
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, lease = name, "the lease could not be renewed");
                RETRY
            }
            Err(_) => {
                tracing::warn!(
                    lease = name,
                    "the lease could not be renewed: the API server does not answer"
                );
                RETRY
            }
        };
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_is_heard_from_its_renewal_on_and_told_when_it_was_silent() {
        let (renewed, heard) = Heard::new();
        assert!(!heard.is_heard());
        let long_ago = Instant::now().checked_sub(DURATION).unwrap();
        let mut waiting = heard.clone();
        tokio::join!(waiting.heard_again(), async { renewed.send_replace(Some(long_ago)) });
        assert!(!heard.is_heard(), "three minutes are over");
        tokio::join!(waiting.heard_again(), async { renewed.send_replace(Some(Instant::now())) });
        assert!(heard.is_heard());
    }
}
