//! Who a program is to the API server: a service account, bound to a node where it has one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

use crate::control_plane::ControlPlane;
use crate::kubeconfig;
use crate::state::StateDir;
use crate::waiting::eventually;

/// Tokens live this long: longer than any test, and than a demo is kept.
const TOKEN_SECONDS: i64 = 30 * 24 * 3600;

/// Writes a kubeconfig that holds a token of a service account, and returns its path.
///
/// With `node` the token is bound to that Node, which is made if it does not exist: requests
/// then carry the node's name as those of a pod on it do, and the token ends with the Node.
/// The service account has to exist within some seconds.
pub async fn service_account_kubeconfig(
    control_plane: &ControlPlane,
    state: &Arc<StateDir>,
    namespace: &str,
    account: &str,
    node: Option<&str>,
) -> Result<PathBuf> {
    let client = control_plane.client().await?;
    if let Some(node) = node {
        ensure_node(&client, node).await?;
    }
    let bound_object_ref = node.map(|node| BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(node.to_owned()),
        uid: None,
    });
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: Vec::new(),
            bound_object_ref,
            expiration_seconds: Some(TOKEN_SECONDS),
        },
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(client, namespace);
    let what = format!("service account {namespace}/{account} exists");
    eventually(&what, std::time::Duration::from_secs(20), || async { Ok(accounts.get_opt(account).await?) })
        .await?;
    let answer = accounts.create_token_request(account, &PostParams::default(), &request).await?;
    let token = answer.status.context("the token request has no answer")?.token;

    let path = kubeconfig_path(state, namespace, account, node);
    kubeconfig::write_like(&path, control_plane.kubeconfig(), &token)?;
    Ok(path)
}

/// Where the kubeconfig of a service account lies.
pub fn kubeconfig_path(state: &StateDir, namespace: &str, account: &str, node: Option<&str>) -> PathBuf {
    let name = node.map_or_else(|| account.to_owned(), |node| format!("{account}-{node}"));
    state.join(format!("{namespace}-{name}.kubeconfig"))
}

/// Makes a Node that no kubelet stands behind; one that exists is left as it is.
pub async fn ensure_node(client: &Client, name: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    match nodes.create(&PostParams::default(), &Node { metadata, ..Node::default() }).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("create node {name}")),
    }
}

/// The kubeconfig's own view of who it is: user name, groups and extra fields.
pub async fn who_am_i(kubeconfig: &Path) -> Result<k8s_openapi::api::authentication::v1::UserInfo> {
    use k8s_openapi::api::authentication::v1::SelfSubjectReview;
    let reviews: Api<SelfSubjectReview> = Api::all(kubeconfig::client(kubeconfig).await?);
    let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await?;
    review.status.and_then(|status| status.user_info).context("the review has no answer")
}
