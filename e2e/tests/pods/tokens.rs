//! Pods outlive the tokens that they began with. Ten minutes is the shortest life of a token, so this is for `make soak`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_e2e::cluster::SYSTEM_NAMESPACE;
use gpudesk_e2e::identity::who_am_i;
use gpudesk_e2e::waiting::eventually;
use kube::ResourceExt;

use crate::{FOR, Story, daemon, ready, spread, token_of_daemon};

const WORKLOADS: [&str; 2] = ["deployment/gpudesk-operator", "daemonset/gpudesk-node-daemon"];
/// A token lives ten minutes, and for some seconds more what was found of it is remembered.
const EXPIRED: Duration = Duration::from_mins(13);

/// In the place of the token that the API server adds, which it takes for a year for the sake of old programs.
fn short(container: &str) -> String {
    let sources = r#"[{"serviceAccountToken":{"path":"token","expirationSeconds":600}},{"configMap":{"name":"kube-root-ca.crt","items":[{"key":"ca.crt","path":"ca.crt"}]}},{"downwardAPI":{"items":[{"path":"namespace","fieldRef":{"fieldPath":"metadata.namespace"}}]}}]"#;
    let mount =
        r#"{"name":"short","mountPath":"/var/run/secrets/kubernetes.io/serviceaccount","readOnly":true}"#;
    format!(
        r#"{{"spec":{{"template":{{"spec":{{"containers":[{{"name":"{container}","volumeMounts":[{mount}]}}],"volumes":[{{"name":"short","projected":{{"sources":{sources}}}}}]}}}}}}}}"#
    )
}

pub(crate) async fn outlived(story: &Story<'_>) -> Result<()> {
    for (workload, container) in WORKLOADS.into_iter().zip(["operator", "node-daemon"]) {
        story.kubectl(&format!("-n {SYSTEM_NAMESPACE} patch {workload} -p {}", short(container)))?;
    }
    for workload in WORKLOADS {
        story.kubectl(&format!("-n {SYSTEM_NAMESPACE} rollout status {FOR} {workload}"))?;
    }
    spread(story.pods).await?;
    let before = pods(story).await?;
    let first = token_of_daemon(story.pods).await?;
    let kept = first.with_file_name("first.kubeconfig");
    std::fs::copy(first, &kept)?;
    eventually("the first token is no longer good", EXPIRED, || async {
        Ok(is_refused(&kept).await?.then_some(()))
    })
    .await?;
    story.new_desktop("the first tokens had expired").await?;
    story.goes_on("the first tokens had expired").await?;
    ensure!(pods(story).await? == before, "a pod was made anew or has restarted: {before:?}");
    ensure!(!is_refused(&token_of_daemon(story.pods).await?).await?, "the kubelet brought no new token");
    daemon(story.pods).await.map(drop)
}

async fn is_refused(kubeconfig: &Path) -> Result<bool> {
    match who_am_i(kubeconfig).await {
        Ok(_) => Ok(false),
        Err(error) => match error.downcast_ref() {
            Some(kube::Error::Api(status)) if status.code == 401 => Ok(true),
            _ => Err(error).context("who am I"),
        },
    }
}

/// Every pod with the number of its restarts.
async fn pods(story: &Story<'_>) -> Result<Vec<(String, i32)>> {
    let mut found = Vec::new();
    for component in ["operator", "node-daemon"] {
        for pod in story.pods.of(component).await? {
            ensure!(ready(&pod), "{} is not ready", pod.name_any());
            let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
            found.push((pod.name_any(), statuses.map(|status| status.restart_count).sum()));
        }
    }
    found.sort();
    Ok(found)
}
