//! What is away, or comes back older than it was: libvirt when a daemon starts, etcd from a backup.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_crds::conditions::{ConditionType, Reason};
use gpudesk_e2e::accelerator::{Accelerator, accelerator};
use gpudesk_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use gpudesk_e2e::libvirt_host::LibvirtHost;
use gpudesk_e2e::objects::Objects;
use gpudesk_e2e::processes::Lifetime;
use gpudesk_e2e::programs::DaemonOptions;
use gpudesk_e2e::real_host::{NODE, TINY, built};
use gpudesk_e2e::state::StateDir;
use gpudesk_e2e::trials::Suite;
use gpudesk_e2e::waiting::eventually;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

const SOON: Duration = Duration::from_mins(4);
/// More revisions than are written between a restore and the next renewal of a lease.
const REVISIONS: usize = 600;

fn main() -> ExitCode {
    Suite::<()>::new("outage")
        .trial("a_daemon_says_what_is_away_and_goes_on_when_it_is_back", |_| outages())
        .run()
}

async fn outages() -> Result<()> {
    let state = Arc::new(StateDir::for_test("outage")?);
    let mut cluster = Cluster::start_in(&state, Lifetime::Test).await?;
    let mut host = LibvirtHost::start(&state, Lifetime::Test).await?;
    host.place(&built("e2e/guest/build-tiny.sh")?)?;
    let mut operator = cluster.start_operator().await?;
    let options = DaemonOptions {
        node: NODE.to_owned(),
        libvirt_uri: Some(host.uri()),
        image_roots: vec![host.images()?],
        emulated: *accelerator() != Accelerator::Kvm,
        ..DaemonOptions::default()
    };
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
    ensure!(said.status == "False", "{said:?}");
    objects.patch("one", json!({"spec": {"powerState": "Stopped"}})).await?;
    objects.says("one", ConditionType::Ready, Reason::HypervisorUnavailable, SOON).await?;
    objects.patch("one", json!({"spec": {"powerState": "Running"}})).await?;
    ensure!(host.guests() == guest, "it runs on");
    host.restart().await?;
    objects.is("one", ConditionType::Ready, true, SOON).await?;
    ensure!(host.guests() == guest, "it was left alone");

    // An etcd that was restored from a backup.
    cluster.control_plane_mut().back_up().await?;
    objects.is("one", ConditionType::Ready, true, SOON).await?;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client().clone(), objects.namespace());
    let mut last = 0;
    for count in 0..REVISIONS {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"count": count.to_string()}});
        let map = maps.patch("m", &PatchParams::apply("test"), &Patch::Apply(map)).await?;
        last = version(map.metadata.resource_version.as_ref())?;
    }
    // They have seen the last of it. A leader that could not renew its lease meanwhile has ended.
    operator.restart()?;
    daemon.restart()?;
    let leases: Api<Lease> = Api::namespaced(cluster.client().clone(), SYSTEM_NAMESPACE);
    for lease in [format!("gpudesk-node-{NODE}"), "gpudesk-operator".to_owned()] {
        eventually("it is renewed after the backup", SOON, || async {
            let lease = leases.get(&lease).await?;
            Ok((version(lease.metadata.resource_version.as_ref())? > last).then_some(()))
        })
        .await?;
    }
    cluster.control_plane_mut().restore().await?;
    eventually("the operator ends", SOON, || async { Ok((!operator.process().is_running()).then_some(())) })
        .await?;
    operator.restart()?;
    objects.desktop("after", "templateRef: {name: tiny}").await?;
    objects
        .is("after", ConditionType::Ready, true, SOON)
        .await
        .with_context(|| daemon.process().log_tail())?;
    ensure!(guest.iter().all(|guest| host.guests().contains(guest)), "nothing was touched for that");
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
