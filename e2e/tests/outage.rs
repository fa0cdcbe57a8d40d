//! What is away, or comes back older than it was: libvirt when a daemon starts, etcd from a backup.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_crds::conditions::{ConditionType, Reason};
use gpudesk_crds::gpu_node_status::StrayStanding;
use gpudesk_crds::{Allocation, GpuNode};
use gpudesk_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use gpudesk_e2e::libvirt_host::LibvirtHost;
use gpudesk_e2e::objects::{Objects, condition};
use gpudesk_e2e::processes::Lifetime;
use gpudesk_e2e::programs::{DaemonOptions, Service};
use gpudesk_e2e::real_host::{NODE, TINY, built, options};
use gpudesk_e2e::state::StateDir;
use gpudesk_e2e::trials::Suite;
use gpudesk_e2e::waiting::{eventually, until};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

const SOON: Duration = Duration::from_mins(4);
/// More revisions than are written between a restore and the next renewal of a lease.
const REVISIONS: usize = 600;

fn main() -> ExitCode {
    Suite::<()>::new("outage")
        .trial("what_is_away_is_said_and_twenty_machines_outlive_a_backup_from_before_them", |_| outages())
        .run()
}

#[expect(clippy::too_many_lines, reason = "one story in its order")]
async fn outages() -> Result<()> {
    let state = Arc::new(StateDir::for_test("outage")?);
    let mut cluster = Cluster::start_in(&state, Lifetime::Test).await?;
    let mut host = LibvirtHost::start(&state, Lifetime::Test).await?;
    host.place(&built("e2e/guest/build-tiny.sh")?)?;
    // Twenty and one on a machine of two CPUs.
    let kubeconfig = cluster.operator_kubeconfig().await?;
    let many = ["--cpu-overcommit", "64"];
    let mut operator =
        Service::operator("gpudesk-operator", &state, Lifetime::Test, &kubeconfig, SYSTEM_NAMESPACE, &many)?;
    operator.wait_ready().await?;
    // What it would put aside it puts aside while the trial looks.
    let quick = ["--orphans-look", "1", "--orphans-window", "3"].map(Into::into).to_vec();
    let options = DaemonOptions { arguments: quick, ..options(&host, NODE)? };
    let mut daemon = cluster.start_daemon(&options).await?;
    let objects = Objects::new(cluster.client(), &cluster.namespace("outage").await?);
    objects.template("tiny", TINY).await?;
    objects.desktop("one", "templateRef: {name: tiny}").await?;
    objects.is("one", ConditionType::Ready, true, SOON).await?;
    let guest = host.guests();
    ensure!(guest.len() == 1, "{guest:?}");

    // A daemon that starts while libvirt is away.
    daemon.kill()?;
    host.kill_daemon()?;
    daemon.restart()?;
    let said = objects.says("one", ConditionType::Ready, Reason::HypervisorUnavailable, SOON).await?;
    ensure!(
        said.status == "Unknown"
            && said.message.starts_with(&format!("libvirt on node {NODE} does not answer: ")),
        "{said:?}"
    );
    objects.patch("one", json!({"spec": {"powerState": "Stopped"}})).await?;
    objects.says("one", ConditionType::Ready, Reason::HypervisorUnavailable, SOON).await?;
    objects.patch("one", json!({"spec": {"powerState": "Running"}})).await?;
    ensure!(host.guests() == guest, "it runs on");
    host.restart().await?;
    objects.is("one", ConditionType::Ready, true, SOON).await?;
    ensure!(host.guests() == guest, "it was left alone");

    // One that loses it: what runs and what is stopped says the same, and so does the node.
    objects.desktop("off", "templateRef: {name: tiny}").await?;
    objects.is("off", ConditionType::Ready, true, SOON).await?;
    objects.patch("off", json!({"spec": {"powerState": "Stopped"}})).await?;
    objects.says("off", ConditionType::Running, Reason::Stopped, SOON).await?;
    host.kill_daemon()?;
    let mut said = vec![];
    for name in ["one", "off"] {
        said.push(objects.says(name, ConditionType::Running, Reason::HypervisorUnavailable, SOON).await?);
    }
    ensure!(said[0].message == said[1].message && said[0].message.contains(NODE), "{said:?}");
    ensure!(said.iter().all(|it| it.status == "Unknown"), "{said:?}");
    let nodes: Api<GpuNode> = Api::all(cluster.client().clone());
    until(&nodes, NODE, "its libvirt does not answer", SOON, |node| {
        let said = node.status.iter().flat_map(|status| &status.conditions);
        said.into_iter().any(|it| {
            it.type_ == ConditionType::HypervisorReady.as_str()
                && it.reason == Reason::HypervisorUnavailable.as_str()
        })
    })
    .await?;
    host.restart().await?;
    objects.is("one", ConditionType::Ready, true, SOON).await?;
    ensure!(host.guests() == guest, "it was left alone");
    objects.delete("off", SOON).await?;

    // An etcd that was restored from a backup: ten are in it without a place, ten are not in it.
    let cordon = |cordoned: bool| {
        let patch = Patch::Merge(json!({"spec": {"cordoned": cordoned}}));
        let nodes = nodes.clone();
        async move { nodes.patch(NODE, &PatchParams::default(), &patch).await }
    };
    let names = |kind: &str| (0..10).map(|n| format!("{kind}-{n}")).collect::<Vec<_>>();
    let (waiting, later) = (names("waiting"), names("later"));
    cordon(true).await?;
    for name in &waiting {
        objects.desktop(name, "templateRef: {name: tiny}").await?;
    }
    for name in &waiting {
        objects.says(name, ConditionType::Allocated, Reason::Unschedulable, SOON).await?;
    }
    cluster.control_plane_mut().back_up().await?;
    objects.is("one", ConditionType::Ready, true, SOON).await?;
    cordon(false).await?;
    for name in &later {
        objects.desktop(name, "templateRef: {name: tiny}").await?;
    }
    let (mut decisions, mut disks) = (BTreeMap::new(), vec![]);
    for name in waiting.iter().chain(&later) {
        let desktop = objects.is(name, ConditionType::Ready, true, SOON).await?;
        decisions.insert(name, desktop.allocation().map(Allocation::decision));
        let folder = state.join("daemons").join(NODE).join("desktops").join(desktop.uid().context("a UID")?);
        disks.push(folder.join("disk-data.qcow2"));
    }
    let guests = host.guests();
    ensure!(guests.len() == 21 && disks.iter().all(|disk| disk.exists()), "{guests:?}");
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client().clone(), objects.namespace());
    let mut last = 0;
    for count in 0..REVISIONS {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"count": count.to_string()}});
        let map = maps.patch("m", &PatchParams::apply("test"), &Patch::Apply(map)).await?;
        last = version(map.metadata.resource_version.as_ref())?;
    }
    // They have seen the last of it. A leader that could not renew its lease meanwhile has ended.
    let leases: Api<Lease> = Api::namespaced(cluster.client().clone(), SYSTEM_NAMESPACE);
    let leader = async || -> Result<Option<String>> {
        let lease = leases.get("gpudesk-operator").await?;
        Ok(lease.spec.and_then(|spec| spec.holder_identity).filter(|holder| !holder.is_empty()))
    };
    let before = leader().await?;
    operator.restart()?;
    daemon.restart()?;
    eventually("the operator leads", SOON, || async {
        Ok(leader().await?.filter(|leader| Some(leader) != before.as_ref()))
    })
    .await?;
    eventually("the node's lease is renewed after the backup", SOON, || async {
        let lease = leases.get(&format!("gpudesk-node-{NODE}")).await?;
        Ok((version(lease.metadata.resource_version.as_ref())? > last).then_some(()))
    })
    .await?;
    cluster.control_plane_mut().restore().await?;
    eventually("the operator ends", SOON, || async { Ok((!operator.process().is_running()).then_some(())) })
        .await?;
    operator.restart()?;
    // Those that are in it are given back what their machines hold, by the decision that made them.
    for name in &waiting {
        until(&objects.desktops(), name, "it has its allocation back and is ready", SOON, |desktop| {
            desktop.allocation().map(Allocation::decision) == decisions[name]
                && condition(desktop, ConditionType::Ready).is_some_and(|ready| ready.status == "True")
        })
        .await?;
    }
    // The others are listed.
    until(&nodes, NODE, "what is not in the backup is listed", SOON, |node| {
        let strays = node.status.iter().flat_map(|status| &status.strays);
        let found: BTreeMap<_, _> = strays.map(|stray| (&stray.name, stray.standing)).collect();
        found == later.iter().map(|name| (name, StrayStanding::NoDesktop)).collect()
    })
    .await?;
    ensure!(host.guests() == guests, "none was stopped or started anew: {:?}", host.guests());
    cordon(false).await?;
    objects.desktop("after", "templateRef: {name: tiny}").await?;
    objects
        .is("after", ConditionType::Ready, true, SOON)
        .await
        .with_context(|| daemon.process().log_tail())?;
    ensure!(guests.iter().all(|guest| host.guests().contains(guest)), "nothing was touched for that");
    ensure!(disks.iter().all(|disk| disk.exists()), "nothing was erased or put aside");
    for name in ["one", "after"] {
        objects.delete(name, SOON).await?;
    }
    daemon.stop()?;
    operator.stop()?;
    host.stop()?;
    cluster.stop_control_plane()
}

fn version(text: Option<&String>) -> Result<u64> {
    Ok(text.context("a version")?.parse()?)
}
