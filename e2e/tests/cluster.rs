//! A cluster with gpudesk's definitions and chart, as the other tests find it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use gpudesk_e2e::identity::who_am_i;
use gpudesk_e2e::trials::Suite;
use gpudesk_e2e::waiting::{until, until_gone};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, ObjectMeta, PostParams};

fn main() -> ExitCode {
    Suite::<Cluster>::new("cluster")
        .trial("the_api_has_the_four_kinds", four_kinds)
        .trial("helm_knows_the_release_and_upgrades_it", helm_release)
        .trial("programs_are_their_service_accounts", identities)
        .trial("a_test_has_a_namespace_of_its_own", namespaces)
        .trial("a_wait_ends_when_its_condition_holds_and_tells_what_it_last_saw", waits)
        .run()
}

async fn four_kinds(cluster: Arc<Cluster>) -> Result<()> {
    let kinds =
        cluster.kubectl(["api-resources", "--api-group=gpudesk.dev", "--no-headers", "--output=name"])?;
    let mut kinds: Vec<&str> = kinds.lines().collect();
    kinds.sort_unstable();
    ensure!(
        kinds
            == [
                "desktops.gpudesk.dev",
                "desktoptemplates.gpudesk.dev",
                "gpunodes.gpudesk.dev",
                "gpuprofiles.gpudesk.dev"
            ],
        "{kinds:?}"
    );
    Ok(())
}

async fn helm_release(cluster: Arc<Cluster>) -> Result<()> {
    cluster.helm_install(&[])?;
    let mut status = Command::new(cluster.control_plane().program("helm"));
    let status =
        cluster.run(status.args(["status", "gpudesk", "--namespace", SYSTEM_NAMESPACE, "--output=json"]))?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    ensure!(status["info"]["status"] == "deployed", "{status}");
    Ok(())
}

async fn identities(cluster: Arc<Cluster>) -> Result<()> {
    let operator = who_am_i(&cluster.operator_kubeconfig().await?).await?;
    ensure!(operator.username.as_deref() == Some("system:serviceaccount:gpudesk-system:gpudesk-operator"));
    let daemon = who_am_i(&cluster.daemon_kubeconfig("node-a").await?).await?;
    ensure!(daemon.username.as_deref() == Some("system:serviceaccount:gpudesk-system:gpudesk-node-daemon"));
    let extra = daemon.extra.unwrap_or_default();
    ensure!(extra["authentication.kubernetes.io/node-name"] == ["node-a"], "{extra:?}");
    Ok(())
}

async fn namespaces(cluster: Arc<Cluster>) -> Result<()> {
    let (one, other) = (cluster.namespace("trial").await?, cluster.namespace("trial").await?);
    ensure!(one != other && one.starts_with("trial-"), "{one} {other}");
    cluster.delete_namespace(&one).await?;
    let left = cluster.kubectl(["get", "namespaces", "--output=name"])?;
    ensure!(!left.contains(&one) && left.contains(&other), "{left}");
    Ok(())
}

async fn waits(cluster: Arc<Cluster>) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client().clone(), &cluster.namespace("waits").await?);
    let metadata = ObjectMeta { name: Some("watched".to_owned()), ..ObjectMeta::default() };
    let data = BTreeMap::from([("seen".to_owned(), "this".to_owned())]);
    let waiting = {
        let maps = maps.clone();
        tokio::spawn(async move {
            until(&maps, "watched", "has data", Duration::from_secs(30), |map| map.data.is_some()).await
        })
    };
    let object = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
    maps.create(&PostParams::default(), &object).await?;
    waiting.await??;

    let never = until(&maps, "watched", "is immutable", Duration::from_millis(500), |map| {
        map.immutable == Some(true)
    });
    let words = format!("{:#}", never.await.err().context("it holds")?);
    ensure!(words.contains("is immutable") && words.contains(r#""seen": "this""#), "{words}");

    ensure!(until_gone(&maps, "watched", Duration::from_millis(300)).await.is_err());
    maps.delete("watched", &DeleteParams::default()).await?;
    until_gone(&maps, "watched", Duration::from_secs(20)).await
}
