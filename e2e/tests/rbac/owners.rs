//! Who owns which fields of an object is no way to keep what a program takes out of a status.

use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use gpudesk_e2e::cluster::Cluster;
use gpudesk_e2e::objects::Objects;
use serde_json::{Value, json};

use crate::ask::{
    Person, allocation, apply, change, condition, create, get, gpunode, merge, namespaced, object,
};
use crate::people::{give, knows};

const NODE: &str = "owners-a";

/// A desktop of a tenant that runs on [`NODE`], as both programs write it.
async fn running(cluster: &Cluster, namespace: &str) -> Result<(Person, Person, Person, String)> {
    Objects::new(cluster.client(), namespace).desktop("a", "{templateRef: {name: t}}").await?;
    let path = namespaced(namespace, "desktops/a");
    let user = format!("tenant-of-{namespace}");
    give(cluster, &user, "edit", Some(namespace)).await?;
    let tenant = Person::user(cluster, &user);
    knows(&tenant, &path).await?;
    let (operator, daemon) = (Person::operator(cluster).await?, Person::daemon(cluster, NODE).await?);
    let decided =
        json!({"status": {"allocation": allocation(NODE), "conditions": [condition("Allocated", "")]}});
    operator.may(&apply(format!("{path}/status"), object("Desktop", "a", decided))).await?;
    let runs = json!({"status": {"phase": "Running", "conditions": [condition("Running", "")]}});
    daemon.may(&apply(format!("{path}/status"), object("Desktop", "a", runs))).await?;
    Ok((tenant, operator, daemon, path))
}

fn entry(manager: &str, subresource: &str, fields: &Value) -> Value {
    let mut entry = json!({
        "manager": manager, "operation": "Update", "apiVersion": "gpudesk.dev/v1alpha1",
        "fieldsType": "FieldsV1", "fieldsV1": fields, "time": "2026-01-01T00:00:00Z",
    });
    if !subresource.is_empty() {
        entry["subresource"] = subresource.into();
    }
    entry
}

fn is_of_status(entry: &Value) -> bool {
    entry["subresource"] == "status"
}

pub(crate) async fn of_a_status(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("owners").await?;
    let (tenant, operator, daemon, path) = running(&cluster, &namespace).await?;
    let status = format!("{path}/status");
    let now = tenant.may(&get(&path)).await?["metadata"]["managedFields"].take();
    let now = now.as_array().context("managed fields")?.clone();
    ensure!(now.iter().filter(|entry| is_of_status(entry)).count() == 2, "{now:#?}");
    let with = |more: Value| now.iter().cloned().chain([more]).collect::<Vec<_>>();
    let pins = json!({"f:status": {"f:allocation": {"f:compute": {"f:cores": {}}}}});
    let without: Vec<_> =
        now.iter().filter(|entry| entry["manager"] != "gpudesk-operator").cloned().collect();
    let mut more = now.clone();
    let own = more.iter_mut().find(|entry| entry["manager"] == "gpudesk-node-daemon").context("an entry")?;
    own["fieldsV1"] = json!({"f:status": {"f:allocation": {"f:node": {}}}});
    let words = "the entries of metadata.managedFields for the status are the API server's";
    let entries = |entries: Value| json!({"metadata": {"managedFields": entries}});
    for (what, value) in [
        ("cleared", json!([{}])),
        ("one of nobody for the status", with(entry("x", "status", &pins)).into()),
        ("one of nobody", with(entry("x", "", &pins)).into()),
        ("without the operator's", without.into()),
        ("another one of the daemon's", more.into()),
    ] {
        tenant.may_not(&merge(&path, entries(value)), words).await.context(what)?;
    }
    let ways = json!([{"op": "replace", "path": "/metadata/managedFields", "value": [{}]}]);
    tenant.may_not(&change(&path, ways), words).await?;
    let mut new = object("Desktop", "b", json!({"spec": {"templateRef": {"name": "t"}}}));
    new["metadata"]["managedFields"] = json!([entry("x", "status", &pins)]);
    tenant.may_not(&create(namespaced(&namespace, "desktops"), new), words).await?;

    // A program owns its own part under its own name, also where it says what is there already.
    let same = || object("Desktop", "a", json!({"status": {"allocation": allocation(NODE)}}));
    let as_manager = |manager: &str, body: Value| {
        let mut ask = apply(&status, body);
        ask.path = format!("{status}?fieldManager={manager}&force=true");
        ask
    };
    daemon
        .may_not(
            &as_manager("x", same()),
            "writes a status as field manager gpudesk-node-daemon, not as \"x\"",
        )
        .await?;
    let decided = json!({"status": {"conditions": [condition("Allocated", "")]}});
    for same in [same(), object("Desktop", "a", decided)] {
        daemon
            .may_not(
                &as_manager("gpudesk-node-daemon", same),
                "may not own fields or conditions of the operator",
            )
            .await?;
    }
    let cut = || object("Desktop", "a", json!({"status": {"gpuSummary": "1x A"}}));
    operator
        .may_not(&as_manager("x", cut()), "writes a status as field manager gpudesk-operator, not as \"x\"")
        .await?;

    daemon.may(&apply(gpunode(NODE), object("GpuNode", NODE, json!({"spec": {}})))).await?;
    let mut node = apply(
        gpunode(&format!("{NODE}/status")),
        object("GpuNode", NODE, json!({"status": {"host": {"simulated": true}}})),
    );
    daemon.may(&node).await?;
    node.path = node.path.replace("fieldManager=trial", "fieldManager=x");
    daemon.may_not(&node, "writes a status as field manager gpudesk-node-daemon").await
}

/// The API server makes one entry of the oldest where more than ten have updated an object, and that is nobody's fault.
pub(crate) async fn of_many(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("owners-many").await?;
    let (tenant, _, _, path) = running(&cluster, &namespace).await?;
    let repair = merge(
        format!("{path}/status?fieldManager=a-repair"),
        json!({"status": {"gpuSummary": "1x A", "conditions": [condition("RestartRequired", "by hand")]}}),
    );
    Person::admin(&cluster).may(&repair).await?;
    let oldest = |entries: &[Value]| {
        entries
            .iter()
            .find(|it| it["manager"] == "ancient-changes" && it["fieldsV1"]["f:status"].is_object())
            .cloned()
    };
    let mut entries = vec![];
    for number in 0..30 {
        let label = json!({"metadata": {"labels": {format!("room-{number}"): "1"}}});
        let after = tenant.may(&merge(format!("{path}?fieldManager=m-{number}"), label)).await?;
        entries.clone_from(after["metadata"]["managedFields"].as_array().context("managed fields")?);
        if oldest(&entries).is_some() {
            break;
        }
    }
    let one = oldest(&entries).with_context(|| format!("no entry of the oldest: {entries:#?}"))?;
    ensure!(one["subresource"].is_null(), "{one:#}");
    // It goes on to take in others, and owns no more of the status for that.
    for number in 0..3 {
        let label = json!({"metadata": {"labels": {format!("floor-{number}"): "1"}}});
        tenant.may(&merge(format!("{path}?fieldManager=n-{number}"), label)).await?;
    }
    let words = "the entries of metadata.managedFields for the status are the API server's";
    let now = tenant.may(&get(&path)).await?["metadata"]["managedFields"].take();
    for (pointer, value) in [
        ("/fieldsV1/f:status/f:allocation", json!({"f:node": {}})),
        ("/fieldsV1/f:status/f:conditions", json!({"k:{\"type\":\"Allocated\"}": {"f:message": {}}})),
    ] {
        let mut more = now.as_array().context("managed fields")?.clone();
        let of =
            more.iter_mut().find(|it| oldest(std::slice::from_ref(it)).is_some()).context("it is there")?;
        let (above, field) = pointer.rsplit_once('/').context("a pointer")?;
        of.pointer_mut(above).context("its status")?[field] = value;
        tenant.may_not(&merge(&path, json!({"metadata": {"managedFields": more}})), words).await?;
    }
    Ok(())
}

/// With kubectl as it is: apply in both ways and from one to the other, patch, edit, label, replace.
pub(crate) async fn of_a_spec(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("owned-spec").await?;
    let (tenant, _, _, path) = running(&cluster, &namespace).await?;
    let file = cluster.state().join("owned-desktop.yaml");
    let kubectl = |arguments: &[&str]| {
        let mut kubectl = Command::new(cluster.control_plane().program("kubectl"));
        let user = format!("--as=tenant-of-{namespace}");
        cluster.run(
            kubectl
                .args(["--namespace", &namespace, &user, "--as-group=system:authenticated"])
                .args(arguments),
        )
    };
    let name = file.to_str().context("a path of UTF-8")?;
    let write = |priority: i32| -> Result<()> {
        let manifest =
            object("Desktop", "a", json!({"spec": {"templateRef": {"name": "t"}, "priority": priority}}));
        Ok(std::fs::write(&file, serde_json::to_vec(&manifest)?)?)
    };
    write(-1)?;
    for arguments in [
        &["apply", "-f", name][..],
        &["apply", "--server-side", "-f", name],
        &["apply", "--server-side", "--force-conflicts", "-f", name],
        &["apply", "-f", name],
        &["replace", "-f", name],
        &["label", "desktop/a", "room=1"],
        &["annotate", "desktop/a", "room=1"],
        &["patch", "desktop/a", "--type=merge", "--patch", r#"{"spec": {"powerState": "Stopped"}}"#],
        &[
            "patch",
            "desktop/a",
            "--type=json",
            "--patch",
            r#"[{"op": "remove", "path": "/spec/powerState"}]"#,
        ],
    ] {
        kubectl(arguments).with_context(|| format!("kubectl {arguments:?}"))?;
    }
    write(-2)?;
    for manager in ["argocd-controller", "kustomize-controller", "Helm"] {
        let manager = format!("--field-manager={manager}");
        kubectl(&["apply", "--server-side", "--force-conflicts", &manager, "-f", name])?;
    }
    let mut whole = tenant.may(&get(&path)).await?;
    whole["spec"]["priority"] = (-3).into();
    tenant.may(&crate::ask::replace(&path, whole)).await?;
    let after = tenant.may(&get(&path)).await?;
    ensure!(after["spec"]["priority"] == -3 && after["status"]["allocation"]["node"] == NODE, "{after:#}");
    // Entries of others than the status are whoever's they are.
    let entries = after["metadata"]["managedFields"].as_array().context("managed fields")?;
    let kept: Vec<_> = entries.iter().filter(|entry| is_of_status(entry)).collect();
    ensure!(kept.len() == 2, "{entries:#?}");
    tenant.may(&merge(&path, json!({"metadata": {"managedFields": kept}}))).await?;
    Ok(())
}
