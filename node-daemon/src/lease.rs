//! The sign of life: a Lease, renewed each minute. A node that is silent for three gets no new
//! desktops; those that run are left alone.
#![expect(clippy::disallowed_methods, reason = "adapter: a lease tells the time of its renewal")]

use std::time::{Duration, Instant};

use futures::{Stream, StreamExt, future, stream};
use gpudesk_crds::{NODE_DAEMON_FIELD_MANAGER, node_identity};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::watch;

use crate::metrics::Metrics;

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

/// Told when the API server has gone back to an earlier state of its store: what is watched since before is
/// never told what comes after. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Restored(watch::Receiver<()>);

impl Restored {
    /// Nothing was restored yet, and where it is noted down that something was.
    pub fn new() -> (watch::Sender<()>, Self) {
        let (sender, receiver) = watch::channel(());
        (sender, Self(receiver))
    }

    /// The streams that `begin` makes, one after the other: each restore ends one and begins the next.
    pub fn anew<S: Stream>(self, mut begin: impl FnMut() -> S) -> impl Stream<Item = S::Item> {
        stream::repeat(()).flat_map(move |()| {
            let mut restored = self.0.clone();
            restored.mark_unchanged();
            begin().take_until(async move {
                if restored.changed().await.is_err() {
                    future::pending::<()>().await;
                }
            })
        })
    }
}

/// Whether a renewal shows that the API server went back to an earlier state after the renewal before.
fn went_back(before: Option<&Lease>, now: &Lease) -> bool {
    // Since Kubernetes 1.35 the API promises that versions of a kind are numbers that grow; they always were.
    let version = |lease: &Lease| lease.metadata.resource_version.as_ref()?.parse::<u64>().ok();
    before.and_then(version).zip(version(now)).is_some_and(|(before, now)| now < before)
}

/// Renews the lease of a node.
pub struct Renewal {
    /// The node.
    pub node: String,
    /// Where its lease is.
    pub namespace: String,
    /// The API.
    pub client: Client,
    /// Figures.
    pub metrics: Metrics,
    /// Where each renewal is noted down.
    pub renewed: watch::Sender<Option<Instant>>,
    /// Told when a renewal shows that the API server has gone back to an earlier state.
    pub restored: watch::Sender<()>,
}

impl Renewal {
    /// Renews it for as long as it is awaited.
    pub async fn keep(self) {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut before = None;
        loop {
            let asked = Instant::now();
            // A connection that hangs must not hide that the next one would work.
            let answer = tokio::time::timeout(RENEWAL, self.renew(&leases)).await;
            let wait = match answer {
                Ok(Ok(lease)) => {
                    if went_back(before.as_ref(), &lease) {
                        tracing::warn!(
                            "the API server has gone back to an earlier state, as after a restore of its store from \
                             a backup: everything is watched anew. Nothing that runs here is touched for that"
                        );
                        self.restored.send_replace(());
                    }
                    before = Some(lease);
                    self.metrics.lease_renewed();
                    self.renewed.send_replace(Some(asked));
                    RENEWAL
                }
                Ok(Err(error)) => {
                    let (code, remedy) = refusal(&error);
                    self.metrics.lease_not_renewed(code);
                    tracing::warn!(%error, remedy, "the lease could not be renewed");
                    RETRY
                }
                Err(_) => {
                    self.metrics.lease_not_renewed(0);
                    tracing::warn!("the lease could not be renewed: the API server does not answer");
                    RETRY
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn renew(&self, leases: &Api<Lease>) -> kube::Result<Lease> {
        let name = node_identity(&self.node);
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": name, "namespace": self.namespace, "labels": { "gpudesk.dev/node": self.node } },
            "spec": {
                "holderIdentity": self.node,
                "leaseDurationSeconds": DURATION.as_secs(),
                "renewTime": format!("{:.6}", Timestamp::now()),
            },
        });
        let params = PatchParams::apply(NODE_DAEMON_FIELD_MANAGER).force();
        leases.patch(&name, &params, &Patch::Apply(&lease)).await
    }
}

/// The HTTP status with which the API server refused, 0 when it did not answer; and what can be done.
fn refusal(error: &kube::Error) -> (u16, Option<&'static str>) {
    let kube::Error::Api(status) = error else { return (0, None) };
    let remedy = match status.code {
        401 => {
            "the token of this daemon is not valid any more: it ends with the Kubernetes Node and the pod that it is \
             bound to. Where the Node was deleted or made anew, delete the pod of this daemon, so that it gets another; \
             desktops run on meanwhile, and nothing is said of them"
        }
        403 => "the daemon may not write its lease: see the Roles and admission policies of the chart",
        _ => return (status.code, None),
    };
    (status.code, Some(remedy))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use http::{Request, Response};
    use kube::client::Body;

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

    #[test]
    fn a_version_that_is_lower_than_the_one_before_tells_of_a_restore() {
        let lease = |version: &str| {
            let mut lease = Lease::default();
            lease.metadata.resource_version = Some(version.into());
            lease
        };
        assert!(!went_back(None, &lease("7")));
        assert!(!went_back(Some(&lease("9")), &lease("10")));
        assert!(went_back(Some(&lease("10")), &lease("9")));
        assert!(!went_back(Some(&lease("10")), &lease("9a")), "not a number, no word");
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_is_refused_is_counted_and_told_with_a_remedy() {
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let (renewed, heard) = Heard::new();
        let (restored, _restores) = Restored::new();
        let metrics = Metrics::default();
        let renewal = Renewal {
            node: "node-a".into(),
            namespace: "system".into(),
            client: Client::new(service, "system"),
            metrics: metrics.clone(),
            renewed,
            restored,
        };
        let answer = json!({"kind": "Status", "status": "Failure", "code": 401, "reason": "Unauthorized", "message": "no"});
        let answering = async {
            for _ in 0..2 {
                let (_, respond) = handle.next_request().await.unwrap();
                let body = Body::from(serde_json::to_vec(&answer).unwrap());
                respond.send_response(Response::builder().status(401).body(body).unwrap());
            }
            handle.next_request().await
        };
        tokio::select! {
            () = renewal.keep() => unreachable!(),
            _ = answering => {}
        }
        assert!(!heard.is_heard());
        let line = "gpudesk_node_lease_renewals_failed_total{code=\"401\"} 2";
        let text = metrics.encoded().unwrap();
        assert!(text.lines().any(|it| it == line), "{text}");
        let error = kube::Error::Api(serde_json::from_value(answer).unwrap());
        assert!(refusal(&error).1.unwrap().contains("delete the pod"));
    }

    #[tokio::test]
    async fn a_restore_ends_each_watch_and_begins_it_anew() {
        let (went_back, restored) = Restored::new();
        went_back.send_replace(());
        let mut begun = 0;
        let watch = restored.anew(|| {
            begun += 1;
            stream::once(future::ready(begun)).chain(stream::pending())
        });
        let mut watch = std::pin::pin!(watch);
        assert_eq!(watch.next().await, Some(1));
        assert_eq!(watch.next().now_or_never(), None, "a restore of before it began is none");
        went_back.send_replace(());
        assert_eq!(watch.next().await, Some(2));
        assert_eq!(watch.next().now_or_never(), None);
    }
}
