//! What is applied is what is kept: whoever compares whole objects, or applies twice, sees no difference.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use gpudesk_e2e::cluster::Cluster;
use gpudesk_e2e::state::checkout;
use serde::Deserialize;
use serde_json::Value;

use crate::ask::{Person, create, get};
use crate::chart::template;

/// Fields that a server decides for each cluster or object: no manifest can say them before.
const DECIDED_THERE: [&str; 10] = [
    "metadata.creationTimestamp",
    "metadata.generation",
    "metadata.managedFields",
    "metadata.resourceVersion",
    "metadata.uid",
    "metadata.annotations.deprecated.daemonset.template.generation",
    "spec.clusterIPs",
    "spec.ipFamilies",
    "spec.ipFamilyPolicy",
    "status",
];

/// Where `kept` is not what `applied` says.
fn differences(applied: &Value, kept: &Value, field: &str, found: &mut Vec<String>) {
    if DECIDED_THERE.contains(&field) {
        return;
    }
    match (applied, kept) {
        (Value::Object(applied), Value::Object(kept)) => {
            let names: std::collections::BTreeSet<_> = applied.keys().chain(kept.keys()).collect();
            for name in names {
                let below = if field.is_empty() { name.clone() } else { format!("{field}.{name}") };
                let of = |map: &serde_json::Map<String, Value>| map.get(name).cloned().unwrap_or_default();
                differences(&of(applied), &of(kept), &below, found);
            }
        }
        (Value::Array(applied), Value::Array(kept)) if applied.len() == kept.len() => {
            for (index, (applied, kept)) in applied.iter().zip(kept).enumerate() {
                differences(applied, kept, &format!("{field}[{index}]"), found);
            }
        }
        // An annotation of the server's alone leaves a map that the manifest does not have.
        (Value::Null, Value::Object(kept)) => {
            for (name, kept) in kept {
                differences(&Value::Null, kept, &format!("{field}.{name}"), found);
            }
            if kept.is_empty() {
                found.push(format!("{field}: kept as {{}}"));
            }
        }
        // YAML writes 1.0 for what the server keeps as 1.
        (Value::Number(applied), Value::Number(kept)) if applied.as_f64() == kept.as_f64() => {}
        _ if applied == kept => {}
        _ => found.push(format!("{field}: applied {applied}, kept {kept}")),
    }
}

fn documents(text: &str) -> Result<Vec<Value>> {
    let all: Result<Vec<Value>, _> =
        serde_yaml::Deserializer::from_str(text).map(Value::deserialize).collect();
    Ok(all?.into_iter().filter(|document| !document.is_null()).collect())
}

/// Path of the list that an object is in.
fn list_of(object: &Value) -> Result<String> {
    let version = object["apiVersion"].as_str().context("no apiVersion")?;
    let kind = object["kind"].as_str().context("no kind")?.to_lowercase();
    let root = if version.contains('/') { "apis" } else { "api" };
    let plural = kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |stem| format!("{stem}ies"));
    let namespace = object["metadata"]["namespace"].as_str();
    let middle = namespace.map_or_else(String::new, |namespace| format!("namespaces/{namespace}/"));
    Ok(format!("/{root}/{version}/{middle}{plural}"))
}

pub(crate) async fn kept_as_applied(cluster: Arc<Cluster>) -> Result<()> {
    let admin = Person::admin(&cluster);
    let mut wrong = Vec::new();
    let mut look = |object: &Value, kept: &Value| {
        let mut found = Vec::new();
        differences(object, kept, "", &mut found);
        let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
        wrong.extend(found.into_iter().map(|difference| format!("{name}: {difference}")));
    };
    for settings in [
        &[][..],
        &[
            "metrics.service.enabled=true",
            r#"admission.inlineUserData.action="Deny""#,
            "nodeDaemon.privileged=false",
            r#"nodeDaemon.guestNetwork.filter="external""#,
            r#"nodeDaemon.acceleration="kvm""#,
        ],
        &[
            r#"nodeDaemon.guestNetwork.filter="external""#,
            "operator.replicas=1",
            "operator.resources={}",
            r#"nodeDaemon.discovery={"nvml": "/usr/lib/libnvidia-ml.so.1", "kubeletConfig": "/var/lib/kubelet/config.yaml", "kubeletConfigDirs": ["/etc/kubernetes/kubelet.conf.d"], "runDirs": ["/run/nvidia"], "hook": "/etc/gpudesk/hook"}"#,
            r#"nodeDaemon.allowedRoots=["/srv"]"#,
            r#"admission.inlineUserData={"action": "Allow", "denyNamespaces": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["a"]}]}}"#,
        ],
    ] {
        for mut object in documents(&template(&cluster, settings)?)? {
            // Under another name, for the chart's own is there.
            let name = format!("z-{}", object["metadata"]["name"].as_str().context("no name")?);
            object["metadata"]["name"] = name.into();
            let kept =
                admin.may(&create(format!("{}?dryRun=All", list_of(&object)?), object.clone())).await?;
            look(&object, &kept);
        }
    }
    for entry in std::fs::read_dir(checkout().join("crds"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            for object in documents(&std::fs::read_to_string(path)?)? {
                let name = object["metadata"]["name"].as_str().context("no name")?;
                let kept = admin.may(&get(format!("{}/{name}", list_of(&object)?))).await?;
                look(&object, &kept);
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The version of everything of the chart; of what controllers write a status to, that of its spec.
async fn versions(admin: &Person, objects: &[Value]) -> Result<BTreeMap<String, Value>> {
    let mut versions = BTreeMap::new();
    for object in objects {
        let name = object["metadata"]["name"].as_str().context("no name")?;
        let path = format!("{}/{name}", list_of(object)?);
        let metadata = admin.may(&get(&path)).await?["metadata"].take();
        let counted = metadata["generation"].is_i64();
        versions.insert(path, metadata[if counted { "generation" } else { "resourceVersion" }].clone());
    }
    Ok(versions)
}

pub(crate) async fn applied_twice(cluster: Arc<Cluster>) -> Result<()> {
    let admin = Person::admin(&cluster);
    // A second upgrade by helm writes nothing.
    let chart = template(&cluster, &[])?;
    let objects = documents(&chart)?;
    let before = versions(&admin, &objects).await?;
    cluster.helm_install(&[])?;
    let after = versions(&admin, &objects).await?;
    ensure!(before == after, "helm upgrade changed {before:?} to {after:?}");

    let folder = cluster.state().join("applied-twice");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("chart.yaml"), chart)?;
    let school = serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "school"}});
    admin.may(&create("/api/v1/namespaces", school)).await?;
    let example = |path: &str| checkout().join("examples").join(path).display().to_string();
    for files in [
        folder.join("chart.yaml").display().to_string(),
        checkout().join("crds").display().to_string(),
        example("quickstart"),
        example("plan/estate"),
    ] {
        let apply = || cluster.kubectl(["apply", "--filename", &files]);
        apply()?;
        let before = versions(&admin, &objects).await?;
        let again = apply()?;
        ensure!(versions(&admin, &objects).await? == before, "{files}: something of the chart was written");
        // A disruption budget's selector is patched whole each time: kubectl says so, and nothing is written.
        let is_same = |line: &&str| line.ends_with(" unchanged") || line.starts_with("poddisruptionbudget");
        let changed: Vec<_> = again.lines().filter(|line| !is_same(line)).collect();
        ensure!(changed.is_empty(), "{files}, applied again: {changed:#?}");
        let mut diff = Command::new(cluster.control_plane().program("kubectl"));
        let said = cluster.run(diff.args(["diff", "--filename", &files]))?;
        ensure!(said.is_empty(), "{files}: {said}");
    }
    Ok(())
}
