//! The identity of a node, with which its daemon reads the Secrets of its desktops.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use gpudesk_e2e::waiting::eventually;
use serde_json::{Value, json};

use crate::ask::{Person, apply, create, delete, get, gpunode, namespaced, object};
use crate::node_daemon::{account, token_request};

const IDENTITY: &str = "gpudesk-node-secret-a";

fn rbac(namespace: &str, plural: &str, name: &str) -> String {
    format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/{plural}/{name}")
}

/// A Role as the operator writes it.
pub(crate) fn role(name: &str, rules: &Value) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name}, "rules": rules})
}

/// A `RoleBinding` of a role to service accounts of the namespace of gpudesk.
pub(crate) fn binding(name: &str, role: &str, accounts: &[&str]) -> Value {
    let subjects: Vec<_> = accounts
        .iter()
        .map(|account| json!({"kind": "ServiceAccount", "name": account, "namespace": SYSTEM_NAMESPACE}))
        .collect();
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
        "subjects": subjects,
    })
}

/// `get` on these Secrets.
pub(crate) fn reading(secrets: &[&str]) -> Value {
    json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"], "resourceNames": secrets}])
}

pub(crate) async fn of_its_desktops(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("secrets").await?;
    let (admin, operator) = (Person::admin(&cluster), Person::operator(&cluster).await?);
    let secrets = format!("/api/v1/namespaces/{namespace}/secrets");
    for name in ["mine", "of-another"] {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": {"userData": "eA=="}});
        admin.may(&create(&secrets, secret)).await?;
    }

    operator.may(&account(IDENTITY)).await?;
    operator.may(&apply(rbac(&namespace, "roles", IDENTITY), role(IDENTITY, &reading(&["mine"])))).await?;
    let bind = binding(IDENTITY, IDENTITY, &[IDENTITY]);
    operator.may(&apply(rbac(&namespace, "rolebindings", IDENTITY), bind)).await?;

    let daemon = Person::daemon(&cluster, "secret-a").await?;
    let answer = daemon.may(&token_request(IDENTITY, "secret-a")).await?;
    let token = answer["status"]["token"].as_str().context("no token")?;
    let node = Person::with_token(&cluster, token).await?;
    let secret = |name: &str| get(format!("{secrets}/{name}"));
    let read = eventually("the node reads its Secret", Duration::from_secs(15), || async {
        Ok(node.try_ask(&secret("mine")).await?.ok())
    })
    .await?;
    ensure!(read["data"]["userData"] == "eA==", "{read}");

    // Nothing else, and the daemon's own account not even that.
    node.may_not(&secret("of-another"), "cannot get resource").await?;
    node.may_not(&get(&secrets), "cannot list resource").await?;
    node.may_not(&get(format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/secrets/mine")), "cannot get").await?;
    daemon.may_not(&secret("mine"), "cannot get resource").await?;
    let other = Person::daemon(&cluster, "secret-b").await?;
    other.may_not(&token_request(IDENTITY, "secret-b"), "may only request tokens").await?;
    node.may_not(&get(namespaced(&namespace, "desktops")), "cannot list resource").await?;
    let own = object("GpuNode", "secret-a", json!({"spec": {}}));
    node.may_not(&apply(gpunode("secret-a"), own), "cannot patch resource").await?;
    node.may_not(&token_request(IDENTITY, "secret-a"), "cannot create resource").await?;

    // With the last desktop that names it the Secret is closed again.
    operator.may(&delete(rbac(&namespace, "rolebindings", IDENTITY))).await?;
    operator.may(&delete(rbac(&namespace, "roles", IDENTITY))).await?;
    node.may_not(&secret("mine"), "cannot get resource").await
}
