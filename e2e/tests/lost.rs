//! Nodes that are lost, what people say of them, and desktops whose status is lost. No daemon runs here: what one
//! would write is written with its token, so that a node is heard or not as the test wants it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_crds::conditions::{ConditionType, Reason};
use gpudesk_crds::{Desktop, GpuNode, NODE_DAEMON_FIELD_MANAGER, node_identity};
use gpudesk_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use gpudesk_e2e::kubeconfig;
use gpudesk_e2e::objects::{Objects, condition};
use gpudesk_e2e::processes::Lifetime;
use gpudesk_e2e::programs::Service;
use gpudesk_e2e::state::StateDir;
use gpudesk_e2e::trials::{Environment, Suite};
use gpudesk_e2e::waiting::{eventually, until, until_gone};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_mins(1);

fn main() -> ExitCode {
    Suite::<Lost>::new("lost")
        .trial("without_disks_a_desktop_goes_on_once_its_node_has_the_taint", taint)
        .trial("a_gpunode_that_is_out_of_service_counts_while_it_is_not_heard", out_of_service)
        .trial("a_deleted_desktop_waits_for_a_word_where_it_may_run", deleted)
        .trial("a_desktop_whose_status_was_wiped_gets_its_allocation_back", given_back)
        .run()
}

struct Lost {
    operator: Service,
    cluster: Cluster,
}

impl Environment for Lost {
    async fn start() -> Result<Self> {
        let state = Arc::new(StateDir::for_test("lost")?);
        let cluster = Cluster::start_in(&state, Lifetime::Test).await?;
        let operator = cluster.start_operator().await?;
        Ok(Self { operator, cluster })
    }

    async fn stop(self) -> Result<()> {
        self.operator.stop()?;
        self.cluster.stop_control_plane()
    }

    fn collect_logs(&self, suite: &str) -> Result<Option<PathBuf>> {
        self.cluster.save_evidence(suite).map(Some)
    }
}

/// A node as its daemon would write it.
struct Host {
    name: String,
    trial: String,
    client: Client,
}

impl Host {
    fn nodes(&self) -> Api<GpuNode> {
        Api::all(self.client.clone())
    }

    async fn apply<K>(&self, api: &Api<K>, name: &str, status: bool, body: Value) -> Result<()>
    where
        K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let (params, patch) = (PatchParams::apply(NODE_DAEMON_FIELD_MANAGER).force(), Patch::Apply(body));
        let applied = if status {
            api.patch_status(name, &params, &patch).await
        } else {
            api.patch(name, &params, &patch).await
        };
        applied.with_context(|| format!("apply {name}"))?;
        Ok(())
    }

    /// Writes the node, with what it reports of machines.
    async fn reports(&self, cluster: &Cluster, strays: Value) -> Result<()> {
        let object = |more: Value| {
            let mut object = json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": "GpuNode", "metadata": {"name": self.name}});
            object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            object
        };
        self.apply(&self.nodes(), &self.name, false, object(json!({"spec": {}}))).await?;
        let label = Patch::Merge(json!({"metadata": {"labels": {"trial": self.trial}}}));
        Api::<GpuNode>::all(cluster.client().clone())
            .patch(&self.name, &PatchParams::default(), &label)
            .await?;
        let status = json!({"status": {
            "numaCells": [{"id": 0, "cores": ["0", "1", "2", "3"], "memoryMiB": 4096}], "strays": strays,
            "conditions": [{"type": "Ready", "status": "True", "reason": "AsExpected", "message": "",
                            "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        }});
        self.apply(&self.nodes(), &self.name, true, object(status)).await
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE)
    }

    async fn renews(&self) -> Result<()> {
        self.renews_for(600).await
    }

    async fn renews_for(&self, seconds: i32) -> Result<()> {
        let now = jiff::Timestamp::now();
        let name = node_identity(&self.name);
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
            "spec": {"holderIdentity": self.name, "renewTime": format!("{now:.6}"), "leaseDurationSeconds": seconds}});
        self.apply(&self.leases(), &name, false, lease).await
    }

    async fn is_silent(&self, cluster: &Cluster) -> Result<()> {
        // That somebody deletes it says nothing of its daemon: it lasts for as long as it would have.
        self.renews_for(1).await?;
        let leases: Api<Lease> = Api::namespaced(cluster.client().clone(), SYSTEM_NAMESPACE);
        leases.delete(&node_identity(&self.name), &DeleteParams::default()).await?;
        Ok(())
    }

    async fn is_lost(&self, cluster: &Cluster) -> Result<()> {
        self.is_silent(cluster).await?;
        Api::<GpuNode>::all(cluster.client().clone()).delete(&self.name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Says of a desktop how far its node is, as admission lets it.
    async fn says(&self, objects: &Objects, name: &str, state: &str) -> Result<()> {
        let id =
            objects.desktops().get(name).await?.allocation().and_then(|held| held.id).context("an id")?;
        let body = json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop", "metadata": {"name": name},
            "status": {"node": {"allocationId": id, "state": state}}});
        self.apply(&Api::<Desktop>::namespaced(self.client.clone(), objects.namespace()), name, true, body)
            .await
    }
}

impl Lost {
    /// Nodes for one trial, that are heard, and desktops for them of a template with disks or without.
    async fn trial(&self, trial: &str, nodes: usize) -> Result<(Objects, Vec<Host>)> {
        let objects = Objects::new(self.cluster.client(), &self.cluster.namespace(trial).await?);
        objects
            .template(
                "bare",
                "{memory: {sizeMiB: 512}, guestAgent: false, disks: [{name: s, hostFile: {path: /srv/a}}]}",
            )
            .await?;
        objects
            .template(
                "disk",
                "{memory: {sizeMiB: 512}, guestAgent: false, disks: [{name: s, image: {name: any}}]}",
            )
            .await?;
        let mut hosts = vec![];
        for index in 0..nodes {
            hosts.push(self.host(trial, &format!("{trial}-{index}")).await?);
        }
        Ok((objects, hosts))
    }

    async fn host(&self, trial: &str, name: &str) -> Result<Host> {
        let client = kubeconfig::client(&self.cluster.daemon_kubeconfig(name).await?).await?;
        let host = Host { name: name.to_owned(), trial: trial.to_owned(), client };
        host.renews().await?;
        host.reports(&self.cluster, json!([])).await?;
        Ok(host)
    }

    async fn desktop(&self, objects: &Objects, name: &str, template: &str, host: &Host) -> Result<Desktop> {
        let spec = format!("{{templateRef: {{name: {template}}}, nodeSelector: {{trial: {}}}}}", host.trial);
        objects.desktop(name, &spec).await?;
        let placed = holds(objects, name, &host.name).await?;
        host.says(objects, name, "Running").await?;
        Ok(placed)
    }
}

async fn holds(objects: &Objects, name: &str, node: &str) -> Result<Desktop> {
    until(&objects.desktops(), name, &format!("it holds its place on {node}"), SOON, |desktop| {
        desktop.allocation().is_some_and(|held| held.node == node && held.compute.is_some())
    })
    .await
}

fn id(desktop: &Desktop) -> Option<String> {
    Some(desktop.allocation()?.decision())
}

async fn taint(environment: Arc<Lost>) -> Result<()> {
    let cluster = &environment.cluster;
    let (objects, hosts) = environment.trial("taint", 1).await?;
    let before = environment.desktop(&objects, "bare", "bare", &hosts[0]).await?;
    let kept = environment.desktop(&objects, "disk", "disk", &hosts[0]).await?;
    hosts[0].is_lost(cluster).await?;
    let said = objects.says("bare", ConditionType::Ready, Reason::NodeLost, SOON).await?;
    ensure!(
        said.status == "Unknown" && said.message.contains("node.kubernetes.io/out-of-service"),
        "{said:?}"
    );
    objects.says("disk", ConditionType::Ready, Reason::NodeLost, SOON).await?;
    let other = environment.host("taint", "taint-b").await?;
    ensure!(id(&objects.desktops().get("bare").await?) == id(&before), "nothing moves without a word");
    let taint = json!({"spec": {"taints": [{"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}]}});
    let nodes: Api<Node> = Api::all(cluster.client().clone());
    nodes.patch(&hosts[0].name, &PatchParams::default(), &Patch::Merge(taint)).await?;
    let moved = holds(&objects, "bare", &other.name).await?;
    ensure!(id(&moved) != id(&before) && id(&moved).is_some_and(|id| id.starts_with("2-")), "{moved:?}");
    let stays = objects.desktops().get("disk").await?;
    ensure!(id(&stays) == id(&kept), "its disks are there: {stays:?}");
    let abandon =
        |id: &str| json!({"metadata": {"annotations": {gpudesk_crds::ABANDON_DISKS_ANNOTATION: id}}});
    objects.patch("disk", abandon("1-00000000")).await?;
    until(&objects.desktops(), "disk", "the wrong id is answered", SOON, |desktop| {
        condition(desktop, ConditionType::Ready)
            .is_some_and(|ready| ready.message.contains("gives up nothing"))
    })
    .await?;
    objects.patch("disk", abandon(&id(&kept).unwrap())).await?;
    holds(&objects, "disk", &other.name).await?;
    Ok(())
}

async fn out_of_service(environment: Arc<Lost>) -> Result<()> {
    let cluster = &environment.cluster;
    let (objects, hosts) = environment.trial("off", 2).await?;
    objects.desktop("one", "{templateRef: {name: bare}, nodeSelector: {trial: off}}").await?;
    let placed =
        until(&objects.desktops(), "one", "it is placed", SOON, |desktop| desktop.allocation().is_some())
            .await?;
    let on = |desktop: &Desktop| desktop.allocation().map(|held| held.node.clone()).unwrap_or_default();
    let host = hosts.iter().find(|host| host.name == on(&placed)).context("it is on one of them")?;
    host.says(&objects, "one", "Running").await?;
    let spec = Patch::Merge(json!({"spec": {"outOfService": true}}));
    Api::<GpuNode>::all(cluster.client().clone()).patch(&host.name, &PatchParams::default(), &spec).await?;
    // The first that is placed elsewhere shows that the operator has seen the word.
    let mut two = placed.clone();
    for number in 0.. {
        let name = format!("two-{number}");
        objects.desktop(&name, "{templateRef: {name: bare}, nodeSelector: {trial: off}}").await?;
        two =
            until(&objects.desktops(), &name, "it is placed", SOON, |desktop| desktop.allocation().is_some())
                .await?;
        if on(&two) != host.name {
            break;
        }
        objects.desktops().delete(&name, &DeleteParams::default()).await?;
        ensure!(number < 4, "nothing new goes there");
    }
    ensure!(id(&objects.desktops().get("one").await?) == id(&placed), "while it is heard it stays");
    host.is_silent(cluster).await?;
    holds(&objects, "one", &on(&two)).await?;
    Ok(())
}

async fn deleted(environment: Arc<Lost>) -> Result<()> {
    let cluster = &environment.cluster;
    let (objects, hosts) = environment.trial("deleted", 1).await?;
    let runs = environment.desktop(&objects, "runs", "disk", &hosts[0]).await?;
    environment.desktop(&objects, "rests", "disk", &hosts[0]).await?;
    objects.patch("rests", json!({"spec": {"powerState": "Stopped"}})).await?;
    hosts[0].says(&objects, "rests", "Stopped").await?;
    until(&objects.desktops(), "rests", "it is parked", SOON, |desktop| {
        desktop.allocation().is_some_and(|held| held.compute.is_none())
    })
    .await?;
    hosts[0].is_lost(cluster).await?;
    for name in ["runs", "rests"] {
        objects.desktops().delete(name, &DeleteParams::default()).await?;
    }
    until_gone(&objects.desktops(), "rests", SOON).await?;
    let said = objects.says("runs", ConditionType::Ready, Reason::NodeLost, SOON).await?;
    ensure!(
        said.message.contains("out-of-service") && said.message.contains(&id(&runs).unwrap()),
        "{said:?}"
    );
    objects
        .patch(
            "runs",
            json!({"metadata": {"annotations": {gpudesk_crds::ABANDON_DISKS_ANNOTATION: id(&runs)}}}),
        )
        .await?;
    until_gone(&objects.desktops(), "runs", SOON).await
}

async fn given_back(environment: Arc<Lost>) -> Result<()> {
    let cluster = &environment.cluster;
    let (objects, hosts) = environment.trial("back", 2).await?;
    objects.desktop("one", "{templateRef: {name: bare}, nodeSelector: {trial: back}}").await?;
    let placed =
        until(&objects.desktops(), "one", "it is placed", SOON, |desktop| desktop.allocation().is_some())
            .await?;
    let held = placed.allocation().cloned().context("it holds")?;
    let host = hosts.iter().find(|host| host.name == held.node).context("its node")?;
    let liar = hosts.iter().find(|host| host.name != held.node).context("the other")?;
    host.says(&objects, "one", "Running").await?;
    let stray = |allocation: Value| {
        json!([{"uid": placed.uid(), "namespace": objects.namespace(), "name": "one", "standing": "Unallocated",
                "allocation": allocation, "since": "2026-01-01T00:00:00Z"}])
    };
    // A node that was taken over claims the desktop by an id that it made up.
    let mut claim = serde_json::to_value(&held)?;
    claim["node"] = json!(liar.name);
    claim["id"] = json!("900-00000000");
    liar.reports(cluster, stray(claim)).await?;
    eventually("the claim is counted", SOON, || async {
        let text = environment.operator.metrics().await?;
        Ok(text.contains("unproven_strays_total 1").then_some(()))
    })
    .await?;
    ensure!(objects.desktops().get("one").await?.allocation() == Some(&held), "it holds nobody");
    // Somebody with the right to repair things takes the allocation away.
    let wipe = Patch::Merge(json!({"status": {"allocation": null}}));
    objects.desktops().patch_status("one", &PatchParams::default(), &wipe).await?;
    let said = until(&objects.desktops(), "one", "nothing is started beside it", SOON, |desktop| {
        condition(desktop, ConditionType::Allocated)
            .is_some_and(|said| said.message.contains("does not tell any more"))
    })
    .await?;
    ensure!(said.allocation().is_none(), "{said:?}");
    host.reports(cluster, stray(serde_json::to_value(&held)?)).await?;
    let back = holds(&objects, "one", &host.name).await?;
    ensure!(id(&back) == id(&placed), "{back:?}");
    host.reports(cluster, json!([])).await?;
    Ok(())
}
