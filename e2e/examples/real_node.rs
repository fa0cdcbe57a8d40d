//! What a machine must be able to do for nodes of the harness, once: nodes, the chart's own pods on them, a desktop from
//! apply to its guest's word, and nothing left. For machines of another kind than CI's the node can be in a VM and the
//! rest here: see `node/try-in-vm.sh`.
#![allow(clippy::disallowed_methods, reason = "it looks at the machine")]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use gpudesk_crds::conditions::ConditionType;
use gpudesk_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use gpudesk_e2e::control_plane::ControlPlane;
use gpudesk_e2e::node::images::Images;
use gpudesk_e2e::node::vm::{Network, left};
use gpudesk_e2e::node::{Joining, Node, possible};
use gpudesk_e2e::objects::Objects;
use gpudesk_e2e::pods::{self, Pods, is_ready, make_nodes, save_evidence, start_runtimes};
use gpudesk_e2e::processes::{Lifetime, run};
use gpudesk_e2e::real_host::{TINY, built};
use gpudesk_e2e::state::StateDir;
use gpudesk_e2e::waiting::{eventually, until};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::{Api, ResourceExt};
use tracing_subscriber::EnvFilter;

const SOON: Duration = Duration::from_mins(2);
const NODE: &str = "node-a";

/// What is tried: everything on this machine, or a part of it.
#[derive(Parser)]
struct Arguments {
    /// How many nodes, on this machine.
    #[arg(long, default_value_t = 1)]
    nodes: u8,
    /// The console of the VM, as a file.
    #[arg(long, requires = "vm")]
    console: Option<PathBuf>,
    /// The words of a QEMU in which the node is, that is there with this program and `--join`.
    #[arg(last = true, requires = "console")]
    vm: Vec<OsString>,
    /// Only the node, of a control plane outside this VM. The folder has `bin` (kubelet and kube-proxy), `keys`, `images`
    /// and `guests`.
    #[arg(long, conflicts_with = "vm")]
    join: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube_client=off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).init();
    let start = Instant::now();
    let say = |words: &str| println!("[{:6.1} s] {words}", start.elapsed().as_secs_f64());
    let arguments = Arguments::parse();
    let state = Arc::new(StateDir::for_test("real-node")?);
    if let Some(console) = &arguments.console {
        return with_vm(&state, &arguments.vm, console, &say).await;
    }
    let before = shown(&state)?;
    possible(&state)?;
    as_before(&before, &state).await.context("the look at what is possible")?;
    say("a node is possible");
    match &arguments.join {
        Some(folder) => {
            let ended = join(&state, folder, &say).await;
            state.collect_logs("real_node")?;
            ended?;
        }
        None => here(&state, arguments.nodes, &before, &say).await?,
    }
    as_before(&before, &state).await?;
    say("nothing is left");
    Ok(())
}

async fn here(
    state: &Arc<StateDir>,
    nodes: u8,
    before: &BTreeSet<String>,
    say: &impl Fn(&str),
) -> Result<()> {
    let guest = built("e2e/guest/build-tiny.sh")?;
    let pods = match Pods::start(state, Lifetime::Test, nodes, &[guest]).await {
        Ok(pods) => pods,
        Err(error) => {
            state.collect_logs("real_node")?;
            return Err(error);
        }
    };
    say("the nodes are Ready");
    ensure!(shown(state)? != *before, "what nodes leave would not be seen");
    let tried = try_pods(pods.cluster(), say).await;
    pods.save_evidence("real_node")?;
    tried?;
    pods.stop()
}

/// The control plane here, and the node in a VM.
async fn with_vm(
    state: &Arc<StateDir>,
    qemu: &[OsString],
    console: &Path,
    say: &impl Fn(&str),
) -> Result<()> {
    let network = Network::start(state).await?;
    let control_plane = ControlPlane::start_at(state, Lifetime::Test, &network.place()).await?;
    say("the control plane is there");
    let vm = network.start_vm(qemu, &control_plane.joining()?, console)?;
    let cluster = Cluster::over(control_plane, state, Lifetime::Test).await?;
    let trial = async {
        let objects: Api<NodeObject> = Api::all(cluster.client().clone());
        until(&objects, NODE, "it has joined", SOON, |_| true).await?;
        say("the node has joined");
        is_ready(&cluster, NODE).await?;
        say("the node is Ready");
        try_pods(&cluster, say).await
    };
    let tried = tokio::select! { tried = trial => tried, lost = vm.lost() => lost };
    save_evidence(&cluster, "real_node")?;
    // Also after a failure: the VM's part then shows its logs.
    let left = vm.leave(cluster.client()).await;
    tried.and(left)?;
    say("nothing is left in the VM, and it is off");
    cluster.stop_control_plane()
}

/// The node of a control plane elsewhere, until that one removes it.
async fn join(state: &Arc<StateDir>, folder: &Path, say: &impl Fn(&str)) -> Result<()> {
    let joining = Joining::unpacked(&folder.join("bin"), &folder.join("keys"))?;
    let guests = std::fs::read_dir(folder.join("guests"))?.map(|guest| Ok(guest?.path()));
    let guests = guests.collect::<Result<Vec<_>>>()?;
    let mut nodes = make_nodes(state, Lifetime::Test, 1, &guests).await?;
    nodes.iter().try_for_each(Node::wire)?;
    say("the node is made");
    start_runtimes(&mut nodes, async { Ok(Images::at(&folder.join("images"))) }).await?;
    say("containerd has the images, and libvirt runs");
    for node in &mut nodes {
        node.join(&joining).await?;
    }
    say("kubelet and kube-proxy run");
    left(&joining).await?;
    say("the node was removed from its cluster");
    nodes.into_iter().try_for_each(Node::stop)
}

async fn try_pods(cluster: &Cluster, say: &impl Fn(&str)) -> Result<()> {
    pods::install(cluster, &["nodeDaemon.acceleration=emulation"]).context("installation")?;
    say("helm install --wait is through: the chart's pods are ready");
    println!("{}", cluster.kubectl(["get", "nodes,pods", "-A", "-o", "wide"])?);
    let inside = |script: &str| {
        let exec = ["exec", "-n", SYSTEM_NAMESPACE, "daemonset/gpudesk-node-daemon", "--", "sh", "-c"];
        cluster.kubectl(exec.into_iter().chain([script]))
    };
    println!("cgroups of the daemon's pod, and what is mounted of cgroups there:");
    println!("{}", inside("cat /proc/self/cgroup; grep cgroup /proc/self/mounts")?);

    let objects = Objects::new(cluster.client(), &cluster.namespace("lab").await?);
    objects.template("tiny", &TINY.replace("shutdownGraceSeconds: 5", "shutdownGraceSeconds: 0")).await?;
    objects.desktop("one", "templateRef: {name: tiny}").await?;
    say("a desktop is applied");
    let desktop = objects.is("one", ConditionType::Ready, true, SOON).await?;
    say("it runs");
    println!("{}", cluster.kubectl(["get", "desktops", "-A", "-o", "wide"])?);
    let uid = desktop.uid().context("a desktop has a UID")?;
    let said = format!("cat /var/lib/gpudesk/desktops/{uid}/serial.log");
    eventually("the guest answers", SOON, || async {
        Ok(inside(&said)?.contains("tiny: ready").then_some(()))
    })
    .await?;
    say("its guest has answered");
    // The daemon's pod sees the processes of the node.
    let guests = "for it in $(grep -ls ^qemu-system /proc/[0-9]*/comm); do cat ${it%comm}cgroup; done";
    let groups = inside(guests)?;
    ensure!(!groups.is_empty(), "a desktop has no process");
    println!("cgroups of QEMU:\n{groups}");
    objects.delete("one", SOON).await?;
    let left = inside(guests)?;
    ensure!(left.is_empty(), "the deleted desktop runs: {left}");
    say("the desktop is gone");
    Ok(())
}

/// The machine is as it was before; what ended a moment ago may be there a little longer.
async fn as_before(before: &BTreeSet<String>, state: &StateDir) -> Result<()> {
    let differs = || anyhow::Ok(before.symmetric_difference(&shown(state)?).cloned().collect::<Vec<_>>());
    let same = eventually("the machine is as before", Duration::from_secs(20), || async {
        Ok(differs()?.is_empty().then_some(()))
    });
    same.await.with_context(|| format!("left or taken: {:#?}", differs().unwrap_or_default()))
}

/// What the machine shows of nodes: cgroups with what their root hands down, interfaces, mounts.
fn shown(state: &StateDir) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    // Beside nodes of others.
    let own = format!("gpudesk-{}-*", state.name()?);
    let mut find = Command::new("find");
    let cgroups = run(find.args(["/sys/fs/cgroup", "-type", "d", "-name", &own]))?;
    found.extend(cgroups.lines().map(|line| format!("cgroup {line}")));
    let root = Path::new("/sys/fs/cgroup/cgroup.subtree_control");
    if root.exists() {
        found.extend(std::fs::read_to_string(root)?.split_whitespace().map(|it| format!("controller {it}")));
    }
    for device in std::fs::read_dir("/sys/class/net")? {
        found.insert(format!("interface {}", device?.file_name().to_string_lossy()));
    }
    let (mounts, own) =
        (std::fs::read_to_string("/proc/self/mountinfo")?, state.path().display().to_string());
    found.extend(mounts.lines().filter(|line| line.contains(&own)).map(|line| format!("mount {line}")));
    Ok(found)
}
