//! The operator's status is what it says, whoever else owns parts of it by `metadata.managedFields`; and cards of gpudesk that
//! others own, too, by what they publish to pods.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_crds::conditions::{ConditionType, Reason};
use gpudesk_crds::{Desktop, GpuNode};
use gpudesk_e2e::cluster::Cluster;
use gpudesk_e2e::objects::{Objects, condition};
use gpudesk_e2e::processes::Lifetime;
use gpudesk_e2e::programs::Service;
use gpudesk_e2e::state::{StateDir, checkout};
use gpudesk_e2e::trials::{Environment, Suite};
use gpudesk_e2e::waiting::{eventually, until};
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt, discovery};
use serde_json::{Value, json};
use tokio::sync::Mutex;

const NODE: &str = "owned-1";
const SOON: Duration = Duration::from_secs(90);
const TEMPLATE: &str = "{cpu: {cores: 1, pinning: Dedicated}, memory: {sizeMiB: 512}, guestAgent: false, \
     disks: [{name: system, image: {name: any}}]}";

fn main() -> ExitCode {
    Suite::<Owners>::new("owners")
        .trial("what_others_own_of_a_status_is_taken_back_all_the_same", taken_back)
        .trial("a_desktop_of_a_lost_node_runs_again", lost)
        .trial("cards_that_pods_could_be_given_are_named_and_tainted", published)
        .trial("cards_that_a_device_plugin_counts_are_named", plugged)
        .run()
}

struct Owners {
    daemon: Mutex<Option<Service>>,
    operator: Service,
    cluster: Cluster,
}

impl Environment for Owners {
    async fn start() -> Result<Self> {
        let state = Arc::new(StateDir::for_test("owners")?);
        let cluster = Cluster::start_in(&state, Lifetime::Test).await?;
        let operator = cluster.start_operator().await?;
        let daemon = daemon(&cluster).await?;
        Ok(Self { daemon: Mutex::new(Some(daemon)), operator, cluster })
    }

    async fn stop(self) -> Result<()> {
        if let Some(daemon) = self.daemon.into_inner() {
            daemon.stop()?;
        }
        self.operator.stop()?;
        self.cluster.stop_control_plane()
    }

    fn collect_logs(&self, suite: &str) -> Result<Option<std::path::PathBuf>> {
        self.cluster.save_evidence(suite).map(Some)
    }
}

async fn daemon(cluster: &Cluster) -> Result<Service> {
    cluster.start_simulated(NODE, &checkout().join("examples/hosts/l40s-4.yaml")).await
}

async fn objects(environment: &Owners, name: &str) -> Result<Objects> {
    let objects = Objects::new(environment.cluster.client(), &environment.cluster.namespace(name).await?);
    objects.template("t", TEMPLATE).await?;
    Ok(objects)
}

/// Makes somebody else own what the operator decided, in one of the ways there are. All but the first are
/// refused to tenants.
async fn own(objects: &Objects, desktop: &Desktop, way: &str) -> Result<()> {
    let (api, name) = (objects.desktops(), desktop.name_any());
    let merge = Patch::Merge;
    let plain = PatchParams::default();
    match way {
        "a-patch-of-one-field" => {
            let node = json!({"status": {"allocation": {"node": NODE}}});
            api.patch_status(&name, &PatchParams::apply("kubectl-patch"), &merge(node)).await?;
        }
        "nobody" => {
            api.patch(&name, &plain, &merge(json!({"metadata": {"managedFields": [{}]}}))).await?;
        }
        "an-entry-for-the-pins" => {
            let mut entries: Value = serde_json::to_value(desktop.managed_fields())?;
            let pins = json!({"f:status": {"f:allocation": {"f:compute": {"f:vcpuPins": {}}}}});
            entries.as_array_mut().context("a list")?.push(json!({
                "manager": "x", "operation": "Update", "apiVersion": "gpudesk.dev/v1alpha1",
                "fieldsType": "FieldsV1", "fieldsV1": pins, "time": "2026-01-01T00:00:00Z",
            }));
            api.patch(&name, &plain, &merge(json!({"metadata": {"managedFields": entries}}))).await?;
        }
        _ => {
            let same = json!({
                "apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop", "metadata": {"name": name},
                "status": {"allocation": desktop.status.as_ref().context("a status")?.allocation},
            });
            api.patch_status(&name, &PatchParams::apply("x"), &Patch::Apply(same)).await?;
        }
    }
    Ok(())
}

/// Given back in every way, and then held by nobody: so much is held as the next one asks for.
async fn taken_back(environment: Arc<Owners>) -> Result<()> {
    // The other trial takes the node away.
    let _daemon = environment.daemon.lock().await;
    let objects = objects(&environment, "owned").await?;
    for way in ["a-patch-of-one-field", "nobody", "an-entry-for-the-pins", "an-apply-of-the-same"] {
        objects.desktop(way, "{templateRef: {name: t}}").await?;
        objects.is(way, ConditionType::Ready, true, SOON).await?;
        let running = objects.desktops().get(way).await?;
        own(&objects, &running, way).await.with_context(|| format!("to let {way} own it"))?;
        objects.patch(way, json!({"spec": {"powerState": "Stopped"}})).await?;
        let stopped = until(&objects.desktops(), way, "is parked", SOON, |desktop: &Desktop| {
            let allocation = desktop.status.as_ref().and_then(|status| status.allocation.as_ref());
            let allocated = condition(desktop, ConditionType::Allocated);
            allocation.is_some_and(|allocation| allocation.compute.is_none())
                && allocated.is_some_and(|allocated| allocated.reason == Reason::Stopped.as_str())
        })
        .await
        .with_context(|| format!("{way} owns it, too"))?;
        let allocation = stopped.status.and_then(|status| status.allocation).context("it is parked")?;
        ensure!(allocation.decision.is_none() && allocation.made_of.is_none(), "{way}: {allocation:?}");
        objects.patch(way, json!({"spec": {"powerState": "Running"}})).await?;
        let runs = |desktop: &Desktop| {
            let allocation = desktop.status.as_ref().and_then(|status| status.allocation.as_ref());
            let again = allocation.is_some_and(|again| again.id != allocation_id(&running));
            again && condition(desktop, ConditionType::Ready).is_some_and(|ready| ready.status == "True")
        };
        until(&objects.desktops(), way, "runs again", SOON, runs).await?;
        objects.delete(way, SOON).await?;
    }
    Ok(())
}

fn allocation_id(desktop: &Desktop) -> Option<gpudesk_crds::AllocationId> {
    desktop.status.as_ref()?.allocation.as_ref()?.id
}

/// The operator speaks of `Running` for as long as no node is there, and parts of that are the node's.
async fn lost(environment: Arc<Owners>) -> Result<()> {
    let objects = objects(&environment, "lost").await?;
    objects.desktop("a", "{templateRef: {name: t}}").await?;
    objects.is("a", ConditionType::Ready, true, SOON).await?;
    let mut daemon = environment.daemon.lock().await;
    if let Some(daemon) = daemon.take() {
        daemon.stop()?;
    }
    let nodes: Api<GpuNode> = Api::all(environment.cluster.client().clone());
    nodes.delete(NODE, &DeleteParams::default()).await?;
    let lost = |desktop: &Desktop| {
        condition(desktop, ConditionType::Ready).is_some_and(|said| said.reason == Reason::NodeLost.as_str())
    };
    until(&objects.desktops(), "a", "is lost with its node", SOON, lost).await?;
    // Its node speaks again, and each of the two says what is its own.
    *daemon = Some(self::daemon(&environment.cluster).await?);
    objects.is("a", ConditionType::Ready, true, SOON).await?;
    objects.patch("a", json!({"spec": {"powerState": "Stopped"}})).await?;
    let stopped = |desktop: &Desktop| {
        condition(desktop, ConditionType::Allocated)
            .is_some_and(|said| said.reason == Reason::Stopped.as_str())
    };
    until(&objects.desktops(), "a", "is stopped", SOON, stopped).await?;
    objects.patch("a", json!({"spec": {"powerState": "Running"}})).await?;
    objects.is("a", ConditionType::Ready, true, SOON).await?;
    Ok(())
}

/// A node of which a DRA driver publishes two cards that gpudesk manages and a network card, and then a device plugin offers
/// all of them.
async fn published(environment: Arc<Owners>) -> Result<()> {
    const NODE: &str = "owned-2";
    let cluster = &environment.cluster;
    let daemon = cluster.start_simulated(NODE, &checkout().join("examples/hosts/l40s-4.yaml")).await?;
    let client = cluster.client().clone();
    let nodes: Api<GpuNode> = Api::all(client.clone());
    let node = is_unpublished(&nodes, NODE, "True", Reason::AsExpected).await?;
    let cards: Vec<_> =
        node.status.iter().flat_map(|status| &status.devices).map(|card| card.pci_address).collect();
    let [first, second, ..] = cards[..] else { anyhow::bail!("too few cards: {cards:?}") };

    // Clusters without such rules have their own tests, at the operator.
    let Ok(group) = discovery::group(&client, "resource.k8s.io").await else {
        daemon.stop()?;
        return Ok(());
    };
    let kinds = group.resources_by_stability();
    let of = |kind: &str| kinds.iter().map(|(api, _)| api).find(|api| api.kind == kind);
    let (Some(slices), Some(rules)) = (of("ResourceSlice"), of("DeviceTaintRule")) else {
        daemon.stop()?;
        return Ok(());
    };
    let (slices_api, rules_api): (Api<DynamicObject>, Api<DynamicObject>) =
        (Api::all_with(client.clone(), slices), Api::all_with(client.clone(), rules));
    let attribute = |address: &str| json!({"resource.kubernetes.io/pciBusID": {"string": address}});
    let device = |name: &str, address: &str| json!({"name": name, "attributes": attribute(address)});
    let slice = DynamicObject::new("owned-2-gpu.nvidia.com-1", slices).data(json!({"spec": {
        "driver": "gpu.nvidia.com", "nodeName": NODE,
        "pool": {"name": NODE, "generation": 1, "resourceSliceCount": 1},
        "devices": [
            device("gpu-0", &first.to_string()), device("gpu-1", &second.to_string()), device("nic-0", "0000:fe:00.0"),
        ],
    }}));
    slices_api.create(&PostParams::default(), &slice).await?;
    let named = is_unpublished(&nodes, NODE, "False", Reason::OfferedToPods).await?;
    let said = unpublished(&named).context("it is said")?.message.clone();
    ensure!(said.contains("gpu.nvidia.com") && said.contains(&first.to_string()), "{said}");
    tainted(&rules_api, &["gpu-0", "gpu-1"]).await?;
    let rule = rules_api.list(&ListParams::default()).await?.items.pop().context("a rule")?;
    let taint = &rule.data["spec"]["taint"];
    ensure!(taint["key"] == "gpudesk.dev/managed" && taint["effect"] == "NoSchedule", "{taint}");

    // Who takes a taint away gets it back; who gives the card to others does not.
    rules_api.delete(&rule.name_any(), &DeleteParams::default()).await?;
    tainted(&rules_api, &["gpu-0", "gpu-1"]).await?;
    let left = json!({"spec": {"devices": [
        {"name": "theirs", "selector": {"pciAddress": first}, "management": "Unmanaged"},
    ]}});
    nodes.patch(NODE, &PatchParams::default(), &Patch::Merge(left)).await?;
    tainted(&rules_api, &["gpu-1"]).await?;
    slices_api.delete(&slice.name_any(), &DeleteParams::default()).await?;
    tainted(&rules_api, &[]).await?;
    is_unpublished(&nodes, NODE, "True", Reason::AsExpected).await?;

    // What its daemon says stands beside it.
    let spec = json!({"spec": {"devices": null}});
    nodes.patch(NODE, &PatchParams::default(), &Patch::Merge(spec)).await?;
    slices_api.create(&PostParams::default(), &slice).await?;
    let node = is_unpublished(&nodes, NODE, "False", Reason::OfferedToPods).await?;
    let said = node.status.iter().flat_map(|status| &status.conditions).map(|said| said.type_.as_str());
    let said: BTreeSet<&str> = said.collect();
    ensure!(said.is_superset(&["DaemonHeard", "DevicePluginsAbsent", "Ready"].into()), "{said:?}");
    tainted(&rules_api, &["gpu-0", "gpu-1"]).await?;

    // With the node its taints go.
    daemon.stop()?;
    nodes.delete(NODE, &DeleteParams::default()).await?;
    tainted(&rules_api, &[]).await?;
    slices_api.delete(&slice.name_any(), &DeleteParams::default()).await?;
    Ok(())
}

/// A node whose Node has the resources of a device plugin.
async fn plugged(environment: Arc<Owners>) -> Result<()> {
    const NODE: &str = "owned-3";
    let cluster = &environment.cluster;
    // With its token the Node is made.
    cluster.daemon_kubeconfig(NODE).await?;
    let kubernetes: Api<Node> = Api::all(cluster.client().clone());
    let offers =
        json!({"status": {"allocatable": {"nvidia.com/gpu": "4"}, "capacity": {"nvidia.com/gpu": "4"}}});
    kubernetes.patch_status(NODE, &PatchParams::default(), &Patch::Merge(offers)).await?;
    let daemon = cluster.start_simulated(NODE, &checkout().join("examples/hosts/l40s-4.yaml")).await?;
    let nodes: Api<GpuNode> = Api::all(cluster.client().clone());
    let node = is_unpublished(&nodes, NODE, "False", Reason::OfferedToPods).await?;
    let said = &unpublished(&node).context("it is said")?.message;
    ensure!(
        said.contains("nvidia.com/gpu: 4") && said.contains("nvidia.com/gpu.deploy.device-plugin=false"),
        "{said}"
    );
    daemon.stop()?;
    nodes.delete(NODE, &DeleteParams::default()).await?;
    Ok(())
}

fn unpublished(node: &GpuNode) -> Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
    gpudesk_crds::conditions::find(&node.status.as_ref()?.conditions, ConditionType::CardsUnpublished)
}

async fn is_unpublished(nodes: &Api<GpuNode>, name: &str, status: &str, reason: Reason) -> Result<GpuNode> {
    let says = |node: &GpuNode| {
        unpublished(node).is_some_and(|said| said.status == status && said.reason == reason.as_str())
    };
    until(nodes, name, &format!("CardsUnpublished is {status} ({reason})"), SOON, says).await
}

/// Waits until just these devices are tainted.
async fn tainted(rules: &Api<DynamicObject>, devices: &[&str]) -> Result<()> {
    let expected: BTreeSet<String> = devices.iter().map(|device| (*device).to_owned()).collect();
    eventually(&format!("{devices:?} are tainted"), SOON, || async {
        let there = rules.list(&ListParams::default()).await?.items;
        let device =
            |rule: &DynamicObject| rule.data["spec"]["deviceSelector"]["device"].as_str().map(str::to_owned);
        let there: BTreeSet<String> = there.iter().filter_map(device).collect();
        Ok((there == expected).then_some(()))
    })
    .await
}
