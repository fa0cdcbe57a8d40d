//! What is on a node of desktops that the API does not know, or knows otherwise: listed, left running, and
//! ended, erased or given back by an admin's word alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use gpudesk_crds::conditions::{self, ConditionType, Reason};
use gpudesk_crds::gpu_node_status::{Stray, StrayStanding};
use gpudesk_crds::{Desktop, GpuNode, GpuNodeStatus};
use gpudesk_e2e::cluster::Cluster;
use gpudesk_e2e::etcd::{Etcd, key};
use gpudesk_e2e::libvirt_host::LibvirtHost;
use gpudesk_e2e::objects::Objects;
use gpudesk_e2e::processes::Lifetime;
use gpudesk_e2e::programs::{DaemonOptions, Service};
use gpudesk_e2e::real_host::{TINY, built, options};
use gpudesk_e2e::state::{StateDir, checkout};
use gpudesk_e2e::trials::{Environment, Suite};
use gpudesk_e2e::waiting::{eventually, until};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_mins(2);
const SIMULATED: &str =
    "{memory: {sizeMiB: 512}, guestAgent: false, disks: [{name: system, image: {name: any}}]}";
/// Nobody waits ten minutes: the settings of the node daemon.
const QUICK: [&str; 4] = ["--orphans-look", "1", "--orphans-window", "5"];

fn main() -> ExitCode {
    Suite::<Estate>::new("strays")
        .trial("objects_that_are_lost_cost_no_machine_and_no_disk", lost)
        .trial("twenty_desktops_that_a_restored_backup_lacks_run_on", restored)
        .trial("a_node_that_is_deleted_comes_back_as_closed_as_it_was", comes_back)
        .trial("a_host_is_taken_over_from_another_cluster_by_its_uid_alone", adopted)
        .run()
}

struct Estate {
    etcd: Etcd,
    operator: Service,
    host: LibvirtHost,
    cluster: Cluster,
}

impl Environment for Estate {
    async fn start() -> Result<Self> {
        let state = Arc::new(StateDir::for_test("strays")?);
        let mut cluster = Cluster::start_in(&state, Lifetime::Test).await?;
        let host = LibvirtHost::start(&state, Lifetime::Test).await?;
        host.place(&built("e2e/guest/build-tiny.sh")?)?;
        let operator = cluster.start_operator().await?;
        let etcd = cluster.control_plane_mut().etcd().await?;
        Ok(Self { etcd, operator, host, cluster })
    }

    async fn stop(self) -> Result<()> {
        self.operator.stop()?;
        self.host.stop()?;
        self.cluster.stop_control_plane()
    }

    fn collect_logs(&self, suite: &str) -> Result<Option<PathBuf>> {
        self.cluster.save_evidence(suite).map(Some)
    }
}

impl Estate {
    fn nodes(&self) -> Api<GpuNode> {
        Api::all(self.cluster.client().clone())
    }

    /// Where a daemon keeps what is its own.
    fn state(&self, node: &str) -> PathBuf {
        self.cluster.state().join("daemons").join(node)
    }

    async fn patch(&self, node: &str, patch: Value) -> Result<()> {
        self.nodes().patch(node, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Lets desktops with `nodeSelector: {trial: NODE}` choose this node.
    async fn label(&self, node: &str) -> Result<()> {
        until(&self.nodes(), node, "it has a status", SOON, |node| node.status.is_some()).await?;
        self.patch(node, json!({"metadata": {"labels": {"trial": node}}})).await
    }

    async fn simulated(&self, node: &str) -> Result<Service> {
        let options = DaemonOptions {
            node: node.to_owned(),
            simulate: Some(checkout().join("examples/hosts/l40s-4.yaml")),
            arguments: QUICK.map(Into::into).to_vec(),
            ..DaemonOptions::default()
        };
        let daemon = self.cluster.start_daemon(&options).await?;
        self.label(node).await?;
        Ok(daemon)
    }

    /// Takes an object out of the store, as a backup from before it does; returns what was there.
    async fn lose(&self, objects: &Objects, name: &str) -> Result<(String, Value)> {
        let key = key("gpudesk.dev", "desktops", Some(objects.namespace()), name);
        let document = self.etcd.get(&key).await?.context("the Desktop is stored")?;
        self.etcd.remove(&key).await?;
        Ok((key, document))
    }

    /// Waits until the status of a node is so.
    async fn says(
        &self,
        node: &str,
        what: &str,
        so: impl Fn(&GpuNodeStatus) -> bool,
    ) -> Result<GpuNodeStatus> {
        let found =
            until(&self.nodes(), node, what, SOON, |node| node.status.as_ref().is_some_and(&so)).await?;
        found.status.context("its status")
    }

    async fn strays(&self, node: &str, names: &[&str]) -> Result<Vec<Stray>> {
        let wanted: BTreeSet<&str> = names.iter().copied().collect();
        let what = format!("its strays are {names:?}");
        Ok(self.says(node, &what, |status| stray_names(status) == wanted).await?.strays)
    }

    async fn condition(&self, node: &str, type_: ConditionType, reason: Reason) -> Result<String> {
        let so = |status: &GpuNodeStatus| {
            conditions::find(&status.conditions, type_).is_some_and(|it| it.reason == reason.as_str())
        };
        let status = self.says(node, &format!("{type_} says {reason}"), so).await?;
        Ok(conditions::find(&status.conditions, type_).map(|it| it.message.clone()).unwrap_or_default())
    }
}

/// The word that ends a machine.
fn ends(stray: &Stray, action: &str) -> Value {
    let id = stray.allocation.as_ref().and_then(|allocation| allocation.id).map(|id| id.to_string());
    json!({"uid": stray.uid, "allocationId": id, "action": action})
}

fn stray_names(status: &GpuNodeStatus) -> BTreeSet<&str> {
    status.strays.iter().map(|stray| stray.name.as_str()).collect()
}

async fn runs(objects: &Objects, name: &str) -> Result<Desktop> {
    objects.is(name, ConditionType::Ready, true, SOON).await
}

/// Four that run and four that are stopped lose their objects.
#[expect(clippy::too_many_lines, reason = "one story in its order")]
async fn lost(estate: Arc<Estate>) -> Result<()> {
    const NODE: &str = "real";
    let host = &estate.host;
    let options = DaemonOptions { arguments: QUICK.map(Into::into).to_vec(), ..options(host, NODE)? };
    let mut daemon = estate.cluster.start_daemon(&options).await?;
    estate.label(NODE).await?;
    let objects = Objects::new(estate.cluster.client(), &estate.cluster.namespace("lost").await?);
    objects.template("tiny", TINY).await?;
    let spec = "{templateRef: {name: tiny}, nodeSelector: {trial: real}}";
    let (running, parked) = (["r-0", "r-1", "r-2", "r-3"], ["p-0", "p-1", "p-2", "p-3"]);
    for name in running.iter().chain(&parked) {
        objects.desktop(name, spec).await?;
    }
    for name in running.iter().chain(&parked) {
        runs(&objects, name).await?;
    }
    for name in parked {
        objects.patch(name, json!({"spec": {"powerState": "Stopped"}})).await?;
        objects.says(name, ConditionType::Running, Reason::Stopped, SOON).await?;
    }
    eventually("four guests run", SOON, || async { Ok((host.guests().len() == 4).then_some(())) }).await?;
    let guests = host.guests();
    let first = objects.desktops().get("p-0").await?.uid().context("a UID")?;
    let disk = |uid: &str| estate.state(NODE).join("desktops").join(uid).join("disk-data.qcow2");
    let inode = std::fs::metadata(disk(&first))?.ino();

    let mut kept = None;
    for name in running.iter().chain(&parked) {
        kept = Some(estate.lose(&objects, name).await?).filter(|_| *name == "r-3").or(kept);
    }
    let strays = estate.strays(NODE, &running).await?;
    ensure!(strays.iter().all(|stray| stray.standing == StrayStanding::NoDesktop), "{strays:?}");
    ensure!(
        strays
            .iter()
            .all(|it| it.allocation.as_ref().is_some_and(|it| it.id.is_some() && it.compute.is_some())),
        "what they hold is told: {strays:?}"
    );
    // A folder of which nothing tells whose it is, is named with what to do.
    let owner = disk(&first).with_file_name("owner.json");
    let whose = std::fs::read(&owner)?;
    std::fs::write(&owner, "{")?;
    let said = estate.condition(NODE, ConditionType::StateKept, Reason::StateNotKept).await?;
    ensure!(said.contains(&first) && said.contains("move the folder away"), "{said}");
    std::fs::write(&owner, whose)?;
    estate.condition(NODE, ConditionType::StateKept, Reason::AsExpected).await?;
    let so = |status: &GpuNodeStatus| {
        let said = conditions::find(&status.conditions, ConditionType::RemovalAllowed);
        said.is_some_and(|said| said.message.contains("p-0") && said.message.contains("p-3"))
    };
    estate.says(NODE, "all four are held", so).await?;
    let held = estate.condition(NODE, ConditionType::RemovalAllowed, Reason::RemovalHeld).await?;
    for name in parked {
        ensure!(held.contains(&format!("{}/{name}", objects.namespace())), "{held}");
    }

    // A daemon that begins anew knows since when, and begins no window anew.
    daemon.kill()?;
    daemon.restart()?;
    daemon.wait_ready().await?;
    eventually("it has looked", SOON, || async {
        let text = daemon.metrics().await?;
        Ok(text.lines().any(|line| line == "gpudesk_node_strays{state=\"no-such-desktop\"} 8").then_some(()))
    })
    .await?;
    ensure!(estate.strays(NODE, &running).await? == strays, "and nothing of them changed");
    let again = estate.condition(NODE, ConditionType::RemovalAllowed, Reason::RemovalHeld).await?;
    ensure!(again == held, "{again}");
    ensure!(host.guests() == guests && disk(&first).exists(), "nothing was ended and nothing moved");

    // One that is off is listed as long as libvirt knows it, with what it was given.
    let domain = gpudesk_crds::domain_name(objects.namespace(), "r-2");
    let stands = |standing| {
        move |status: &GpuNodeStatus| {
            let stray = status.strays.iter().find(|stray| stray.name == "r-2");
            stray.is_some_and(|stray| stray.standing == standing && stray.allocation.is_some())
        }
    };
    host.virsh(["destroy", &domain])?;
    estate.says(NODE, "r-2 is off", stands(StrayStanding::Inactive)).await?;
    let said = estate.condition(NODE, ConditionType::StraysCleared, Reason::StraysRunning).await?;
    ensure!(said.contains("Inactive)") && said.contains("those that are Inactive do not run"), "{said}");
    host.virsh(["start", &domain])?;
    estate.says(NODE, "r-2 runs again", stands(StrayStanding::NoDesktop)).await?;
    let guests = host.guests();

    // One object is brought back: its machine is its own again.
    let (key, document) = kept.context("the document of r-3")?;
    estate.etcd.put(&key, &document).await?;
    estate.strays(NODE, &["r-0", "r-1", "r-2"]).await?;
    runs(&objects, "r-3").await?;
    ensure!(host.guests() == guests, "it ran on");

    // A word ends exactly the machine that it names.
    let stray = |name: &str| strays.iter().find(|stray| stray.name == name).context("a stray");
    let own = stray("r-3")?;
    let word = |stray: &Stray, id: &str| json!({"uid": stray.uid, "allocationId": id, "action": "PowerOff"});
    let words = json!([word(stray("r-0")?, "999-00000000"), {"uid": own.uid, "action": "PowerOff"}]);
    estate.patch(NODE, json!({"spec": {"strays": words}})).await?;
    let so = |status: &GpuNodeStatus| {
        let said = conditions::find(&status.conditions, ConditionType::StraysCleared);
        said.is_some_and(|said| {
            said.message.contains("allocationId is 999-00000000")
                && said.message.contains("it is the machine of the allocation that holds")
        })
    };
    estate.says(NODE, "both words are refused", so).await?;
    ensure!(host.guests() == guests, "a refused word ends nothing");
    let id = stray("r-0")?.allocation.as_ref().and_then(|it| it.id).context("an id")?.to_string();
    estate.patch(NODE, json!({"spec": {"strays": [word(stray("r-0")?, &id)]}})).await?;
    estate.strays(NODE, &["r-1", "r-2"]).await?;
    ensure!(host.guests().len() == 3, "{:?}", host.guests());
    let leftover = |status: &GpuNodeStatus, name: &str| {
        status.leftovers.iter().find(|leftover| leftover.desktop == name).cloned()
    };
    let status =
        estate.says(NODE, "its disks are a leftover", |status| leftover(status, "r-0").is_some()).await?;
    ensure!(
        status.leftovers.len() == 1 && status.leftovers[0].erased_after.is_some(),
        "{:?}",
        status.leftovers
    );

    // So does the word that lets those go that are held back.
    let (_, before) = held.split_once("removeOrphansBefore: ").context("the word is named")?;
    let before = before.split_whitespace().next().context("a time")?;
    estate.patch(NODE, json!({"spec": {"removeOrphansBefore": before}})).await?;
    let status = estate.says(NODE, "they are leftovers", |status| status.leftovers.len() == 5).await?;
    estate.condition(NODE, ConditionType::RemovalAllowed, Reason::AsExpected).await?;
    ensure!(host.guests().len() == 3, "{:?}", host.guests());

    // One is erased early, and one becomes another desktop's.
    let (p0, p1) = (leftover(&status, "p-0").context("p-0")?, leftover(&status, "p-1").context("p-1")?);
    estate.patch(NODE, json!({"spec": {"leftovers": [{"name": p1.name, "action": "Erase"}]}})).await?;
    estate.says(NODE, "it is erased", |status| leftover(status, "p-1").is_none()).await?;
    ensure!(!estate.state(NODE).join("leftovers").join(&p1.name).exists(), "it is gone");
    ensure!(daemon.metrics().await?.contains("gpudesk_node_leftovers_erased_total 1"), "it is counted");
    objects.desktop("again", spec).await?;
    let again = runs(&objects, "again").await?.uid().context("a UID")?;
    let to = json!({"name": p0.name, "attachTo": {"namespace": objects.namespace(), "name": "again"}});
    estate.patch(NODE, json!({"spec": {"leftovers": [to]}})).await?;
    let refused = estate.condition(NODE, ConditionType::LeftoversHandled, Reason::InvalidSpec).await?;
    ensure!(refused.contains("spec.powerState"), "{refused}");
    ensure!(std::fs::metadata(disk(&again))?.ino() != inode, "no disk changes below a machine");
    objects.patch("again", json!({"spec": {"powerState": "Stopped"}})).await?;
    estate
        .says(NODE, "the disks changed", |status| {
            leftover(status, "p-0").is_none() && leftover(status, "again").is_some()
        })
        .await?;
    ensure!(std::fs::metadata(disk(&again))?.ino() == inode, "they are those of p-0");
    estate.condition(NODE, ConditionType::LeftoversHandled, Reason::AsExpected).await?;
    objects.patch("again", json!({"spec": {"powerState": "Running"}})).await?;
    runs(&objects, "again").await?;
    ensure!(std::fs::metadata(disk(&again))?.ino() == inode, "and it runs on them");

    // A word that does not say which machine is meant ends none: it would end later ones too.
    let last: Vec<&Stray> = ["r-1", "r-2"].into_iter().map(stray).collect::<Result<_>>()?;
    let words: Vec<Value> =
        last.iter().map(|stray| json!({"uid": stray.uid, "action": "PowerOff"})).collect();
    estate.patch(NODE, json!({"spec": {"strays": words}})).await?;
    let so = |status: &GpuNodeStatus| {
        let said = conditions::find(&status.conditions, ConditionType::StraysCleared);
        said.is_some_and(|said| {
            said.message.matches("write which machine is meant: allocationId: ").count() == 2
        })
    };
    estate.says(NODE, "both words say too little", so).await?;
    estate.strays(NODE, &["r-1", "r-2"]).await?;
    let words: Vec<Value> = last.iter().map(|stray| ends(stray, "PowerOff")).collect();
    estate.patch(NODE, json!({"spec": {"strays": words}})).await?;
    estate.strays(NODE, &[]).await?;
    for name in ["r-3", "again"] {
        objects.delete(name, SOON).await?;
    }
    ensure!(host.guests().is_empty(), "{:?}", host.guests());
    daemon.stop()?;
    Ok(())
}

async fn restored(estate: Arc<Estate>) -> Result<()> {
    const NODE: &str = "sim-restored";
    let mut daemon = estate.simulated(NODE).await?;
    let objects = Objects::new(estate.cluster.client(), &estate.cluster.namespace("restored").await?);
    objects.template("t", SIMULATED).await?;
    let names: Vec<String> = (0..20).map(|n| format!("d-{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for name in &names {
        objects
            .desktop(name, &format!("{{templateRef: {{name: t}}, nodeSelector: {{trial: {NODE}}}}}"))
            .await?;
    }
    for name in &names {
        runs(&objects, name).await?;
    }
    let running = || -> Result<usize> {
        let files = std::fs::read_dir(estate.state(NODE).join("simulated-domains"))?;
        Ok(files.flatten().filter(|file| file.path().extension().is_some_and(|it| it == "running")).count())
    };
    let mut documents = vec![];
    for name in &names {
        documents.push(estate.lose(&objects, name).await?);
    }
    let strays = estate.strays(NODE, &names).await?;
    ensure!(running()? == 20, "{}", running()?);

    // Whatever a daemon says when it begins, it never says that there are fewer.
    let config = watcher::Config::default().fields(&format!("metadata.name={NODE}"));
    let mut versions = watcher(estate.nodes(), config).default_backoff().applied_objects().boxed();
    versions.next().await.context("the node as it is")??;
    daemon.kill()?;
    daemon.restart()?;
    daemon.wait_ready().await?;
    // A word, so that there is something new to say.
    let first = strays.first().context("a stray")?;
    let words = json!([{"uid": first.uid, "allocationId": "999-00000000", "action": "PowerOff"}]);
    estate.patch(NODE, json!({"spec": {"strays": words}})).await?;
    loop {
        let node = versions.next().await.context("the watch goes on")??;
        let status = node.status.context("a status")?;
        ensure!(status.strays == strays, "{:?}", status.strays);
        let said =
            conditions::find(&status.conditions, ConditionType::StraysCleared).context("it is there")?;
        if said.message.contains("allocationId is 999-00000000") {
            break;
        }
    }
    ensure!(running()? == 20, "{}", running()?);

    // A backup from before its last decision: what runs is newer than what holds.
    let (key, mut older) = documents.swap_remove(0);
    let id = older["status"]["allocation"]["id"].as_str().context("an id")?.to_owned();
    let (number, _) = id.split_once('-').context("a tag")?;
    older["status"]["allocation"]["id"] = json!(format!("{number}-00000000"));
    estate.etcd.put(&key, &older).await?;
    let so = |status: &GpuNodeStatus| {
        let stray = status.strays.iter().find(|stray| stray.name == names[0]);
        status.strays.len() == 20 && stray.is_some_and(|stray| stray.standing == StrayStanding::Newer)
    };
    let status = estate.says(NODE, "it is newer than what holds", so).await?;
    ensure!(running()? == 20, "{}", running()?);
    let newer = status.strays.iter().find(|stray| stray.name == names[0]).context("the newer one")?;
    // The admin ends it, and the decision that holds gets its machine.
    let words = json!([{"uid": newer.uid, "allocationId": id, "action": "ShutDown"}]);
    estate.patch(NODE, json!({"spec": {"strays": words}})).await?;
    estate.strays(NODE, &names[1..]).await?;
    until(&objects.desktops(), names[0], "it runs by the decision that holds", SOON, |desktop| {
        desktop.said_by_node().is_some_and(|said| said.state == gpudesk_crds::NodeState::Running)
    })
    .await?;
    // The word still stands there, and the machine that holds is not the one that it means.
    ensure!(running()? == 20, "{}", running()?);
    let words: Vec<Value> = status.strays.iter().map(|stray| ends(stray, "ShutDown")).collect();
    estate.patch(NODE, json!({"spec": {"strays": words}})).await?;
    estate.strays(NODE, &[]).await?;
    ensure!(running()? == 1, "the one that is its desktop's runs on: {}", running()?);
    objects.delete(names[0], SOON).await?;
    daemon.stop()?;
    Ok(())
}

/// A `GpuNode` that is deleted, while its daemon lives and while it is away.
async fn comes_back(estate: Arc<Estate>) -> Result<()> {
    const NODE: &str = "sim-closed";
    let mut daemon = estate.simulated(NODE).await?;
    let nodes = estate.nodes();
    // The operator's.
    let (heard, unpublished) = (ConditionType::DaemonHeard, ConditionType::CardsUnpublished);
    let seen = |node: &GpuNode| {
        let said = node.status.iter().flat_map(|status| &status.conditions);
        said.clone().any(|said| said.type_ == ConditionType::SpecKept.as_str())
            && said
                .filter(|said| ![heard.as_str(), unpublished.as_str()].contains(&said.type_.as_str()))
                .all(|said| said.observed_generation == node.metadata.generation)
    };
    let first = until(&nodes, NODE, "its daemon has seen its spec", SOON, seen).await?;
    let card = first.status.as_ref().and_then(|status| status.devices.first()).context("a card")?.pci_address;
    let protected = json!({
        "taints": [{"key": "exam"}],
        "devices": [{"name": "mine", "selector": {"pciAddress": card}, "management": "Unmanaged"}],
        "housekeeping": {"coresPerNumaCell": 2, "memoryMiBPerNumaCell": 2048},
    });
    let mut spec = protected.clone();
    spec["outOfService"] = true.into();
    spec["physicalNetworks"] = json!([{"name": "lab", "devices": ["0000:ff:00.0"]}]);
    spec["strays"] = json!([{"uid": "7f1c2a58-3c1e-4f0e-9a53-0d4f6f5b9a01", "action": "PowerOff"}]);
    estate.patch(NODE, json!({"spec": spec})).await?;
    let mut closed = protected.clone();
    closed["cordoned"] = true.into();
    for away in [false, true] {
        let before = until(&nodes, NODE, "its daemon has seen its spec", SOON, seen).await?;
        if away {
            daemon.kill()?;
        }
        nodes.delete(NODE, &DeleteParams::default()).await?;
        if away {
            daemon.restart()?;
        }
        // Of the first generation: it was never another one.
        let again = until(&nodes, NODE, "it is there again and says so", SOON, |node| {
            node.uid() != before.uid() && seen(node)
        })
        .await?;
        let stored = serde_json::to_value(&again.spec)?;
        ensure!(again.metadata.generation == Some(1) && stored == closed, "away {away}: {stored:#}");
        let said = estate.condition(NODE, ConditionType::SpecKept, Reason::SpecNotKept).await?;
        for part in ["spec.outOfService true (it is cordoned instead)", "\"name\":\"lab\"", "label trial"] {
            ensure!(said.contains(part), "{part}: {said}");
        }
        ensure!(!said.contains("spec.strays"), "a word for one time is missed by nobody: {said}");
    }
    // Who applies what came back wants just that, and nothing of it changes.
    let agreed = json!({
        "apiVersion": "gpudesk.dev/v1alpha1", "kind": "GpuNode", "metadata": {"name": NODE}, "spec": closed,
    });
    let agreed = nodes.patch(NODE, &PatchParams::apply("its-owner"), &Patch::Apply(agreed)).await?;
    ensure!(agreed.metadata.generation == Some(1), "{:?}", agreed.metadata);
    estate.condition(NODE, ConditionType::SpecKept, Reason::AsExpected).await?;
    // Its owner says again what should hold; that is what comes back from now on.
    estate
        .patch(NODE, json!({"spec": {"cordoned": null, "physicalNetworks": spec["physicalNetworks"]}}))
        .await?;
    estate.condition(NODE, ConditionType::SpecKept, Reason::AsExpected).await?;
    let before = nodes.get(NODE).await?;
    nodes.delete(NODE, &DeleteParams::default()).await?;
    let again = until(&nodes, NODE, "it is there again", SOON, |node| node.uid() != before.uid()).await?;
    ensure!(serde_json::to_value(&again.spec)? == protected, "{:?}", again.spec);
    daemon.stop()?;
    Ok(())
}

async fn adopted(estate: Arc<Estate>) -> Result<()> {
    const NODE: &str = "sim-adopted";
    const OTHER: &str = "7f1c2a58-3c1e-4f0e-9a53-0d4f6f5b9a01";
    let mut daemon = estate.simulated(NODE).await?;
    let objects = Objects::new(estate.cluster.client(), &estate.cluster.namespace("adopted").await?);
    objects.template("t", SIMULATED).await?;
    objects.desktop("one", &format!("{{templateRef: {{name: t}}, nodeSelector: {{trial: {NODE}}}}}")).await?;
    let uid = runs(&objects, "one").await?.uid().context("a UID")?;
    let running = estate.state(NODE).join("simulated-domains").join(format!("{uid}.running"));
    daemon.kill()?;
    // It was another cluster's before.
    std::fs::write(estate.state(NODE).join("cluster-uid"), OTHER)?;
    objects.patch("one", json!({"spec": {"powerState": "Stopped"}})).await?;
    daemon.restart()?;
    daemon.wait_ready().await?;
    let said = estate.condition(NODE, ConditionType::Ready, Reason::ForeignCluster).await?;
    ensure!(said.contains(&format!("spec.adoptFromCluster: {OTHER}")), "{said}");
    let strays = estate.strays(NODE, &["one"]).await?;
    ensure!(strays[0].standing == StrayStanding::Unclear, "{strays:?}");
    estate.patch(NODE, json!({"spec": {"adoptFromCluster": "7f1c2a58"}})).await?;
    let so = |status: &GpuNodeStatus| {
        conditions::find(&status.conditions, ConditionType::Ready)
            .is_some_and(|it| it.message.contains("another UID"))
    };
    estate.says(NODE, "another UID is refused", so).await?;
    ensure!(running.exists(), "it is not stopped on the word of this cluster");
    estate.patch(NODE, json!({"spec": {"adoptFromCluster": OTHER}})).await?;
    let ready = |status: &GpuNodeStatus| conditions::is_true(&status.conditions, ConditionType::Ready);
    estate.says(NODE, "it is ready", ready).await?;
    objects.says("one", ConditionType::Running, Reason::Stopped, SOON).await?;
    ensure!(!running.exists(), "now it is stopped");
    estate.strays(NODE, &[]).await?;
    objects.delete("one", SOON).await?;
    daemon.stop()?;
    Ok(())
}
