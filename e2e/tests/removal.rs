//! Removing gpudesk ends, in whatever order, with the commands of the README.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_crds::conditions::ConditionType;
use gpudesk_e2e::cluster::Cluster;
use gpudesk_e2e::objects::Objects;
use gpudesk_e2e::processes::Lifetime;
use gpudesk_e2e::programs::Service;
use gpudesk_e2e::state::{StateDir, checkout, readme_commands};
use gpudesk_e2e::trials::Suite;
use gpudesk_e2e::waiting::eventually;

const LIMIT: Duration = Duration::from_mins(3);
const TEMPLATE: &str = "{memory: {sizeMiB: 1024}, guestAgent: false, disks: [{name: system, image: {name: debian-12}}], \
     cloudInit: {secretRef: {name: seed}}}";

fn main() -> ExitCode {
    Suite::<()>::new("removal")
        .trial("in_the_order_of_the_readme_each_step_ends", |_| in_order())
        .trial("definitions_first_end_while_operator_and_daemons_run", |_| definitions_first())
        .trial("a_chart_that_is_installed_again_works_or_says_what_it_needs", |_| installed_again())
        .trial("without_the_chart_desktops_stay_and_can_be_given_up", |_| chart_first())
        .run()
}

/// A cluster with a desktop that runs on a simulated host.
struct Estate {
    daemon: Service,
    operator: Service,
    cluster: Cluster,
    objects: Objects,
}

impl Estate {
    async fn start(name: &str) -> Result<Self> {
        let state = Arc::new(StateDir::for_test(name)?);
        let cluster = Cluster::start_in(&state, Lifetime::Test).await?;
        let operator = cluster.start_operator().await?;
        let daemon = cluster.start_simulated("sim-0", &checkout().join("examples/hosts/l40s-4.yaml")).await?;
        let objects = Objects::new(cluster.client(), &cluster.namespace("removal").await?);
        let namespace = objects.namespace().to_owned();
        cluster.kubectl([
            "create",
            "secret",
            "generic",
            "seed",
            "--from-literal=userData=x",
            "--namespace",
            &namespace,
        ])?;
        objects.template("t", TEMPLATE).await?;
        objects.desktop("a", "{templateRef: {name: t}}").await?;
        objects.is("a", ConditionType::Ready, true, LIMIT).await?;
        Ok(Self { daemon, operator, cluster, objects })
    }

    fn shell(&self, command: &str) -> Result<String> {
        self.cluster.shell(command)
    }

    fn stop(self) -> Result<()> {
        self.daemon.stop()?;
        self.operator.stop()?;
        self.cluster.stop_control_plane()
    }

    /// Nothing of gpudesk is left in the cluster.
    async fn is_clean(&self) -> Result<()> {
        eventually("nothing is left of gpudesk", LIMIT, || async {
            let kinds = "customresourcedefinitions,clusterroles,clusterrolebindings,roles,rolebindings,\
                 validatingadmissionpolicies,validatingadmissionpolicybindings,namespaces,leases,serviceaccounts";
            let all = self.cluster.kubectl(["get", kinds, "--all-namespaces", "--output=name", "--ignore-not-found"])?;
            let left: Vec<_> = all.lines().filter(|line| line.contains("gpudesk")).collect();
            tracing::info!("left: {left:?}");
            Ok(left.is_empty().then_some(()))
        })
        .await
    }
}

fn blocks() -> Result<Vec<String>> {
    readme_commands("## Remove everything")
}

/// The command of the README for what stays when the chart goes.
fn kept() -> Result<String> {
    let blocks = blocks()?;
    let line = blocks[0].lines().find(|line| line.contains("operator-term.gpudesk.dev"));
    Ok(line.context("no such command")?.to_owned())
}

async fn in_order() -> Result<()> {
    let estate = Estate::start("removal-order").await?;
    for command in blocks()?[0].lines() {
        estate.shell(command)?;
    }
    estate.is_clean().await?;
    estate.stop()
}

async fn definitions_first() -> Result<()> {
    let estate = Estate::start("removal-definitions").await?;
    estate.shell("kubectl delete -f crds/")?;
    estate.shell("helm uninstall gpudesk --namespace gpudesk-system")?;
    estate.shell("kubectl delete namespace gpudesk-system")?;
    estate.shell(&kept()?)?;
    estate.is_clean().await?;
    estate.stop()
}

async fn installed_again() -> Result<()> {
    let mut estate = Estate::start("removal-again").await?;
    for (name, namespace_too) in [("b", false), ("c", true)] {
        estate.shell("helm uninstall gpudesk --namespace gpudesk-system")?;
        estate.operator.kill()?;
        if namespace_too {
            estate.shell("kubectl delete namespace gpudesk-system")?;
        }
        estate.cluster.helm_install(&[])?;
        estate.operator = estate.cluster.start_operator().await?;
        estate.objects.desktop(name, "{templateRef: {name: none}}").await?;
        estate.objects.is(name, ConditionType::Allocated, false, LIMIT).await?;
    }

    // Somebody takes away what the chart leaves, and the API server is not started again.
    estate.shell("helm uninstall gpudesk --namespace gpudesk-system")?;
    estate.operator.kill()?;
    estate.shell(&kept()?)?;
    // An API server takes a second to see that.
    tokio::time::sleep(Duration::from_secs(3)).await;
    estate.cluster.helm_install(&[])?;
    estate.operator = estate.cluster.start_operator().await?;
    // There is something to write.
    estate.objects.desktop("e", "{templateRef: {name: none}}").await?;
    eventually("the operator says that it may write nothing", LIMIT, || async {
        let metrics = estate.operator.metrics().await?;
        Ok(metrics.contains("\ngpudesk_operator_term_refused 1\n").then_some(()))
    })
    .await
    .with_context(|| estate.operator.process().log_tail())?;
    let log = estate.operator.process().log()?;
    ensure!(log.contains("Restart every kube-apiserver"), "{log}");
    ensure!(estate.operator.get("/readyz").await.is_err(), "it is ready");
    estate.cluster.control_plane_mut().restart_api_server().await?;
    estate.objects.desktop("d", "{templateRef: {name: none}}").await?;
    estate.objects.is("d", ConditionType::Allocated, false, LIMIT).await?;
    estate.operator.wait_ready().await?;
    ensure!(estate.operator.metrics().await?.contains("\ngpudesk_operator_term_refused 0\n"));
    estate.stop()
}

async fn chart_first() -> Result<()> {
    let mut estate = Estate::start("removal-chart").await?;
    let before = estate.objects.desktops().get("a").await?;
    estate.shell("helm uninstall gpudesk --namespace gpudesk-system")?;
    // Its pods go; the machine is no child of theirs.
    estate.operator.kill()?;
    estate.daemon.kill()?;
    let after = estate.objects.desktops().get("a").await?;
    ensure!(
        before.status == after.status && after.metadata.deletion_timestamp.is_none(),
        "uninstalling the chart touched a desktop: {after:?}"
    );

    // A desktop that is deleted now waits, and whoever asks for the definitions to go waits for it.
    estate.shell("kubectl delete desktops --all --all-namespaces --wait=false")?;
    ensure!(estate.shell("kubectl delete -f crds/ --timeout=5s").is_err(), "a desktop was forgotten");
    let waiting = estate.objects.desktops().get("a").await?;
    ensure!(waiting.metadata.deletion_timestamp.is_some(), "{waiting:?}");
    estate.shell(&blocks()?[1])?;
    estate.shell("kubectl delete -f crds/ --ignore-not-found")?;
    estate.shell("kubectl delete namespace gpudesk-system")?;
    estate.shell(&kept()?)?;
    estate.is_clean().await?;
    estate.cluster.delete_namespace(estate.objects.namespace()).await?;
    estate.stop()
}
