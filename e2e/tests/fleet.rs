//! Many desktops on simulated hosts: nothing is given twice, and a refusal says why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use gpudesk_crds::conditions::{self, ConditionType, Reason};
use gpudesk_crds::types::{PciAddress, ShareMode};
use gpudesk_crds::{Desktop, GpuAllocation, GpuNode};
use gpudesk_e2e::cluster::Cluster;
use gpudesk_e2e::objects::{Objects, condition};
use gpudesk_e2e::processes::Lifetime;
use gpudesk_e2e::programs::Service;
use gpudesk_e2e::requests::Requests;
use gpudesk_e2e::state::{StateDir, checkout};
use gpudesk_e2e::trials::{Environment, Suite};
use gpudesk_e2e::waiting::eventually;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::sync::Mutex;

const HOSTS: usize = 10;
const DESKTOPS: usize = 200;
const LIMIT: Duration = Duration::from_mins(4);
const SOON: Duration = Duration::from_mins(1);

fn main() -> ExitCode {
    // One trial: the figures of the first part need the cluster for themselves.
    Suite::<Fleet>::new("fleet").trial("two_hundred_desktops_over_ten_simulated_hosts", fleet).run()
}

struct Fleet {
    daemons: Vec<Service>,
    operator: Mutex<Service>,
    cluster: Mutex<Cluster>,
    client: kube::Client,
}

impl Environment for Fleet {
    async fn start() -> Result<Self> {
        let state = Arc::new(StateDir::for_test("fleet")?);
        let cluster = Cluster::start_in(&state, Lifetime::Test).await?;
        let operator = cluster.start_operator().await?;
        let hosts = checkout().join("examples/hosts");
        let daemons = try_join_all((0..HOSTS).map(|index| {
            let file = hosts.join(if index % 2 == 0 { "rtx-pro-6000-8.yaml" } else { "l40s-4.yaml" });
            let cluster = &cluster;
            async move { cluster.start_simulated(&format!("sim-{index}"), &file).await }
        }))
        .await?;
        let client = cluster.client().clone();
        Ok(Self { daemons, operator: Mutex::new(operator), cluster: Mutex::new(cluster), client })
    }

    async fn stop(self) -> Result<()> {
        for daemon in self.daemons {
            daemon.stop()?;
        }
        self.operator.into_inner().stop()?;
        self.cluster.into_inner().stop_control_plane()
    }

    fn collect_logs(&self, suite: &str) -> Result<Option<std::path::PathBuf>> {
        self.cluster.try_lock()?.save_evidence(suite).map(Some)
    }
}

async fn fleet(environment: Arc<Fleet>) -> Result<()> {
    let objects = {
        let cluster = environment.cluster.lock().await;
        Objects::new(cluster.client(), &cluster.namespace("fleet").await?)
    };
    simulated_is_labelled(&environment).await?;
    two_hundred(&environment, &objects).await?;
    refusals(&environment, &objects).await?;
    malformed(&environment, &objects).await?;
    switched_off_and_on(&environment, &objects).await
}

async fn simulated_is_labelled(environment: &Fleet) -> Result<()> {
    let nodes: Api<GpuNode> = Api::all(environment.client.clone());
    let labelled = ListParams::default().labels("gpudesk.dev/simulated=true");
    eventually("every host says that it is simulated and ready", SOON, || async {
        let nodes = nodes.list(&labelled).await?.items;
        let says = |node: &GpuNode| {
            node.status.as_ref().is_some_and(|status| {
                status.host.as_ref().is_some_and(|host| host.simulated)
                    && conditions::is_true(&status.conditions, ConditionType::Ready)
            })
        };
        Ok((nodes.len() == HOSTS && nodes.iter().all(says)).then_some(()))
    })
    .await
}

/// Four shapes over both kinds of hosts: MIG slices, two sizes of vGPU, pinned CPUs, a whole card.
async fn two_hundred(environment: &Fleet, objects: &Objects) -> Result<()> {
    objects.profile("slice", "{alternatives: [{mig: {profile: 1g.24gb, graphics: true}}]}").await?;
    objects.profile("small", "{alternatives: [{vgpu: {series: Q, framebufferMiB: 8192}}]}").await?;
    objects
        .profile(
            "large",
            "{alternatives: [{vgpu: {series: Q, framebufferRangeMiB: {min: 10000, max: 17000}}}]}",
        )
        .await?;
    objects.profile("card", "{alternatives: [{passthrough: {}}], minimumIsolation: Exclusive}").await?;
    let shape = |cpu: &str, profile: &str| {
        format!(
            "{{cpu: {{{cpu}}}, memory: {{sizeMiB: 4096}}, guestAgent: false, disks: [{{name: s, image: {{name: any}}}}], \
             gpus: [{{name: g, profileRef: {{name: {profile}}}}}]}}"
        )
    };
    objects.template("slice", &shape("cores: 2", "slice")).await?;
    objects.template("small", &shape("cores: 2", "small")).await?;
    objects.template("large", &shape("cores: 2, pinning: Dedicated", "large")).await?;
    objects.template("card", &shape("cores: 4", "card")).await?;

    let before = Requests::of_gpudesk(&environment.client).await?;
    let start = Instant::now();
    let names: Vec<(String, &str)> = (0..DESKTOPS)
        .map(|index| match index % 20 {
            0 => (format!("card-{index}"), "card"),
            1..=4 => (format!("large-{index}"), "large"),
            5..=9 => (format!("slice-{index}"), "slice"),
            _ => (format!("small-{index}"), "small"),
        })
        .collect();
    for part in names.chunks(20) {
        try_join_all(part.iter().map(|(name, template)| {
            let spec = format!("templateRef: {{name: {template}}}");
            async move { objects.desktop(name, &spec).await }
        }))
        .await?;
    }
    let desktops = eventually("all of them run", LIMIT, || async {
        let all = objects.desktops().list(&ListParams::default()).await?.items;
        let ready = |desktop: &&Desktop| {
            condition(desktop, ConditionType::Ready).is_some_and(|ready| ready.status == "True")
        };
        let running = all.iter().filter(ready).count();
        Ok((running == DESKTOPS).then_some(all))
    })
    .await?;
    let seconds = start.elapsed().as_secs_f64();
    let requests = Requests::of_gpudesk(&environment.client).await?.since(&before);
    nothing_twice(&desktops, &environment.client).await?;
    #[allow(clippy::cast_precision_loss)]
    let per_start = |count: u64| count as f64 / DESKTOPS as f64;
    let operator = environment.operator.lock().await.process().memory_kib().unwrap_or(0);
    let daemons: Vec<u64> =
        environment.daemons.iter().filter_map(|daemon| daemon.process().memory_kib()).collect();
    println!(
        "{}",
        json!({
            "measure": "fleet", "desktops": DESKTOPS, "hosts": HOSTS, "secondsToAllRunning": seconds,
            "writesPerStart": per_start(requests.writes), "readsPerStart": per_start(requests.reads),
            "requestsOfProgramsPerStart": per_start(requests.of_programs),
            "writes": requests.by_kind,
            "operatorMemoryKiB": operator, "largestDaemonMemoryKiB": daemons.iter().max(),
        })
    );
    Ok(())
}

/// What the allocations say, checked without any code of the operator.
async fn nothing_twice(desktops: &[Desktop], client: &kube::Client) -> Result<()> {
    let nodes: BTreeMap<String, GpuNode> = Api::<GpuNode>::all(client.clone())
        .list(&ListParams::default())
        .await?
        .into_iter()
        .map(|node| (node.name_any(), node))
        .collect();
    let mut cards: BTreeMap<(String, PciAddress), Vec<GpuAllocation>> = BTreeMap::new();
    let mut cpus: BTreeSet<(String, u32)> = BTreeSet::new();
    let mut memory: BTreeMap<String, i64> = BTreeMap::new();
    for desktop in desktops {
        let status = desktop.status.as_ref().context("a running desktop has a status")?;
        let allocation = status.allocation.as_ref().context("a running desktop is allocated")?;
        let compute = allocation.compute.as_ref().context("a running desktop has CPUs")?;
        for gpu in &allocation.gpus {
            cards.entry((allocation.node.clone(), gpu.device)).or_default().push(gpu.clone());
        }
        for cpu in compute.vcpu_pins.iter().flat_map(|pin| pin.cpus.iter()) {
            ensure!(
                cpus.insert((allocation.node.clone(), cpu)),
                "CPU {cpu} of {} is given twice",
                allocation.node
            );
        }
        *memory.entry(allocation.node.clone()).or_default() += compute.memory_mib;
    }
    for (node, used) in memory {
        let cells = &nodes[&node].status.as_ref().context("the node has a status")?.numa_cells;
        let total: i64 = cells.iter().map(|cell| cell.memory_mib).sum();
        ensure!(used <= total, "{node}: {used} of {total} MiB");
    }
    for ((node, address), shares) in cards {
        let status = nodes[&node].status.as_ref().context("the node has a status")?;
        let device = status
            .devices
            .iter()
            .find(|device| device.pci_address == address)
            .context("the card is there")?;
        let modes: BTreeSet<ShareMode> = shares.iter().map(|share| share.mode).collect();
        ensure!(modes.len() == 1, "{node} {address}: modes are mixed: {modes:?}");
        match shares[0].mode {
            ShareMode::Passthrough => ensure!(shares.len() == 1, "{node} {address} is given whole, twice"),
            ShareMode::Vgpu => {
                let types: BTreeSet<i64> = shares.iter().map(|share| share.framebuffer_mib).collect();
                ensure!(types.len() == 1, "{node} {address}: sizes are mixed: {types:?}");
                let offered = device
                    .placements
                    .iter()
                    .find(|it| it.type_name == shares[0].type_name)
                    .context("the type is offered")?;
                ensure!(
                    shares.len() <= usize::try_from(offered.max_count)?,
                    "{node} {address}: too many {}",
                    offered.type_name
                );
            }
            ShareMode::Mig => {
                let mut units = BTreeSet::new();
                for share in &shares {
                    let offered = device
                        .placements
                        .iter()
                        .find(|it| it.type_name == share.type_name)
                        .context("the profile is offered")?;
                    let start = share.start.context("a MIG instance has a start")?;
                    ensure!(
                        offered.starts.contains(&start),
                        "{node} {address}: {start} is no start of {}",
                        offered.type_name
                    );
                    for unit in start..start + offered.size {
                        ensure!(units.insert(unit), "{node} {address}: unit {unit} is given twice");
                    }
                }
            }
            ShareMode::VirtualFunctions => unreachable!("no host here has them"),
        }
    }
    Ok(())
}

/// A desktop that cannot fit says why, per node.
async fn refusals(environment: &Fleet, objects: &Objects) -> Result<()> {
    objects
        .template(
            "giant",
            "{memory: {sizeMiB: 16000000}, guestAgent: false, disks: [{name: s, image: {name: any}}]}",
        )
        .await?;
    objects.desktop("giant", "templateRef: {name: giant}").await?;
    let said = objects.says("giant", ConditionType::Allocated, Reason::Unsatisfiable, SOON).await?;
    ensure!(said.message.contains("16000000"), "{said:?}");

    objects.profile("b-series", "{alternatives: [{vgpu: {type: A16-2B}}]}").await?;
    objects
        .template("b", "{memory: {sizeMiB: 1024}, guestAgent: false, disks: [{name: s, image: {name: any}}], gpus: [{name: g, profileRef: {name: b-series}}]}")
        .await?;
    objects.desktop("b", "templateRef: {name: b}").await?;
    let said = objects.is("b", ConditionType::Allocated, false, SOON).await?;
    let said = condition(&said, ConditionType::Allocated).context("it says why")?;
    ensure!(
        said.message.contains(&format!("0/{HOSTS} nodes")) && said.message.contains("A16-2B"),
        "{said:?}"
    );

    objects
        .template(
            "any",
            "{memory: {sizeMiB: 1024}, guestAgent: false, disks: [{name: s, image: {name: any}}]}",
        )
        .await?;
    let nodes: Api<GpuNode> = Api::all(environment.client.clone());
    let cordon = |on: bool| json!({"spec": {"cordoned": on}});
    let merge = |value| kube::api::Patch::Merge(value);
    for index in 0..HOSTS {
        nodes
            .patch(&format!("sim-{index}"), &kube::api::PatchParams::default(), &merge(cordon(true)))
            .await?;
    }
    // The watch of desktops may be ahead of that of nodes: then one more still finds a place.
    let mut attempt = 0;
    let (waiting, said) = loop {
        let name = format!("cordoned-{attempt}");
        objects.desktop(&name, "templateRef: {name: any}").await?;
        let said = objects.has(&name, ConditionType::Allocated, SOON).await?;
        if said.status == "False" {
            break (name, said);
        }
        attempt += 1;
        ensure!(attempt < 50, "the operator does not see that all nodes are cordoned");
    };
    ensure!(said.message.contains(&format!("{HOSTS} cordoned")), "{said:?}");
    for index in 0..HOSTS {
        nodes
            .patch(&format!("sim-{index}"), &kube::api::PatchParams::default(), &merge(cordon(false)))
            .await?;
    }
    objects.is(&waiting, ConditionType::Ready, true, SOON).await?;
    Ok(())
}

/// Objects that no schema would let in are forced into the store; nothing else stalls.
async fn malformed(environment: &Fleet, objects: &Objects) -> Result<()> {
    let etcd = environment.cluster.lock().await.control_plane_mut().etcd().await?;
    let namespace = objects.namespace();
    for (kind, plural, namespace) in [
        ("GpuNode", "gpunodes", None),
        ("GpuProfile", "gpuprofiles", None),
        ("DesktopTemplate", "desktoptemplates", Some(namespace)),
        ("Desktop", "desktops", Some(namespace)),
    ] {
        let key = gpudesk_e2e::etcd::key("gpudesk.dev", plural, namespace, "broken");
        let document = json!({
            "apiVersion": "gpudesk.dev/v1alpha1", "kind": kind,
            "metadata": {
                "name": "broken", "namespace": namespace, "uid": format!("00000000-0000-4000-8000-{:012}", plural.len()),
                "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1
            },
            "spec": {"templateRef": 7, "memory": "much", "alternatives": "none", "devices": {"a": "b"}},
            "status": {"allocation": {"node": "sim-0", "compute": "all of it"}, "conditions": "fine"}
        });
        etcd.put(&key, &document).await?;
    }
    // Both programs meet them in a fresh list too.
    environment.operator.lock().await.restart()?;
    environment.operator.lock().await.wait_ready().await?;
    objects.desktop("after", "templateRef: {name: any}").await?;
    objects.is("after", ConditionType::Ready, true, SOON).await?;
    objects.delete("after", SOON).await?;
    // What it holds of its node cannot be read, so that nothing goes there for as long as it is.
    environment.cluster.lock().await.kubectl(["delete", "desktop", "broken", "--namespace", namespace])?;
    Ok(())
}

/// The same desktops again: every share is given back when they stop, and given anew.
async fn switched_off_and_on(environment: &Fleet, objects: &Objects) -> Result<()> {
    let names: Vec<String> = objects
        .desktops()
        .list_metadata(&ListParams::default())
        .await?
        .iter()
        .map(ResourceExt::name_any)
        .filter(|name| ["card-", "large-", "slice-", "small-"].iter().any(|shape| name.starts_with(shape)))
        .collect();
    ensure!(names.len() == DESKTOPS, "{} of {DESKTOPS}", names.len());
    power(objects, &names, "Stopped").await?;
    eventually("all of them are parked", LIMIT, || async {
        count(objects, &names, |desktop| computes(desktop).is_none()).await
    })
    .await?;
    let before = Requests::of_gpudesk(&environment.client).await?;
    let start = Instant::now();
    power(objects, &names, "Running").await?;
    eventually("all of them run again", LIMIT, || async {
        count(objects, &names, |desktop| {
            condition(desktop, ConditionType::Ready).is_some_and(|ready| ready.status == "True")
        })
        .await
    })
    .await?;
    let seconds = start.elapsed().as_secs_f64();
    let requests =
        Requests::of_gpudesk(&environment.client).await?.since(&before).without_users(DESKTOPS as u64);
    #[allow(clippy::cast_precision_loss)]
    let per_start = |count: u64| count as f64 / DESKTOPS as f64;
    println!(
        "{}",
        json!({
            "measure": "switched-on", "desktops": DESKTOPS, "hosts": HOSTS, "secondsToAllRunning": seconds,
            "writesPerStart": per_start(requests.writes), "readsPerStart": per_start(requests.reads),
            "requestsOfProgramsPerStart": per_start(requests.of_programs),
            "writes": requests.by_kind,
        })
    );
    Ok(())
}

fn computes(desktop: &Desktop) -> Option<&gpudesk_crds::Compute> {
    desktop.status.as_ref()?.allocation.as_ref()?.compute.as_ref()
}

async fn power(objects: &Objects, names: &[String], state: &str) -> Result<()> {
    for part in names.chunks(20) {
        try_join_all(part.iter().map(|name| objects.patch(name, json!({"spec": {"powerState": state}}))))
            .await?;
    }
    Ok(())
}

async fn count(objects: &Objects, names: &[String], holds: impl Fn(&Desktop) -> bool) -> Result<Option<()>> {
    for part in names.chunks(20) {
        let all = try_join_all(part.iter().map(|name| async { objects.desktops().get(name).await })).await?;
        if !all.iter().all(&holds) {
            return Ok(None);
        }
    }
    Ok(Some(()))
}
