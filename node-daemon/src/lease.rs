//! The sign of life: a Lease, renewed each minute. A node that is silent for three gets no new
//! desktops; those that run are left alone.
#![expect(clippy::disallowed_methods, reason = "adapter: a lease tells the time of its renewal")]

use std::time::Duration;

use gpudesk_crds::{NODE_DAEMON_FIELD_MANAGER, node_identity};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

/// Time between renewals.
const RENEWAL: Duration = Duration::from_mins(1);
/// Time after which the node counts as silent.
const DURATION_SECONDS: i32 = 180;
/// Wait after a renewal that failed.
const RETRY: Duration = Duration::from_secs(10);

/// Renews the lease of `node` for as long as it is awaited.
pub async fn renew(client: Client, namespace: String, node: String) {
    let leases: Api<Lease> = Api::namespaced(client, &namespace);
    let name = node_identity(&node);
    loop {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": name, "namespace": namespace, "labels": { "gpudesk.dev/node": node } },
            "spec": {
                "holderIdentity": node,
                "leaseDurationSeconds": DURATION_SECONDS,
                "renewTime": format!("{:.6}", Timestamp::now()),
            },
        });
        let params = PatchParams::apply(NODE_DAEMON_FIELD_MANAGER).force();
        let wait = match leases.patch(&name, &params, &Patch::Apply(&lease)).await {
            Ok(_) => RENEWAL,
            Err(error) => {
                tracing::warn!(%error, lease = name, "the lease could not be renewed");
                RETRY
            }
        };
        tokio::time::sleep(wait).await;
    }
}
