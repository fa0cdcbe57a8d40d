//! A real Prometheus scrapes every pod that the headless Services name, as read by an account that may read nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use gpudesk_e2e::cluster::SYSTEM_NAMESPACE;
use gpudesk_e2e::identity::service_account_kubeconfig;
use gpudesk_e2e::kubeconfig;
use gpudesk_e2e::pods::Pods;
use gpudesk_e2e::processes::run;
use gpudesk_e2e::state::checkout;
use gpudesk_e2e::waiting::eventually;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::SOON;

/// Ends Prometheus as soon as it has a figure of every pod, and prints all that it has.
const SCRIPT: &str = r#"
programs=$1 folder=$2 pods=$3
"$programs/prometheus" --config.file="$folder/prometheus.yaml" --storage.tsdb.path="$folder/data" \
  --web.listen-address=127.0.0.1:9090 >"$folder/log" 2>&1 &
trap 'kill $!; wait $! || :' EXIT
tries=0
ask() { "$programs/promtool" query instant http://127.0.0.1:9090 "$1"; }
figures="count by (pod, __name__) ({__name__=~'gpudesk_.+'})"
while kill -0 $! && [ $((tries += 1)) -le 120 ]; do
  if [ -n "$(ask "count(count by (pod) ({__name__=~'gpudesk_.+'})) == $pods" 2>/dev/null)" ]; then
    ask up && ask "$figures"
    exit
  fi
  sleep 1
done
ask up >&2
tail -n 20 "$folder/log" >&2
exit 1"#;

pub(crate) async fn by_prometheus(pods: &Pods) -> Result<()> {
    let cluster = pods.cluster();
    let tool = run(Command::new(checkout().join("e2e/install.sh")).args(["--tool", "prometheus"]))?;
    let (programs, _) = tool.trim().rsplit_once('/').context("a program lies in a folder")?;
    let folder = cluster.state().join("prometheus");
    fs::create_dir_all(&folder)?;
    for words in [
        "create namespace monitoring".to_owned(),
        "create serviceaccount prometheus -n monitoring".to_owned(),
        format!(
            "create role prometheus -n {SYSTEM_NAMESPACE} --verb=list --resource=endpointslices.discovery.k8s.io"
        ),
        format!(
            "create rolebinding prometheus -n {SYSTEM_NAMESPACE} --role=prometheus \
             --serviceaccount=monitoring:prometheus"
        ),
    ] {
        cluster.kubectl(words.split_whitespace())?;
    }
    let account = service_account_kubeconfig(
        cluster.control_plane(),
        cluster.state(),
        "monitoring",
        "prometheus",
        None,
    );
    let slices: Api<EndpointSlice> =
        Api::namespaced(kubeconfig::client(&account.await?).await?, SYSTEM_NAMESPACE);
    let mut expected = BTreeSet::new();
    for component in ["operator", "node-daemon"] {
        expected.extend(pods.of(component).await?.iter().map(ResourceExt::name_any));
    }
    // Debian's Prometheus does without what would ask Kubernetes itself.
    let targets = eventually("the Services name every pod", SOON, || async {
        let named = slices.list(&ListParams::default().labels("kubernetes.io/service-name")).await?;
        let targets: BTreeMap<_, _> = named.into_iter().flat_map(targets).collect();
        Ok(targets.keys().eq(&expected).then_some(targets))
    })
    .await?;
    let targets: Vec<_> =
        targets.iter().map(|(pod, target)| json!({"targets": [target], "labels": {"pod": pod}})).collect();
    let config = json!({
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "gpudesk", "static_configs": targets}],
    });
    fs::write(folder.join("prometheus.yaml"), config.to_string())?;

    let nodes = pods.nodes().await;
    let mut script = nodes[0].inside("sh");
    script.args(["-c", SCRIPT, "sh", programs]).arg(&folder).arg(expected.len().to_string());
    let said = tokio::task::spawn_blocking(move || run(&mut script)).await??;
    for pod in &expected {
        let figures: Vec<_> = said.lines().filter(|line| line.contains(&format!(r#"pod="{pod}""#))).collect();
        let own = if pod.contains("operator") { "gpudesk_operator_" } else { "gpudesk_node_" };
        ensure!(
            figures.iter().any(|line| line.starts_with("up{") && line.contains("=> 1 ")),
            "{pod}: {said}"
        );
        ensure!(figures.iter().any(|line| line.starts_with(own)), "{pod}: {said}");
    }
    Ok(())
}

/// The pods that a slice names as ready, and where.
fn targets(slice: EndpointSlice) -> Vec<(String, String)> {
    let port = slice.ports.iter().flatten().find_map(|port| port.port).unwrap_or_default();
    let ready = slice.endpoints.into_iter().filter(|endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true)
    });
    ready
        .filter_map(|endpoint| {
            Some((endpoint.target_ref?.name?, format!("{}:{port}", endpoint.addresses.first()?)))
        })
        .collect()
}
