//! What a machine must be able to do for nodes of the harness, once: nodes, the chart's own pods on them, a desktop from
//! apply to its guest's word, and nothing left. For machines of another kind than CI's: see `node/try-in-vm.sh`.
#![allow(clippy::disallowed_methods, reason = "it looks at the machine")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use gpudesk_crds::conditions::ConditionType;
use gpudesk_e2e::cluster::SYSTEM_NAMESPACE;
use gpudesk_e2e::node::{Node, images, possible};
use gpudesk_e2e::pods::Pods;
use gpudesk_e2e::processes::{Identity, Lifetime, run};
use gpudesk_e2e::real_host::{TINY, built};
use gpudesk_e2e::state::StateDir;
use gpudesk_e2e::waiting::eventually;
use kube::ResourceExt;
use serde_json::json;
use tracing_subscriber::EnvFilter;

const SOON: Duration = Duration::from_mins(2);

/// What is tried.
#[derive(Parser)]
struct Arguments {
    /// How many nodes.
    #[arg(long, default_value_t = 1)]
    nodes: u8,
    /// No control plane: the kubelet runs a pod by itself. For machines that are too slow for an API server.
    #[arg(long)]
    kubelet_alone: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).init();
    let start = Instant::now();
    let say = |words: &str| println!("[{:6.1} s] {words}", start.elapsed().as_secs_f64());
    let state = Arc::new(StateDir::for_test("real-node")?);
    let before = shown(&state)?;
    possible(&state)?;
    as_before(&before, &state).await.context("the look at what is possible")?;
    say("a node is possible");
    let arguments = Arguments::parse();
    if arguments.kubelet_alone {
        if let Err(error) = kubelet_alone(&state, &say).await {
            state.collect_logs("real_node")?;
            return Err(error);
        }
        as_before(&before, &state).await?;
        say("nothing is left");
        return Ok(());
    }
    let guest = built("e2e/guest/build-tiny.sh")?;
    let pods = match Pods::start(&state, Lifetime::Test, arguments.nodes, &[guest]).await {
        Ok(pods) => pods,
        Err(error) => {
            state.collect_logs("real_node")?;
            return Err(error);
        }
    };
    say("the nodes are Ready");
    ensure!(shown(&state)? != before, "what nodes leave would not be seen");
    let tried = try_pods(&pods, &say).await;
    pods.save_evidence("real_node")?;
    tried?;
    pods.stop()?;
    as_before(&before, &state).await?;
    say("nothing is left");
    Ok(())
}

/// One pod with limits, by kubelet and containerd alone.
async fn kubelet_alone(state: &Arc<StateDir>, say: &impl Fn(&str)) -> Result<()> {
    let programs = built("e2e/control-plane/build.sh")?;
    let mut node = Node::start(state, Lifetime::Test, 0, None).await?;
    say("the node is made");
    node.start_containerd().await?;
    say("containerd answers");
    let archives = images::build(&state.join("images"))?;
    for archive in [&archives.pause, &archives.daemon] {
        node.import(archive)?;
    }
    say("containerd has the images");
    let manifests = node.start_kubelet_alone(&programs).await?;
    let image = "gpudesk.test/gpudesk-node-daemon:test";
    let container = json!({
        "name": "it", "image": image, "imagePullPolicy": "Never", "command": ["sleep", "4242"],
        "resources": { "limits": { "memory": "96Mi", "cpu": "500m" } },
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "alone", "namespace": "default" },
        "spec": { "containers": [container], "terminationGracePeriodSeconds": 0 },
    });
    std::fs::write(manifests.join("pod.json"), pod.to_string())?;
    let words =
        |process: &Identity| std::fs::read(format!("/proc/{}/cmdline", process.pid())).unwrap_or_default();
    let process = eventually("the pod runs", SOON, || async {
        Ok(node.inhabitants().into_iter().find(|it| words(it).starts_with(b"sleep\x004242")))
    })
    .await?;
    say("a pod runs");
    println!("{}", run(node.inside("ctr").args(["-n", "k8s.io", "tasks", "ls"]))?);
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid()))?;
    println!("its cgroups:\n{groups}");
    ensure!(groups.contains("/kubepods/"), "it is in no group of pods");
    let at = groups.lines().find_map(|line| line.split_once(":memory:").or(line.split_once("0::")));
    let (_, at) = at.context("it has a group for memory")?;
    let files = [
        format!("/sys/fs/cgroup{at}/memory.max"),
        format!("/sys/fs/cgroup/memory{at}/memory.limit_in_bytes"),
    ];
    let limit = files.iter().find_map(|file| std::fs::read_to_string(file).ok());
    let limit = limit.context("no limit of memory")?;
    ensure!(limit.trim() == (96 << 20).to_string(), "its memory is limited to {limit}");
    std::fs::remove_file(manifests.join("pod.json"))?;
    eventually("the pod is gone", SOON, || async { Ok((!process.is_running()).then_some(())) }).await?;
    say("the pod is gone");
    node.stop()
}

async fn try_pods(pods: &Pods, say: &impl Fn(&str)) -> Result<()> {
    pods.install(&["nodeDaemon.acceleration=emulation"]).context("installation")?;
    say("the chart's pods are ready");
    println!("{}", pods.cluster().kubectl(["get", "nodes,pods", "-A", "-o", "wide"])?);
    let inside =
        ["exec", "-n", SYSTEM_NAMESPACE, "daemonset/gpudesk-node-daemon", "--", "cat", "/proc/self/cgroup"];
    println!("cgroups of the daemon's pod:\n{}", pods.cluster().kubectl(inside)?);

    let objects = pods.objects("lab").await?;
    objects.template("tiny", &TINY.replace("shutdownGraceSeconds: 5", "shutdownGraceSeconds: 0")).await?;
    objects.desktop("one", "templateRef: {name: tiny}").await?;
    let desktop = objects.is("one", ConditionType::Ready, true, SOON).await?;
    let uid = desktop.uid().context("a desktop has a UID")?;
    let nodes = pods.nodes().await;
    let first = nodes.first().context("a node")?;
    let log = first.outside(&format!("/var/lib/gpudesk/desktops/{uid}/serial.log"));
    eventually("the guest answers", SOON, || async {
        let said = std::fs::read(&log).unwrap_or_default();
        Ok(String::from_utf8_lossy(&said).contains("tiny: ready").then_some(()))
    })
    .await?;
    say("a desktop runs, and its guest has answered");
    let guest = first.guests().into_iter().next().context("a desktop has a process")?;
    println!("cgroups of QEMU:\n{}", std::fs::read_to_string(format!("/proc/{}/cgroup", guest.pid()))?);
    objects.delete("one", SOON).await?;
    ensure!(!guest.is_running(), "the deleted desktop runs");
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
