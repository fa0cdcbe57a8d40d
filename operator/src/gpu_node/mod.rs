//! One round over a node: whether its daemon is heard, and the service account with which it reads
//! Secrets.
#![expect(clippy::disallowed_methods, reason = "an adapter: it tells the time to pure parts")]

use std::time::Duration;

use gpudesk_crds::GpuNode;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, ResourceExt, runtime::controller::Action};
use serde_json::json;

use crate::{
    node_liveness,
    secret_access::{AccessError, SecretAccess},
    understood::odd,
    world::World,
    writer::Writer,
};

/// How often a node is looked at when nothing happens.
const SLOWLY: Duration = Duration::from_mins(30);

/// One round.
///
/// # Errors
/// Those of the writes.
pub async fn reconcile(
    node: &GpuNode,
    world: &World,
    writer: &Writer,
    secrets: &SecretAccess,
) -> Result<Action, AccessError> {
    if node.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    // Of the conditions of an odd node it is not known what they say.
    if let Some(heard) = world.heard(&node.name_any()).filter(|_| odd(node).is_none()) {
        let now = Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default());
        let wanted = node_liveness::condition(node, &heard, &now);
        let says = |condition: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
            (condition.status.clone(), condition.reason.clone(), condition.message.clone())
        };
        // The one entry of the list that is the operator's.
        if node_liveness::said(node).map(says) != Some(says(&wanted)) {
            writer.apply_status(&Api::all(writer.client()), node, &json!({"conditions": [wanted]})).await?;
        }
    }
    secrets.service_account(node).await?;
    Ok(Action::requeue(SLOWLY))
}
