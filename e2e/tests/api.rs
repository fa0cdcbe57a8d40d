//! The four kinds as a real API server serves them: what it accepts, refuses, fills in and prints.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use gpudesk_crds::{Desktop, DesktopTemplate, GpuNode, GpuNodeSpec, GpuProfile};
use gpudesk_e2e::cluster::Cluster;
use gpudesk_e2e::objects::Objects;
use gpudesk_e2e::trials::Suite;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt};
use serde::Deserialize;
use serde_json::{Value, json};

fn main() -> ExitCode {
    Suite::<Cluster>::new("api")
        .trial("manifests_of_desktops", |cluster| {
            manifests::<Desktop>(cluster, "desktops", include_str!("api/desktops.yaml"))
        })
        .trial("manifests_of_templates", |cluster| {
            manifests::<DesktopTemplate>(cluster, "templates", include_str!("api/desktoptemplates.yaml"))
        })
        .trial("manifests_of_nodes", |cluster| {
            manifests::<GpuNode>(cluster, "nodes", include_str!("api/gpunodes.yaml"))
        })
        .trial("manifests_of_profiles", |cluster| {
            manifests::<GpuProfile>(cluster, "profiles", include_str!("api/gpuprofiles.yaml"))
        })
        .trial("the_server_fills_in_defaults", defaults)
        .trial("the_template_of_a_desktop_cannot_be_changed", template_stays)
        .trial("kubectl_explain_is_the_manual", explain)
        .trial("kubectl_knows_short_names_the_category_and_the_columns", printing)
        .trial("desktops_are_selected_by_node_and_by_template", field_selectors)
        .trial("two_writers_keep_their_conditions_apart", two_writers)
        .run()
}

/// A manifest and what becomes of it; without `refused` it is accepted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    manifest: Value,
    #[serde(default)]
    refused: Vec<String>,
}

async fn manifests<K>(cluster: Arc<Cluster>, of: &str, table: &str) -> Result<()>
where
    K: Resource<DynamicType = ()>,
{
    let cases: Vec<Case> = serde_yaml::from_str(table)?;
    ensure!(cases.len() >= 15, "only {} manifests", cases.len());
    let namespace = cluster.namespace(of).await?;
    let namespace = ["Desktop", "DesktopTemplate"].contains(&&*K::kind(&())).then_some(namespace);
    let path = format!("{}?dryRun=All&fieldValidation=Strict", K::url_path(&(), namespace.as_deref()));

    let mut wrong = Vec::new();
    for Case { name, mut manifest, refused } in cases {
        manifest["apiVersion"] = K::api_version(&()).into();
        manifest["kind"] = K::kind(&()).into();
        if manifest["metadata"]["name"].is_null() {
            manifest["metadata"]["name"] = "a".into();
        }
        let request = http::Request::post(&path)
            .header("Content-Type", "application/json")
            .body(serde_json::to_vec(&manifest)?)?;
        let answer = match cluster.client().request::<Value>(request).await {
            Ok(_) => "accepted".to_owned(),
            Err(kube::Error::Api(status)) => status.message,
            Err(error) => return Err(error).with_context(|| name),
        };
        let right = match &refused[..] {
            [] => answer == "accepted",
            words => words.iter().all(|word| answer.contains(word)),
        };
        if !right {
            wrong.push(format!("{name}: expected {refused:?}, the server says: {answer}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

const SMALLEST_TEMPLATE: &str =
    "{memory: {sizeMiB: 1024}, disks: [{name: system, image: {name: debian-12}}]}";

async fn defaults(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("defaults").await?;
    // As JSON from the server: what the types fill in by themselves must not count.
    let kubectl = |kind: &str, spec: &str| -> Result<Value> {
        let file = cluster.state().join(format!("{kind}-defaults.yaml"));
        // Older kubectl takes a file that begins with a brace for JSON.
        let manifest =
            format!("apiVersion: gpudesk.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: a}}\nspec: {spec}\n");
        std::fs::write(&file, manifest)?;
        let file = file.display().to_string();
        let made = cluster.kubectl([
            "create",
            "--dry-run=server",
            "--output=json",
            "--namespace",
            &namespace,
            "--filename",
            &file,
        ])?;
        Ok(serde_json::from_str::<Value>(&made)?["spec"].take())
    };
    let desktop = kubectl("Desktop", "{templateRef: {name: t}}")?;
    ensure!(
        desktop == json!({"templateRef": {"name": "t"}, "powerState": "Running", "priority": 0}),
        "{desktop}"
    );

    let template = kubectl("DesktopTemplate", SMALLEST_TEMPLATE)?;
    let expected = json!({
        "cpu": {"cores": 2, "threadsPerCore": 1, "model": "host-passthrough", "pinning": "Shared"},
        "memory": {"sizeMiB": 1024, "hugepages": "None", "allowFallback": false},
        "numa": "Preferred",
        "machine": {"type": "q35", "firmware": "Uefi", "tpm": false, "hyperv": false},
        "disks": [{"name": "system", "image": {"name": "debian-12"}}],
        "networks": [{"name": "default", "user": {}}],
        "consoles": {"vnc": {}, "onGpu": false},
        "guestAgent": true,
        "lifecycle": {"releaseGpuOnStop": true, "restartPolicy": "OnFailure", "shutdownGraceSeconds": 60},
    });
    ensure!(template == expected, "{template:#}");

    let profile = kubectl("GpuProfile", "{alternatives: [{passthrough: {}}]}")?;
    let expected = json!({
        "alternatives": [{"passthrough": {}}], "minimumIsolation": "TimeSliced", "placement": "Pack"
    });
    ensure!(profile == expected, "{profile}");

    let node = kubectl("GpuNode", "{housekeeping: {}}")?;
    let expected = json!({"housekeeping": {"coresPerNumaCell": 1, "memoryMiBPerNumaCell": 1024}});
    ensure!(node == expected, "{node}");
    Ok(())
}

async fn template_stays(cluster: Arc<Cluster>) -> Result<()> {
    let objects = Objects::new(cluster.client(), &cluster.namespace("stays").await?);
    objects.desktop("a", "{templateRef: {name: one}}").await?;
    objects.patch("a", json!({"spec": {"powerState": "Stopped"}})).await?;
    let refused = objects.patch("a", json!({"spec": {"templateRef": {"name": "other"}}})).await;
    let words = format!("{:#}", refused.err().context("it was changed")?);
    ensure!(words.contains("templateRef cannot be changed: create a new Desktop"), "{words}");
    Ok(())
}

async fn explain(cluster: Arc<Cluster>) -> Result<()> {
    for (field, words) in [
        ("desktop", "One user's machine"),
        ("desktop.spec.powerState", "`Running`, `Stopped`, or `Suspended`"),
        ("desktop.spec.powerState", "ENUM: Running Stopped Suspended"),
        ("desktop.status.allocation.node", "Desktops can be listed by it"),
        ("dtpl.spec.memory.sizeMiB", "Size in MiB. 16 to 16777216."),
        ("dtpl.spec.lifecycle.restartPolicy", "only after a crash"),
        ("gn.spec.devices.management", "shown, never touched"),
        ("gp.spec.alternatives.vgpu.series", "`Q` workstation, `B` business"),
    ] {
        let printed = cluster.kubectl(["explain", field])?;
        let printed = printed.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(printed.contains(words), "{field}: {printed}");
    }
    Ok(())
}

async fn printing(cluster: Arc<Cluster>) -> Result<()> {
    let namespace = cluster.namespace("printing").await?;
    let objects = Objects::new(cluster.client(), &namespace);
    objects.template("t", SMALLEST_TEMPLATE).await?;
    objects.desktop("d", "{templateRef: {name: t}}").await?;
    objects.profile("printed", "{alternatives: [{passthrough: {}}]}").await?;
    let nodes: Api<GpuNode> = Api::all(cluster.client().clone());
    nodes.create(&PostParams::default(), &GpuNode::new("printed", GpuNodeSpec::default())).await?;

    for (kind, columns) in [
        ("dsk", "NAME TEMPLATE GPU NODE STATE READY AGE PCI NUMA ADDRESS CONSOLE MESSAGE"),
        ("dtpl", "NAME CORES MEMORY MIB GPU MACHINE DESKTOPS VALID AGE MESSAGE"),
        ("gp", "NAME SHARE MEMORY ISOLATION TOTAL USED PLACEABLE AGE VALID SATISFIABLE"),
        ("gn", "NAME GPUS FREE SLICES NUMA DRIVER SIMULATED READY HEARD AGE MESSAGE SILENCE"),
    ] {
        let printed = cluster.kubectl(["get", kind, "--output=wide", "--namespace", &namespace])?;
        let heading =
            printed.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(heading == columns, "{kind}: {heading}");
    }
    let all = cluster.kubectl(["get", "gpudesk", "--namespace", &namespace, "--output=name"])?;
    for object in ["desktop.", "desktoptemplate.", "gpuprofile.", "gpunode."] {
        ensure!(all.lines().any(|line| line.starts_with(object)), "{object} is not in the category: {all}");
    }
    Ok(())
}

fn on(node: &str) -> Value {
    json!({
        "node": node, "desktopGeneration": 1, "templateGeneration": 1, "decidedAt": "2026-01-01T00:00:00Z"
    })
}

async fn field_selectors(cluster: Arc<Cluster>) -> Result<()> {
    let objects = Objects::new(cluster.client(), &cluster.namespace("selected").await?);
    for (name, template, node) in [("a", "one", Some("n1")), ("b", "one", Some("n2")), ("c", "two", None)] {
        objects.desktop(name, &format!("{{templateRef: {{name: {template}}}}}")).await?;
        if let Some(node) = node {
            let status = Patch::Merge(json!({"status": {"allocation": on(node)}}));
            objects.desktops().patch_status(name, &PatchParams::default(), &status).await?;
        }
    }
    for (selector, expected) in [
        ("status.allocation.node=n1", "a"),
        ("status.allocation.node!=n1", "b c"),
        ("status.allocation.node=", "c"),
        ("spec.templateRef.name=one", "a b"),
        ("spec.templateRef.name=one,status.allocation.node=n2", "b"),
    ] {
        let found = objects.desktops().list(&ListParams::default().fields(selector)).await?;
        let names = found.iter().map(ResourceExt::name_any).collect::<Vec<_>>().join(" ");
        ensure!(names == expected, "{selector}: {names}");
    }
    Ok(())
}

async fn two_writers(cluster: Arc<Cluster>) -> Result<()> {
    let objects = Objects::new(cluster.client(), &cluster.namespace("writers").await?);
    objects.desktop("a", "{templateRef: {name: t}}").await?;
    let apply = async |manager: &str, type_: &str| -> Result<Desktop> {
        let condition = json!({
            "type": type_, "status": "True", "reason": "AsExpected", "message": "", "observedGeneration": 1,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        let patch = json!({
            "apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop", "metadata": {"name": "a"},
            "status": {"conditions": [condition]},
        });
        let params = PatchParams::apply(manager);
        Ok(objects.desktops().patch_status("a", &params, &Patch::Apply(patch)).await?)
    };
    let types = |desktop: Desktop| {
        let conditions = desktop.status.unwrap_or_default().conditions;
        let mut types: Vec<_> = conditions.into_iter().map(|condition| condition.type_).collect();
        types.sort();
        types.join(" ")
    };
    apply(gpudesk_crds::OPERATOR_FIELD_MANAGER, "Allocated").await?;
    let both = types(apply(gpudesk_crds::NODE_DAEMON_FIELD_MANAGER, "Running").await?);
    ensure!(both == "Allocated Running", "{both}");
    let instead = types(apply(gpudesk_crds::NODE_DAEMON_FIELD_MANAGER, "GuestReady").await?);
    ensure!(
        instead == "Allocated GuestReady",
        "a writer's own condition stays when it leaves it out: {instead}"
    );
    Ok(())
}
