//! One round over a node: whether its daemon is heard, who else offers its cards to pods, and the service account with
//! which it reads Secrets.
#![expect(clippy::disallowed_methods, reason = "an adapter: it tells the time to pure parts")]

use std::time::Duration;

use gpudesk_crds::GpuNode;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{Api, ResourceExt, runtime::controller::Action};
use serde_json::json;

use crate::{
    node_liveness,
    other_owners::{OtherOwners, judge},
    secret_access::{AccessError, SecretAccess},
    understood::odd,
    world::World,
    writer::Writer,
};

/// How often a node is looked at when nothing happens.
const SLOWLY: Duration = Duration::from_mins(30);
/// After the end of what is waited for.
const SOON: Duration = Duration::from_secs(1);

/// One round.
///
/// # Errors
/// Those of the writes.
pub async fn reconcile(
    node: &GpuNode,
    world: &World,
    writer: &Writer,
    secrets: &SecretAccess,
    owners: &OtherOwners,
) -> Result<Action, AccessError> {
    if node.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    // Of the conditions of an odd node it is not known what they say, nor of its cards which are managed.
    let understood = odd(node).is_none();
    if let Some(heard) = world.heard(&node.name_any()).filter(|_| understood) {
        let now = Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default());
        let wanted = conditions(node, node_liveness::condition(node, &heard, &now), owners, &now);
        if !wanted.iter().all(|condition| is_said(node, condition)) {
            writer.apply_status(&Api::all(writer.client()), node, &json!({"conditions": wanted})).await?;
        }
    }
    secrets.service_account(node).await?;
    if understood {
        owners.bring_rules(node, writer).await?;
    }
    let pause = owners.pause_left(&node.name_any()).map_or(SLOWLY, |left| left + SOON);
    Ok(Action::requeue(pause.min(SLOWLY)))
}

/// The entries of the list that are the operator's. An apply takes away what it leaves out, so what was said of other owners
/// stands until something is known of them.
fn conditions(node: &GpuNode, heard: Condition, owners: &OtherOwners, now: &Time) -> Vec<Condition> {
    let unpublished = judge::condition(node, &owners.known(&node.name_any()), now);
    let unpublished = unpublished.or_else(|| judge::said(node).cloned());
    [heard].into_iter().chain(unpublished).collect()
}

/// Whether a node's status says this already.
fn is_said(node: &GpuNode, wanted: &Condition) -> bool {
    let said =
        node.status.iter().flat_map(|status| &status.conditions).find(|said| said.type_ == wanted.type_);
    said.is_some_and(|said| {
        (&said.status, &said.reason, &said.message) == (&wanted.status, &wanted.reason, &wanted.message)
    })
}
