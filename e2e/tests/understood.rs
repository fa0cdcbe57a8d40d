//! A newer version wrote values that this one does not know, and was taken back: nothing is lost, nothing is freed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_crds::conditions::{ConditionType, Reason};
use gpudesk_crds::{Desktop, node_identity};
use gpudesk_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use gpudesk_e2e::objects::Objects;
use gpudesk_e2e::state::checkout;
use gpudesk_e2e::trials::Suite;
use gpudesk_e2e::waiting::eventually;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Api, Resource, ResourceExt};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(90);
/// More than a node must be missing until it counts as lost.
const LOST: Duration = Duration::from_secs(13);

fn main() -> ExitCode {
    Suite::<Cluster>::new("understood")
        .trial("what_is_not_understood_is_there_and_frees_nothing", not_understood)
        .run()
}

/// Lets the schema take one more value of an enum, as that of a newer version does.
async fn widen(cluster: &Cluster, plural: &str, path: &str, value: &str) -> Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client().clone());
    let name = format!("{plural}.gpudesk.dev");
    let mut definition = serde_json::to_value(definitions.get(&name).await?)?;
    let path = format!("/spec/versions/0/schema/openAPIV3Schema/properties/{path}/enum");
    let values = definition.pointer_mut(&path).and_then(Value::as_array_mut);
    values.with_context(|| format!("{plural}: {path} is no enum"))?.push(value.into());
    definitions.replace(&name, &PostParams::default(), &serde_json::from_value(definition)?).await?;
    Ok(())
}

/// Any object, parsed or not.
fn raw<K: Resource<DynamicType = ()>>(cluster: &Cluster, namespace: Option<&str>) -> Api<DynamicObject> {
    let (client, of) = (cluster.client().clone(), ApiResource::erase::<K>(&()));
    match namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &of),
        None => Api::all_with(client, &of),
    }
}

/// Changes what is at a path, once the schema takes it.
async fn set(api: &Api<DynamicObject>, name: &str, status: bool, path: &str, value: &str) -> Result<()> {
    let (parent, key) = path.rsplit_once('/').context("no path")?;
    eventually(&format!("{path} of {name} is {value}"), SOON, || async {
        let mut object = serde_json::to_value(api.get(name).await?)?;
        object.pointer_mut(parent).with_context(|| format!("{name} has no {parent}"))?[key] = value.into();
        let object: DynamicObject = serde_json::from_value(object)?;
        let params = PostParams::default();
        let result = if status {
            api.replace_status(name, &params, &object).await
        } else {
            api.replace(name, &params, &object).await
        };
        match result {
            Ok(_) => Ok(Some(())),
            // The schema of before, for a moment, or another version.
            Err(kube::Error::Api(said)) if [409, 422].contains(&said.code) => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
    .await
}

/// What every desktop holds, by name.
async fn held(desktops: &Api<DynamicObject>) -> Result<Vec<(String, Value)>> {
    let all = desktops.list(&ListParams::default()).await?;
    Ok(all.iter().map(|desktop| (desktop.name_any(), desktop.data["status"]["allocation"].clone())).collect())
}

async fn not_understood(cluster: Arc<Cluster>) -> Result<()> {
    let mut operator = cluster.start_operator().await?;
    // With hugepages: the size of a page is read strictly, also in a status.
    let folder = tempfile::tempdir()?;
    let host = folder.path().join("t4.yaml");
    let t4 = std::fs::read_to_string(checkout().join("examples/hosts/t4.yaml"))?;
    std::fs::write(&host, format!("{t4}hugepages: {{1Gi: 4}}\n"))?;
    let mut daemons = vec![];
    for node in ["cards", "newer"] {
        daemons.push(cluster.start_simulated(node, &host).await?);
    }
    let objects = Objects::new(cluster.client(), &cluster.namespace("understood").await?);
    objects.profile("whole-t4", "{alternatives: [{passthrough: {}}]}").await?;
    let gpu = "gpus: [{name: g, profileRef: {name: whole-t4}}]";
    let template = |more: &str| {
        format!(
            "{{cpu: {{cores: 1}}, memory: {{sizeMiB: 1024}}, guestAgent: false, disks: [{{name: s, image: {{name: any}}}}], {more}}}"
        )
    };
    for (name, more) in [("card", gpu), ("newer-template", gpu)] {
        objects.template(name, &template(more)).await?;
    }
    // Four cards, four desktops.
    for (name, of) in
        [("share", "card"), ("power", "card"), ("template", "newer-template"), ("plain", "card")]
    {
        objects.desktop(name, &format!("{{templateRef: {{name: {of}}}}}")).await?;
        objects.is(name, ConditionType::Ready, true, SOON).await?;
    }
    let namespace = objects.namespace();
    let desktops = raw::<Desktop>(&cluster, Some(namespace));
    let before = held(&desktops).await?;
    let node_of = |name: &str| {
        let named = before.iter().find(|(of, _)| of == name);
        named.and_then(|(_, allocation)| allocation["node"].as_str()).map(ToOwned::to_owned)
    };
    // The daemons are those of the newer version: they have spoken, and are away for now.
    for daemon in daemons {
        daemon.stop()?;
    }
    operator.kill()?;
    let odd_node = node_of("plain").context("plain is placed")?;
    let allocation = "properties/allocation/properties";
    let pages = "properties/hugepages/items/properties";
    widen(&cluster, "desktops", &format!("status/{allocation}/gpus/items/properties/mode"), "Sliced").await?;
    widen(&cluster, "desktops", "spec/properties/powerState", "Hibernated").await?;
    widen(&cluster, "desktoptemplates", "spec/properties/machine/properties/firmware", "Coreboot").await?;
    widen(&cluster, "gpunodes", &format!("status/properties/numaCells/items/{pages}/size"), "16Gi").await?;
    let templates = raw::<gpudesk_crds::DesktopTemplate>(&cluster, Some(namespace));
    let nodes = raw::<gpudesk_crds::GpuNode>(&cluster, None);
    set(&desktops, "share", true, "/status/allocation/gpus/0/mode", "Sliced").await?;
    set(&desktops, "power", false, "/spec/powerState", "Hibernated").await?;
    set(&templates, "newer-template", false, "/spec/machine/firmware", "Coreboot").await?;
    set(&nodes, &odd_node, true, "/status/numaCells/0/hugepages/0/size", "16Gi").await?;
    let before = held(&desktops).await?;
    // They renewed their Leases a moment ago, so that nobody takes this for a restore.
    let leases: Api<Lease> = Api::namespaced(cluster.client().clone(), SYSTEM_NAMESPACE);
    for node in ["cards", "newer"] {
        let renewed = json!({"spec": {"renewTime": format!("{:.6}", jiff::Timestamp::now())}});
        leases.patch(&node_identity(node), &PatchParams::default(), &Patch::Merge(renewed)).await?;
    }

    operator.restart()?;
    operator.wait_ready().await?;
    // It has seen all of it and acts: a desktop without a template is told so.
    objects.desktop("none", "{templateRef: {name: none}}").await?;
    objects.says("none", ConditionType::Allocated, Reason::TemplateNotFound, SOON).await?;
    tokio::time::sleep(LOST).await;
    let unchanged = async |when: &str| -> Result<()> {
        let mut now = held(&desktops).await?;
        now.retain(|(name, _)| before.iter().any(|(known, _)| known == name));
        ensure!(now == before, "{when}: before {before:?}, now {now:?}");
        Ok(())
    };
    unchanged("after the start").await?;
    let words = "is not understood by this version of the operator: spec.machine.firmware: unknown variant `Coreboot`";
    let desktop = objects.is("template", ConditionType::RestartRequired, true, SOON).await?;
    let said = format!("{:?}", desktop.status.map(|status| status.conditions));
    ensure!(said.contains(words) && !said.contains("TemplateNotFound"), "{said}");

    // What another asks for is nowhere: neither the shares of the odd ones nor those beside what is not understood.
    objects.desktop("late", "{templateRef: {name: card}}").await?;
    let said = objects.says("late", ConditionType::Allocated, Reason::Unschedulable, SOON).await?;
    ensure!(said.message.contains("does not understand (see its log)"), "{said:?}");
    let metrics = operator.metrics().await?;
    for (kind, count) in [("Desktop", 2), ("DesktopTemplate", 1), ("GpuNode", 1), ("GpuProfile", 0)] {
        let line = format!("gpudesk_operator_odd_objects{{kind=\"{kind}\"}} {count}");
        ensure!(metrics.contains(&line), "{line} is not in {metrics}");
    }
    let log = operator.process().log()?;
    for line in [
        "status.allocation.gpus[0].mode: unknown variant `Sliced`",
        "status.numaCells[0].hugepages[0].size: unknown variant `16Gi`",
    ] {
        ensure!(log.contains(line), "{line} is not in the log");
    }

    // Written as it was, all of it is understood again, without a restart.
    set(&desktops, "share", true, "/status/allocation/gpus/0/mode", "Passthrough").await?;
    set(&desktops, "power", false, "/spec/powerState", "Running").await?;
    set(&templates, "newer-template", false, "/spec/machine/firmware", "Uefi").await?;
    set(&nodes, &odd_node, true, "/status/numaCells/0/hugepages/0/size", "1Gi").await?;
    eventually("nothing is odd", SOON, || async {
        let metrics = operator.metrics().await?;
        let odd = metrics.lines().filter(|line| line.starts_with("gpudesk_operator_odd_objects{"));
        Ok(odd.clone().all(|line| line.ends_with(" 0")).then_some(()))
    })
    .await?;
    objects.desktop("later", "{templateRef: {name: card}}").await?;
    let said = objects.says("later", ConditionType::Allocated, Reason::Unschedulable, SOON).await?;
    ensure!(!said.message.contains("does not understand"), "{said:?}");
    operator.stop()?;
    older_definitions(&cluster).await
}

/// The definitions of an older version lack a field: the operator says which, and does not lead before they are applied.
async fn older_definitions(cluster: &Cluster) -> Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client().clone());
    let mut older = serde_json::to_value(definitions.get("desktops.gpudesk.dev").await?)?;
    let of_node = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/node/properties";
    let fields = older.pointer_mut(of_node).and_then(Value::as_object_mut).context("status.node")?;
    fields.remove("abandonedDisks").context("status.node.abandonedDisks")?;
    definitions
        .replace("desktops.gpudesk.dev", &PostParams::default(), &serde_json::from_value(older)?)
        .await?;
    eventually("the API server has it", SOON, || async {
        let schema = cluster.kubectl(["get", "--raw", "/openapi/v3/apis/gpudesk.dev/v1alpha1"])?;
        Ok((!schema.contains("abandonedDisks")).then_some(()))
    })
    .await?;
    let leases: Api<Lease> = Api::namespaced(cluster.client().clone(), SYSTEM_NAMESPACE);
    let turns = async || -> Result<Option<i32>> {
        Ok(leases.get("gpudesk-operator").await?.spec.and_then(|spec| spec.lease_transitions))
    };
    let before = turns().await?;
    let operator = cluster.spawn_operator("newer-operator").await?;
    eventually("it counts what is lacking", SOON, || async {
        let metrics = operator.metrics().await.unwrap_or_default();
        Ok(metrics.contains("gpudesk_operator_definitions_lack 1").then_some(()))
    })
    .await?;
    ensure!(operator.get("/readyz").await.is_err(), "it is not ready");
    let log = operator.process().log()?;
    ensure!(log.contains("lack Desktop: status.node.abandonedDisks"), "{log}");
    ensure!(turns().await? == before, "it took the Lease");
    cluster.apply_crds()?;
    operator.wait_ready().await?;
    ensure!(turns().await? > before, "it leads");
    operator.stop()?;
    Ok(())
}
