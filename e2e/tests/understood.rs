//! A newer version wrote values that this one does not know, and was taken back: nothing is lost, nothing is freed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_crds::conditions::{ConditionType, Reason};
use gpudesk_crds::{Desktop, DesktopTemplate, GpuNode, node_identity};
use gpudesk_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use gpudesk_e2e::objects::{Objects, condition};
use gpudesk_e2e::state::checkout;
use gpudesk_e2e::trials::Suite;
use gpudesk_e2e::waiting::{eventually, until};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Api, Resource, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::Mutex;

const SOON: Duration = Duration::from_secs(90);
/// More than a node must be missing until it counts as lost.
const LOST: Duration = Duration::from_secs(13);

/// Each trial has the operator for itself.
static TURN: Mutex<()> = Mutex::const_new(());

fn main() -> ExitCode {
    Suite::<Cluster>::new("understood")
        .trial("what_is_not_understood_is_there_and_frees_nothing", not_understood)
        .trial("definitions_of_an_older_version_are_named_before_it_leads", older_definitions)
        .trial("a_version_without_ids_and_this_one_leave_each_other_what_runs", without_ids)
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

/// Writes an object, or its status, as `change` makes it of what is there.
async fn rewrite(
    api: &Api<DynamicObject>,
    name: &str,
    status: bool,
    what: &str,
    change: impl Fn(&mut Value) -> Result<()>,
) -> Result<()> {
    eventually(&format!("{what} of {name} is written"), SOON, || async {
        let mut object = serde_json::to_value(api.get(name).await?)?;
        change(&mut object)?;
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

/// Changes what is at a path, once the schema takes it.
async fn set(api: &Api<DynamicObject>, name: &str, status: bool, path: &str, value: &str) -> Result<()> {
    let (parent, key) = path.rsplit_once('/').context("no path")?;
    rewrite(api, name, status, path, |object| {
        object.pointer_mut(parent).with_context(|| format!("{name} has no {parent}"))?[key] = value.into();
        Ok(())
    })
    .await
}

/// What every desktop holds, by name.
async fn held(desktops: &Api<DynamicObject>) -> Result<Vec<(String, Value)>> {
    let all = desktops.list(&ListParams::default()).await?;
    Ok(all.iter().map(|desktop| (desktop.name_any(), desktop.data["status"]["allocation"].clone())).collect())
}

/// Nodes renewed their Leases a moment ago, so that nobody takes what is seen for a restore.
async fn renew_leases(cluster: &Cluster, nodes: [&str; 2]) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(cluster.client().clone(), SYSTEM_NAMESPACE);
    for node in nodes {
        let renewed = json!({"spec": {"renewTime": format!("{:.6}", jiff::Timestamp::now())}});
        match leases.patch(&node_identity(node), &PatchParams::default(), &Patch::Merge(renewed)).await {
            // A trial that is run alone has none of them.
            Err(kube::Error::Api(answer)) if answer.code == 404 => {}
            renewed => _ = renewed?,
        }
    }
    Ok(())
}

async fn not_understood(cluster: Arc<Cluster>) -> Result<()> {
    let _turn = TURN.lock().await;
    let mut operator = cluster.start_operator().await?;
    // With hugepages: the size of a page is read strictly, also in a status.
    let folder = tempfile::tempdir()?;
    let host = folder.path().join("t4.yaml");
    let t4 = std::fs::read_to_string(checkout().join("examples/hosts/t4.yaml"))?;
    std::fs::write(&host, t4 + "hugepages: {1Gi: 4}\n")?;
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
    let (allocation, pages) = ("properties/allocation/properties", "properties/hugepages/items/properties");
    widen(&cluster, "desktops", &format!("status/{allocation}/gpus/items/properties/mode"), "Sliced").await?;
    widen(&cluster, "desktops", "spec/properties/powerState", "Hibernated").await?;
    widen(&cluster, "desktoptemplates", "spec/properties/machine/properties/firmware", "Coreboot").await?;
    widen(&cluster, "gpunodes", &format!("status/properties/numaCells/items/{pages}/size"), "16Gi").await?;
    let (templates, nodes) =
        (raw::<DesktopTemplate>(&cluster, Some(namespace)), raw::<GpuNode>(&cluster, None));
    set(&desktops, "share", true, "/status/allocation/gpus/0/mode", "Sliced").await?;
    set(&desktops, "power", false, "/spec/powerState", "Hibernated").await?;
    set(&templates, "newer-template", false, "/spec/machine/firmware", "Coreboot").await?;
    set(&nodes, &odd_node, true, "/status/numaCells/0/hugepages/0/size", "16Gi").await?;
    let before = held(&desktops).await?;
    renew_leases(&cluster, ["cards", "newer"]).await?;

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
    Ok(())
}

/// The definitions of an older version lack a field: the operator says which, and does not lead before they are applied.
async fn older_definitions(cluster: Arc<Cluster>) -> Result<()> {
    let _turn = TURN.lock().await;
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
        Ok(leases.get_opt("gpudesk-operator").await?.and_then(|lease| lease.spec?.lease_transitions))
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

const EARLIER: &str = "earlier";

/// The parts of a status that a version without ids does not know.
fn forget_ids(status: &mut Value) {
    for field in ["node", "operatorTerm", "waitingSince"] {
        status.as_object_mut().map(|status| status.remove(field));
    }
    status["allocation"].as_object_mut().map(|allocation| allocation.remove("id"));
}

/// What such a daemon leaves on its host of a desktop that runs.
fn forget_ids_on_host(state: &Path, desktop: &Desktop) -> Result<()> {
    let uid = desktop.uid().context("a UID")?;
    let id = desktop.allocation().context("it is placed")?.decision();
    let (folder, domain) =
        (state.join("desktops").join(&uid), state.join("simulated-domains").join(format!("{uid}.xml")));
    let xml = std::fs::read_to_string(&domain)?;
    let quoted = [r#"""#, "&quot;"].map(|quote| format!("{quote}id{quote}:{quote}{id}{quote},"));
    let without = quoted.iter().fold(xml, |xml, quoted| xml.replace(quoted, ""));
    ensure!(!without.contains(&id), "the domain names its decision otherwise: {without}");
    std::fs::write(domain, without)?;
    let run = folder.join("run.json");
    let mut record: Value = serde_json::from_slice(&std::fs::read(&run)?)?;
    record.as_object_mut().context("a record")?.remove("allocationId").context("it named the decision")?;
    std::fs::write(run, serde_json::to_vec(&record)?)?;
    std::fs::remove_file(folder.join("decision.json"))?;
    Ok(())
}

/// A status of a `GpuNode` as such a daemon writes it: each card says all, and nothing is said of strays.
fn forget_models(node: &mut Value) -> Result<()> {
    let read: GpuNode = serde_json::from_value(node.clone())?;
    let devices = read.status.context("a status")?.devices;
    let status = node["status"].as_object_mut().context("a status")?;
    for field in ["deviceModels", "strays", "leftovers"] {
        status.remove(field);
    }
    status.insert("devices".into(), serde_json::to_value(devices)?);
    let later = [
        ConditionType::StraysCleared,
        ConditionType::LeftoversHandled,
        ConditionType::RemovalAllowed,
        ConditionType::SpecKept,
        ConditionType::StateKept,
    ];
    let conditions = status["conditions"].as_array_mut().context("conditions")?;
    conditions.retain(|said| !later.iter().any(|type_| said["type"] == type_.as_str()));
    Ok(())
}

/// Sets a condition as a program does that says nothing of decisions.
fn say(desktop: &mut Value, type_: &str, status: &str, reason: &str) {
    let generation = desktop["metadata"]["generation"].clone();
    let said = json!({
        "type": type_, "status": status, "reason": reason, "message": "",
        "lastTransitionTime": "2026-01-05T08:00:00Z", "observedGeneration": generation,
    });
    if let Some(conditions) = desktop["status"]["conditions"].as_array_mut() {
        conditions.retain(|known| known["type"] != type_);
        conditions.push(said);
    }
}

fn started(desktop: &Desktop) -> Option<Time> {
    desktop.status.as_ref()?.domain.as_ref()?.started_at.clone()
}

/// What the version before ids wrote, and what programs of both say of one desktop.
#[expect(clippy::too_many_lines, reason = "one story in its order")]
async fn without_ids(cluster: Arc<Cluster>) -> Result<()> {
    let _turn = TURN.lock().await;
    renew_leases(&cluster, ["cards", "newer"]).await?;
    let mut operator = cluster.start_operator().await?;
    let mut daemon = cluster.start_simulated(EARLIER, &checkout().join("examples/hosts/l40s-4.yaml")).await?;
    let state = cluster.state().join("daemons").join(EARLIER);
    let objects = Objects::new(cluster.client(), &cluster.namespace("earlier").await?);
    objects.profile("earlier-8", "{alternatives: [{vgpu: {series: Q, framebufferMiB: 8192}}]}").await?;
    let template = "{memory: {sizeMiB: 512}, guestAgent: false, disks: [{name: s, image: {name: any}}]";
    objects
        .template("share", &format!("{template}, gpus: [{{name: g, profileRef: {{name: earlier-8}}}}]}}"))
        .await?;
    objects.template("plain", &format!("{template}}}")).await?;
    let desktops = raw::<Desktop>(&cluster, Some(objects.namespace()));
    let nodes = raw::<GpuNode>(&cluster, None);
    let make = |name: &'static str, template: &str| {
        let spec = format!(
            "{{templateRef: {{name: {template}}}, nodeSelector: {{kubernetes.io/hostname: {EARLIER}}}}}"
        );
        let (objects, spec) = (objects.clone(), spec);
        async move { objects.desktop(name, &spec).await }
    };
    cluster.kubectl(["label", "gpunode", EARLIER, &format!("kubernetes.io/hostname={EARLIER}")])?;
    let ran = [("a", "share"), ("b", "share"), ("plain", "plain")];
    for (name, template) in ran {
        make(name, template).await?;
    }
    let mut before = BTreeMap::new();
    for (name, _) in ran {
        before.insert(name, objects.is(name, ConditionType::Ready, true, SOON).await?);
    }

    // All of it as the version before left it.
    daemon.kill()?;
    operator.kill()?;
    for desktop in before.values() {
        forget_ids_on_host(&state, desktop)?;
        let forget = |object: &mut Value| {
            forget_ids(&mut object["status"]);
            Ok(())
        };
        rewrite(&desktops, &desktop.name_any(), true, "status", forget).await?;
    }
    std::fs::remove_file(state.join("gpu-node.json"))?;
    rewrite(&nodes, EARLIER, true, "status", forget_models).await?;
    daemon.restart()?;
    renew_leases(&cluster, ["cards", "newer"]).await?;
    operator.restart()?;
    daemon.wait_ready().await?;
    operator.wait_ready().await?;
    // They have looked: one more is placed, and not on what the others hold.
    make("c", "share").await?;
    objects.is("c", ConditionType::Ready, true, SOON).await?;
    let shares = |node: &GpuNode| {
        let cards = node.status.iter().flat_map(|status| &status.devices);
        let shares = cards.flat_map(|card| &card.instances).filter_map(|share| share.owner.clone());
        // Desktops of other trials are placed here, too.
        let shares = shares.filter(|owner| owner.starts_with(objects.namespace()));
        shares.collect::<std::collections::BTreeSet<_>>().len()
    };
    let typed: Api<GpuNode> = Api::all(cluster.client().clone());
    let node = until(&typed, EARLIER, "three hold a share each", SOON, |node| shares(node) == 3).await?;
    ensure!(node.status.is_some_and(|status| status.strays.is_empty()), "nothing strays");
    for (name, was) in &before {
        let now = objects.desktops().get(name).await?;
        ensure!(started(was).is_some() && started(&now) == started(was), "{name} runs on: {now:?}");
        ensure!(now.allocation().is_some_and(|it| it.id.is_none()), "{name} was not decided anew: {now:?}");
        ensure!(condition(&now, ConditionType::Ready).is_some_and(|ready| ready.status == "True"), "{now:?}");
    }
    // Its next start is a decision with an id.
    objects.patch("a", json!({"spec": {"powerState": "Stopped"}})).await?;
    until(&objects.desktops(), "a", "it is parked", SOON, |it| {
        it.allocation().is_some_and(|held| held.compute.is_none())
    })
    .await?;
    objects.patch("a", json!({"spec": {"powerState": "Running"}})).await?;
    until(&objects.desktops(), "a", "it runs by a decision with an id", SOON, |it| {
        it.allocation().is_some_and(|held| held.id.is_some() && held.compute.is_some())
            && condition(it, ConditionType::Ready).is_some_and(|ready| ready.status == "True")
    })
    .await?;

    // An operator without ids beside this daemon: what it decides runs, and ends when it is switched off.
    operator.kill()?;
    let like = serde_json::to_value(objects.desktops().get("plain").await?.allocation().context("placed")?)?;
    make("decided", "plain").await?;
    rewrite(&desktops, "decided", true, "an allocation", |object| {
        let mut allocation = like.clone();
        allocation["decidedAt"] = json!("2026-01-05T08:00:00Z");
        object["status"] = json!({"allocation": allocation, "conditions": []});
        say(object, "Allocated", "True", "AsExpected");
        say(object, "Running", "False", "Starting");
        Ok(())
    })
    .await?;
    objects.is("decided", ConditionType::Ready, true, SOON).await?;
    let now = objects.desktops().get("decided").await?;
    ensure!(
        now.status.as_ref().is_some_and(|status| status.node.is_none()),
        "it has nothing to name: {now:?}"
    );
    objects.patch("decided", json!({"spec": {"powerState": "Stopped"}})).await?;
    objects.says("decided", ConditionType::Running, Reason::Stopped, SOON).await?;

    // A daemon without ids beside this operator: it is believed by its conditions, and nothing else frees.
    renew_leases(&cluster, ["cards", "newer"]).await?;
    operator.restart()?;
    operator.wait_ready().await?;
    until(&objects.desktops(), "decided", "the next operator parks it", SOON, |it| {
        it.allocation().is_some_and(|held| held.compute.is_none())
    })
    .await?;
    daemon.kill()?;
    make("run", "plain").await?;
    until(&objects.desktops(), "run", "it is placed", SOON, |it| {
        it.allocation().is_some_and(|held| held.id.is_some())
    })
    .await?;
    let machine = desktops.get("plain").await?.data["status"]["domain"].clone();
    rewrite(&desktops, "run", true, "what such a daemon says", |object| {
        object["status"]["phase"] = json!("Running");
        object["status"]["domain"] = machine.clone();
        say(object, "Running", "True", "AsExpected");
        say(object, "Ready", "True", "AsExpected");
        Ok(())
    })
    .await?;
    objects.patch("run", json!({"spec": {"powerState": "Stopped"}})).await?;
    // What comes after in the same queue is seen by then.
    make("mark", "none").await?;
    objects.says("mark", ConditionType::Allocated, Reason::TemplateNotFound, SOON).await?;
    let now = objects.desktops().get("run").await?;
    ensure!(
        now.allocation().is_some_and(|held| held.compute.is_some()),
        "not without its node's word: {now:?}"
    );
    rewrite(&desktops, "run", true, "that it stopped", |object| {
        object["status"].as_object_mut().map(|status| status.remove("domain"));
        say(object, "Running", "False", "Stopped");
        Ok(())
    })
    .await?;
    until(&objects.desktops(), "run", "it is parked", SOON, |it| {
        it.allocation().is_some_and(|held| held.compute.is_none())
    })
    .await?;
    operator.stop()?;
    Ok(())
}
