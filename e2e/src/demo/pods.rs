//! The demo by the chart's own pods, on a Kubernetes node that lasts as long as the demo.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use tokio::net::TcpStream;

use super::{Host, Progress, Real};
use crate::accelerator::accelerator;
use crate::cluster::{Cluster, SYSTEM_NAMESPACE};
use crate::control_plane::forwarder;
use crate::node::{Node, images};
use crate::pods::{Pods, install};
use crate::ports;
use crate::processes::{Lifetime, Process};
use crate::programs::binaries;
use crate::state::StateDir;
use crate::waiting::eventually;

/// The way to the screens of desktops, from this machine into the network of the node.
const RELAY: &str = "relay-forwarder";
/// The port of the relay on the node, which is the chart's own.
const RELAY_PORT: u16 = gpudesk_crds::relay::DEFAULT_PORT;

/// Brings up node, definitions and chart, as far as they are not there, until the pods are ready.
pub(super) async fn up(state: &Arc<StateDir>, image: &Path, progress: Progress) -> Result<Real> {
    // It takes ten seconds where KVM is broken.
    let accelerator = tokio::task::spawn_blocking(accelerator);
    let (cluster, node) = node(state, image, progress).await?;
    cluster.apply_crds()?;
    progress.say("definitions: crds/ applied");
    let relay = relay(state, &node).await?;
    // Another for programs that were built anew: pods of the old ones are replaced.
    let built = built()?.duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
    install(
        &cluster,
        &[
            &format!("operator.podAnnotations.built=at-{built}"),
            &format!("nodeDaemon.podAnnotations.built=at-{built}"),
            "nodeDaemon.relay.hostPort=true",
            &format!("nodeDaemon.relay.announce=127.0.0.1:{relay}"),
        ],
    )
    .with_context(|| pods(&cluster))?;
    progress.say("chart: charts/gpudesk installed, operator and node daemon run as its pods");
    progress.say(&format!("guests will run with {}", accelerator.await?));
    let desktops = node.outside("/var/lib/gpudesk/desktops");
    Ok(Real { cluster, node: node.name(), host: Host::Node(node), desktops })
}

/// What `kubectl get pods` says of the chart's.
pub(super) fn pods(cluster: &Cluster) -> String {
    let listed = cluster.kubectl(["get", "pods", "--output=wide", "--namespace", SYSTEM_NAMESPACE]);
    listed.unwrap_or_else(|error| format!("{error:#}"))
}

/// The node with the images of the programs as they are now.
async fn node(state: &Arc<StateDir>, image: &Path, progress: Progress) -> Result<(Cluster, Node)> {
    let found = Pods::running_in(state).await?;
    let runs = found.is_some();
    let pods = if let Some(pods) = found {
        progress.say("Kubernetes node: runs already");
        pods
    } else {
        // What an interrupted run left half is not worth keeping.
        stop(state)?;
        progress.say(
            "Kubernetes node: etcd, kube-apiserver, kubelet, containerd and others (built once, some minutes), and a \
             libvirt of its own; that of this machine is left alone",
        );
        let started = Pods::start(state, Lifetime::Detached, 1, &[image.to_owned()]).await?;
        progress.say("Kubernetes node: ready");
        started
    };
    let (cluster, mut nodes) = pods.into_parts();
    let node = nodes.pop().context("the demo has a node")?;
    let folder = state.join("images");
    let made = fs::metadata(folder.join("gpudesk-node-daemon.tar")).and_then(|file| file.modified());
    if runs && made.is_ok_and(|made| made < built().unwrap_or(made)) {
        progress.say("images: of the programs that were built anew");
        let archives = images::build(&folder)?;
        node.import(&archives.operator)?;
        node.import(&archives.daemon)?;
    }
    Ok((cluster, node))
}

/// When the later of operator and node daemon was built.
fn built() -> Result<SystemTime> {
    let folder = binaries()?;
    let modified = |name: &str| -> Result<SystemTime> { Ok(fs::metadata(folder.join(name))?.modified()?) };
    Ok(modified("gpudesk-operator")?.max(modified("gpudesk-node-daemon")?))
}

/// The port of 127.0.0.1 that leads to the relay of the node's daemon.
async fn relay(state: &Arc<StateDir>, node: &Node) -> Result<u16> {
    let file = state.join("relay-port");
    if Process::recorded(state, RELAY).is_some() {
        return Ok(fs::read_to_string(file)?.parse()?);
    }
    let port = ports::free()?;
    let process = forwarder(RELAY, &node.network(), port, &format!("{}\\:{RELAY_PORT}", node.address()))
        .start(state, Lifetime::Detached)?;
    eventually("the way to screens is open", Duration::from_secs(20), || async {
        ensure!(process.is_running(), "{}", process.log_tail());
        Ok(TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop))
    })
    .await?;
    fs::write(file, port.to_string())?;
    Ok(port)
}

/// Ends whatever there is of it.
pub(super) fn stop(state: &StateDir) -> Result<()> {
    if let Some(mut process) = Process::recorded(state, RELAY) {
        process.kill()?;
    }
    Pods::stop_recorded(state)
}
