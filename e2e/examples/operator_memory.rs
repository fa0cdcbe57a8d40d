//! How much memory the operator takes for stopped desktops: once all is known, after a burst of starts, and
//! while it lists everything anew. One JSON line each, on standard output.
//!
//! A desktop of each shape runs on a simulated host and is stopped; what etcd then has of it, of its template
//! and of the node is copied as often as asked for. The operator is that of `GPUDESK_BIN_DIR`.
#![allow(clippy::disallowed_methods, reason = "it reads what the kernel says of a process")]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use futures::{StreamExt, TryStreamExt, stream};
use gpudesk_crds::Desktop;
use gpudesk_crds::conditions::ConditionType;
use gpudesk_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use gpudesk_e2e::etcd::{Etcd, key};
use gpudesk_e2e::objects::{Objects, condition};
use gpudesk_e2e::processes::Lifetime;
use gpudesk_e2e::programs::Service;
use gpudesk_e2e::state::{StateDir, checkout};
use gpudesk_e2e::waiting::{eventually, until};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_mins(5);
const HOST: &str = "sim-0";
const SHAPES: [(&str, &str); 4] = [
    ("slice", "{alternatives: [{mig: {profile: 1g.24gb, graphics: true}}]}"),
    ("small", "{alternatives: [{vgpu: {series: Q, framebufferMiB: 8192}}]}"),
    ("large", "{alternatives: [{vgpu: {series: Q, framebufferRangeMiB: {min: 10000, max: 17000}}}]}"),
    ("card", "{alternatives: [{passthrough: {}}], minimumIsolation: Exclusive}"),
];
/// Requests of this program at the same time.
const TOGETHER: usize = 16;
/// How often everything is listed anew.
const RELISTS: usize = 3;

/// What the operator's memory is measured with.
#[derive(Parser)]
struct Arguments {
    /// Stopped desktops.
    #[arg(long, default_value_t = 10_000)]
    desktops: usize,
    /// Nodes of eight cards.
    #[arg(long, default_value_t = 60)]
    nodes: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let state = Arc::new(StateDir::for_test("operator-memory")?);
    let mut cluster = Cluster::start_in(&state, Lifetime::Test).await?;
    let objects = Objects::new(cluster.client(), &cluster.namespace("school").await?);
    run_and_stop(&cluster, &objects).await?;

    let etcd = cluster.control_plane_mut().etcd().await?;
    let estate = Estate { etcd, objects: objects.clone(), cluster: &cluster };
    estate.nodes(arguments.nodes).await?;
    let operator = cluster.start_operator().await?;
    settled(&operator).await?;
    let base = Memory::of(&operator)?;
    operator.stop()?;

    estate.desktops(&arguments).await?;
    let operator = cluster.start_operator().await?;
    settled(&operator).await?;
    let say = |stage: &str| -> Result<()> {
        let now = Memory::of(&operator)?;
        #[allow(clippy::cast_precision_loss)]
        let each = |kib: u64| kib.saturating_sub(base.resident) as f64 / arguments.desktops as f64;
        let line = json!({
            "measure": "operator-memory", "stage": stage, "desktops": arguments.desktops, "nodes": arguments.nodes,
            "withoutDesktopsKiB": base.resident, "residentKiB": now.resident, "peakKiB": now.peak,
            "residentPerDesktopKiB": each(now.resident), "peakPerDesktopKiB": each(now.peak),
        });
        println!("{line}");
        Memory::forget_peak(&operator)
    };
    say("known")?;
    for index in 0..arguments.desktops / 10 {
        objects.patch(&name(index), json!({"spec": {"powerState": "Running"}})).await?;
    }
    settled(&operator).await?;
    say("burst")?;
    for relist in 0..RELISTS {
        let log = state.log("gpudesk-operator");
        let lists = || -> Result<usize> {
            let log = std::fs::read_to_string(&log)?;
            Ok(log.lines().filter(|line| line.contains("kind=Desktop ") && line.contains("too old")).count())
        };
        let before = lists()?;
        cluster.control_plane_mut().restart_api_server().await?;
        eventually("desktops are listed anew", LIMIT, || async { Ok((lists()? > before).then_some(())) })
            .await?;
        // It acts on what it has listed.
        let next = name(arguments.desktops - 1 - relist);
        objects.patch(&next, json!({"spec": {"powerState": "Running"}})).await?;
        until(&objects.desktops(), &next, "it is decided on", LIMIT, |desktop| {
            let said = condition(desktop, ConditionType::Allocated);
            said.is_some_and(|said| said.observed_generation == desktop.metadata.generation)
        })
        .await?;
        settled(&operator).await?;
        say("relist")?;
    }
    operator.stop()?;
    cluster.stop_control_plane()
}

/// A desktop of each shape has run, and is stopped.
async fn run_and_stop(cluster: &Cluster, objects: &Objects) -> Result<()> {
    let operator = cluster.start_operator().await?;
    let host = checkout().join("examples/hosts/rtx-pro-6000-8.yaml");
    let daemon = cluster.start_simulated(HOST, &host).await?;
    for (shape, profile) in SHAPES {
        objects.profile(shape, profile).await?;
        let template = format!(
            "{{cpu: {{cores: 2}}, memory: {{sizeMiB: 4096}}, guestAgent: false, disks: [{{name: s, image: {{name: any}}}}], \
             gpus: [{{name: g, profileRef: {{name: {shape}}}}}]}}"
        );
        objects.template(shape, &template).await?;
        objects.desktop(shape, &format!("templateRef: {{name: {shape}}}")).await?;
        objects.is(shape, ConditionType::Ready, true, LIMIT).await?;
        objects.patch(shape, json!({"spec": {"powerState": "Stopped"}})).await?;
        until(&objects.desktops(), shape, "it is parked", LIMIT, |desktop: &Desktop| {
            desktop.allocation().is_some_and(|allocation| allocation.compute.is_none())
        })
        .await?;
    }
    daemon.stop()?;
    operator.stop()?;
    Ok(())
}

fn name(index: usize) -> String {
    format!("desktop-{index}")
}

fn node(index: usize) -> String {
    format!("node-{index}")
}

/// What is copied, below the API server.
struct Estate<'a> {
    etcd: Etcd,
    objects: Objects,
    cluster: &'a Cluster,
}

impl Estate<'_> {
    async fn nodes(&self, count: usize) -> Result<()> {
        let of = |name: &str| key("gpudesk.dev", "gpunodes", None, name);
        let model = self.etcd.get(&of(HOST)).await?.context("the node")?;
        for index in 0..count {
            self.copy(&of(&node(index)), &model, &node(index), 1_000_000 + index, |_| {}).await?;
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": format!("gpudesk-node-{}", node(index)), "namespace": SYSTEM_NAMESPACE},
                "spec": {"leaseDurationSeconds": 86400, "renewTime": "2026-01-01T00:00:00.000000Z"},
            });
            let request = http::Request::post(format!(
                "/apis/coordination.k8s.io/v1/namespaces/{SYSTEM_NAMESPACE}/leases"
            ));
            let request =
                request.header("content-type", "application/json").body(serde_json::to_vec(&lease)?)?;
            self.cluster.client().request::<Value>(request).await?;
        }
        Ok(())
    }

    /// Forty desktops use a template.
    async fn desktops(&self, arguments: &Arguments) -> Result<()> {
        let of = |plural: &str, name: &str| key("gpudesk.dev", plural, Some(self.objects.namespace()), name);
        let mut models = vec![];
        for (shape, _) in SHAPES {
            let template = self.etcd.get(&of("desktoptemplates", shape)).await?.context("the template")?;
            models.push((template, self.etcd.get(&of("desktops", shape)).await?.context("the desktop")?));
        }
        let template = |index: usize| format!("template-{}", index / 40);
        let copies = (0..arguments.desktops).map(|index| {
            let (models, of) = (&models, &of);
            async move {
                let (of_template, of_desktop) = &models[(index / 40) % models.len()];
                let (own, host) = (template(index), node(index % arguments.nodes.max(1)));
                if index % 40 == 0 {
                    self.copy(&of("desktoptemplates", &own), of_template, &own, 2_000_000 + index, |_| {})
                        .await?;
                }
                let place = |desktop: &mut Value| {
                    desktop["spec"]["templateRef"]["name"] = own.clone().into();
                    desktop["status"]["allocation"]["node"] = host.clone().into();
                    desktop["status"]["lastPlacement"]["node"] = host.into();
                };
                self.copy(&of("desktops", &name(index)), of_desktop, &name(index), index, place).await
            }
        });
        stream::iter(copies).buffer_unordered(TOGETHER).try_collect::<()>().await
    }

    async fn copy(
        &self,
        key: &str,
        model: &Value,
        name: &str,
        number: usize,
        change: impl FnOnce(&mut Value),
    ) -> Result<()> {
        let mut copy = model.clone();
        copy["metadata"]["name"] = name.into();
        copy["metadata"]["uid"] = format!("00000000-0000-4000-8000-{number:012}").into();
        change(&mut copy);
        self.etcd.put(key, &copy).await
    }
}

/// Waits until the operator has had nothing to do for a while.
async fn settled(operator: &Service) -> Result<()> {
    let mut before = String::new();
    loop {
        let metrics = operator.metrics().await?;
        let rounds = metrics.lines().filter(|line| line.starts_with("gpudesk_operator_reconciles"));
        let rounds = rounds.collect::<Vec<_>>().join("\n");
        // One that stands by has nothing to do either.
        if rounds == before && !rounds.is_empty() {
            return Ok(());
        }
        before = rounds;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

/// Resident memory of a process, in KiB.
struct Memory {
    resident: u64,
    peak: u64,
}

impl Memory {
    fn of(service: &Service) -> Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", service.process().pid()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).context("no figure")
        };
        Ok(Self { resident: field("VmRSS:")?, peak: field("VmHWM:")? })
    }

    /// The next peak is measured from here.
    fn forget_peak(service: &Service) -> Result<()> {
        Ok(std::fs::write(format!("/proc/{}/clear_refs", service.process().pid()), "5")?)
    }
}
