//! A node that was away, and what became of its desktops meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_crds::conditions::{ConditionType, Reason};
use gpudesk_crds::{ABANDON_DISKS_ANNOTATION, Desktop, GpuNode, domain_name, node_identity};
use gpudesk_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use gpudesk_e2e::libvirt_host::LibvirtHost;
use gpudesk_e2e::objects::{Objects, condition};
use gpudesk_e2e::processes::Lifetime;
use gpudesk_e2e::programs::{DaemonOptions, Service};
use gpudesk_e2e::real_host::{TINY, built, options};
use gpudesk_e2e::state::{StateDir, checkout};
use gpudesk_e2e::trials::{Environment, Suite};
use gpudesk_e2e::waiting::{eventually, until, until_gone};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

const SOON: Duration = Duration::from_mins(2);
const REAL: &str = "real";
const ELSEWHERE: &str = "elsewhere";

fn main() -> ExitCode {
    Suite::<Away>::new("moved")
        .trial("a_machine_whose_desktop_moved_on_goes_away_and_its_disks_are_kept", moved_on)
        .trial("a_simulated_daemon_that_is_killed_goes_on_where_it_was", simulated_goes_on)
        .trial("a_simulated_host_wants_its_secret_as_a_real_one_does", simulated_secret)
        .trial("a_daemon_ends_when_asked_though_the_api_server_is_away", ends_without_api)
        .trial("a_daemon_ends_when_asked_though_the_api_server_never_answers", ends_beside_a_silent_api)
        .run()
}

struct Away {
    operator: Service,
    host: LibvirtHost,
    cluster: Cluster,
}

impl Environment for Away {
    async fn start() -> Result<Self> {
        let state = Arc::new(StateDir::for_test("moved")?);
        let cluster = Cluster::start_in(&state, Lifetime::Test).await?;
        let host = LibvirtHost::start(&state, Lifetime::Test).await?;
        host.place(&built("e2e/guest/build-tiny.sh")?)?;
        let operator = cluster.start_operator().await?;
        Ok(Self { operator, host, cluster })
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

impl Away {
    async fn objects(&self, name: &str) -> Result<Objects> {
        Ok(Objects::new(self.cluster.client(), &self.cluster.namespace(name).await?))
    }

    fn nodes(&self) -> Api<GpuNode> {
        Api::all(self.cluster.client().clone())
    }

    /// Lets the desktops of one trial choose a node: those with `nodeSelector: {trial: NAME}`.
    async fn give_to(&self, trial: &str, node: &str) -> Result<()> {
        let label = Patch::Merge(json!({"metadata": {"labels": {"trial": trial}}}));
        eventually("the GpuNode is there", SOON, || async {
            Ok(self.nodes().patch(node, &PatchParams::default(), &label).await.ok())
        })
        .await?;
        Ok(())
    }

    /// The port of the API server.
    async fn server(&self, node: &str) -> Result<String> {
        let text = std::fs::read_to_string(self.cluster.daemon_kubeconfig(node).await?)?;
        let server = text.split("https://127.0.0.1:").nth(1).context("a server on this machine")?;
        Ok(server.chars().take_while(char::is_ascii_digit).collect())
    }

    /// A simulated host whose daemon takes `port` for the API server's.
    async fn start_at(&self, node: &str, port: u16) -> Result<Service> {
        let server = self.server(node).await?;
        let text = std::fs::read_to_string(self.cluster.daemon_kubeconfig(node).await?)?;
        let text = text.replace(&format!("127.0.0.1:{server}"), &format!("127.0.0.1:{port}"));
        let kubeconfig = self.cluster.state().join(format!("{node}-elsewhere.kubeconfig"));
        std::fs::write(&kubeconfig, text)?;
        let options = DaemonOptions {
            node: node.to_owned(),
            simulate: Some(checkout().join("examples/hosts/l40s-4.yaml")),
            ..DaemonOptions::default()
        };
        self.cluster.spawn_daemon(&options, &kubeconfig)
    }

    /// A node of which nothing is left in the cluster, and whose daemon is not heard.
    async fn lose(&self, node: &str) -> Result<()> {
        self.nodes().delete(node, &DeleteParams::default()).await?;
        let leases: Api<Lease> = Api::namespaced(self.cluster.client().clone(), SYSTEM_NAMESPACE);
        // One that is deleted lasts for as long as it would have.
        let short = json!({"spec": {"leaseDurationSeconds": 1, "renewTime": format!("{:.6}", jiff::Timestamp::now())}});
        leases.patch(&node_identity(node), &PatchParams::default(), &Patch::Merge(short)).await?;
        leases.delete(&node_identity(node), &DeleteParams::default()).await?;
        Ok(())
    }

    async fn start_simulated(&self, node: &str) -> Result<Service> {
        self.cluster.start_simulated(node, &checkout().join("examples/hosts/l40s-4.yaml")).await
    }
}

fn started(desktop: &Desktop) -> Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Time> {
    desktop.status.as_ref()?.domain.as_ref()?.started_at.as_ref()
}

async fn runs_on(objects: &Objects, name: &str, node: &str) -> Result<Desktop> {
    until(&objects.desktops(), name, &format!("it runs on {node}"), SOON, |desktop| {
        let allocation = desktop.status.as_ref().and_then(|status| status.allocation.as_ref());
        allocation.is_some_and(|allocation| allocation.node == node && allocation.compute.is_some())
            && condition(desktop, ConditionType::Ready).is_some_and(|ready| ready.status == "True")
    })
    .await
}

/// A desktop that has disks on a node that is lost says so and stays; its user gives them up.
async fn given_up(objects: &Objects, name: &str, node: &str) -> Result<()> {
    let said = objects.says(name, ConditionType::Ready, Reason::NodeLost, SOON).await?;
    let id = decision(&objects.desktops().get(name).await?).context("it keeps its allocation")?;
    let annotate = format!("{ABANDON_DISKS_ANNOTATION}={id}");
    ensure!(said.message.contains(node) && said.message.contains(&annotate), "{said:?}");
    objects
        .patch(name, json!({"metadata": {"annotations": {ABANDON_DISKS_ANNOTATION: "1-00000000"}}}))
        .await?;
    until(&objects.desktops(), name, "it answers the wrong id", SOON, |desktop| {
        let said = condition(desktop, ConditionType::Ready).map(|ready| ready.message.clone());
        said.is_some_and(|said| said.contains("\"1-00000000\""))
    })
    .await?;
    objects.patch(name, json!({"metadata": {"annotations": {ABANDON_DISKS_ANNOTATION: id}}})).await?;
    Ok(())
}

fn decision(desktop: &Desktop) -> Option<String> {
    Some(desktop.allocation()?.decision())
}

async fn moved_on(environment: Arc<Away>) -> Result<()> {
    let (objects, host) = (environment.objects("moved").await?, &environment.host);
    objects.template("tiny", TINY).await?;
    let mut real = environment.cluster.start_daemon(&options(host, REAL)?).await?;
    environment.give_to("moved", REAL).await?;
    objects.desktop("one", "{templateRef: {name: tiny}, nodeSelector: {trial: moved}}").await?;
    let here = runs_on(&objects, "one", REAL).await?;
    let (uid, domain) = (here.uid().context("a UID")?, domain_name(objects.namespace(), "one"));
    let state = environment.cluster.state().join("daemons").join(REAL);
    let disk = state.join("desktops").join(&uid).join("disk-data.qcow2");
    let inode = std::fs::metadata(&disk)?.ino();

    // The node is away, the user gives up what is there, and the desktop goes on elsewhere.
    real.kill()?;
    let mut elsewhere = environment.start_simulated(ELSEWHERE).await?;
    environment.give_to("moved", ELSEWHERE).await?;
    environment.lose(REAL).await?;
    given_up(&objects, "one", REAL).await?;
    let moved = runs_on(&objects, "one", ELSEWHERE).await?;
    ensure!(host.guests().len() == 1, "the machine of before runs on: {:?}", host.guests());

    // The node comes back.
    real.restart()?;
    real.wait_ready().await?;
    eventually("the machine of before goes away", SOON, || async {
        let list = host.virsh(["list", "--all", "--name"])?;
        Ok((!list.contains(&domain)).then_some(()))
    })
    .await?;
    ensure!(host.guests().is_empty(), "{:?}", host.guests());
    let kept = eventually("its disks are kept aside", SOON, || async {
        let leftovers = std::fs::read_dir(state.join("leftovers")).into_iter().flatten().flatten();
        Ok(leftovers.map(|entry| entry.path()).find(|path| path.join("leftover.json").exists()))
    })
    .await?;
    ensure!(std::fs::metadata(kept.join("disk-data.qcow2"))?.ino() == inode, "it is the same disk");
    ensure!(!disk.exists(), "and it is in nobody's way");
    let told = std::fs::read_to_string(kept.join("leftover.json"))?;
    ensure!(told.contains(&uid) && told.contains(ELSEWHERE), "{told}");
    eventually("the metrics tell of it", SOON, || async {
        let text = real.metrics().await?;
        Ok(text.lines().any(|line| line == "gpudesk_node_leftovers 1").then_some(()))
    })
    .await?;
    let now = objects.desktops().get("one").await?;
    ensure!(now.metadata.resource_version == moved.metadata.resource_version, "nobody wrote it: {now:?}");

    // And it is handed back in the same way.
    elsewhere.kill()?;
    environment.lose(ELSEWHERE).await?;
    environment.give_to("moved", REAL).await?;
    given_up(&objects, "one", ELSEWHERE).await?;
    let back = runs_on(&objects, "one", REAL).await?;
    ensure!(host.guests().len() == 1, "{:?}", host.guests());
    elsewhere.restart()?;
    elsewhere.wait_ready().await?;
    eventually("the other node has nothing of it", SOON, || async {
        let text = elsewhere.metrics().await?;
        let none = text.lines().any(|line| line == "gpudesk_node_strays{state=\"allocated-elsewhere\"} 0");
        let gone =
            !environment.cluster.state().join("daemons").join(ELSEWHERE).join("desktops").join(&uid).exists();
        Ok((none && gone).then_some(()))
    })
    .await?;
    let still = runs_on(&objects, "one", REAL).await?;
    ensure!(started(&still) == started(&back), "it ran on");
    objects.delete("one", SOON).await?;
    ensure!(host.guests().is_empty(), "{:?}", host.guests());
    elsewhere.stop()?;
    real.stop()?;
    Ok(())
}

async fn simulated_goes_on(environment: Arc<Away>) -> Result<()> {
    const NODE: &str = "sim-goes-on";
    let objects = environment.objects("goes-on").await?;
    let mut daemon = environment.start_simulated(NODE).await?;
    environment.give_to("goes-on", NODE).await?;
    objects.profile("moved-small", "{alternatives: [{vgpu: {series: Q, framebufferMiB: 8192}}]}").await?;
    let template = "{memory: {sizeMiB: 1024}, guestAgent: false, disks: [{name: s, image: {name: any}}], \
                    gpus: [{name: g, profileRef: {name: moved-small}}]}";
    objects.template("small", template).await?;
    let spec = "{templateRef: {name: small}, nodeSelector: {trial: goes-on}}";
    let mut before = BTreeMap::new();
    for index in 0..8 {
        objects.desktop(&format!("d-{index}"), spec).await?;
    }
    for index in 0..8 {
        let name = format!("d-{index}");
        before.insert(name.clone(), runs_on(&objects, &name, NODE).await?);
    }
    daemon.kill()?;
    daemon.restart()?;
    daemon.wait_ready().await?;
    // It works: one more starts, and one of those before stops and gives its share back.
    objects.desktop("more", spec).await?;
    runs_on(&objects, "more", NODE).await?;
    objects.patch("d-0", json!({"spec": {"powerState": "Stopped"}})).await?;
    objects.says("d-0", ConditionType::Running, Reason::Stopped, SOON).await?;
    before.remove("d-0");
    for (name, before) in &before {
        let now = objects.desktops().get(name).await?;
        ensure!(started(&now).is_some() && started(&now) == started(before), "{name}: {now:?}");
        let version = |desktop: &Desktop| desktop.metadata.resource_version.clone();
        ensure!(version(&now) == version(before), "{name} was written: {now:?}");
    }
    for name in before.into_keys().chain(["d-0".to_owned(), "more".to_owned()]) {
        objects.delete(&name, SOON).await?;
    }
    daemon.stop()?;
    Ok(())
}

async fn simulated_secret(environment: Arc<Away>) -> Result<()> {
    const NODE: &str = "sim-secret";
    let objects = environment.objects("secret").await?;
    let daemon = environment.start_simulated(NODE).await?;
    environment.give_to("secret", NODE).await?;
    let template = "{memory: {sizeMiB: 1024}, guestAgent: false, disks: [{name: s, image: {name: any}}], \
                    cloudInit: {secretRef: {name: first-boot}}}";
    objects.template("office", template).await?;
    objects.desktop("one", "{templateRef: {name: office}, nodeSelector: {trial: secret}}").await?;
    let said = objects.says("one", ConditionType::DevicesPrepared, Reason::SecretNotReadable, SOON).await?;
    ensure!(said.message.contains("first-boot"), "{said:?}");
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "first-boot"},
        "stringData": {"userData": "#cloud-config"},
    });
    let secrets: Api<k8s_openapi::api::core::v1::Secret> =
        Api::namespaced(environment.cluster.client().clone(), objects.namespace());
    secrets.create(&kube::api::PostParams::default(), &serde_json::from_value(secret)?).await?;
    objects.is("one", ConditionType::Ready, true, SOON).await?;
    objects.desktops().delete("one", &DeleteParams::default()).await?;
    until_gone(&objects.desktops(), "one", SOON).await?;
    daemon.stop()?;
    Ok(())
}

async fn ends_without_api(environment: Arc<Away>) -> Result<()> {
    const NODE: &str = "sim-alone";
    let daemon = environment.start_at(NODE, gpudesk_e2e::ports::free()?).await?;
    eventually("it serves its figures", SOON, || async { Ok(daemon.get("/healthz").await.ok()) }).await?;
    ensure!(daemon.get("/readyz").await.is_err(), "it is not ready without an API server");
    ends_well(daemon)
}

fn ends_well(daemon: Service) -> Result<()> {
    let status = daemon.end()?;
    ensure!(
        status.is_some_and(|status| status.success()),
        "it ends by itself when it is asked to: {status:?}"
    );
    Ok(())
}

/// Passes connections on until `frozen`; from then on it takes them and says nothing any more.
async fn pass_until(frozen: watch::Receiver<bool>, listener: TcpListener, server: String) {
    while let Ok((mut client, _)) = listener.accept().await {
        let (server, mut frozen) = (server.clone(), frozen.clone());
        tokio::spawn(async move {
            let mut upstream = TcpStream::connect(server).await?;
            tokio::select! {
                passed = tokio::io::copy_bidirectional(&mut client, &mut upstream) => { passed?; }
                _ = async { frozen.wait_for(|frozen| *frozen).await.is_ok() } => std::future::pending().await,
            }
            std::io::Result::Ok(())
        });
    }
}

async fn ends_beside_a_silent_api(environment: Arc<Away>) -> Result<()> {
    const NODE: &str = "sim-unanswered";
    // One that never answered.
    let (freeze, frozen) = watch::channel(true);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let server = environment.server(NODE).await?;
    tokio::spawn(pass_until(frozen, listener, format!("127.0.0.1:{server}")));
    let daemon = environment.start_at(NODE, port).await?;
    eventually("it serves its figures", SOON, || async { Ok(daemon.get("/healthz").await.ok()) }).await?;
    ends_well(daemon)?;
    // One that did, while desktops run and watches stand.
    freeze.send_replace(false);
    let objects = environment.objects("unanswered").await?;
    let daemon = environment.start_at(NODE, port).await?;
    daemon.wait_ready().await?;
    environment.give_to("unanswered", NODE).await?;
    objects
        .template(
            "small",
            "{memory: {sizeMiB: 512}, guestAgent: false, disks: [{name: s, image: {name: any}}]}",
        )
        .await?;
    objects.desktop("one", "{templateRef: {name: small}, nodeSelector: {trial: unanswered}}").await?;
    runs_on(&objects, "one", NODE).await?;
    freeze.send_replace(true);
    ends_well(daemon)?;
    freeze.send_replace(false);
    let daemon = environment.start_at(NODE, port).await?;
    objects.delete("one", SOON).await?;
    ends_well(daemon)
}
